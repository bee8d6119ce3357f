"""Makes the passwords and the signing key of the compose deployment: once, each in a file.

Arguments: a setting and its URL each, as ``store_crm=postgresql://crm:{password}@crm-db/crm``. The
URL goes into ``eventsync_<setting>``, for eventsync alone, and the password beside it in the form
in which its server reads it: ``<setting>.acl`` for Redis, which holds a hash only,
``<setting>.conf`` for RabbitMQ, ``<setting>.password`` for others. What is there stays, so the
passwords are as old as the volume.
"""

from __future__ import annotations

import base64
import hashlib
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = Path("/run/secrets")


def main() -> None:
    for argument in sys.argv[1:]:
        setting, _, url = argument.partition("=")
        password = kept(f"password_{setting}", secrets.token_urlsafe(24))
        write(f"eventsync_{setting}", url.format(password=password), mode=0o400)
        parts = urlsplit(url)
        write(*for_server(setting, parts.scheme, parts.username or "default", password))
    kept("eventsync_keys", "k1:" + base64.b64encode(secrets.token_bytes(32)).decode())
    print(f"secrets are in {FOLDER}: {', '.join(sorted(path.name for path in FOLDER.iterdir()))}")


def for_server(setting: str, scheme: str, user: str, password: str) -> tuple[str, str]:
    """The name and the content of the file from which a server learns its password."""
    if scheme.startswith("redis"):
        digest = hashlib.sha256(password.encode()).hexdigest()
        # The default user keeps all rights: as that user Redis reads its own log when it starts,
        # and what the user may not do is left out of the data. Others may ask whether it lives.
        ours = f"user {user} on #{digest} ~* &* +@all"
        return f"{setting}.acl", f"{ours}\nuser health on nopass -@all +ping\n"
    if scheme.startswith("amqp"):
        return f"{setting}.conf", f"default_user = {user}\ndefault_pass = {password}\n"
    return f"{setting}.password", password


def kept(name: str, value: str) -> str:
    """What the file holds, after it was made with ``value`` if it was not there."""
    path = FOLDER / name
    if not path.exists():
        write(name, value, mode=0o400)
    return path.read_text(encoding="ascii")


def write(name: str, content: str, mode: int = 0o444) -> None:
    new = FOLDER / f".{name}"
    new.unlink(missing_ok=True)
    new.write_text(content, encoding="ascii")
    new.chmod(mode)
    new.replace(FOLDER / name)


if __name__ == "__main__":
    main()
