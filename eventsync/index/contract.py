"""The version index: what a store knows of the version of each of its records.

It owns the contract and the two indexes for stores that cannot keep versions inside their own
transaction: one in memory, one in an embedded SQLite file. It knows nothing of accessors, of what a
store's data look like, or of how a change is judged.

An index entry is changed in the same step as the record's data. A store with transactions keeps its
index inside them. For every other store a transaction of the index (``IndexTransaction``) holds an
exclusive lock on the store's index from before the data are read until after they are written, and
a durable *intent* stands in between: whoever finds an open intent later knows that a writer died
half way, and reads the data back to learn how far it came.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from enum import IntEnum
from pathlib import Path
from typing import Any, ClassVar

from eventsync import value
from eventsync.change import Stamp
from eventsync.clock import Version
from eventsync.errors import ConfigError, StoreUnavailableError

__all__ = [
    "Entry",
    "FileIndex",
    "Index",
    "IndexTransaction",
    "Intent",
    "MemoryIndex",
    "Outgoing",
    "Presence",
]


class Presence(IntEnum):
    """Where the record of an entry is."""

    HERE = 1
    """In the store."""
    GONE = 2
    """Deleted: the entry is its tombstone."""
    AWAY = 3
    """Alive, but it does not match the store's filter."""
    PENDING = 4
    """Alive or not yet created, and not known whole: it waits for the rest."""


@dataclass(slots=True)
class Entry:
    """What the index holds for one record.

    ``versions``: of fields patched above the stamp. ``parked``: values that the store's own data do
    not hold (of a record that is not here). ``echo``: what the data looked like when eventsync last
    wrote them, as digests; ``None`` when that is exactly the body of the stamp.
    """

    stamp: Stamp
    presence: Presence
    versions: dict[str, Version] = field(default_factory=dict)
    parked: dict[str, Any] = field(default_factory=dict)
    whole: bool = True
    echo: bytes | None = None

    def pack_detail(self) -> bytes | None:
        """The parts that most entries do not need, as bytes; ``None`` when there are none."""
        if not self.versions and not self.parked and self.whole:
            return None
        return value.pack(
            {
                "versions": {name: bytes(version) for name, version in self.versions.items()},
                "parked": self.parked,
                "whole": self.whole,
            }
        )

    @classmethod
    def unpack(cls, stamp: bytes, presence: int, detail: bytes | None, echo: bytes | None) -> Entry:
        """The entry that these columns hold."""
        entry = cls(Stamp(stamp), Presence(presence), echo=echo)
        if detail is not None:
            parts = value.unpack(detail)
            entry.versions = {name: Version(raw) for name, raw in parts["versions"].items()}
            entry.parked = parts["parked"]
            entry.whole = parts["whole"]
        return entry

    @property
    def version(self) -> bytes:
        """The greatest version this store has seen of the record."""
        return max((bytes(self.stamp[:16]), *map(bytes, self.versions.values())))


@dataclass(slots=True, frozen=True)
class Outgoing:
    """An envelope that waits in a store's outbox until the broker has confirmed it."""

    number: int
    type: str
    body: bytes


@dataclass(slots=True, frozen=True)
class Intent:
    """What a writer was about to do to one record: its entry then, and what the data become.

    ``digest`` is of the data to be read back when the write was done; ``None`` for a removal.
    """

    entry: Entry
    digest: bytes | None


class IndexTransaction(ABC):
    """Exclusive access to the entries of one store, until it commits or rolls back.

    Not thread-safe. All of it takes effect at once when the transaction's block ends without an
    error, except ``intend``, which is durable when it returns.
    """

    intents: ClassVar[bool] = True
    """Whether intents are of use: not where the data are part of the transaction."""

    @abstractmethod
    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        """The entries of those of ``keys`` that have one."""

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        """The stamps of those of ``keys`` that have an entry: all that the per-record rule needs.

        Called before anything is written.
        """
        return {key: entry.stamp for key, entry in self.read(type, keys).items()}

    @abstractmethod
    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        """Put these entries in place of what was there."""

    @abstractmethod
    def forget(self, type: str, keys: Sequence[str]) -> None:
        """Remove the entries of ``keys``. Idempotent."""

    @abstractmethod
    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        """Note durably what is about to be written, and the envelopes to send once it is.

        The intents stay open, and the envelopes held back, until this transaction commits. Where
        data and index share one transaction there are no intents: all of it waits for the commit.
        """

    @abstractmethod
    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        """Put envelopes in the outbox, with the commit."""

    @abstractmethod
    def open_intents(self, type: str) -> dict[str, Intent]:
        """What a writer that died left half done; empty where that cannot happen."""

    @abstractmethod
    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Close the open intents of ``keys``, which are all of the type; send the envelopes held
        back with them, or drop them.

        After a writer died, sending is right even if it wrote nothing: the store gets its own
        change back through its queue. After a write that failed, dropping is.
        """

    @abstractmethod
    def keep(self) -> None:
        """Make what was settled durable now, though the transaction is about to be rolled back."""


class Index(ABC):
    """The version entries and the outbox of one store. Thread-safe and process-safe."""

    @abstractmethod
    def transaction(self) -> AbstractContextManager[IndexTransaction]:
        """Begin; commit at the end of the block, or undo everything if it raises.

        Blocks while another writer is at work. Raises ``StoreUnavailableError`` when that lasts.
        """

    @abstractmethod
    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        """Up to ``limit`` entries of a type in the order of their keys, from after ``after`` on."""

    @abstractmethod
    def counts(self, type: str) -> dict[Presence, int]:
        """How many entries of a type there are, by presence."""

    @abstractmethod
    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        """The oldest envelopes in the outbox."""

    @abstractmethod
    def sent(self, numbers: Sequence[int]) -> None:
        """Take envelopes out of the outbox, which the broker has confirmed. Idempotent."""

    def join(self, transaction: Any) -> AbstractContextManager[IndexTransaction]:
        """As ``transaction``, but as a part of the caller's own, which commits or undoes it.

        ``transaction``: what the store's database calls one (an SQLAlchemy session or connection).
        Of this part nothing is left when the block raises. Raises ``ConfigError`` where data and
        index do not share a transaction that a caller could have begun.
        """
        raise ConfigError(
            f"{type(self).__name__} has no transactions that others could take part in",
            hint="edit through the store itself; only SQL stores can join your transaction",
        )

    def waiting(self) -> int:
        """How many envelopes are in the outbox; counts up to 10,001 where it cannot do better."""
        return len(self.outgoing(10_001))

    @abstractmethod
    def load_mark(self, name: str) -> str:
        """The text kept under ``name`` (a checkpoint), or an empty one."""

    @abstractmethod
    def save_mark(self, name: str, text: str) -> None:
        """Keep ``text`` under ``name`` durably; an empty text removes it."""

    def close(self) -> None:  # noqa: B027  # an index in memory has nothing to let go of
        """Let go of what the index holds open. Idempotent; it opens again when used again."""


class MemoryIndex(Index):
    """An index in memory: for stores in memory and for tests. It dies with the process."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._entries: dict[str, dict[str, Entry]] = {}
        self._outbox: dict[int, Outgoing] = {}
        self._number = 0
        self._marks: dict[str, str] = {}
        self._intents: dict[str, dict[str, Intent]] = {}
        self._held: list[tuple[str, bytes]] = []

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        with self._lock:
            transaction = _MemoryTransaction(self)
            yield transaction
            transaction.commit()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        with self._lock:
            found = [
                (key, entry)
                for key, entry in sorted(self._entries.get(type, {}).items())
                if key > after and (presence is None or entry.presence is presence)
            ]
            return found[:limit]

    def counts(self, type: str) -> dict[Presence, int]:
        with self._lock:
            counts = dict.fromkeys(Presence, 0)
            for entry in self._entries.get(type, {}).values():
                counts[entry.presence] += 1
            return counts

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        with self._lock:
            return list(self._outbox.values())[:limit]

    def sent(self, numbers: Sequence[int]) -> None:
        with self._lock:
            for number in numbers:
                self._outbox.pop(number, None)

    def load_mark(self, name: str) -> str:
        with self._lock:
            return self._marks.get(name, "")

    def save_mark(self, name: str, text: str) -> None:
        with self._lock:
            self._marks[name] = text


class _MemoryTransaction(IndexTransaction):
    """Collects its effects and applies them at commit, so that an error undoes them."""

    def __init__(self, index: MemoryIndex) -> None:
        self._index = index
        self._writes: dict[str, dict[str, Entry | None]] = {}
        self._sent: list[tuple[str, bytes]] = []
        self._settled: list[tuple[str, Sequence[str], bool]] = []
        self._intended: list[tuple[str, Sequence[str]]] = []

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found: dict[str, Entry] = {}
        written, entries = self._writes.get(type, {}), self._index._entries.get(type, {})
        for key in keys:
            entry = written[key] if key in written else entries.get(key)
            if entry is not None:
                found[key] = entry
        return found

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self._writes.setdefault(type, {}).update(entries)

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self._writes.setdefault(type, {}).update(dict.fromkeys(keys))

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        # Kept although the process cannot outlive them: a test that "crashes" in between can look.
        self._index._intents.setdefault(type, {}).update(intents)
        self._index._held.extend((type, body) for body in bodies)
        self._intended.append((type, list(intents)))

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self._sent.extend((type, body) for body in bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return dict(self._index._intents.get(type, {}))

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        self._settled.append((type, keys, send))

    def keep(self) -> None:
        self._intended.clear()
        self.commit()

    def commit(self) -> None:
        index = self._index
        for type, entries in self._writes.items():
            held = index._entries.setdefault(type, {})
            for key, entry in entries.items():
                if entry is None:
                    held.pop(key, None)
                else:
                    held[key] = entry
        for type, keys, send in [*self._settled, *((t, k, True) for t, k in self._intended)]:
            for key in keys:
                index._intents.get(type, {}).pop(key, None)
            if send:
                self._sent += [held for held in index._held if held[0] == type]
            index._held = [held for held in index._held if held[0] != type]
        for type, body in self._sent:
            index._number += 1
            index._outbox[index._number] = Outgoing(index._number, type, body)
        self._writes, self._sent, self._settled = {}, [], []


_SCHEMA = """
CREATE TABLE IF NOT EXISTS entry (
    type TEXT NOT NULL, key TEXT NOT NULL, stamp BLOB NOT NULL, presence INTEGER NOT NULL,
    detail BLOB, echo BLOB, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS entry_elsewhere ON entry (type, presence, key) WHERE presence <> 1;
CREATE TABLE IF NOT EXISTS intent (
    type TEXT NOT NULL, key TEXT NOT NULL, stamp BLOB NOT NULL, presence INTEGER NOT NULL,
    detail BLOB, echo BLOB, digest BLOB, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, body BLOB NOT NULL,
    held INTEGER NOT NULL);
CREATE INDEX IF NOT EXISTS outbox_held ON outbox (number) WHERE held;
CREATE TABLE IF NOT EXISTS mark (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""
_APPLICATION_ID = 0x65737669  # "esvi": eventsync version index
_SCHEMA_VERSION = 1
_CHUNK = 500


class FileIndex(Index):
    """An index in an embedded SQLite file, for stores that have no transactions of their own.

    One writer at a time, across threads and processes: a second database file beside the first
    serves as the lock, which the operating system frees when its holder dies.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 60.0) -> None:
        """``timeout``: how many seconds to wait for another writer."""
        self._path = Path(path)
        self._timeout = timeout
        self._local = threading.local()
        self._generation = 0

    def __repr__(self) -> str:
        return f"FileIndex({str(self._path)!r})"

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        with self._errors():
            lock = self._open("lock")
            lock.execute("BEGIN EXCLUSIVE")
        try:
            connection = self._connection()
            transaction = _FileTransaction(connection)
            try:
                yield transaction
                with self._errors():
                    transaction.commit()
            finally:
                if connection.in_transaction:
                    connection.rollback()
        finally:
            lock.rollback()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        extra, arguments = "", [type, after]
        if presence is not None:
            # The partial index holds few entries; the number is ours, never a caller's text.
            extra = f" AND presence = {int(presence)}"
        with self._errors():
            rows = self._connection().execute(
                "SELECT key, stamp, presence, detail, echo FROM entry"
                f" WHERE type = ? AND key > ?{extra} ORDER BY key LIMIT ?",
                [*arguments, limit],
            )
            return [(key, Entry.unpack(*columns)) for key, *columns in rows]

    def counts(self, type: str) -> dict[Presence, int]:
        with self._errors():
            rows = self._connection().execute(
                "SELECT presence, count(*) FROM entry WHERE type = ? GROUP BY presence", [type]
            )
            return dict.fromkeys(Presence, 0) | {Presence(code): count for code, count in rows}

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        with self._errors():
            rows = self._connection().execute(
                "SELECT number, type, body FROM outbox WHERE NOT held ORDER BY number LIMIT ?",
                [limit],
            )
            return [Outgoing(*row) for row in rows]

    def waiting(self) -> int:
        with self._errors():
            query = "SELECT count(*) FROM outbox WHERE NOT held"
            return int(self._connection().execute(query).fetchone()[0])

    def sent(self, numbers: Sequence[int]) -> None:
        with self._errors():
            connection = self._connection()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.executemany(
                    "DELETE FROM outbox WHERE number = ?", [(number,) for number in numbers]
                )

    def load_mark(self, name: str) -> str:
        with self._errors():
            row = (
                self._connection()
                .execute("SELECT text FROM mark WHERE name = ?", [name])
                .fetchone()
            )
            return str(row[0]) if row else ""

    def save_mark(self, name: str, text: str) -> None:
        with self._errors():
            connection = self._connection()
            with connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.execute("REPLACE INTO mark VALUES (?, ?)", [name, text])

    def close(self) -> None:
        held: dict[str, tuple[int, int, sqlite3.Connection]] = getattr(self._local, "held", {})
        for pid, _, connection in held.values():
            if pid == os.getpid():
                connection.close()
        held.clear()
        self._generation += 1

    def _connection(self) -> sqlite3.Connection:
        return self._open("")

    def _open(self, suffix: str) -> sqlite3.Connection:
        """This thread's connection to the index or to its lock; never one from before a fork."""
        held = self._local.__dict__.setdefault("held", {})
        pid, generation, connection = held.get(suffix, (0, 0, None))
        if connection is not None and pid == os.getpid() and generation == self._generation:
            return connection  # type: ignore[no-any-return]
        path = self._path.with_name(f"{self._path.name}.{suffix}") if suffix else self._path
        if not path.parent.is_dir():
            raise ConfigError(
                f"the folder {path.parent} of the version index {path.name} does not exist",
                hint="create it, or name another place for the index",
            )
        opened = sqlite3.connect(
            path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        if not suffix:
            self._prepare(opened)
        held[suffix] = (os.getpid(), self._generation, opened)
        return opened

    def _prepare(self, connection: sqlite3.Connection) -> None:
        (application,) = connection.execute("PRAGMA application_id").fetchone()
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_master").fetchone()
        if application != _APPLICATION_ID and tables:
            raise ConfigError(
                f"{self._path} is a database of something else, not a version index",
                hint="name another file for the index",
            )
        if version > _SCHEMA_VERSION:
            raise ConfigError(
                f"the version index {self._path} was written by a newer eventsync "
                f"(schema {version}; this one knows {_SCHEMA_VERSION})",
                hint="upgrade eventsync on this machine",
            )
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        if version < _SCHEMA_VERSION:
            connection.executescript(
                f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID};"
                f"{_SCHEMA} PRAGMA user_version = {_SCHEMA_VERSION}; COMMIT;"
            )

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(f"the version index {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self._path} cannot be used as a version index: {error}",
                hint="restore it from a backup, or move it away and run eventsync sync",
            ) from error


class _FileTransaction(IndexTransaction):
    """Holds the lock; intents are committed at once, everything else at the end."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._begun = False
        self._intended: list[tuple[str, Sequence[str]]] = []

    def _begin(self) -> sqlite3.Connection:
        if not self._connection.in_transaction:
            self._connection.execute("BEGIN IMMEDIATE")
        return self._connection

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        for chunk in _chunks(keys):
            marks = ",".join("?" * len(chunk))
            for key, *columns in self._connection.execute(
                "SELECT key, stamp, presence, detail, echo FROM entry"
                f" WHERE type = ? AND key IN ({marks})",
                [type, *chunk],
            ):
                found[key] = Entry.unpack(*columns)
        return found

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self._begin().executemany(
            "REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?)",
            [
                (type, key, entry.stamp, int(entry.presence), entry.pack_detail(), entry.echo)
                for key, entry in entries.items()
            ],
        )

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self._begin().executemany(
            "DELETE FROM entry WHERE type = ? AND key = ?", [(type, key) for key in keys]
        )

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        self._begin().executemany(
            "REPLACE INTO intent VALUES (?, ?, ?, ?, ?, ?, ?)",
            [
                (
                    type,
                    key,
                    intent.entry.stamp,
                    int(intent.entry.presence),
                    intent.entry.pack_detail(),
                    intent.entry.echo,
                    intent.digest,
                )
                for key, intent in intents.items()
            ],
        )
        self._begin().executemany(
            "INSERT INTO outbox (type, body, held) VALUES (?, ?, 1)",
            [(type, body) for body in bodies],
        )
        self._connection.commit()
        self._intended.append((type, list(intents)))

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self._begin().executemany(
            "INSERT INTO outbox (type, body, held) VALUES (?, ?, 0)",
            [(type, body) for body in bodies],
        )

    def open_intents(self, type: str) -> dict[str, Intent]:
        rows = self._connection.execute(
            "SELECT key, stamp, presence, detail, echo, digest FROM intent WHERE type = ?", [type]
        )
        return {key: Intent(Entry.unpack(*entry), digest) for key, *entry, digest in rows}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        connection = self._begin()
        connection.executemany(
            "DELETE FROM intent WHERE type = ? AND key = ?", [(type, key) for key in keys]
        )
        # What a dead writer held back of the type is settled before there are new ones of it, so
        # these are all of one writer.
        action = "UPDATE outbox SET held = 0" if send else "DELETE FROM outbox"
        connection.execute(f"{action} WHERE held AND type = ?", [type])

    def keep(self) -> None:
        self._connection.commit()

    def commit(self) -> None:
        for type, keys in self._intended:
            self.settle(type, keys, send=True)
        if self._connection.in_transaction:
            self._connection.commit()


def _chunks(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    for start in range(0, len(keys), _CHUNK):
        yield keys[start : start + _CHUNK]
