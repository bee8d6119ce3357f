"""One connection to a broker file: opening, checks, transactions, errors and forks."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, TypeVar

from eventsync.errors import BusError, BusUnavailableError

__all__ = ["BrokerFile"]

_T = TypeVar("_T")

# How long SQLite itself waits for a lock before this module waits, in seconds. SQLite's waits grow
# to 0.1 s. Where many processes hold the lock for a millisecond each, that starves some of them.
_SQLITE_WAIT = 0.005
_LONGEST_RETRY_PAUSE = 0.004
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


class BrokerFile:
    """An SQLite connection that threads share; it is opened again after a fork.

    Thread-safe: one transaction at a time. Times are in seconds. Every method raises
    ``BusUnavailableError`` if a retry can help (the file is locked for ``busy_timeout``, the disk
    is full, the file was replaced), and ``BusError`` if not.
    """

    # SQLite keeps the locks of a file in a table of the process. A forked child inherits that table
    # but not the locks. Even a connection that the child opens itself then holds no lock. When the
    # parent closes the file, SQLite deletes the log while the child still uses it, and the child's
    # commits are lost. So every connection is closed before a fork; this set lists them.
    _files: ClassVar[weakref.WeakSet[BrokerFile]] = weakref.WeakSet()
    _fork_lock: ClassVar[threading.RLock] = threading.RLock()

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
        self.path = path
        #: Transactions committed through this object, which ``PRAGMA data_version`` ignores.
        self.commits = 0
        self._application_id = application_id
        self._schema_version = schema_version
        self._create_tables = create_tables
        self._synchronous = synchronous.upper()
        self._busy_timeout = busy_timeout
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._identity: tuple[int, int] | None = None
        self._current_synchronous = ""
        self._closed = False
        with self._fork_lock:
            self._files.add(self)
        with self.connection():
            pass

    # -- use -----------------------------------------------------------------------------------

    @contextmanager
    def transaction(self, *, durable: bool) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock for the block; commit, or roll back if the block raises.

        With ``durable`` false, commits survive the death of this process, but a power failure may
        undo the latest of them.
        """
        with self.connection() as connection:
            self._set_synchronous(connection, self._synchronous if durable else "NORMAL")
            self._wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"))
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back after some errors
                    connection.execute("ROLLBACK")
                raise
            self.commits += 1

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query, with text as bytes."""
        with self.connection() as connection:
            return self._wait_for_lock(lambda: connection.execute(sql, parameters).fetchall())

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Give all queries of the block the same state of the file."""
        with self.connection() as connection:
            self._wait_for_lock(lambda: _begin_reading(connection))
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """Return a value that changes when any connection commits to the file."""
        return self.read("PRAGMA data_version")[0][0], self.commits

    def compact(self, *, quiet: bool) -> bool:
        """Return unused space to the file system, if more than half of the file is unused.

        Each call does a bounded amount of work; return whether more remains. ``quiet``: nobody
        works on the file, so compact it for less unused space, too. Cheap when there is nothing to
        do. Idempotent.
        """
        enough = _UNUSED_PAGES_WHEN_QUIET if quiet else _UNUSED_PAGES_WHEN_BUSY
        with self.connection() as connection:
            unused, total = self._wait_for_lock(lambda: self._pages(connection))
            if unused > enough and unused > total // 2:
                if total - unused <= _FEW_USED_PAGES:
                    # Its cost grows with the used pages; that of the steps below with the unused.
                    self._wait_for_lock(lambda: connection.execute("VACUUM"))
                else:
                    # As a script, because `execute` stops after the first page.
                    script = f"PRAGMA incremental_vacuum({_COMPACT_STEP})"
                    self._wait_for_lock(lambda: connection.executescript(script))
                unused, total = self._pages(connection)
            excess = _file_size(self.path) - total * _PAGE_SIZE
            if quiet and max(excess, _file_size(f"{self.path}-wal")) > _KEPT_BYTES:
                # Has no effect while others read or write; a later call tries again.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return unused > enough and unused > total // 2

    def _pages(self, connection: sqlite3.Connection) -> tuple[int, int]:
        (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
        (total,) = connection.execute("PRAGMA page_count").fetchone()
        return unused, total

    def close(self) -> None:
        """Close the file; any later use raises ``BusError``. Idempotent."""
        with self._lock:
            self._closed = True
            self._disconnect()

    # -- opening -------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Lend the connection to one thread; raise SQLite's errors as errors of the bus."""
        with self._lock:
            try:
                yield self._open()
            except sqlite3.Error as error:
                raise self._bus_error(error) from error

    def _open(self) -> sqlite3.Connection:
        if self._closed:
            raise BusError(f"the connection to the broker file {self.path} is closed")
        if self._identity is not None and self._identity != self._identify():
            self._disconnect()
            raise BusUnavailableError(
                f"the broker file {self.path} was removed or replaced while it was open",
                hint="reconnect; stop all producers and workers before moving the file",
            )
        if self._connection is not None:
            return self._connection
        directory = os.path.dirname(self.path)
        if not os.path.isdir(directory):
            raise BusError(
                f"the directory {directory} of the broker file does not exist or cannot be entered",
                hint="create the directory or correct the broker URL",
            )
        if os.path.isdir(self.path):
            raise BusError(f"{self.path} is a directory", hint="name a file in the broker URL")
        if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
            # Checked before SQLite opens it: SQLite would create files beside it that belong to
            # this user, and the user who may write the broker file could not write those.
            raise self._unwritable("permission denied, or a read-only file system")
        connection = sqlite3.connect(
            self.path, timeout=_SQLITE_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = bytes  # text of other programs need not be UTF-8
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._identity = self._identify()
        self._current_synchronous = ""
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a file of another application before writing to it; prepare a new file."""

        def pragma(setting: str) -> Any:
            return self._wait_for_lock(lambda: connection.execute(f"PRAGMA {setting}").fetchone())

        if self._is_new(connection):
            pragma(f"page_size={_PAGE_SIZE}")
            pragma("auto_vacuum=INCREMENTAL")
        if pragma("journal_mode=WAL") != (b"wal",):
            raise BusError(
                f"the file system of {self.path} does not support SQLite's write-ahead log",
                hint="put the broker file on a local disk",
            )
        pragma("secure_delete=OFF")
        pragma("cache_size=-16000")
        pragma(f"journal_size_limit={_LOG_BYTES}")
        if not self._is_new(connection):
            return
        self._wait_for_lock(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            if self._is_new(connection):  # another process may have created the tables meanwhile
                self._create_tables(connection)
                connection.execute(f"PRAGMA application_id={self._application_id}")
                connection.execute(f"PRAGMA user_version={self._schema_version}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        def read() -> tuple[int, int, list[str]]:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            tables = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' LIMIT 3"
            )
            return application_id, version, [name.decode(errors="replace") for (name,) in tables]

        def read_at_once() -> tuple[int, int, list[str]]:
            if connection.in_transaction:
                return read()
            # Another process may be creating the tables now: see all of its work or none.
            _begin_reading(connection)
            try:
                return read()
            finally:
                connection.execute("ROLLBACK")

        application_id, version, tables = self._wait_for_lock(read_at_once)
        if not (application_id or version or tables):
            return True
        if application_id != self._application_id:
            raise BusError(
                f"{self.path} is a database of another application "
                f"(application id {application_id}, tables {', '.join(tables) or 'none'})",
                hint="name another file in the broker URL; this one was not changed",
            )
        if version != self._schema_version:
            raise BusError(
                f"{self.path} has broker schema {version}, but this version of eventsync expects "
                f"schema {self._schema_version}",
                hint="use the version of eventsync that wrote the file, or drain its queues with "
                "that version first",
            )
        return False

    def _identify(self) -> tuple[int, int]:
        try:
            status = os.stat(self.path)
        except FileNotFoundError:
            return (0, 0)
        return status.st_dev, status.st_ino

    def _set_synchronous(self, connection: sqlite3.Connection, value: str) -> None:
        if self._current_synchronous != value:
            connection.execute(f"PRAGMA synchronous={value}")
            self._current_synchronous = value

    def _disconnect(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- contention and errors -----------------------------------------------------------------

    def _wait_for_lock(self, operation: Callable[[], _T]) -> _T:
        """Repeat ``operation`` while the file is locked, for at most ``busy_timeout`` seconds."""
        deadline = time.monotonic() + self._busy_timeout
        while True:
            try:
                return operation()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(0.0, _LONGEST_RETRY_PAUSE))

    def _bus_error(self, error: sqlite3.Error) -> BusError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        directory = os.path.dirname(self.path)
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
                return BusUnavailableError(
                    f"the broker file {self.path} was locked for {self._busy_timeout:g} s",
                    hint="look for a program that keeps a transaction open on it",
                )
            case sqlite3.SQLITE_FULL:
                return BusUnavailableError(
                    f"the disk of the broker file {self.path} is full; nothing was stored",
                    hint=f"free space on the disk of {directory}, then try again",
                )
            case sqlite3.SQLITE_IOERR:
                return BusUnavailableError(
                    f"reading or writing the broker file {self.path} failed: {error} "
                    f"({getattr(error, 'sqlite_errorname', 'SQLITE_IOERR')})",
                    hint="look for disk errors in the system log",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return self._unwritable(str(error))
            case sqlite3.SQLITE_NOTADB:
                return BusError(
                    f"{self.path} is not an SQLite database",
                    hint="name another file in the broker URL; this one was not changed",
                )
            case sqlite3.SQLITE_CORRUPT:
                return BusError(
                    f"the broker file {self.path} is damaged: {error}",
                    hint="stop all producers and workers, save a copy of the file, and try the "
                    "`.recover` command of sqlite3",
                )
            case _:
                return BusError(f"an operation on the broker file {self.path} failed: {error}")

    def _unwritable(self, why: str) -> BusError:
        return BusError(
            f"the broker file {self.path} cannot be opened for writing: {why}",
            hint="allow this user to write to the file and to its directory, in which SQLite keeps "
            "two more files",
        )

    # -- forks ---------------------------------------------------------------------------------

    @classmethod
    def _before_fork(cls) -> None:
        cls._fork_lock.acquire()
        for file in cls._files:
            file._lock.acquire()  # wait for the transaction of another thread
            file._disconnect()  # both processes open it again at its next use

    @classmethod
    def _after_fork(cls) -> None:
        for file in cls._files:
            file._lock.release()
        cls._fork_lock.release()


def _begin_reading(connection: sqlite3.Connection) -> None:
    """Begin a read transaction on the present state of the file; leave none open on failure."""
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


if hasattr(os, "register_at_fork"):  # absent on platforms that cannot fork
    os.register_at_fork(
        before=BrokerFile._before_fork,
        after_in_parent=BrokerFile._after_fork,
        after_in_child=BrokerFile._after_fork,
    )
