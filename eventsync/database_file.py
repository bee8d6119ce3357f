"""A small SQLite database that eventsync keeps for itself: version index, spool, broker file."""

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

# How many seconds SQLite itself waits for a lock. It doubles its pauses up to 0.1 s, so among many
# processes that write for a millisecond each, an unlucky one would starve. We wait beyond this.
_SQLITE_WAIT = 0.005
_LONGEST_PAUSE = 0.004


class _Connection(sqlite3.Connection):
    """A connection that knows which process opened it, and since which ``close`` of its file."""

    process = 0  # that opened it; 0 once it is closed
    generation = 0
    synchronous = ""

    def is_usable(self, generation: int) -> bool:
        """Return whether it is open, of this process and of that generation."""
        return self.generation == generation and self.process == os.getpid()

    def close_in_own_process(self) -> None:
        """Close, unless a parent process opened it. Idempotent."""
        if self.process == os.getpid():
            self.process = 0
            self.close()

    def __del__(self) -> None:
        self.close_in_own_process()


class _Uses:
    """Counts the threads that use a database file, and makes a fork wait until none does."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._threads = 0
        self._this_thread = threading.local()
        self._stopped = False

    def __enter__(self) -> None:
        depth: int = getattr(self._this_thread, "depth", 0)
        if not depth:
            with self._changed:
                self._threads += 1
        self._this_thread.depth = depth + 1

    def __exit__(self, *exc_info: object) -> None:
        self._this_thread.depth -= 1
        if not self._this_thread.depth:
            with self._changed:
                self._threads -= 1
                self._changed.notify_all()

    def stop(self) -> None:
        """Wait until no other thread uses a file, then let none begin before ``resume``."""
        self._changed.acquire()
        own = 1 if getattr(self._this_thread, "depth", 0) else 0
        while self._threads > own:
            self._changed.wait()
        self._stopped = True

    def resume(self) -> None:
        """Let other threads use files again. Does nothing without ``stop``, as in uWSGI's forks."""
        if self._stopped:
            self._stopped = False
            self._changed.release()


class DatabaseFile:
    """An SQLite file in WAL mode that only eventsync writes.

    It is opened on first use, and checked: a file of another application or of a newer eventsync is
    refused and left unchanged. Each thread has a connection of its own. All connections are closed
    before a fork and opened again on the next use, in both processes. Thread-safe and process-safe
    on a local disk. Times are in seconds.

    Raises ``unavailable`` when trying again can help: the file is locked, the disk is full, the
    file was replaced. Raises ``invalid`` when somebody has to correct something first.
    """

    # SQLite keeps the locks of a file in a table of the process. A forked child inherits that table
    # but not the locks, so even a connection that the child opens itself would hold no lock. Once
    # the parent closed its own, SQLite would delete the write-ahead log under the child, and what
    # the child commits would be lost. So all connections are closed before a fork.
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
        """Set what differs between kinds of files; nothing is opened yet.

        ``kind`` names the file in errors ("version index"). ``schema`` makes the tables of a new
        file: statements that end with semicolons, or a function. ``repair`` says in errors what to
        do with a damaged file. ``timeout``: how long to wait for another writer. ``layout``:
        pragmas of a new file; ``settings``: pragmas of each connection. ``shared``: all threads use
        one connection in turn. ``text_as_bytes``: return text columns undecoded.
        """
        self.path = Path(path)
        self._name = str(self.path)  # looked at on each use
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

    # -- use ---------------------------------------------------------------------------------------

    @contextmanager
    def connection(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection of this thread; raise the block's SQLite errors as eventsync's."""
        with self._uses, self._turn:
            try:
                yield self._connection("")
            except sqlite3.Error as error:
                raise self._explained(error) from error

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Connection]:
        """Hold the file's write lock for the block; commit, or roll back if the block raises.

        With ``durable`` false the operating system writes to the disk when it likes. Such a commit
        survives the death of the process, but a power failure may undo the last of them.
        """
        with self.connection() as connection:
            self.begin(connection, durable=durable)
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                # Not after the commit, nor where SQLite itself has rolled back.
                if connection.in_transaction:
                    connection.execute("ROLLBACK")

    def begin(self, connection: sqlite3.Connection, *, durable: bool = True) -> None:
        """Begin a transaction with the file's write lock; wait for other writers."""
        assert isinstance(connection, _Connection)
        synchronous = self._synchronous if durable else "NORMAL"
        if connection.synchronous != synchronous:
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.synchronous = synchronous
        self.patiently(lambda: connection.execute("BEGIN IMMEDIATE"))

    def read(self, sql: str, parameters: Sequence[Any] = ()) -> list[Any]:
        """Return the rows of one query."""
        with self.connection() as connection:
            return self.patiently(lambda: connection.execute(sql, parameters).fetchall())

    @contextmanager
    def exclusive(self, suffix: str) -> Iterator[None]:
        """Hold a lock for the block that only one thread of one process can hold.

        The lock is a second file, named with ``suffix``. The operating system frees it when the
        process dies. The block's own errors pass unchanged.
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
        """Return a lock, held until it is closed or the process dies; ``None`` if it is taken.

        The lock is a second file, as for ``exclusive``.
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
        """Call ``operation`` until no other connection locks the file, at most ``timeout``."""
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
        """Close this thread's connections, and those of other threads at their next use.

        Idempotent. A later use opens the file again.
        """
        with self._uses, self._turn:
            connections = self._local.__dict__.pop("connections", {})
            for connection in connections.values():
                connection.close_in_own_process()
            self._generation += 1
            self._identity = None

    # -- opening -----------------------------------------------------------------------------------

    def _connection(self, suffix: str) -> _Connection:
        """Return this thread's connection to the file, or to the lock file of that suffix."""
        connections: dict[str, _Connection] = self._local.__dict__.setdefault("connections", {})
        if self._identity is not None and self._identity != self._identify():
            raise self._unavailable(
                f"the {self._kind} {self.path} was removed or replaced while it was open",
                hint="restart this process; stop all that use the file before you move it",
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
                f"{self.path} is a directory, not a {self._kind}", hint="name a file"
            )
        if self.path.exists() and not os.access(self.path, os.W_OK):
            # Before SQLite looks: it would leave files that the right user cannot write either.
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
                hint="create it, or correct the path",
            )

    def _check(self, connection: sqlite3.Connection) -> None:
        """Refuse a file that is not ours before anything is written; make the tables of a new one.

        Several processes may do this at once.
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
            if self._is_new(connection):  # another process may have been faster
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
        """Return whether the file is empty. Raise if it is not, and not of this kind."""

        def read() -> tuple[int, int, list[str]]:
            (application_id,) = connection.execute("PRAGMA application_id").fetchone()
            (version,) = connection.execute("PRAGMA user_version").fetchone()
            # As bytes: another application's names need not be UTF-8.
            tables = connection.execute(
                "SELECT CAST(name AS BLOB) FROM sqlite_master WHERE type = 'table' LIMIT 3"
            )
            return application_id, version, [name.decode(errors="replace") for (name,) in tables]

        def read_at_once() -> tuple[int, int, list[str]]:
            if connection.in_transaction:
                return read()
            # Another process may just be making the tables: see all of that or nothing.
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
                hint=f"name another file for the {self._kind}; this one was left unchanged",
            )
        if version > self._schema_version:
            raise self._invalid(
                f"the {self._kind} {self.path} was written by a newer eventsync (schema {version}; "
                f"this one knows {self._schema_version})",
                hint="upgrade eventsync on this machine",
            )
        if version < self._schema_version:
            raise self._invalid(
                f"the {self._kind} {self.path} has schema {version}; this eventsync needs schema "
                f"{self._schema_version}",
                hint="open it with the eventsync that wrote it",
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
                hint="do not close it, and do not fork, inside a transaction",
            )
        match code:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED | sqlite3.SQLITE_PROTOCOL:
                return self._unavailable(
                    f"{named} was locked for {self._timeout:g} s",
                    hint="look for a program that keeps a transaction open on it",
                )
            case sqlite3.SQLITE_FULL:
                return self._unavailable(
                    f"no room left for {named}; nothing was stored",
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
                    # As when the process has too many files open.
                    return self._unavailable(f"{named} cannot be opened now: {error}")
                return self._unwritable(str(error))
            case sqlite3.SQLITE_NOTADB:
                return self._invalid(
                    f"{self.path} is not an SQLite database, so it is not a {self._kind}",
                    hint=f"name another file for the {self._kind}; this one was left unchanged",
                )
            case sqlite3.SQLITE_CORRUPT:
                return self._invalid(f"{named} is damaged: {error}", hint=self._repair)
            case _:
                return self._invalid(f"{named} cannot be used: {error}", hint=self._repair)

    def _unwritable(self, why: str) -> EventSyncError:
        return self._invalid(
            f"the {self._kind} {self.path} cannot be opened for writing: {why}",
            hint="this user needs to write to it and to its directory, where SQLite keeps two "
            "more files",
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


if hasattr(os, "register_at_fork"):  # not where there is no fork
    os.register_at_fork(
        before=DatabaseFile._before_fork,
        after_in_parent=DatabaseFile._after_fork,
        after_in_child=DatabaseFile._after_fork,
    )
