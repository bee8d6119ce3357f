"""A transaction of a MongoDB store: what it reads, and the one write it makes for each record."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

from bson import Int64, ObjectId
from pymongo import InsertOne, UpdateOne

from eventsync.errors import ConfigError
from eventsync.index import Entry, IndexTransaction, Intent, UndoneError
from eventsync.stores.mongo.entry import (
    ABSENT,
    Entries,
    EntryChange,
    entry_id,
    entry_of,
    parts_of,
)
from eventsync.stores.mongo.staged_write import PARTS, DocumentWrite, StagedWrite

__all__ = ["Envelope", "MongoTransaction"]


class Envelope(bytes):
    """An envelope for the outbox that knows the key of its record."""

    key: str

    @classmethod
    def of(cls, body: bytes, key: str) -> Self:
        """Return ``body`` as the envelope of the record of that key."""
        made = cls(body)
        made.key = key
        return made


class MongoTransaction(IndexTransaction):
    """A transaction about records of one type; nothing is written before its commit.

    ``overtaken``: a list for the keys whose entries another writer has changed meanwhile. Without
    one, the commit raises ``UndoneError`` for them.
    """

    intents: ClassVar[bool] = False

    def __init__(self, entries: Entries, overtaken: list[str] | None = None) -> None:
        self._entries = entries
        self._overtaken = overtaken
        self._type: str | None = None
        self._read: dict[str, dict[str, Any] | None] = {}
        self._written: dict[str, Entry] = {}
        self._forgotten: set[str] = set()
        self._writes: dict[str, DocumentWrite] = {}
        self._envelopes: dict[str, list[Envelope]] = {}

    def _of(self, type: str) -> None:
        if self._type not in (None, type):
            raise ConfigError(f"one transaction cannot be about both {self._type} and {type}")
        self._type = type

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        self._of(type)
        ids = {key: entry_id(type, key) for key in keys if key not in self._read}
        if ids:
            found = self._entries.finished(list(ids.values()))
            self._read |= {key: found.get(id) for key, id in ids.items()}
        entries: dict[str, Entry] = {}
        for key in keys:
            document = self._read[key]
            if key in self._written:
                entries[key] = self._written[key]
            elif key not in self._forgotten and document is not None and "stamp" in document:
                entries[key] = entry_of(document)
        return entries

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self._of(type)
        self._written.update(entries)
        self._forgotten.difference_update(entries)

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self._of(type)
        for key in keys:
            self._written.pop(key, None)
        self._forgotten.update(keys)

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        self.send(type, bodies)

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self._of(type)
        for body in bodies:
            assert isinstance(body, Envelope)
            self._envelopes.setdefault(body.key, []).append(body)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Do nothing: what is not committed was never written."""

    def keep(self) -> None:
        """Do nothing, for the same reason."""

    def stage(self, key: str, write: DocumentWrite) -> None:
        """Write to the document of one record with the commit."""
        self._writes[key] = write

    def commit(self) -> None:
        """Write everything, each record by itself. Raises ``UndoneError``, ``RejectedError``."""
        if self._type is None:
            return
        type = self._type
        keys = list(dict.fromkeys([*self._written, *self._writes, *self._envelopes]))
        self.read(type, [*keys, *self._forgotten])
        by = ObjectId()
        changes = {key: self._change(type, key, by) for key in keys}
        overtaken_ids = self._entries.commit(list(changes.values()))
        forgotten = [self._read[key] for key in self._forgotten]
        self._entries.forget({each["_id"]: each["number"] for each in forgotten if each})
        if not overtaken_ids:
            return
        overtaken = [key for key, change in changes.items() if change.id in overtaken_ids]
        if self._overtaken is None:
            raise UndoneError(
                f"other writers kept changing {type} {overtaken[0]!r} in "
                f"{self._entries.database.address}",
                hint="the write is tried again",
            )
        self._overtaken.extend(overtaken)

    def _change(self, type: str, key: str, by: ObjectId) -> EntryChange:
        """Return the write that changes the entry of a record, with all that belongs to it."""
        id, before, entry = entry_id(type, key), self._read[key], self._written.get(key)
        parts = {part: before[part] for part in PARTS if part in before} if before else {}
        new = parts if entry is None else parts_of(entry)
        # Numbers begin with the time, so that they grow even if the index is lost and the records'
        # documents still bear old numbers.
        number = Int64(time.time_ns() // 1000 if before is None else before["number"] + 1)
        envelopes: list[dict[str, Any]] = [
            {"id": ObjectId(), "type": type, "body": bytes(body)}
            for body in self._envelopes.get(key, ())
        ]
        staged = None
        if key in self._writes:
            restored = None if before is None else parts
            ids = [each["id"] for each in envelopes]
            staged = StagedWrite(id, number, self._writes[key], restored, ids)
        sets: dict[str, Any] = {**new, "number": number, "by": by}
        if staged is not None:
            sets["step"] = staged.pack()
        if before is None:
            document = {"_id": id, **sets, "envelopes": envelopes}
            return EntryChange(id, by, InsertOne(document), False, staged)
        update: dict[str, Any] = {"$set": sets}
        if envelopes:
            update["$push"] = {"envelopes": {"$each": envelopes}}
        if dropped := {part: "" for part in parts if part not in new}:
            update["$unset"] = dropped
        condition = {"_id": id, "number": before["number"], "step": ABSENT}
        return EntryChange(id, by, UpdateOne(condition, update), True, staged)
