"""PgBouncer in front of a PostgreSQL server."""

from __future__ import annotations

import os
import shutil
import socket

from servers import Server, program
from servers.postgres import PostgresServer

__all__ = ["PgBouncer"]


class PgBouncer(Server):
    """A pooler in transaction mode, with ``sessions`` server sessions for all of its clients."""

    def __init__(self, postgres: PostgresServer, *, sessions: int = 2) -> None:
        super().__init__()
        self.postgres = postgres
        self.sessions = sessions

    @property
    def url(self) -> str:
        return f"postgresql+psycopg://eventsync@127.0.0.1:{self.port}/test"

    def user(self) -> str | None:
        return "postgres" if os.getuid() == 0 else None  # it refuses to run as root

    def prepare(self) -> None:
        if self.user():
            shutil.chown(self.folder, "postgres")
        (self.folder / "users.txt").write_text('"eventsync" ""\n')
        (self.folder / "pgbouncer.ini").write_text(
            "[databases]\n"
            f"test = host=127.0.0.1 port={self.postgres.port} dbname=test\n"
            "[pgbouncer]\n"
            f"listen_addr = 127.0.0.1\nlisten_port = {self.port}\nunix_socket_dir =\n"
            f"auth_type = trust\nauth_file = {self.folder / 'users.txt'}\n"
            f"pool_mode = transaction\ndefault_pool_size = {self.sessions}\n"
        )

    def command(self) -> list[str]:
        return [program("pgbouncer", "/usr/sbin"), str(self.folder / "pgbouncer.ini")]

    def is_ready(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True
