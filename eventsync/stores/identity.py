"""The identity map: the id of each record in a store that assigns ids of its own.

The record ``ABC`` may be #12 in one tracker and PROJ-7 in another. A pair of key and id is noted
once and looked up both ways. A store's answer may be lost after the store has created a record. So
each attempt to create one is noted durably before it is made. Whoever finds an open attempt first
looks for the record it may have created, by a mark that the record carries.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any, Final

from eventsync.database_file import DatabaseFile
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.records.key import join as join_key
from eventsync.records.key import split as split_key
from eventsync.values.chunk import chunked

__all__ = ["IdentityMap"]

_SCHEMA: Final = """
CREATE TABLE identity (
    type TEXT NOT NULL, key TEXT NOT NULL, id TEXT NOT NULL,
    PRIMARY KEY (type, key), UNIQUE (type, id)) WITHOUT ROWID;
CREATE TABLE attempt (
    type TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (type, key)) WITHOUT ROWID;
CREATE TABLE surveyed (type TEXT PRIMARY KEY) WITHOUT ROWID;
"""
_APPLICATION_ID: Final = 0x65736964  # "esid": eventsync identities
_SCHEMA_VERSION: Final = 0  # the files that exist carry none
_CHUNK: Final = 500


class IdentityMap:
    """Record keys and the ids of one store, in an SQLite file. Thread-safe and process-safe.

    ``name``: the prefix of keys for records that others created in the store, as in ``github:12``.
    All workers of a store must use the same file, beside its version index.
    """

    def __init__(self, path: str | os.PathLike[str], *, name: str, timeout: float = 60.0) -> None:
        """``timeout``: how many seconds to wait for another writer."""
        if not name:
            raise ConfigError(
                "the name of an identity map is empty", hint="pass the store's name as name="
            )
        self.name = name
        self._file = DatabaseFile(
            path,
            kind="identity map",
            application_id=_APPLICATION_ID,
            schema_version=_SCHEMA_VERSION,
            schema=_SCHEMA,
            unavailable=StoreUnavailableError,
            invalid=ConfigError,
            repair="restore it from a backup, or move it away: marked records are found again",
            timeout=timeout,
        )

    def __repr__(self) -> str:
        return f"IdentityMap({str(self._file.path)!r}, name={self.name!r})"

    @property
    def whole(self) -> IdentityMap:
        """The map of the whole store, of which this may be the part of one project."""
        return self

    # -- pairs -------------------------------------------------------------------------------------

    def ids_of(self, type: str, keys: Sequence[str]) -> dict[str, str]:
        """Return the ids of those of ``keys`` that have one, by key."""
        found: dict[str, str] = {}
        for chunk in chunked(keys, _CHUNK):
            marks = ",".join("?" * len(chunk))
            found.update(
                self._file.read(
                    f"SELECT key, id FROM identity WHERE type = ? AND key IN ({marks})",
                    [type, *chunk],
                )
            )
        return found

    def id_of(self, type: str, key: str) -> str | None:
        """Return the id of a record, ``None`` if none is known."""
        return self.ids_of(type, [key]).get(key)

    def ids(self, type: str) -> list[str]:
        """Return the ids of all records of a type."""
        return [
            str(row[0]) for row in self._file.read("SELECT id FROM identity WHERE type = ?", [type])
        ]

    def key_of(self, type: str, id: str) -> str | None:
        """Return the key of the record with that id, ``None`` if none is known."""
        rows = self._file.read("SELECT key FROM identity WHERE type = ? AND id = ?", [type, id])
        return str(rows[0][0]) if rows else None

    def bind(self, type: str, key: str, id: str) -> bool:
        """Note the id of a record, and close the attempt; durable on return. Idempotent.

        Return false, and note nothing, if the key has another id or the id has another key.
        """
        with self._file.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO identity VALUES (?, ?, ?)", [type, key, id])
            bound = connection.execute(
                "SELECT 1 FROM identity WHERE type = ? AND key = ? AND id = ?", [type, key, id]
            ).fetchone()
            if bound:
                connection.execute("DELETE FROM attempt WHERE type = ? AND key = ?", [type, key])
        return bound is not None

    def forget(self, type: str, key: str) -> None:
        """Forget the id of a record. Idempotent."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM identity WHERE type = ? AND key = ?", [type, key])

    def minted(self, id: str) -> str:
        """Return the key for a record that others created; always the same for one id."""
        return join_key([f"{self._minting}{id}"])

    def id_minted(self, key: str) -> str | None:
        """Return the id in a key that ``minted`` has made, ``None`` for any other key."""
        value = split_key(key)[0]
        return value.removeprefix(self._minting) if value.startswith(self._minting) else None

    @property
    def _minting(self) -> str:
        return f"{self.name}:"

    # -- attempts ----------------------------------------------------------------------------------

    def begin(self, type: str, key: str) -> bool:
        """Note durably that the record is about to be created; return whether an attempt was open.

        If one was open, the record may exist already: look for it first.
        """
        with self._file.transaction() as connection:
            made = connection.execute("INSERT OR IGNORE INTO attempt VALUES (?, ?)", [type, key])
            return made.rowcount == 0

    def abandon(self, type: str, key: str) -> None:
        """Close an attempt that is known to have created nothing. Idempotent."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM attempt WHERE type = ? AND key = ?", [type, key])

    def is_open(self, type: str, key: str) -> bool:
        """Return whether an attempt to create the record is open."""
        return bool(
            self._file.read("SELECT 1 FROM attempt WHERE type = ? AND key = ?", [type, key])
        )

    def has_open(self, type: str) -> bool:
        """Return whether any attempt to create a record of the type is open."""
        return bool(self._file.read("SELECT 1 FROM attempt WHERE type = ? LIMIT 1", [type]))

    # -- surveys -----------------------------------------------------------------------------------

    def is_surveyed(self, type: str) -> bool:
        """Return whether all records of the type have been searched for marks.

        False in a new map, which may replace a lost one.
        """
        return bool(self._file.read("SELECT 1 FROM surveyed WHERE type = ?", [type]))

    def surveyed(self, type: str) -> None:
        """Note that all records of the type have been searched for marks. Idempotent."""
        with self._file.transaction() as connection:
            connection.execute("INSERT OR IGNORE INTO surveyed VALUES (?)", [type])

    # -- places ----------------------------------------------------------------------------------

    def place(self, type: str) -> str | None:
        """Return the place, such as a project, in which the ids of a type are unique."""
        rows = self._file.read("SELECT type FROM surveyed WHERE substr(type, 1, ?) = ?", _at(type))
        return str(rows[0][0]).partition("@")[2] if rows else None

    def set_place(self, type: str, place: str) -> None:
        """Note that place, for example after a project was renamed. Idempotent."""
        with self._file.transaction() as connection:
            connection.execute("DELETE FROM surveyed WHERE substr(type, 1, ?) = ?", _at(type))
            connection.execute("INSERT INTO surveyed VALUES (?)", [f"{type}@{place}"])

    # -- the file ----------------------------------------------------------------------------------

    def close(self) -> None:
        """Close the file. Idempotent; a later use opens it again."""
        self._file.close()


def _at(type: str) -> list[Any]:
    return [len(type) + 1, f"{type}@"]
