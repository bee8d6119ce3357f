"""The version index in an SQLite file, for stores without transactions of their own."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from eventsync.database_file import DatabaseFile
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index.contract import (
    Entry,
    Index,
    IndexTransaction,
    Intent,
    Outgoing,
    Presence,
    after_all,
)
from eventsync.values.chunk import chunked

__all__ = ["FileIndex"]

_SCHEMA = """
CREATE TABLE entry (
    type TEXT NOT NULL, key TEXT NOT NULL, stamp BLOB NOT NULL, presence INTEGER NOT NULL,
    detail BLOB, echo BLOB, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE INDEX entry_elsewhere ON entry (type, presence, key) WHERE presence <> 1;
CREATE TABLE intent (
    type TEXT NOT NULL, key TEXT NOT NULL, stamp BLOB NOT NULL, presence INTEGER NOT NULL,
    detail BLOB, echo BLOB, digest BLOB, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE TABLE outbox (
    number INTEGER PRIMARY KEY AUTOINCREMENT, type TEXT NOT NULL, body BLOB NOT NULL,
    held INTEGER NOT NULL);
CREATE INDEX outbox_held ON outbox (number) WHERE held;
CREATE TABLE mark (name TEXT PRIMARY KEY, text TEXT NOT NULL) WITHOUT ROWID;
"""
_APPLICATION_ID = 0x65737669  # "esvi": eventsync version index
_SCHEMA_VERSION = 1
_CHUNK = 500


class FileIndex(Index):
    """A version index in an SQLite file, for stores without transactions of their own.

    Only one transaction runs at a time, across threads and processes. The lock is a second SQLite
    file beside the index. The operating system releases the lock when its process dies.
    """

    def __init__(self, path: str | os.PathLike[str], *, timeout: float = 60.0) -> None:
        """Use the index in the file ``path``; create the file if it does not exist.

        ``timeout``: how many seconds a transaction waits for another writer.
        """
        self._file = DatabaseFile(
            path,
            kind="version index",
            application_id=_APPLICATION_ID,
            schema_version=_SCHEMA_VERSION,
            schema=_SCHEMA,
            unavailable=StoreUnavailableError,
            invalid=ConfigError,
            repair="restore it from a backup, or move it away and run eventsync sync",
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"FileIndex({str(self._file.path)!r})"

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        with self._file.exclusive("lock"):
            transaction = _FileTransaction(self._file)
            try:
                yield transaction
                transaction.commit()
            finally:
                transaction.rollback()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        extra = ""
        if presence is not None:
            extra = f" AND presence = {int(presence)}"
            if presence is not Presence.PRESENT:
                # SQLite uses a partial index only if the query contains the index's condition.
                extra += " AND presence <> 1"
        rows = self._file.read(
            "SELECT key, stamp, presence, detail, echo FROM entry"
            f" WHERE type = ? AND key > ?{extra} ORDER BY key LIMIT ?",
            [type, after, limit],
        )
        return [(key, Entry.unpack(*columns)) for key, *columns in rows]

    def counts(self, type: str) -> dict[Presence, int]:
        rows = self._file.read(
            "SELECT presence, count(*) FROM entry WHERE type = ? GROUP BY presence", [type]
        )
        return dict.fromkeys(Presence, 0) | {Presence(code): count for code, count in rows}

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        rows = self._file.read(
            "SELECT number, type, body FROM outbox WHERE NOT held ORDER BY number LIMIT ?", [limit]
        )
        return [Outgoing(*row) for row in rows]

    def waiting(self) -> int:
        return int(self._file.read("SELECT count(*) FROM outbox WHERE NOT held")[0][0])

    def sent(self, numbers: Sequence[int]) -> None:
        with self._file.transaction() as connection:
            connection.executemany(
                "DELETE FROM outbox WHERE number = ?", [(number,) for number in numbers]
            )

    def load_mark(self, name: str) -> str:
        rows = self._file.read("SELECT text FROM mark WHERE name = ?", [name])
        return str(rows[0][0]) if rows else ""

    def marks(self, prefix: str) -> dict[str, str]:
        rows = self._file.read(
            "SELECT name, text FROM mark WHERE name > ? AND name < ?", [prefix, after_all(prefix)]
        )
        return dict(rows)

    def save_marks(self, marks: Mapping[str, str]) -> None:
        with self._file.transaction() as connection:
            connection.executemany(
                "REPLACE INTO mark VALUES (?, ?)", [mark for mark in marks.items() if mark[1]]
            )
            connection.executemany(
                "DELETE FROM mark WHERE name = ?", [(name,) for name in marks if not marks[name]]
            )

    def missing(self) -> str:
        return "" if self._file.exists() else f"the version index {self._file.path}"

    def close(self) -> None:
        self._file.close()


class _FileTransaction(IndexTransaction):
    """A transaction of a ``FileIndex``. Commits intents at once and everything else at its end."""

    def __init__(self, file: DatabaseFile) -> None:
        self._file = file
        self._intended: list[tuple[str, Sequence[str]]] = []

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._file.connection() as connection:
            if not connection.in_transaction:
                self._file.begin(connection)
            yield connection

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        for chunk in chunked(keys, _CHUNK):
            marks = ",".join("?" * len(chunk))
            for key, *columns in self._file.read(
                "SELECT key, stamp, presence, detail, echo FROM entry"
                f" WHERE type = ? AND key IN ({marks})",
                [type, *chunk],
            ):
                found[key] = Entry.unpack(*columns)
        return found

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        rows = [
            (type, key, entry.stamp, int(entry.presence), entry.pack_detail(), entry.echo)
            for key, entry in entries.items()
        ]
        with self._writing() as connection:
            connection.executemany("REPLACE INTO entry VALUES (?, ?, ?, ?, ?, ?)", rows)

    def forget(self, type: str, keys: Sequence[str]) -> None:
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM entry WHERE type = ? AND key = ?", [(type, key) for key in keys]
            )

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        rows = [
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
        ]
        with self._writing() as connection:
            connection.executemany("REPLACE INTO intent VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            connection.executemany(
                "INSERT INTO outbox (type, body, held) VALUES (?, ?, 1)",
                [(type, body) for body in bodies],
            )
            connection.commit()
        self._intended.append((type, list(intents)))

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        with self._writing() as connection:
            connection.executemany(
                "INSERT INTO outbox (type, body, held) VALUES (?, ?, 0)",
                [(type, body) for body in bodies],
            )

    def open_intents(self, type: str) -> dict[str, Intent]:
        rows = self._file.read(
            "SELECT key, stamp, presence, detail, echo, digest FROM intent WHERE type = ?", [type]
        )
        return {key: Intent(Entry.unpack(*entry), digest) for key, *entry, digest in rows}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        # All withheld envelopes of a type belong to one writer, because the next writer closes the
        # intents of a dead writer before it stores intents of its own.
        action = "UPDATE outbox SET held = 0" if send else "DELETE FROM outbox"
        with self._writing() as connection:
            connection.executemany(
                "DELETE FROM intent WHERE type = ? AND key = ?", [(type, key) for key in keys]
            )
            connection.execute(f"{action} WHERE held AND type = ?", [type])

    def keep(self) -> None:
        with self._file.connection() as connection:
            connection.commit()

    def commit(self) -> None:
        for type, keys in self._intended:
            self.settle(type, keys, send=True)
        self.keep()

    def rollback(self) -> None:
        with self._file.connection() as connection:
            connection.rollback()
