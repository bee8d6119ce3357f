"""The broker file: the SQLite database that all processes of an embedded broker share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventsync.database_file import DatabaseFile
from eventsync.errors import BusError, BusUnavailableError

__all__ = ["BrokerFile"]

_PAGE_SIZE = 8192
# Size to which SQLite truncates its write-ahead log. A smaller log costs the next writer time.
_LOG_BYTES = 16 * 1024 * 1024
# While nobody works on the file, a log larger than this is truncated. The same holds for space at
# the end of the file that no page uses.
_KEPT_BYTES = 4 * 1024 * 1024
# The file is compacted when more than half of its pages, and more than this many, are unused.
_UNUSED_PAGES_WHEN_QUIET = 128
_UNUSED_PAGES_WHEN_BUSY = 2048
_COMPACT_STEP = 1024  # pages
# With at most this many used pages, VACUUM is cheaper than incremental steps.
_FEW_USED_PAGES = 512


class BrokerFile(DatabaseFile):
    """A ``DatabaseFile`` with one connection that all threads share, one transaction at a time.

    It is opened at once. Every method raises ``BusUnavailableError`` when trying again can help
    (locked for ``busy_timeout``, disk full, file replaced), ``BusError`` when it cannot. Text comes
    as bytes, because a stranger's text need not be UTF-8.
    """

    def __init__(
        self,
        path: str,
        *,
        application_id: int,
        schema_version: int,
        create_tables: Callable[[sqlite3.Connection], None],
        synchronous: str,
        busy_timeout: float,
    ) -> None:
        super().__init__(
            path,
            kind="broker file",
            application_id=application_id,
            schema_version=schema_version,
            schema=create_tables,
            unavailable=BusUnavailableError,
            invalid=BusError,
            repair="stop everything, save a copy, and try the `.recover` command of sqlite3",
            timeout=busy_timeout,
            synchronous=synchronous,
            layout=[f"page_size={_PAGE_SIZE}", "auto_vacuum=INCREMENTAL"],
            settings=[
                "secure_delete=OFF",
                "cache_size=-16000",
                f"journal_size_limit={_LOG_BYTES}",
            ],
            shared=True,
            text_as_bytes=True,
        )
        self._commits = 0
        self._closed = False
        with self.connection():
            pass

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock for the block; commit, or roll back if the block raises."""
        with super().transaction(durable=durable) as connection:
            yield connection
        self._commits += 1

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give all queries of the block the same state of the file."""
        with self.connection() as connection:
            self.patiently(lambda: _begin_reading(connection))
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """Return a value that differs once anybody has committed to the file."""
        # SQLite's data_version does not count the commits of this connection.
        return self.read("PRAGMA data_version")[0][0], self._commits

    def compact(self, *, quiet: bool) -> bool:
        """Return unused space to the file system, if more than half of the file is unused.

        Each call does a bounded amount of work; return whether more remains. ``quiet``: nobody
        works on the file, so compact it for less unused space, too. Cheap when there is nothing to
        do. Idempotent.
        """
        enough = _UNUSED_PAGES_WHEN_QUIET if quiet else _UNUSED_PAGES_WHEN_BUSY
        with self.connection() as connection:
            unused, total = self.patiently(lambda: _pages(connection))
            if unused > enough and unused > total // 2:
                if total - unused <= _FEW_USED_PAGES:
                    # VACUUM costs what stays, the steps below cost what goes.
                    self.patiently(lambda: connection.execute("VACUUM"))
                else:
                    # As a script, because `execute` stops after the first page.
                    script = f"PRAGMA incremental_vacuum({_COMPACT_STEP})"
                    self.patiently(lambda: connection.executescript(script))
                unused, total = _pages(connection)
            excess = _file_size(str(self.path)) - total * _PAGE_SIZE
            if quiet and max(excess, _file_size(f"{self.path}-wal")) > _KEPT_BYTES:
                # Has no effect while others read or write; a later call tries again.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return unused > enough and unused > total // 2

    def close(self) -> None:
        """Close; any later use raises ``BusError``. Idempotent."""
        self._closed = True
        super().close()

    def _connection(self, suffix: str) -> Any:
        if self._closed:
            raise BusError(f"the connection to the broker file {self.path} is closed")
        return super()._connection(suffix)


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return how many pages are unused, and how many there are."""
    (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
    (total,) = connection.execute("PRAGMA page_count").fetchone()
    return unused, total


def _begin_reading(connection: sqlite3.Connection) -> None:
    """Begin a transaction that sees the file as it is now; leave none open on failure."""
    connection.execute("BEGIN")
    try:
        # BEGIN alone takes no lock. This query takes it, and fails if another connection has it.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
