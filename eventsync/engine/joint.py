"""The joint application of changes that depend on each other.

All changes are applied in one transaction, in the order that the accessor plans. They may be of
several record types if the accessors can write those together.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import TypeAlias

from eventsync.changes.change import Change
from eventsync.engine.gate import Decision, Outcome, Verdict
from eventsync.engine.plan import Plan, RecordId
from eventsync.engine.replica import Replica
from eventsync.engine.unit_of_work import UnitOfWork
from eventsync.index import IndexTransaction

__all__ = ["Batch", "apply_jointly", "linked"]

Batch: TypeAlias = tuple[Replica, Mapping[str, Sequence[Change]]]
"""The replica of one record type, and the changes of each record, by key; see ``Replica.apply``."""


def apply_jointly(batches: Sequence[Batch]) -> dict[RecordId, Sequence[Verdict]]:
    """Apply changes in one transaction; return the verdicts of each record.

    The verdict on a record that must wait for another one is held. Idempotent. Raises as
    ``Replica.apply`` does; nothing was written then.
    """
    return batches[0][0].index.until_done(lambda: _apply(batches))


def linked(batches: Sequence[Batch]) -> list[list[RecordId]]:
    """Return the records in groups that depend on each other. Write nothing."""
    replica = batches[0][0]
    return replica.index.run(lambda transaction: _planned(batches, transaction)[1].groups())


def _apply(batches: Sequence[Batch]) -> dict[RecordId, Sequence[Verdict]]:
    replica = batches[0][0]
    with replica.index.transaction() as transaction:
        decided, plan = _planned(batches, transaction)
        for work, decisions in decided:
            for key, decision in decisions.items():
                if error := plan.waiting.get((work.type, key)):
                    held = Verdict(Outcome.HELD, error=error)
                    decisions[key] = Decision([held] * len(decision.verdicts))
        with ExitStack() as writing:
            for work, decisions in decided:
                writing.enter_context(work.writing(decisions))
            plan.write()
    return {
        (work.type, key): decision.verdicts
        for work, decisions in decided
        for key, decision in decisions.items()
    }


def _planned(
    batches: Sequence[Batch], transaction: IndexTransaction
) -> tuple[list[tuple[UnitOfWork, dict[str, Decision]]], Plan]:
    """Decide about all changes; return the decisions of each replica, and the plan."""
    decided = []
    for replica, batch in batches:
        replica.recover(transaction)
        work = UnitOfWork(replica.accessor, transaction)
        decided.append((work, replica.decide(work, batch)))
    parts = [work.part(decisions) for work, decisions in decided]
    return decided, batches[0][0].accessor.plan(parts, transaction)
