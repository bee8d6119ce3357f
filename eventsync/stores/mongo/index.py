"""The version index of a MongoDB store: an entry for each record, in a collection beside its data.

It owns the collections, and how entries change together with data; how their documents look is in
``transaction.py``. It knows nothing of what records look like.

MongoDB changes one document at a time, and only that is asked of it: no replica set is needed. What
decides is the entry. One conditional write puts its new version there, and with it the envelopes to
send and what is still to be done to the data (the *step*), so version, outbox and step are one. The
step is then carried out, and taken out of the entry. Whoever meets an entry with a step, or looks
for envelopes, carries it out first; that may be done twice, for the data bear the number of the
last step in ``_eventsync``, and no step passes a later one. So a writer may die, or be overtaken,
at any moment. A step that the data's collection refuses is undone.

Only one thing is beyond a conditional write: that a document is *not* there. A writer that stalls
just before it inserts a record, while others finish its step and then delete the record, inserts it
all the same; it sees that at once afterwards, and removes it again.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar, Final

from bson import ObjectId
from pymongo import ASCENDING, DeleteOne, UpdateMany
from pymongo.errors import DuplicateKeyError

from eventsync.errors import ConfigError
from eventsync.index import Entry, Index, Outgoing, Presence
from eventsync.records.key import join
from eventsync.stores.mongo.database import Database, Place, is_duplicate
from eventsync.stores.mongo.step import Steps
from eventsync.stores.mongo.transaction import FREE, EntryChange, MongoTransaction, entry_of

__all__ = ["MongoIndex"]

_CHUNK: Final = 1000


class MongoIndex(Index):
    """The versions and the outbox of a MongoDB store, in the database that holds its data.

    They are in the collections ``{name}_version`` and ``{name}_mark``. Two stores that hold records
    of one type in one database need two names.
    """

    attempts: ClassVar[int] = 60

    def __init__(self, database: Place, *, name: str = "eventsync") -> None:
        self.database = Database.of(database)
        self.name = name
        self._versions = f"{name}_version"
        self._marks = f"{name}_mark"
        self._steps = Steps(self.database, self._versions)
        self.lost: list[str] | None = None
        """Where transactions note at which keys others were faster, instead of raising that."""
        self._ready = False

    def __repr__(self) -> str:
        return f"MongoIndex({self.database.address!r}, {self.name!r})"

    @contextmanager
    def transaction(self) -> Iterator[MongoTransaction]:
        """Begin; commit at the end of the block, each record by itself.

        Raises ``UndoneError`` when another writer was faster at a record, and ``RejectedError``
        when the database refuses one; the others are written all the same.
        """
        transaction = MongoTransaction(self)
        yield transaction
        transaction.commit()

    def lenient(self, lost: list[str]) -> MongoIndex:
        """This index, but its transactions note in ``lost`` at which keys others were faster."""
        lenient = copy.copy(self)
        lenient.lost = lost
        return lenient

    def prepare(self) -> None:
        """Make the indexes of its collection, and finish what dead writers left. Idempotent."""
        if self._ready:
            return

        def make(versions: Any) -> None:
            versions.create_index([("presence", ASCENDING), ("_id", ASCENDING)])
            versions.create_index([("envelopes.id", ASCENDING)], sparse=True)
            # Entries carry a step for a moment only, so this one stays empty.
            versions.create_index([("step.task.collection", ASCENDING)], sparse=True)

        self.database.call(self._versions, make)
        self._steps.finish(self._found({"step.task.collection": {"$exists": True}}))
        self._ready = True

    def register(self, type: str, collection: str) -> None:
        """Note where the records of a type are. Raises ``ConfigError`` if they are elsewhere.

        Idempotent. Versions of records in one place say nothing of those in another.
        """

        def note(marks: Any) -> Any:
            mark = {"_id": f"collection of {type}", "text": collection}
            try:
                marks.insert_one(mark)
            except DuplicateKeyError:
                return marks.find_one({"_id": mark["_id"]})
            return mark

        held = self.database.call(self._marks, note)
        if held is not None and held["text"] != collection:
            raise ConfigError(
                f"the version index {self.name!r} in {self.database.address} is of {type} in "
                f"{held['text']!r}, not in {collection!r}",
                hint="give each store an index of its own: Store(..., index=MongoIndex(..., "
                'name="..."))',
            )

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        condition: dict[str, Any] = {"_id": self._names(type, after)}
        condition["presence"] = {"$exists": True} if presence is None else int(presence)

        def find(versions: Any) -> list[dict[str, Any]]:
            return list(versions.find(condition).sort("_id").limit(limit))

        start = len(self.entry_name(type, ""))
        found = self.database.call(self._versions, find)
        return [(document["_id"][start:], entry_of(document)) for document in found]

    def counts(self, type: str) -> dict[Presence, int]:
        names = self._names(type)

        def count(versions: Any) -> dict[Presence, int]:
            return {
                each: versions.count_documents({"presence": int(each), "_id": names})
                for each in Presence
            }

        counted: dict[Presence, int] = self.database.call(self._versions, count)
        return counted

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        waiting = {"envelopes.id": {"$exists": True}}
        self._steps.finish(self._found({**waiting, "step": {"$exists": True}}))

        def find(versions: Any) -> list[dict[str, Any]]:
            found = versions.find({**waiting, "step": FREE}, {"envelopes": True})
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
        held = self.database.call(self._marks, lambda marks: marks.find_one({"_id": name}))
        return str(held["text"]) if held else ""

    def save_mark(self, name: str, text: str) -> None:
        def save(marks: Any) -> None:
            if text:
                marks.replace_one({"_id": name}, {"text": text}, upsert=True)
            else:
                marks.delete_one({"_id": name})

        self.database.call(self._marks, save)

    def close(self) -> None:
        self.database.close()

    # -- entries -----------------------------------------------------------------------------------

    @staticmethod
    def entry_name(type: str, key: str) -> str:
        """The ``_id`` of a record's entry."""
        return f"{join([type])}/{key}"

    def _names(self, type: str, after: str = "") -> dict[str, str]:
        """The condition for the names of a type's entries, from behind a key on."""
        end = f"{join([type])}0"  # 0 comes right behind the slash
        return {"$gt": self.entry_name(type, after), "$lt": end}

    def documents(self, names: Sequence[str]) -> dict[str, dict[str, Any]]:
        """The entries' documents of those of ``names`` that have one, with no step left to do."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(names), _CHUNK):
            condition = {"_id": {"$in": list(names[start : start + _CHUNK])}}
            documents = self._found(condition)
            while unfinished := [each for each in documents if "step" in each]:
                self._steps.finish(unfinished)
                documents = self._found(condition)
            found |= {document["_id"]: document for document in documents}
        return found

    def _found(self, condition: Mapping[str, Any]) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.database.call(
            self._versions, lambda versions: list(versions.find(condition))
        )
        return found

    def commit(self, changes: Sequence[EntryChange]) -> set[str]:
        """Change entries that are as they were read; the names of those that are not any more.

        Raises ``RejectedError`` if the data's collection refuses what one of them says.
        """
        if not changes:
            return set()
        matched, refused = self.database.write(
            self._versions, [change.operation for change in changes]
        )
        for problem in refused.values():
            if not is_duplicate(problem):  # as what is too large
                raise self.database.error_of(self._versions, problem)
        lost = {changes[place].name for place in refused}
        updates = [change for change in changes if change.updates]
        if matched < len(updates):
            # Several at once: which of them, only the entries can tell.
            by = {
                each["_id"]: each.get("by")
                for each in self._found({"_id": {"$in": [change.name for change in updates]}})
            }
            lost |= {change.name for change in updates if by.get(change.name) != change.by}
        won = [change for change in changes if change.name not in lost]
        errors = self._steps.carry_out([change.step for change in won if change.step is not None])
        if errors:
            raise next(iter(errors.values()))
        return lost

    def forget(self, names: Mapping[str, int]) -> None:
        """Remove entries that still have these numbers, and nothing to be sent or done."""
        if names:
            self.database.write(
                self._versions,
                [
                    DeleteOne({"_id": name, "number": number, "step": FREE, "envelopes.id": FREE})
                    for name, number in names.items()
                ],
            )
