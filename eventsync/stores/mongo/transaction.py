"""A transaction of a MongoDB store: what it reads, and the one write for each record that it makes.

It owns how an entry's document looks and how a change of it is put. It knows nothing of when and in
what order things are written: that is the index's.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Final, Self

from bson import Int64, ObjectId
from pymongo import InsertOne, UpdateOne

from eventsync.changes.stamp import Stamp
from eventsync.errors import ConfigError
from eventsync.index import Entry, IndexTransaction, Intent, UndoneError
from eventsync.stores.mongo.step import PARTS, Step, Task

if TYPE_CHECKING:
    from eventsync.stores.mongo.index import MongoIndex

__all__ = ["FREE", "EntryChange", "Envelope", "MongoTransaction", "entry_of"]

FREE: Final = {"$exists": False}
"""The condition that something is not there."""


class Envelope(bytes):
    """An envelope for the outbox that knows the key of its record."""

    key: str

    @classmethod
    def of(cls, body: bytes, key: str) -> Self:
        """``body``, of the record of that key."""
        made = cls(body)
        made.key = key
        return made


@dataclass(slots=True, frozen=True)
class EntryChange:
    """The one write that changes an entry. ``by``: of which commit; ``updates``: it was there."""

    name: str
    by: ObjectId
    operation: UpdateOne | InsertOne[dict[str, Any]]
    updates: bool
    step: Step | None


class MongoTransaction(IndexTransaction):
    """What one transaction reads and is about to write; nothing is written before its commit."""

    intents: ClassVar[bool] = False

    def __init__(self, index: MongoIndex) -> None:
        self.index = index
        self._type: str | None = None
        self._read: dict[str, dict[str, Any] | None] = {}
        self._written: dict[str, Entry] = {}
        self._forgotten: set[str] = set()
        self._tasks: dict[str, Task] = {}
        self._envelopes: dict[str, list[Envelope]] = {}

    def _of(self, type: str) -> None:
        if self._type not in (None, type):
            raise ConfigError(f"one transaction cannot be about {self._type} and {type}")
        self._type = type

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        self._of(type)
        names = {key: self.index.entry_name(type, key) for key in keys if key not in self._read}
        if names:
            found = self.index.documents(list(names.values()))
            self._read |= {key: found.get(name) for key, name in names.items()}
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
        """Nothing: what is not committed was never written."""

    def keep(self) -> None:
        """Nothing, as ``settle``."""

    def stage(self, key: str, task: Task) -> None:
        """Have a task done to the data of one record, with the commit."""
        self._tasks[key] = task

    def commit(self) -> None:
        """Write it, each record by itself. Raises ``UndoneError``, ``RejectedError``."""
        if self._type is None:
            return
        type = self._type
        keys = list(dict.fromkeys([*self._written, *self._tasks, *self._envelopes]))
        self.read(type, [*keys, *self._forgotten])
        by = ObjectId()
        changes = {key: self._change(type, key, by) for key in keys}
        lost = self.index.commit(list(changes.values()))
        known = {key: self._read[key] for key in self._forgotten}
        self.index.forget(
            {held["_id"]: held["number"] for held in known.values() if held is not None}
        )
        if not lost:
            return
        overtaken = [key for key, change in changes.items() if change.name in lost]
        if self.index.lost is None:
            raise UndoneError(
                f"{type} {overtaken[0]!r} in {self.index.database.address} is being changed by "
                "others all the time",
                hint="it is tried again",
            )
        self.index.lost.extend(overtaken)

    def _change(self, type: str, key: str, by: ObjectId) -> EntryChange:
        name, held, entry = (
            self.index.entry_name(type, key),
            self._read[key],
            self._written.get(key),
        )
        parts = {part: held[part] for part in PARTS if part in held} if held else {}
        new = parts if entry is None else _parts(entry)
        # A number is never given twice, even if the index was lost and the data were not.
        number = Int64(time.time_ns() // 1000 if held is None else held["number"] + 1)
        envelopes: list[dict[str, Any]] = [
            {"id": ObjectId(), "type": type, "body": bytes(body)}
            for body in self._envelopes.get(key, ())
        ]
        step = None
        if key in self._tasks:
            before = None if held is None else parts
            ids = [each["id"] for each in envelopes]
            step = Step(name, number, self._tasks[key], before, ids)
        sets: dict[str, Any] = {**new, "number": number, "by": by}
        if step is not None:
            sets["step"] = step.pack()
        if held is None:
            made = {"_id": name, **sets, "envelopes": envelopes}
            return EntryChange(name, by, InsertOne(made), False, step)
        update: dict[str, Any] = {"$set": sets}
        if envelopes:
            update["$push"] = {"envelopes": {"$each": envelopes}}
        if dropped := {part: "" for part in parts if part not in new}:
            update["$unset"] = dropped
        this = {"_id": name, "number": held["number"], "step": FREE}
        return EntryChange(name, by, UpdateOne(this, update), True, step)


def _parts(entry: Entry) -> dict[str, Any]:
    """The fields of an entry's document; those without a value are not in it."""
    parts = {
        "stamp": bytes(entry.stamp),
        "presence": int(entry.presence),
        "detail": entry.pack_detail(),
        "echo": entry.echo,
    }
    return {name: held for name, held in parts.items() if held is not None}


def entry_of(document: Mapping[str, Any]) -> Entry:
    """The entry that a document is."""
    return Entry.unpack(
        Stamp(document["stamp"]),
        document["presence"],
        document.get("detail"),
        document.get("echo"),
    )
