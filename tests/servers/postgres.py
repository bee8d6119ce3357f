"""A PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
from collections.abc import Sequence
from pathlib import Path

from servers import Server, program

__all__ = ["PostgresServer"]

_PLACES = ("/usr/lib/postgresql/17/bin", "/usr/lib/postgresql/15/bin")


class PostgresServer(Server):
    """PostgreSQL with the superuser ``eventsync`` and the database ``test``.

    ``durable``: wait for the disk at each commit, as by default. Without it, commits survive a kill
    but not a power failure. ``options``: settings of the server, for example ``wal_level=logical``.
    """

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.durable = durable
        self.options = options

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://eventsync@127.0.0.1:{self.port}/test"

    def user(self) -> str | None:
        return "postgres" if os.getuid() == 0 else None  # it refuses to run as root

    def _run(self, name: str, *arguments: str, input: bytes | None = None) -> None:
        subprocess.run(
            [program(name, *_PLACES), *arguments],
            check=True,
            input=input,
            stdout=subprocess.DEVNULL,
            user=self.user(),
            cwd=self.folder,
        )

    def prepare(self) -> None:
        if self.user():
            shutil.chown(self.folder, "postgres")
        self._run(
            "initdb", "--no-sync", "-D", str(self.folder / "data"), "-U", "eventsync", "-A", "trust"
        )

    def run_sql(self, script: Path) -> None:
        """Run an SQL script in the database ``test``."""
        self._run(
            "psql", self.url.replace("+psycopg", ""), "-qX", "-v", "ON_ERROR_STOP=1",
            input=script.read_bytes(),
        )  # fmt: skip

    def command(self) -> list[str]:
        return [
            program("postgres", *_PLACES),
            *("-D", str(self.folder / "data"), "-p", str(self.port), "-h", "127.0.0.1"),
            *("-k", str(self.folder)),
            *([] if self.durable else ["-c", "fsync=off", "-c", "full_page_writes=off"]),
            *(part for option in self.options for part in ("-c", option)),
        ]

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        made = subprocess.run(
            [
                *(program("psql", *_PLACES), "-h", "127.0.0.1", "-p", str(self.port)),
                *("-U", "eventsync", "-d", "postgres", "-tAc"),
                "SELECT 1 FROM pg_database WHERE datname = 'test'",
            ],
            capture_output=True,
            check=False,
        )
        if made.returncode == 0 and not made.stdout.strip():
            self._run(
                "createdb", "-h", "127.0.0.1", "-p", str(self.port), "-U", "eventsync", "test"
            )
        return made.returncode == 0
