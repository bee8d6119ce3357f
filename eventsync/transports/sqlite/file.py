"""The broker file: the SQLite database that all processes of an embedded broker share."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from eventsync.database_file import DatabaseFile
from eventsync.errors import BusConfigError, BusError, BusUnavailableError

__all__ = ["BrokerFile"]

_PAGE_SIZE = 8192
# The size to which SQLite truncates its write-ahead log. With a smaller log, the next writer would
# have to extend the log again.
_LOG_BYTES = 16 * 1024 * 1024
# While nobody works on the file, a log larger than this is truncated. Unused space at the end of
# the file is cut off if it is larger than this.
_KEPT_BYTES = 4 * 1024 * 1024
# The file is compacted when more than this number of pages, and more than half of all, are unused.
_UNUSED_PAGES_WHEN_QUIET = 128
_UNUSED_PAGES_WHEN_BUSY = 2048
_COMPACT_STEP = 1024  # pages
# Up to this number of used pages, VACUUM is cheaper than incremental steps.
_FEW_USED_PAGES = 512


class BrokerFile(DatabaseFile):
    """A ``DatabaseFile`` for queues. All threads share one connection, one transaction at a time.

    The constructor opens the file. Every method raises ``BusUnavailableError`` if trying again can
    help: the file was locked for ``busy_timeout`` seconds, the disk is full, or the file was
    replaced. Else it raises ``BusError``. Text columns are returned as bytes, because other
    programs may have written text that is not UTF-8.
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
            invalid=BusConfigError,
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
        """Run the block in a transaction with the file's write lock.

        Commits at the end of the block, or rolls back if the block raises. ``durable``: wait until
        the commit is on disk; otherwise a power failure may undo it.
        """
        with super().transaction(durable=durable) as connection:
            yield connection
        self._commits += 1

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Run the block in a read transaction, so that all its queries see the same state."""
        with self.connection() as connection:
            self.patiently(lambda: _begin_reading(connection))
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """Return a value that changes with each commit to the file by any process."""
        # SQLite's data_version does not count the commits of this connection.
        return self.read("PRAGMA data_version")[0][0], self._commits

    def compact(self, *, quiet: bool) -> bool:
        """Return unused space to the file system; return whether more remains to be done.

        Compacts the file if more than half of it is unused. Each call does a bounded amount of
        work. ``quiet``: nobody works on the file, so also compact a file with little unused space,
        and truncate a large write-ahead log. Cheap if there is nothing to do. Idempotent.
        """
        enough = _UNUSED_PAGES_WHEN_QUIET if quiet else _UNUSED_PAGES_WHEN_BUSY
        with self.connection() as connection:
            unused, total = self.patiently(lambda: _pages(connection))
            if unused > enough and unused > total // 2:
                if total - unused <= _FEW_USED_PAGES:
                    # The cost of VACUUM grows with the used pages, that of the steps below with the
                    # unused pages.
                    self.patiently(lambda: connection.execute("VACUUM"))
                else:
                    # Run as a script, because `execute` would stop after the first page.
                    script = f"PRAGMA incremental_vacuum({_COMPACT_STEP})"
                    self.patiently(lambda: connection.executescript(script))
                unused, total = _pages(connection)
            excess = _file_size(str(self.path)) - total * _PAGE_SIZE
            if quiet and max(excess, _file_size(f"{self.path}-wal")) > _KEPT_BYTES:
                # Has no effect while another connection reads or writes; a later call tries again.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return unused > enough and unused > total // 2

    def close(self) -> None:
        """Close the file for good: any later use raises ``BusError``. Idempotent."""
        self._closed = True
        super().close()

    def _connection(self, suffix: str) -> Any:
        if self._closed:
            raise BusError(
                f"the connection to the broker file {self.path} is closed",
                hint="open a new connection",
            )
        return super()._connection(suffix)


def _pages(connection: sqlite3.Connection) -> tuple[int, int]:
    """Return the number of unused pages and the number of all pages of the file."""
    (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
    (total,) = connection.execute("PRAGMA page_count").fetchone()
    return unused, total


def _begin_reading(connection: sqlite3.Connection) -> None:
    """Begin a read transaction. If this fails, no transaction stays open."""
    connection.execute("BEGIN")
    try:
        # BEGIN alone takes no lock. This query takes a read lock, or fails if that is not possible.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0
