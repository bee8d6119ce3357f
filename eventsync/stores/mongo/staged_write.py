"""Staged writes: what version entries say is still to be done to the documents of records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Int64, ObjectId
from pymongo import DeleteOne, UpdateOne

from eventsync.errors import RejectedError
from eventsync.index import Presence
from eventsync.stores.mongo.database import Database, is_duplicate

__all__ = ["MARK", "PARTS", "DocumentWrite", "StagedWrite", "StagedWrites"]

MARK: Final = "_eventsync"
"""The field that eventsync adds to documents of records: the number of the last staged write."""

PARTS: Final[tuple[str, ...]] = ("stamp", "presence", "detail", "echo")
"""The fields of an entry that are restored when its staged write is rejected."""


@dataclass(slots=True, frozen=True)
class DocumentWrite:
    """A write to one record's document ``id`` in a collection.

    ``sets``: fields to set; ``None`` deletes the document. ``fresh``: fields to set only in a
    document that is created. ``whole``: create the document if it is missing.
    """

    collection: str
    id: Any
    sets: Mapping[str, Any] | None
    fresh: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    def pack(self) -> dict[str, Any]:
        """Return the write as a document."""
        sets = None if self.sets is None else dict(self.sets)
        return {
            "collection": self.collection,
            "id": self.id,
            "sets": sets,
            "fresh": dict(self.fresh),
            "whole": self.whole,
        }

    def operation(self, number: int) -> UpdateOne | DeleteOne:
        """Return the operation for MongoDB; it has no effect after a write of a later number."""
        if self.sets is None:
            return DeleteOne({"_id": self.id, MARK: {"$not": {"$gt": number}}})
        update: dict[str, Any] = {"$set": {**self.sets, MARK: Int64(number)}}
        if self.fresh:
            update["$setOnInsert"] = dict(self.fresh)
        condition = {"_id": self.id, MARK: {"$not": {"$gte": number}}}
        return UpdateOne(condition, update, upsert=self.whole)


@dataclass(slots=True, frozen=True)
class StagedWrite:
    """A document write that an entry carries, in its field ``step``, until it is carried out.

    ``entry``: the entry's ``_id``. ``number``: grows with each change of the entry. ``before``: the
    entry's parts as they were, ``None`` if there was no entry. ``envelopes``: the ids of those that
    the same change put into the outbox.
    """

    entry: str
    number: int
    write: DocumentWrite
    before: Mapping[str, Any] | None
    envelopes: Sequence[ObjectId]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> StagedWrite:
        """Return the staged write of an entry, given the entry's document."""
        step = document["step"]
        return cls(
            document["_id"],
            int(document["number"]),
            DocumentWrite(**step["task"]),
            step["before"],
            step["envelopes"],
        )

    def pack(self) -> dict[str, Any]:
        """Return the content of the entry's field ``step``."""
        return {
            "task": self.write.pack(),
            "before": self.before,
            "envelopes": list(self.envelopes),
        }


class StagedWrites:
    """Carries out the staged writes of one version index. Thread-safe; many may do so at once."""

    def __init__(self, database: Database, versions: str) -> None:
        """``versions``: the name of the collection of entries."""
        self._database = database
        self._versions = versions

    def finish(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Carry out the staged writes of these entries, given the entries' documents."""
        self.carry_out([StagedWrite.of(document) for document in documents])

    def carry_out(self, staged: Sequence[StagedWrite]) -> dict[str, RejectedError]:
        """Write to the documents; return the errors of rejected writes, by the entry's ``_id``.

        Idempotent: a write that was done already, or is out of date, has no effect.
        """
        rejected: dict[str, RejectedError] = {}
        collections: dict[str, list[StagedWrite]] = {}
        for each in staged:
            collections.setdefault(each.write.collection, []).append(each)
        for name, of_collection in collections.items():
            rejected |= self._change_data(name, of_collection)
        done = [each for each in staged if each.entry not in rejected]
        if done:
            closed, _ = self._database.write(
                self._versions,
                [
                    UpdateOne(
                        {"_id": each.entry, "number": each.number, "step": {"$exists": True}},
                        {"$unset": {"step": ""}},
                    )
                    for each in done
                ],
            )
            if closed < len(done):
                self._remove_late_inserts(done)
        return {
            each.entry: rejected[each.entry]
            for each in staged
            if each.entry in rejected and self._undone(each)
        }

    def _change_data(
        self, collection: str, staged: Sequence[StagedWrite]
    ) -> dict[str, RejectedError]:
        rejected: dict[str, RejectedError] = {}
        for last in (False, True):
            operations = [each.write.operation(each.number) for each in staged]
            _, problems = self._database.write(collection, operations)
            again = []
            for place, problem in problems.items():
                if is_duplicate(problem) and list(problem.get("keyPattern") or ()) == ["_id"]:
                    # The document exists although the condition did not match it. Either it has a
                    # later write, which is then right, or it was just inserted by somebody else.
                    again.append(staged[place])
                else:
                    error = self._database.error_of(collection, problem)
                    assert isinstance(error, RejectedError)
                    rejected[staged[place].entry] = error
            if last or not again:
                break
            staged = again
        return rejected

    def _remove_late_inserts(self, staged: Sequence[StagedWrite]) -> None:
        """Remove what this writer inserted although the record was deleted meanwhile."""
        late = {each.entry: each for each in staged if each.write.sets is not None}
        condition = {"_id": {"$in": list(late)}}
        found = self._database.call(self._versions, lambda entries: list(entries.find(condition)))
        entries = {each["_id"]: each for each in found}
        for name, each in late.items():
            entry = entries.get(name)
            if entry is None or (
                entry["number"] > each.number and entry.get("presence") != Presence.PRESENT
            ):
                alone = DeleteOne({"_id": each.write.id, MARK: each.number})
                self._database.write(each.write.collection, [alone])

    def _undone(self, staged: StagedWrite) -> bool:
        """Restore an entry as it was before a rejected write; return whether that was possible.

        It is not if another writer could carry the write out: then it was not rejected.
        """
        condition = {"_id": staged.entry, "number": staged.number, "step": {"$exists": True}}
        if staged.before is None:
            operation: UpdateOne | DeleteOne = DeleteOne(condition)
        else:
            sets = {"number": Int64(staged.number + 1), **staged.before}
            unset = {"step": "", **{part: "" for part in PARTS if part not in staged.before}}
            update: dict[str, Any] = {"$set": sets, "$unset": unset}
            if staged.envelopes:
                update["$pull"] = {"envelopes": {"id": {"$in": list(staged.envelopes)}}}
            operation = UpdateOne(condition, update)
        matched, _ = self._database.write(self._versions, [operation])
        return bool(matched)
