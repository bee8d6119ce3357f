"""The base of eventsync's own SQLite files: version index, spool and broker file."""

from __future__ import annotations

import os
import random
import sqlite3
import threading
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, TypeVar

from eventsync.errors import EventSyncError

__all__ = ["DatabaseFile"]

_T = TypeVar("_T")

# How many seconds SQLite itself waits for a lock. SQLite doubles its pauses up to 0.1 s. If many
# processes each write for a millisecond, a process in such a pause could miss every free moment.
# Therefore ``patiently`` does the longer waiting.
_SQLITE_WAIT = 0.005
# The longest pause of ``patiently`` between two attempts, in seconds.
_LONGEST_PAUSE = 0.004
# Held while a file is created, see ``_create_private``.
_creating = threading.Lock()


class _Connection(sqlite3.Connection):
    """A connection that records the process that opened it and the generation of its file.

    ``DatabaseFile.close`` begins a new generation. Connections of older generations are not used.
    """

    process = 0  # id of the process that opened the connection; 0 if it is closed
    generation = 0
    synchronous = ""  # the last value set for the pragma

    def is_usable(self, generation: int) -> bool:
        """Return whether this process opened the connection, in ``generation``, and it is open."""
        return self.generation == generation and self.process == os.getpid()

    def close_in_own_process(self) -> None:
        """Close the connection if this process opened it, else do nothing. Idempotent."""
        if self.process == os.getpid():
            self.process = 0
            self.close()

    def __del__(self) -> None:
        self.close_in_own_process()


class _Uses:
    """Counts the threads that use a database file. A fork waits until this count is 0.

    A thread uses a file within a ``with`` block of this object; blocks may be nested.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads = 0
        self._this_thread = threading.local()
        self._stopping = False
        self._stopped = False

    def __enter__(self) -> None:
        depth: int = getattr(self._this_thread, "depth", 0)
        if not depth:
            with self._changed:
                # Without this, threads that use a file again and again would starve the fork.
                while self._stopping:
                    self._changed.wait()
                self._threads += 1
        self._this_thread.depth = depth + 1

    def __exit__(self, *exc_info: object) -> None:
        self._this_thread.depth -= 1
        if not self._this_thread.depth:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Wait until no other thread uses a file. Then block new uses until ``resume``."""
        self._changed.acquire()
        own = 1 if getattr(self._this_thread, "depth", 0) else 0
        self._stopping = True
        while self._threads > own:
            self._changed.wait()
        self._stopped = True

    def resume(self) -> None:
        """Let other threads use files again.

        Does nothing if ``stop`` was not called: uWSGI, for example, calls only the hook after a
        fork.
        """
        if self._stopped:
            self._stopped = self._stopping = False
            self._changed.notify_all()
            self._changed.release()


class DatabaseFile:
    """An SQLite file in WAL mode that only eventsync writes.

    The first use opens the file. A file of another application or with another schema version is
    refused and left unchanged. Each thread has its own connection, unless ``shared`` is true. All
    connections are closed before a fork; parent and child open new ones at their next use.
    Thread-safe and process-safe on a local disk. Times are in seconds.

    Every method raises the exception class ``unavailable`` if trying again can help: the file is
    locked, the disk is full, or the file was replaced. It raises the class ``invalid`` if a person
    must correct something first.
    """

    # SQLite keeps a table of the file locks of the process. A forked child inherits this table, but
    # not the locks themselves. A connection that the child opens would therefore hold no lock. When
    # the parent closed its last connection, SQLite would delete the write-ahead log that the child
    # still writes, and the commits of the child would be lost. So all connections are closed before
    # a fork.
    _files: ClassVar[weakref.WeakSet[DatabaseFile]] = weakref.WeakSet()
    _uses: ClassVar[_Uses] = _Uses()

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        kind: str,
        application_id: int,
        schema_version: int,
        schema: str | Callable[[sqlite3.Connection], object],
        unavailable: type[EventSyncError],
        invalid: type[EventSyncError],
        repair: str,
        timeout: float,
        synchronous: str = "FULL",
        layout: Sequence[str] = (),
        settings: Sequence[str] = (),
        shared: bool = False,
        text_as_bytes: bool = False,
    ) -> None:
        """Keep the settings; do not open the file yet.

        ``kind``: the name of this kind of file in errors, such as "version index".
        ``application_id`` and ``schema_version``: written into a new file, and required of an
        existing file. ``schema``: creates the tables of a new file; SQL statements separated by
        semicolons, or a function. ``unavailable`` and ``invalid``: the exception classes to raise.
        ``repair``: the hint of the error for a damaged file. ``timeout``: how many seconds to wait
        while another connection locks the file. ``synchronous``: SQLite's pragma of that name, for
        durable transactions. ``layout``: pragmas set once, in a new file. ``settings``: pragmas set
        in each connection. ``shared``: all threads use one connection, one thread at a time.
        ``text_as_bytes``: return text columns as bytes.
        """
        self.path = Path(path)
        self._name = str(self.path)  # kept as a text, because each use needs it
        self._kind = kind
        self._application_id = application_id
        self._schema_version = schema_version
        self._schema = schema
        self._unavailable = unavailable
        self._invalid = invalid
        self._repair = repair
        self._timeout = timeout
        self._synchronous = synchronous.upper()
        self._layout = layout
        self._settings = settings
        self._text_as_bytes = text_as_bytes
        self._turn: AbstractContextManager[Any] = threading.RLock() if shared else nullcontext()
        self._local: Any = SimpleNamespace() if shared else threading.local()
        self._identity: tuple[int, int] | None = None
        self._generation = 0
        self._opened: weakref.WeakSet[_Connection] = weakref.WeakSet()
        with self._uses:
            self._files.add(self)

    def exists(self) -> bool:
        """Return whether the file exists. Raises ``invalid`` if its folder does not."""
        self._check_directory()
        return self.path.exists()

    # -- use ---------------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield this thread's connection; raise the block's SQLite errors as eventsync errors."""
        with self._uses, self._turn:
            try:
                yield self._connection("")
            except sqlite3.Error as error:
                raise self._explained(error) from error

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Run the block in a transaction with the file's write lock.

        Commits at the end of the block, or rolls back if the block raises. Yields the connection.
        ``durable``: wait until the commit is on disk. Otherwise the commit survives a crash of the
        process, but a power failure may undo it.
        """
        with self.connection() as connection:
            self.begin(connection, durable=durable)
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                # False after the commit, and after SQLite itself has rolled back.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def begin(self, connection: sqlite3.Connection, *, durable: bool = True) -> None:
        """Begin a transaction that holds the file's write lock; wait while others hold the lock.

        ``durable``: the commit waits until the data are on disk.
        """
        assert isinstance(connection, _Connection)
        synchronous = self._synchronous if durable else "NORMAL"
        if connection.synchronous != synchronous:
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.synchronous = synchronous
        self.patiently(lambda: connection.execute("BEGIN IMMEDIATE"))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Run one query and return all its rows."""
        with self.connection() as connection:
            return self.patiently(lambda: connection.execute(sql, parameters).fetchall())

    @contextmanager
    def exclusive(self, suffix: str) -> Iterator[None]:
        """Hold an exclusive lock during the block.

        Waits up to ``timeout`` seconds while another thread or process holds the lock, then raises
        ``unavailable``. The lock is on a second file, whose name ends with ``suffix``. The system
        frees the lock when the process dies. Errors that the block raises pass unchanged.
        """
        with self._uses:
            try:
                connection = self._connection(suffix)
                self.patiently(lambda: connection.execute("BEGIN EXCLUSIVE"))
            except sqlite3.Error as error:
                raise self._explained(error) from error
            try:
                yield
            finally:
                if connection.process:
                    connection.rollback()

    def try_lock(self, suffix: str) -> sqlite3.Connection | None:
        """Take the lock of ``exclusive`` without waiting; return ``None`` if somebody holds it.

        The returned connection holds the lock until it is closed or the process dies.
        """
        with self._uses:
            lock = self._open_lock(suffix)
            try:
                lock.execute("BEGIN EXCLUSIVE")
            except sqlite3.OperationalError as error:
                lock.close()
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY:
                    raise self._explained(error) from error
                return None
            return lock

    def patiently(self, operation: Callable[[], _T]) -> _T:
        """Call ``operation`` and return its result; repeat the call while the file is locked.

        Raises SQLite's error if another connection still locks the file after ``timeout`` seconds.
        """
        deadline = time.monotonic() + self._timeout
        while True:
            try:
                return operation()
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY:
                    raise
                if time.monotonic() >= deadline:
                    raise
            time.sleep(random.uniform(0.0, _LONGEST_PAUSE))

    def close(self) -> None:
        """Close the connections of this thread.

        Each other thread closes its connections when it next uses the file. Any later use opens the
        file again. Idempotent.
        """
        with self._uses, self._turn:
            connections = self._local.__dict__.pop("connections", {})
            for connection in connections.values():
                connection.close_in_own_process()
            self._generation += 1
            self._identity = None

    # -- opening -----------------------------------------------------------------------------------

    def _connection(self, suffix: str) -> _Connection:
        """Return this thread's connection, opened if necessary.

        ``suffix``: empty for the database itself, else the suffix of a lock file.
        """
        connections: dict[str, _Connection] = self._local.__dict__.setdefault("connections", {})
        if self._identity is not None and self._identity != self._identify():
            raise self._unavailable(
                f"the {self._kind} {self.path} was removed or replaced while it was open",
                hint="restart this process; stop all programs that use the file before you move it",
            )
        connection = connections.get(suffix)
        if connection is not None and connection.is_usable(self._generation):
            return connection
        if connection is not None:
            del connections[suffix]
            connection.close_in_own_process()
        opened = self._open_lock(suffix) if suffix else self._open()
        connections[suffix] = opened
        self._opened.add(opened)
        return opened

    def _open_lock(self, suffix: str) -> _Connection:
        self._check_directory()
        return self._connect(self.path.with_name(f"{self.path.name}.{suffix}"))

    def _open(self) -> _Connection:
        self._check_directory()
        if self.path.is_dir():
            raise self._invalid(
                f"{self.path} is a directory, not a {self._kind}", hint="give the path of a file"
            )
        if self.path.exists() and not os.access(self.path, os.W_OK):
            # Checked before SQLite opens the file: it would create side files owned by this user,
            # to which the right user could not write.
            raise self._unwritable("permission denied, or a read-only file system")
        connection = self._connect(self.path)
        try:
            self._check(connection)
        except BaseException:
            connection.close()
            raise
        if self._text_as_bytes:
            connection.text_factory = bytes
        self._identity = self._identify()
        return connection

    def _connect(self, path: Path) -> _Connection:
        _create_private(path)
        connection = sqlite3.connect(
            path,
            timeout=min(_SQLITE_WAIT, self._timeout),
            isolation_level=None,
            check_same_thread=False,
            factory=_Connection,
        )
        connection.process = os.getpid()
        connection.generation = self._generation
        return connection

    def _check_directory(self) -> None:
        directory = self.path.parent
        if not directory.is_dir():
            raise self._invalid(
                f"the directory {directory} of the {self._kind} {self.path.name} does not exist or "
                "cannot be entered",
                hint="create the directory, give this user access to it, or correct the path",
            )

    def _check(self, connection: sqlite3.Connection) -> None:
        """Prepare the file: create the tables of a new file, set the pragmas of ``connection``.

        Raises ``invalid``, before anything is written, if the file belongs to another application
        or another version. Several processes may call this for one file at the same time.
        """

        def pragma(setting: str) -> Any:
            return self.patiently(lambda: connection.execute(f"PRAGMA {setting}").fetchone())

        if self._is_new(connection):
            for setting in self._layout:
                pragma(setting)
        if pragma("journal_mode=WAL") != ("wal",):
            raise self._invalid(
                f"the file system of {self.path} does not support SQLite's write-ahead log",
                hint=f"put the {self._kind} on a local disk",
            )
        for setting in self._settings:
            pragma(setting)
        if not self._is_new(connection):
            return
        self.begin(connection)
        try:
            if self._is_new(connection):  # another process may have created the tables meanwhile
                self._create_tables(connection)
                connection.execute(f"PRAGMA application_id={self._application_id}")
                connection.execute(f"PRAGMA user_version={self._schema_version}")
            connection.execute("COMMIT")
        finally:
            if connection.in_transaction:
                connection.execute("ROLLBACK")

    def _create_tables(self, connection: sqlite3.Connection) -> None:
        if callable(self._schema):
            self._schema(connection)
            return
        for statement in self._schema.split(";"):
            connection.execute(statement)

    def _is_new(self, connection: sqlite3.Connection) -> bool:
        """Return whether the file is empty.

        Raises ``invalid`` if the file belongs to another application or has another schema version.
        """

        def read() -> tuple[int, int, list[str]]:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            # Read as bytes, because the names in another application's file need not be UTF-8.
            tables = connection.execute(
                "SELECT CAST(name AS BLOB) FROM sqlite_master WHERE type = 'table' LIMIT 3"
            )
            return application_id, version, [name.decode(errors="replace") for (name,) in tables]

        def read_at_once() -> tuple[int, int, list[str]]:
            if connection.in_transaction:
                return read()
            # In a transaction: while another process creates the tables, see all or none.
            connection.execute("BEGIN")
            try:
                return read()
            finally:
                connection.execute("ROLLBACK")

        application_id, version, tables = self.patiently(read_at_once)
        if not (application_id or version or tables):
            return True
        if application_id != self._application_id:
            raise self._invalid(
                f"{self.path} is a database of another application, not a {self._kind} "
                f"(application id {application_id}, tables {', '.join(tables) or 'none'})",
                hint=f"name another file for the {self._kind}; {self.path} was left unchanged",
            )
        if version > self._schema_version:
            raise self._invalid(
                f"the {self._kind} {self.path} was written by a newer eventsync (schema {version}; "
                f"this eventsync knows schema {self._schema_version})",
                hint="upgrade eventsync on this machine",
            )
        if version < self._schema_version:
            raise self._invalid(
                f"the {self._kind} {self.path} has schema {version}; this eventsync needs schema "
                f"{self._schema_version}",
                hint="open the file with the version of eventsync that wrote it",
            )
        return False

    def _identify(self) -> tuple[int, int]:
        try:
            status = os.stat(self._name)
        except FileNotFoundError:
            return (0, 0)
        return status.st_dev, status.st_ino

    # -- errors ------------------------------------------------------------------------------------

    def _explained(self, error: sqlite3.Error) -> EventSyncError:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        named = f"the {self._kind} {self.path}"
        if "closed database" in str(error):
            return self._unavailable(
                f"{named} was closed in the middle of a transaction",
                hint="do not close the file, and do not fork, inside a transaction",
            )
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return self._unavailable(
                    f"{named} was locked for {self._timeout:g} s",
                    hint="look for a program that keeps a transaction on this file open",
                )
            case sqlite3.SQLITE_FULL:
                return self._unavailable(
                    f"the disk has no room left for {named}; nothing was stored",
                    hint=f"free space on the disk of {self.path.parent}, then try again",
                )
            case sqlite3.SQLITE_IOERR:
                name = getattr(error, "sqlite_errorname", "SQLITE_IOERR")
                return self._unavailable(
                    f"reading or writing {named} failed: {error} ({name})",
                    hint="look at the system log for errors of the disk",
                )
            case sqlite3.SQLITE_READONLY | sqlite3.SQLITE_CANTOPEN | sqlite3.SQLITE_PERM:
                if all(os.access(path, os.W_OK) for path in (self.path, self.path.parent)):
                    # For example, the process has too many files open.
                    return self._unavailable(
                        f"{named} cannot be opened now: {error}",
                        hint="check whether this process has too many files open",
                    )
                return self._unwritable(str(error))
            case sqlite3.SQLITE_NOTADB:
                return self._invalid(
                    f"{self.path} is not an SQLite database, so it is not a {self._kind}",
                    hint=f"name another file for the {self._kind}; {self.path} was left unchanged",
                )
            case sqlite3.SQLITE_CORRUPT:
                return self._invalid(f"{named} is damaged: {error}", hint=self._repair)
            case _:
                return self._invalid(f"{named} cannot be used: {error}", hint=self._repair)

    def _unwritable(self, why: str) -> EventSyncError:
        return self._invalid(
            f"the {self._kind} {self.path} cannot be opened for writing: {why}",
            hint="give this user permission to write to the file and to its directory, where "
            "SQLite keeps two more files",
        )

    # -- forks -------------------------------------------------------------------------------------

    @classmethod
    def _before_fork(cls) -> None:
        cls._uses.stop()
        for file in cls._files:
            for connection in file._opened:
                connection.close_in_own_process()

    @classmethod
    def _after_fork(cls) -> None:
        cls._uses.resume()


if hasattr(os, "register_at_fork"):  # missing on Windows, which has no fork
    os.register_at_fork(
        before=DatabaseFile._before_fork,
        after_in_parent=DatabaseFile._after_fork,
        after_in_child=DatabaseFile._after_fork,
    )


def _create_private(path: Path) -> None:
    """Create an empty file that only this user can read, unless there is a file at ``path``.

    SQLite itself creates a file readable for everybody. It gives its side files the permissions of
    the file. The lock keeps other threads from opening the file until it is closed here, because
    closing a file releases all locks of this process on it.
    """
    with _creating:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR | os.O_CLOEXEC, 0o600))
        except OSError:
            return  # the file exists, or SQLite will report why it cannot be created
