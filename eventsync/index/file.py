"""The version index in an SQLite file, for stores without transactions of their own."""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index.contract import Entry, Index, IndexTransaction, Intent, Outgoing, Presence
from eventsync.values.chunk import chunked

__all__ = ["FileIndex"]

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
    """A version index in an SQLite file, for stores without transactions of their own.

    One transaction at a time, across threads and processes. The lock is a second SQLite file,
    beside the first. The operating system releases it when the process that holds it dies.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 60.0) -> None:
        """Use the file at ``path``. Wait at most ``timeout`` seconds for another writer."""
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
        extra = ""
        if presence is not None:
            extra = f" AND presence = {int(presence)}"
            if presence is not Presence.PRESENT:
                # SQLite uses the partial index only if its own condition is in the query.
                extra += " AND presence <> 1"
        with self._errors():
            rows = self._connection().execute(
                "SELECT key, stamp, presence, detail, echo FROM entry"
                f" WHERE type = ? AND key > ?{extra} ORDER BY key LIMIT ?",
                [type, after, limit],
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
        """Return this thread's connection to the index or its lock, opened after the last fork."""
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
    """A transaction of a ``FileIndex``. It commits intents at once, everything else at its end."""

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
        for chunk in chunked(keys, _CHUNK):
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
        # All withheld envelopes of the type are of one writer: the intents of a writer that died
        # are closed before the next one stores its own.
        action = "UPDATE outbox SET held = 0" if send else "DELETE FROM outbox"
        connection.execute(f"{action} WHERE held AND type = ?", [type])

    def keep(self) -> None:
        self._connection.commit()

    def commit(self) -> None:
        for type, keys in self._intended:
            self.settle(type, keys, send=True)
        if self._connection.in_transaction:
            self._connection.commit()
