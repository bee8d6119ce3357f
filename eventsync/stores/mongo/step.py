"""The step: what an entry of the version index says is still to be done to its record's data.

It owns how data are changed so that nothing later is overwritten, and how a step that is refused is
undone. It knows nothing of records, nor of what is in an entry beside the step.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from bson import Int64, ObjectId
from pymongo import DeleteOne, UpdateOne

from eventsync.errors import RejectedError
from eventsync.index import Presence
from eventsync.stores.mongo.database import Database, is_duplicate

__all__ = ["MARK", "PARTS", "Step", "Steps", "Task"]

MARK: Final = "_eventsync"
"""The field that eventsync adds to the documents of records: the number of the last step."""

PARTS: Final[tuple[str, ...]] = ("stamp", "presence", "detail", "echo")
"""The fields of an entry that a step which is refused gives back."""


@dataclass(slots=True, frozen=True)
class Task:
    """What is to be done to one record's document ``id`` in a collection.

    ``sets``: fields to set; ``None`` to delete the document. ``fresh``: fields that are set only if
    it is not there yet. ``whole``: it is to be made then.
    """

    collection: str
    id: Any
    sets: Mapping[str, Any] | None
    fresh: Mapping[str, Any] = field(default_factory=dict)
    whole: bool = False

    def pack(self) -> dict[str, Any]:
        """The task as a document."""
        sets = None if self.sets is None else dict(self.sets)
        return {
            "collection": self.collection,
            "id": self.id,
            "sets": sets,
            "fresh": dict(self.fresh),
            "whole": self.whole,
        }

    def operation(self, number: int) -> UpdateOne | DeleteOne:
        """It as a write that takes effect unless the document is beyond step ``number``."""
        if self.sets is None:
            return DeleteOne({"_id": self.id, MARK: {"$not": {"$gt": number}}})
        update: dict[str, Any] = {"$set": {**self.sets, MARK: Int64(number)}}
        if self.fresh:
            update["$setOnInsert"] = dict(self.fresh)
        there = {"_id": self.id, MARK: {"$not": {"$gte": number}}}
        return UpdateOne(there, update, upsert=self.whole)


@dataclass(slots=True, frozen=True)
class Step:
    """A task that an entry carries. ``before``: the entry's parts as they were, if it was there."""

    entry: str
    number: int
    task: Task
    before: Mapping[str, Any] | None
    envelopes: Sequence[ObjectId]

    @classmethod
    def of(cls, document: Mapping[str, Any]) -> Step:
        """The step in the document of an entry."""
        step = document["step"]
        task = Task(**step["task"])
        return cls(
            document["_id"], int(document["number"]), task, step["before"], step["envelopes"]
        )

    def pack(self) -> dict[str, Any]:
        """It as it is kept in the entry."""
        return {
            "task": self.task.pack(),
            "before": self.before,
            "envelopes": list(self.envelopes),
        }


class Steps:
    """The steps of one version index, carried out. Thread-safe; any number of writers at once."""

    def __init__(self, database: Database, versions: str) -> None:
        """``versions``: the name of the collection of entries."""
        self._database = database
        self._versions = versions

    def finish(self, documents: Iterable[Mapping[str, Any]]) -> None:
        """Carry out the steps that these entries carry."""
        self.carry_out([Step.of(document) for document in documents])

    def carry_out(self, steps: Sequence[Step]) -> dict[str, RejectedError]:
        """Do to the data what steps say; by the name of their entry, those that are refused.

        Idempotent: what was done already, or is out of date, has no effect.
        """
        refused: dict[str, RejectedError] = {}
        collections: dict[str, list[Step]] = {}
        for step in steps:
            collections.setdefault(step.task.collection, []).append(step)
        for name, of_collection in collections.items():
            refused |= self._change_data(name, of_collection)
        done = [step for step in steps if step.entry not in refused]
        if done:
            closed, _ = self._database.write(
                self._versions,
                [
                    UpdateOne(
                        {"_id": s.entry, "number": s.number, "step": {"$exists": True}},
                        {"$unset": {"step": ""}},
                    )
                    for s in done
                ],
            )
            if closed < len(done):
                self._look_back(done)
        return {
            step.entry: refused[step.entry]
            for step in steps
            if step.entry in refused and self._undone(step)
        }

    def _change_data(self, collection: str, steps: Sequence[Step]) -> dict[str, RejectedError]:
        refused: dict[str, RejectedError] = {}
        for last in (False, True):
            operations = [step.task.operation(step.number) for step in steps]
            _, problems = self._database.write(collection, operations)
            again = []
            for place, problem in problems.items():
                if is_duplicate(problem) and list(problem.get("keyPattern") or ()) == ["_id"]:
                    # Another writer was faster with this document: it has a later step (then so
                    # be it), or came from somebody who knows nothing of steps.
                    again.append(steps[place])
                else:
                    error = self._database.error_of(collection, problem)
                    assert isinstance(error, RejectedError)
                    refused[steps[place].entry] = error
            if last or not again:
                break
            steps = again
        return refused

    def _look_back(self, steps: Sequence[Step]) -> None:
        """Remove what this writer inserted although the record was deleted meanwhile."""
        late = {step.entry: step for step in steps if step.task.sets is not None}
        condition = {"_id": {"$in": list(late)}}
        found = self._database.call(self._versions, lambda entries: list(entries.find(condition)))
        entries = {each["_id"]: each for each in found}
        for name, step in late.items():
            entry = entries.get(name)
            if entry is None or (
                entry["number"] > step.number and entry.get("presence") != Presence.PRESENT
            ):
                alone = DeleteOne({"_id": step.task.id, MARK: step.number})
                self._database.write(step.task.collection, [alone])

    def _undone(self, step: Step) -> bool:
        """Give an entry back what it was before a step that was refused; ``False`` if it was not.

        It was not refused if another writer could carry it out.
        """
        this = {"_id": step.entry, "number": step.number, "step": {"$exists": True}}
        if step.before is None:
            operation: UpdateOne | DeleteOne = DeleteOne(this)
        else:
            sets = {"number": Int64(step.number + 1), **step.before}
            unset = {"step": "", **{part: "" for part in PARTS if part not in step.before}}
            update: dict[str, Any] = {"$set": sets, "$unset": unset}
            if step.envelopes:
                update["$pull"] = {"envelopes": {"id": {"$in": list(step.envelopes)}}}
            operation = UpdateOne(this, update)
        matched, _ = self._database.write(self._versions, [operation])
        return bool(matched)
