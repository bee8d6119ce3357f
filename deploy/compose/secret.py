"""Creates the passwords and the signing key of the compose deployment, each in a file.

Each argument is a setting with its URL, such as ``store_crm=postgresql://crm:{password}@crm-db/crm``.
The URL with the password is written to ``eventsync_<setting>``, which only eventsync can read. The
password itself is written in the form that its server reads: a hash in ``<setting>.acl`` for Redis,
``<setting>.conf`` for RabbitMQ, ``<setting>.password`` for other servers. Existing passwords and
keys are kept.
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
    """Return the name and the content of the file from which a server reads its password."""
    if scheme.startswith("redis"):
        digest = hashlib.sha256(password.encode()).hexdigest()
        # The default user keeps all rights: Redis replays its own log as that user when it starts,
        # and leaves out what the user may not do. The user ``health`` may only send PING.
        ours = f"user {user} on #{digest} ~* &* +@all"
        return f"{setting}.acl", f"{ours}\nuser health on nopass -@all +ping\n"
    if scheme.startswith("amqp"):
        return f"{setting}.conf", f"default_user = {user}\ndefault_pass = {password}\n"
    return f"{setting}.password", password


def kept(name: str, value: str) -> str:
    """Write ``value`` to the file if it does not exist; return the content of the file."""
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
