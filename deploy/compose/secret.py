"""Creates the passwords and the signing key of the compose deployment, each in a file.

Each argument is a setting with its URL, such as ``store_crm=postgresql://crm:{password}@crm-db/crm``.
The URL with the password is written to ``eventsync_<setting>`` in the volume of eventsync. The
password itself is written into the folder of its server, in the form that the server reads: a hash
in ``<setting>.acl`` for Redis, ``<setting>.conf`` for RabbitMQ, ``<setting>.password`` for other
servers. The folder has the name of the host in the URL, and is a volume that only this server
mounts. Existing passwords and keys are kept.
"""

from __future__ import annotations

import base64
import hashlib
import os
import secrets
import sys
from pathlib import Path
from urllib.parse import urlsplit

FOLDER = Path("/run/secrets")
SERVERS = Path("/secrets")


def main() -> None:
    for argument in sys.argv[1:]:
        setting, _, url = argument.partition("=")
        password = kept(f"password_{setting}", secrets.token_urlsafe(24))
        write(FOLDER / f"eventsync_{setting}", url.format(password=password), mode=0o400)
        parts = urlsplit(url)
        name, content = for_server(setting, parts.scheme, parts.username or "default", password)
        write(SERVERS / str(parts.hostname) / name, content, mode=0o444)
        # Where earlier versions wrote it, every server could read it.
        (FOLDER / name).unlink(missing_ok=True)
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
        write(path, value, mode=0o400)
    return path.read_text(encoding="ascii")


def write(path: Path, content: str, mode: int) -> None:
    """Replace a file. It has its mode before it has its content."""
    new = path.with_name(f".{path.name}")
    new.unlink(missing_ok=True)
    with open(
        os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="ascii"
    ) as f:
        f.write(content)
    new.chmod(mode)
    new.replace(path)


if __name__ == "__main__":
    main()
