"""The version index of a MongoDB store: an entry for each record, in a collection of its own."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any, ClassVar, Final
from uuid import uuid4

from bson import ObjectId
from pymongo import ASCENDING, DeleteOne, ReplaceOne, UpdateMany
from pymongo.errors import DuplicateKeyError

from eventsync.errors import ConfigError
from eventsync.index import Entry, Index, Outgoing, Presence
from eventsync.index.contract import after_all
from eventsync.records.key import join
from eventsync.stores.mongo.database import Database, Place
from eventsync.stores.mongo.entry import ABSENT, Entries, entry_id, entry_of
from eventsync.stores.mongo.transaction import MongoTransaction

__all__ = ["MongoIndex"]

_BORN: Final = "born"  # the mark with which an index is told from the one that replaces it
_CHUNK: Final = 1000


class MongoIndex(Index):
    """The versions and the outbox of a MongoDB store, in the database that holds its data.

    They are in the collections ``{name}_version`` and ``{name}_mark``. Two stores with records of
    the same type in one database need two names.
    """

    attempts: ClassVar[int] = 60

    def __init__(self, database: Place, *, name: str = "eventsync") -> None:
        self.database = Database.of(database)
        self.name = name
        self._versions = f"{name}_version"
        self._marks = f"{name}_mark"
        self._entries = Entries(self.database, self._versions)
        self._overtaken: list[str] | None = None
        self._ready = False
        self._born: str | None = None

    def __repr__(self) -> str:
        return f"MongoIndex({self.database.address!r}, {self.name!r})"

    @contextmanager
    def transaction(self) -> Iterator[MongoTransaction]:
        """Begin; commit at the end of the block, each record by itself.

        Raises ``UndoneError`` for a record that another writer has changed meanwhile, and
        ``RejectedError`` for one that the database rejects. All other records are written.
        """
        transaction = MongoTransaction(self._entries, self._overtaken)
        yield transaction
        transaction.commit()

    def lenient(self, overtaken: list[str]) -> MongoIndex:
        """Return a copy whose transactions add overtaken keys to a list, instead of raising."""
        lenient = copy.copy(self)
        lenient._overtaken = overtaken
        return lenient

    def prepare(self) -> None:
        """Create the indexes of the collection; carry out what dead writers left. Idempotent."""
        if self._ready:
            return

        def make(versions: Any) -> None:
            versions.create_index([("presence", ASCENDING), ("_id", ASCENDING)])
            versions.create_index([("envelopes.id", ASCENDING)], sparse=True)
            # Entries carry a staged write only for a moment, so this index stays empty.
            versions.create_index([("step.task.collection", ASCENDING)], sparse=True)

        self.database.call(self._versions, make)
        self._entries.staged_writes.finish(
            self._entries.find({"step.task.collection": {"$exists": True}})
        )
        self._ready = True

    @property
    def collections(self) -> tuple[str, str]:
        """The names of the collections of this index."""
        return self._versions, self._marks

    def missing(self) -> str:
        if self.database.call(self._marks, lambda marks: marks.find_one({})) is not None:
            return ""
        return f"the version index {self.name} in {self.database.address}"

    def register(self, type: str, collection: str) -> None:
        """Note in which collection the records of a type are. Idempotent.

        Raises ``ConfigError`` if another collection is noted, because versions of records in one
        collection say nothing about those in another.
        """
        if self._born is None:
            self.accept_loss()

        def note(marks: Any) -> Any:
            mark = {"_id": f"collection of {type}", "text": collection}
            try:
                marks.insert_one(mark)
            except DuplicateKeyError:
                return marks.find_one({"_id": mark["_id"]})
            return mark

        mark = self.database.call(self._marks, note)
        if mark is not None and mark["text"] != collection:
            raise ConfigError(
                f"the version index {self.name!r} in {self.database.address} belongs to another "
                f"store, which keeps {type} in the collection {mark['text']!r}; this store keeps "
                f"it in {collection!r}",
                hint="give each store an index of its own: Store(..., index=MongoIndex(..., "
                'name="..."))',
            )

    def is_lost(self) -> bool:
        """Return whether this index was dropped since this process opened it."""
        return self._born is not None and self.load_mark(_BORN) != self._born

    def accept_loss(self) -> None:
        """Go on with the index as it is now. Idempotent."""

        def bear(marks: Any) -> None:
            with suppress(DuplicateKeyError):
                marks.insert_one({"_id": _BORN, "text": uuid4().hex})

        self.database.call(self._marks, bear)
        self._born = self.load_mark(_BORN)
        self._ready = False
        self.prepare()

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        condition: dict[str, Any] = {"_id": self._ids(type, after)}
        condition["presence"] = {"$exists": True} if presence is None else int(presence)

        def find(versions: Any) -> list[dict[str, Any]]:
            return list(versions.find(condition).sort("_id").limit(limit))

        start = len(entry_id(type, ""))
        found = self.database.call(self._versions, find)
        return [(document["_id"][start:], entry_of(document)) for document in found]

    def counts(self, type: str) -> dict[Presence, int]:
        ids = self._ids(type)

        def count(versions: Any) -> dict[Presence, int]:
            return {
                each: versions.count_documents({"presence": int(each), "_id": ids})
                for each in Presence
            }

        counted: dict[Presence, int] = self.database.call(self._versions, count)
        return counted

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        waiting = {"envelopes.id": {"$exists": True}}
        self._entries.staged_writes.finish(
            self._entries.find({**waiting, "step": {"$exists": True}})
        )

        def find(versions: Any) -> list[dict[str, Any]]:
            found = versions.find({**waiting, "step": ABSENT}, {"envelopes": True})
            return list(found.sort("envelopes.id").limit(limit))

        envelopes = [
            each
            for document in self.database.call(self._versions, find)
            for each in document["envelopes"]
        ]
        envelopes.sort(key=lambda each: each["id"])
        return [
            Outgoing(int.from_bytes(each["id"].binary, "big"), each["type"], each["body"])
            for each in envelopes[:limit]
        ]

    def sent(self, numbers: Sequence[int]) -> None:
        for start in range(0, len(numbers), _CHUNK):
            ids = [ObjectId(n.to_bytes(12, "big")) for n in numbers[start : start + _CHUNK]]
            these = {"$in": ids}
            pull = UpdateMany({"envelopes.id": these}, {"$pull": {"envelopes": {"id": these}}})
            self.database.write(self._versions, [pull])

    def load_mark(self, name: str) -> str:
        mark = self.database.call(self._marks, lambda marks: marks.find_one({"_id": name}))
        return str(mark["text"]) if mark else ""

    def marks(self, prefix: str) -> dict[str, str]:
        named = {"_id": {"$gt": prefix, "$lt": after_all(prefix)}}
        found = self.database.call(self._marks, lambda marks: list(marks.find(named)))
        return {mark["_id"]: str(mark["text"]) for mark in found}

    def save_marks(self, marks: Mapping[str, str]) -> None:
        writes = [
            ReplaceOne({"_id": name}, {"text": text}, upsert=True)
            if text
            else DeleteOne({"_id": name})
            for name, text in marks.items()
        ]
        if writes:
            self.database.call(self._marks, lambda marks: marks.bulk_write(writes, ordered=False))

    def close(self) -> None:
        self.database.close()

    @staticmethod
    def _ids(type: str, after: str = "") -> dict[str, str]:
        """Return the condition for the ``_id`` of a type's entries beyond a key."""
        end = f"{join([type])}0"  # "0" comes right after "/"
        return {"$gt": entry_id(type, after), "$lt": end}
