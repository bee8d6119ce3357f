"""A MariaDB server."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence

import pymysql

from servers import Server, program

__all__ = ["MariaServer"]


_QUICK = (
    "--innodb-flush-log-at-trx-commit=2",
    "--innodb-flush-method=nosync",
    "--skip-innodb-doublewrite",
)


class MariaServer(Server):
    """MariaDB with the user ``root``, who has no password, and the database ``test``.

    ``durable``: wait for the disk at each commit, as by default. Without it, commits survive a kill
    but not a power failure. ``options``: further options of the server's command line.
    """

    def __init__(self, *, durable: bool = False, options: Sequence[str] = ()) -> None:
        super().__init__()
        self.durable = durable
        self.options = options

    @property
    def url(self) -> str:
        # With TLS, PyMySQL would read all certificates of the system for each connection.
        return f"mariadb+pymysql://root@127.0.0.1:{self.port}/test?ssl_disabled=true"

    def user(self) -> str | None:
        return "mysql" if os.getuid() == 0 else None  # it refuses to run as root

    def prepare(self) -> None:
        if self.user():
            shutil.chown(self.folder, "mysql")
        subprocess.run(
            [
                program("mariadb-install-db", "/usr/bin"),
                *("--no-defaults", f"--datadir={self.folder / 'data'}", "--skip-test-db"),
                *("--auth-root-authentication-method=normal",),
                *([f"--user={self.user()}"] if self.user() else []),
            ],
            check=True,
            stdout=subprocess.DEVNULL,
            cwd=self.folder,
        )

    def command(self) -> list[str]:
        return [
            program("mariadbd", "/usr/sbin"),
            *("--no-defaults", f"--datadir={self.folder / 'data'}", f"--port={self.port}"),
            *("--bind-address=127.0.0.1", f"--socket={self.folder / 'mariadb.sock'}"),
            f"--pid-file={self.folder / 'mariadb.pid'}",
            # A server that starts deletes the temporary tables of others in the same folder.
            f"--tmpdir={self.folder}",
            *([] if self.durable else _QUICK),
            *self.options,
        ]

    def is_ready(self) -> bool:
        try:
            connection = pymysql.connect(
                host="127.0.0.1", port=self.port, user="root", ssl_disabled=True
            )
        except pymysql.err.OperationalError:
            return False
        with connection, connection.cursor() as cursor:
            cursor.execute("CREATE DATABASE IF NOT EXISTS test CHARACTER SET utf8mb4")
        return True
