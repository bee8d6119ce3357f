"""The entries of a MongoDB version index: their documents, and how they change.

MongoDB changes one document at a time, and nothing more is asked of it, so no replica set is
needed. The entry decides. One conditional write stores its new version, the envelopes to send and
the write that is still to be made to the record's document (the *staged write*). So version, outbox
and staged write change together. Then the staged write is carried out and removed from the entry.

Whoever finds an entry with a staged write, or looks for envelopes, carries it out first. Doing so
twice is harmless: the record's document bears the number of its last write in ``_eventsync``, and
an older write never follows a newer one. So a writer may die or be overtaken at any moment. A
staged write that the collection of the records rejects is undone.

A conditional write cannot require that a document does *not* exist. A writer may stall just before
it inserts a record, while others finish its staged write and then delete the record. It inserts the
record all the same, notices that at once, and removes the record again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from bson import ObjectId
from pymongo import DeleteOne, InsertOne, UpdateOne

from eventsync.changes.stamp import Stamp
from eventsync.index import Entry
from eventsync.records.key import join
from eventsync.stores.mongo.database import Database, is_duplicate
from eventsync.stores.mongo.staged_write import StagedWrite, StagedWrites

__all__ = ["ABSENT", "Entries", "EntryChange", "entry_id", "entry_of", "parts_of"]

_CHUNK: Final = 1000

ABSENT: Final = {"$exists": False}
"""The condition that a field is missing."""


@dataclass(slots=True, frozen=True)
class EntryChange:
    """The one write that changes an entry.

    ``id``: the entry's ``_id``. ``by``: identifies the commit. ``updates``: the entry existed.
    """

    id: str
    by: ObjectId
    operation: UpdateOne | InsertOne[dict[str, Any]]
    updates: bool
    staged: StagedWrite | None


class Entries:
    """The collection of the entries of one version index. Thread-safe."""

    def __init__(self, database: Database, collection: str) -> None:
        self.database = database
        self.collection = collection
        self.staged_writes = StagedWrites(database, collection)

    def find(self, condition: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the documents of the entries that fulfil a condition."""
        found: list[dict[str, Any]] = self.database.call(
            self.collection, lambda entries: list(entries.find(condition))
        )
        return found

    def finished(self, ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        """Return the entries' documents by ``_id``, after their staged writes are carried out."""
        found: dict[str, dict[str, Any]] = {}
        for start in range(0, len(ids), _CHUNK):
            condition = {"_id": {"$in": list(ids[start : start + _CHUNK])}}
            documents = self.find(condition)
            while unfinished := [each for each in documents if "step" in each]:
                self.staged_writes.finish(unfinished)
                documents = self.find(condition)
            found |= {document["_id"]: document for document in documents}
        return found

    def commit(self, changes: Sequence[EntryChange]) -> set[str]:
        """Change entries, then their records' documents; return the ids of overtaken entries.

        An entry is overtaken if another writer has changed it since it was read. Raises
        ``RejectedError`` if the collection of the records rejects one of the documents.
        """
        if not changes:
            return set()
        matched, refused = self.database.write(
            self.collection, [change.operation for change in changes]
        )
        for problem in refused.values():
            if not is_duplicate(problem):  # too large, for example
                raise self.database.error_of(self.collection, problem)
        overtaken = {changes[place].id for place in refused}
        updates = [change for change in changes if change.updates]
        if matched < len(updates):
            # The server only counts matches, so look which entries this commit has changed.
            by = {
                each["_id"]: each.get("by")
                for each in self.find({"_id": {"$in": [change.id for change in updates]}})
            }
            overtaken |= {change.id for change in updates if by.get(change.id) != change.by}
        errors = self.staged_writes.carry_out(
            [
                change.staged
                for change in changes
                if change.staged is not None and change.id not in overtaken
            ]
        )
        if errors:
            raise next(iter(errors.values()))
        return overtaken

    def forget(self, numbers: Mapping[str, int]) -> None:
        """Remove entries, by ``_id``, that still have these numbers and nothing to send or do."""
        if numbers:
            self.database.write(
                self.collection,
                [
                    DeleteOne({"_id": id, "number": number, "step": ABSENT, "envelopes.id": ABSENT})
                    for id, number in numbers.items()
                ],
            )


def entry_id(type: str, key: str) -> str:
    """Return the ``_id`` of a record's entry."""
    return f"{join([type])}/{key}"


def parts_of(entry: Entry) -> dict[str, Any]:
    """Return the fields of an entry's document; a field without a value is left out."""
    parts = {
        "stamp": bytes(entry.stamp),
        "presence": int(entry.presence),
        "detail": entry.pack_detail(),
        "echo": entry.echo,
    }
    return {name: value for name, value in parts.items() if value is not None}


def entry_of(document: Mapping[str, Any]) -> Entry:
    """Return the entry of an entry's document."""
    return Entry.unpack(
        Stamp(document["stamp"]),
        document["presence"],
        document.get("detail"),
        document.get("echo"),
    )
