"""Owns one connection to a broker file: opening and checking it, transactions, errors, forks.

It must not know what the tables are for.
"""

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

# How long SQLite itself waits for a lock before we do, in seconds. Its own waits grow to 0.1 s,
# which starves the unlucky when many processes take turns of a millisecond.
_SQLITE_WAIT = 0.005
_LONGEST_RETRY_PAUSE = 0.004
_PAGE_SIZE = 8192
# What the log may keep on the disk between two uses: cutting it shorter costs the next writer.
_LOG_BYTES = 16 * 1024 * 1024
# What it, and the file beyond its pages, may keep while nobody works on the file.
_KEPT_BYTES = 4 * 1024 * 1024
# So many unused pages, if they are most of the file, are worth compacting; in steps of so many.
_WORTH_COMPACTING = 128
_WORTH_DISTURBING = 2048
_COMPACT_STEP = 1024
_FEW_PAGES = 512


class BrokerFile:
    """One SQLite connection, opened on first use, that threads share and forks survive.

    Thread-safe: one transaction at a time. Times in seconds. Every method raises
    BusUnavailableError when trying again can help (locked for ``busy_timeout``, disk full,
    file replaced), BusError when it cannot.
    """

    # SQLite keeps the locks of a file in a table of the process. A child of a fork inherits that
    # table but not the locks, so even a connection that it opens itself would go without: once
    # the parent closes, the file's log is deleted under the child, and what the child commits is
    # lost. So every connection is closed before a fork, and for that all have to be known.
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
        #: Grows with every transaction through this object, as ``data_version`` does not.
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

        ``durable`` False leaves the commit to the operating system: it survives the death of this
        process, but the last of them may be undone by a power failure.
        """
        with self.connection() as connection:
            self._set_synchronous(connection, self._synchronous if durable else "NORMAL")
            self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
            try:
                yield connection
                connection.execute("COMMIT")
            except BaseException:
                if connection.in_transaction:  # SQLite itself rolls back after some errors
                    connection.execute("ROLLBACK")
                raise
            self.commits += 1

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query; text comes as bytes."""
        with self.connection() as connection:
            return self._patiently(lambda: connection.execute(sql, parameters).fetchall())

    @contextmanager
    def snapshot(self) -> Iterator[sqlite3.Connection]:
        """Let several queries of the block see one state of the file."""
        with self.connection() as connection:
            self._patiently(lambda: _begin_reading(connection))
            try:
                yield connection
            finally:
                connection.execute("ROLLBACK")

    def version(self) -> tuple[int, int]:
        """Return a value that differs once anybody has committed to the file."""
        return self.read("PRAGMA data_version")[0][0], self.commits

    def compact(self, *, quiet: bool) -> bool:
        """Give unused space back to the file system once it is most of the file; a bounded step.

        ``quiet`` says that nobody is working on the file: then less is worth the effort. Returns
        whether there is more to do. Cheap when there is nothing to do. Idempotent.
        """
        worth = _WORTH_COMPACTING if quiet else _WORTH_DISTURBING
        with self.connection() as connection:
            unused, total = self._patiently(lambda: self._pages(connection))
            if unused > worth and unused > total // 2:
                if total - unused <= _FEW_PAGES:
                    # Costs what is left, where the steps below cost what goes.
                    self._patiently(lambda: connection.execute("VACUUM"))
                else:
                    # As a script: `execute` would stop after the first page.
                    script = f"PRAGMA incremental_vacuum({_COMPACT_STEP})"
                    self._patiently(lambda: connection.executescript(script))
                unused, total = self._pages(connection)
            excess = _file_size(self.path) - total * _PAGE_SIZE
            if quiet and max(excess, _file_size(f"{self.path}-wal")) > _KEPT_BYTES:
                # Does nothing while others read or write; there is always a next time.
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
            return unused > worth and unused > total // 2

    def _pages(self, connection: sqlite3.Connection) -> tuple[int, int]:
        (unused,) = connection.execute("PRAGMA freelist_count").fetchone()
        (total,) = connection.execute("PRAGMA page_count").fetchone()
        return unused, total

    def close(self) -> None:
        """Close; any later use raises BusError. Idempotent."""
        with self._lock:
            self._closed = True
            self._let_go()

    # -- opening -------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Have the connection to oneself, with errors as errors of the bus."""
        with self._lock:
            try:
                yield self._opened()
            except sqlite3.Error as error:
                raise self._explained(error) from error

    def _opened(self) -> sqlite3.Connection:
        if self._closed:
            raise BusError(f"the connection to the broker file {self.path} is closed")
        if self._identity is not None and self._identity != self._identify():
            self._let_go()
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
                hint="create it or correct the broker URL",
            )
        if os.path.isdir(self.path):
            raise BusError(f"{self.path} is a directory", hint="name a file in the broker URL")
        if os.path.exists(self.path) and not os.access(self.path, os.W_OK):
            # Before SQLite looks: it would leave files that the right user cannot write either.
            raise self._unwritable("permission denied, or a read-only file system")
        connection = sqlite3.connect(
            self.path, timeout=_SQLITE_WAIT, isolation_level=None, check_same_thread=False
        )
        try:
            connection.text_factory = bytes  # a stranger's text need not be UTF-8
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        self._connection = connection
        self._identity = self._identify()
        self._current_synchronous = ""
        return connection

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse what is not ours before writing to it; make the tables of a new file."""

        def pragma(setting: str) -> Any:
            return self._patiently(lambda: connection.execute(f"PRAGMA {setting}").fetchone())

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
        self._patiently(lambda: connection.execute("BEGIN IMMEDIATE"))
        try:
            if self._is_new(connection):  # another process may have been faster
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
            # Another process may just be making the tables: see all of that or nothing.
            _begin_reading(connection)
            try:
                return read()
            finally:
                connection.execute("ROLLBACK")

        application_id, version, tables = self._patiently(read_at_once)
        if not (application_id or version or tables):
            return True
        if application_id != self._application_id:
            raise BusError(
                f"{self.path} is a database of another application "
                f"(application id {application_id}, tables {', '.join(tables) or 'none'})",
                hint="name another file in the broker URL; this one was not touched",
            )
        if version != self._schema_version:
            raise BusError(
                f"{self.path} has broker schema {version}, this eventsync knows "
                f"{self._schema_version}",
                hint="use the eventsync that wrote it, or drain the file with that first",
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

    def _let_go(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    # -- contention and errors -----------------------------------------------------------------

    def _patiently(self, operation: Callable[[], _T]) -> _T:
        """Try until the file is not locked by another connection, for ``busy_timeout`` seconds."""
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

    def _explained(self, error: sqlite3.Error) -> BusError:
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
                    f"no room left for the broker file {self.path}; nothing was stored",
                    hint=f"free space on the disk of {directory}, then try again",
                )
            case sqlite3.SQLITE_IOERR:
                return BusUnavailableError(
                    f"reading or writing the broker file {self.path} failed: {error} "
                    f"({getattr(error, 'sqlite_errorname', 'SQLITE_IOERR')})",
                    hint="look at the system log for errors of the disk",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                return self._unwritable(str(error))
            case sqlite3.SQLITE_NOTADB:
                return BusError(
                    f"{self.path} is not an SQLite database",
                    hint="name another file in the broker URL; this one was not touched",
                )
            case sqlite3.SQLITE_CORRUPT:
                return BusError(
                    f"the broker file {self.path} is damaged: {error}",
                    hint="stop everything, save a copy, and try the `.recover` command of sqlite3",
                )
            case _:
                return BusError(f"the broker file {self.path}: {error}")

    def _unwritable(self, why: str) -> BusError:
        return BusError(
            f"the broker file {self.path} cannot be opened for writing: {why}",
            hint="this user needs to write to it and to its directory, where SQLite keeps two "
            "more files",
        )

    # -- forks ---------------------------------------------------------------------------------

    @classmethod
    def _before_fork(cls) -> None:
        cls._fork_lock.acquire()
        for file in cls._files:
            file._lock.acquire()  # wait for the transaction of another thread
            file._let_go()  # opened again on the next use, in both processes

    @classmethod
    def _after_fork(cls) -> None:
        for file in cls._files:
            file._lock.release()
        cls._fork_lock.release()


def _begin_reading(connection: sqlite3.Connection) -> None:
    """Begin a transaction and have it see the file as it is now; leave none open on failure."""
    connection.execute("BEGIN")
    try:
        # BEGIN alone takes no lock; this does, and is where another connection may be in the way.
        connection.execute("SELECT 1 FROM sqlite_master LIMIT 1").fetchall()
    except BaseException:
        connection.execute("ROLLBACK")
        raise


def _file_size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except FileNotFoundError:
        return 0


if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(
        before=BrokerFile._before_fork,
        after_in_parent=BrokerFile._after_fork,
        after_in_child=BrokerFile._after_fork,
    )
