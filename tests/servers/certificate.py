"""Certificates for test servers with TLS."""

from __future__ import annotations

import subprocess
from pathlib import Path

from servers import program

__all__ = ["self_signed"]


def self_signed(folder: Path) -> tuple[Path, Path]:
    """Create a self-signed certificate for ``localhost``; return the files of it and of its key."""
    certificate, key = folder / "cert.pem", folder / "key.pem"
    subprocess.run(
        [
            *(program("openssl"), "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2"),
            *("-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"),
            *("-keyout", str(key), "-out", str(certificate)),
        ],
        check=True,
        capture_output=True,
    )
    key.chmod(0o644)  # so that a server can read it as another user
    return certificate, key
