"""The identity map: which id each record has in a store that gives ids of its own.

It owns the pairs of record key and id, and the attempts to create that are still open. It knows
nothing of how a store creates a record, or finds one again.

The record ``ABC`` may be #12 in one tracker and PROJ-7 in another. A pair is noted once and looked
up both ways. Since an answer may be lost after the store has created a record, each attempt is
noted durably before it is made: whoever finds one open looks for what it may have left, by a mark
that the record carries, before anything is created again.
"""

from __future__ import annotations

import os
import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from eventsync.errors import ConfigError, StoreUnavailableError

__all__ = ["IdentityMap"]

_SCHEMA: Final = """
CREATE TABLE IF NOT EXISTS identity (
    type TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (type, key), UNIQUE (type, id)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS attempt (
    type TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS surveyed (type TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_APPLICATION_ID: Final = 0x65736964  # "esid": eventsync identities
_CHUNK: Final = 500


class IdentityMap:
    """Record keys and the ids of one store, in an SQLite file. Thread-safe and process-safe.

    ``name``: begins the keys that are made for records which were created in the store by others:
    ``github:12``. All workers of a store have to use the same file, beside its version index.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str, timeout: float = 60.0) -> None:
        """``timeout``: how many seconds to wait for another writer."""
        if not name:
            raise ConfigError("an identity map needs a name", hint="take that of the store")
        self.name = name
        self._path = Path(path)
        self._timeout = timeout
        self._local = threading.local()
        self._generation = 0

    def __repr__(self) -> str:
        return f"IdentityMap({str(self._path)!r}, name={self.name!r})"

    # -- pairs -------------------------------------------------------------------------------------

    def ids_of(self, type: str, keys: Sequence[str]) -> dict[str, str]:
        """By key, the ids of those of ``keys`` that have one."""
        found: dict[str, str] = {}
        with self._connection() as connection:
            for start in range(0, len(keys), _CHUNK):
                chunk = keys[start : start + _CHUNK]
                marks = ",".join("?" * len(chunk))
                found.update(
                    connection.execute(
                        f"SELECT key, id FROM identity WHERE type = ? AND key IN ({marks})",
                        [type, *chunk],
                    )
                )
        return found

    def id_of(self, type: str, key: str) -> str | None:
        """The id of a record, ``None`` if none is known."""
        return self.ids_of(type, [key]).get(key)

    def key_of(self, type: str, id: str) -> str | None:
        """The key of the record of that id, ``None`` if none is known."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT key FROM identity WHERE type = ? AND id = ?", [type, id]
            ).fetchone()
        return str(row[0]) if row else None

    def bind(self, type: str, key: str, id: str) -> bool:
        """Note that the record has that id, and close the attempt; durable on return. Idempotent.

        False, with nothing noted, if the key has another id or the id another key already.
        """
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO identity VALUES (?, ?, ?)", [type, key, id])
            held = connection.execute(
                "SELECT 1 FROM identity WHERE type = ? AND key = ? AND id = ?", [type, key, id]
            ).fetchone()
            if held:
                connection.execute("DELETE FROM attempt WHERE type = ? AND key = ?", [type, key])
        return held is not None

    def forget(self, type: str, key: str) -> None:
        """The record has no id any more. Idempotent."""
        with self._writing() as connection:
            connection.execute("DELETE FROM identity WHERE type = ? AND key = ?", [type, key])

    def minted(self, id: str) -> str:
        """The key for a record that others created in the store: always the same for one id."""
        return f"{self.name}:{id}"

    # -- attempts ----------------------------------------------------------------------------------

    def begin(self, type: str, key: str) -> bool:
        """Note durably that the record is about to be created; whether an attempt was open already.

        If so it may have been created: look for it first.
        """
        with self._writing() as connection:
            made = connection.execute("INSERT OR IGNORE INTO attempt VALUES (?, ?)", [type, key])
            return made.rowcount == 0

    def abandon(self, type: str, key: str) -> None:
        """The attempt is known to have created nothing. Idempotent."""
        with self._writing() as connection:
            connection.execute("DELETE FROM attempt WHERE type = ? AND key = ?", [type, key])

    def is_open(self, type: str, key: str) -> bool:
        """Whether an attempt to create the record is open."""
        with self._connection() as connection:
            row = connection.execute(
                "SELECT 1 FROM attempt WHERE type = ? AND key = ?", [type, key]
            ).fetchone()
        return row is not None

    # -- surveys -----------------------------------------------------------------------------------

    def is_surveyed(self, type: str) -> bool:
        """Whether all records of the type were once looked through for marks.

        Not so of a new map, which may stand in for one that was lost.
        """
        with self._connection() as connection:
            row = connection.execute("SELECT 1 FROM surveyed WHERE type = ?", [type]).fetchone()
        return row is not None

    def surveyed(self, type: str) -> None:
        """Note that they were. Idempotent."""
        with self._writing() as connection:
            connection.execute("INSERT OR IGNORE INTO surveyed VALUES (?)", [type])

    # -- the file ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Let go of the file. Idempotent; it is opened again when used again."""
        pid, _, connection = self._local.__dict__.pop("held", (0, 0, None))
        if connection is not None and pid == os.getpid():
            connection.close()
        self._generation += 1

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._connection() as connection:
            connection.execute("BEGIN IMMEDIATE")
            try:
                yield connection
                connection.execute("COMMIT")
            finally:
                if connection.in_transaction:
                    connection.rollback()

    @contextmanager
    def _connection(self) -> Iterator[sqlite3.Connection]:
        try:
            yield self._opened()
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(f"the identity map {self._path}: {error}") from error
        except sqlite3.DatabaseError as error:
            raise ConfigError(
                f"{self._path} cannot be used as an identity map: {error}",
                hint="restore it from a backup, or move it away: marked records are found again",
            ) from error

    def _opened(self) -> sqlite3.Connection:
        """This thread's connection; never one from before a fork."""
        pid, generation, held = self._local.__dict__.get("held", (0, 0, None))
        if held is not None and pid == os.getpid() and generation == self._generation:
            connection: sqlite3.Connection = held
            return connection
        if not self._path.parent.is_dir():
            raise ConfigError(
                f"the folder {self._path.parent} of the identity map {self._path.name} does not "
                "exist",
                hint="create it, or name another place",
            )
        opened = sqlite3.connect(
            self._path, timeout=self._timeout, isolation_level=None, check_same_thread=False
        )
        try:
            (application,) = opened.execute("PRAGMA application_id").fetchone()
            (tables,) = opened.execute("SELECT count(*) FROM sqlite_master").fetchone()
            if application != _APPLICATION_ID and tables:
                raise ConfigError(
                    f"{self._path} is a database of something else, not an identity map",
                    hint="name another file",
                )
            opened.execute("PRAGMA journal_mode = WAL")
            opened.execute("PRAGMA synchronous = FULL")
            if not tables:
                opened.executescript(
                    f"BEGIN IMMEDIATE; PRAGMA application_id = {_APPLICATION_ID}; {_SCHEMA} COMMIT;"
                )
        except BaseException:
            opened.close()
            raise
        self._local.held = os.getpid(), self._generation, opened
        return opened
