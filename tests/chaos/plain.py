"""The scenario of long runs: one record type of twelve fields, whole in two databases.

What is published is known by heart, so that echoes can be counted and lag can be told change by
change. It knows nothing of faults.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.customer import Customer, row
from journal import Applied
from model import winners_per_record

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.gate import Outcome, Verdict
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.stores.sql import SqlAccessor

__all__ = ["EDITS_STORES", "POISON", "STORES", "compose", "expected", "produce", "stores"]

EDITS_STORES = False
"""Producers send to the bus alone, so every change there is in their journals."""
POISON = ("Customer", {"balance": "no number"})
"""A record type, and values that no store can take for it."""
STORES = ("left", "right")
_DELETES = 0.1


class _ObservedReplica(Replica):
    """Writes down when changes became visible."""

    def apply(self, batch: Mapping[str, Sequence[Change]]) -> dict[str, Sequence[Verdict]]:
        verdicts = super().apply(batch)
        self.accessor.applied.note(
            changes[0].version
            for key, changes in batch.items()
            if verdicts[key][0].outcome is Outcome.APPLIED
        )
        return verdicts


class _Observed(SqlAccessor[Customer]):
    """An accessor whose replica writes down when changes became visible."""

    replica_class = _ObservedReplica
    applied: Applied


def stores(folder: Path, urls: Mapping[str, str]) -> StoreRegistry:
    """The stores, not opened; ``urls``: those that are not in an SQLite file of ``folder``."""
    made = []
    for name in STORES:
        accessor = _Observed(
            Customer,
            urls.get(name, f"sqlite:///{folder / name}.db?timeout=2"),
            table="customer",
            create=True,
        )
        accessor.applied = Applied(folder, name)
        made.append(Store(name, accessor))
    return StoreRegistry(*made)


def compose(rng: random.Random, clock: Clock, key: int) -> Change:
    """One change of one record."""
    gone = rng.random() < _DELETES
    return Change(
        type="Customer",
        key=str(key),
        op="delete" if gone else "put",
        version=clock.tick(),
        data=None if gone else row(rng, key),
        source="chaos",
    )


def produce(
    rng: random.Random,
    registry: StoreRegistry,
    clock: Clock,
    send: Callable[[str, Sequence[Change]], None],
    *,
    count: int,
    keys: int,
) -> int:
    """Publish up to ``count`` changes at once, shuffled; how many."""
    changes = [compose(rng, clock, rng.randrange(keys)) for _ in range(min(count, 200))]
    rng.shuffle(changes)
    send("Customer", changes)
    return len(changes)


def expected(history: Iterable[Change]) -> dict[type[Any], dict[str, dict[str, Any]]]:
    """What every store has to hold of each record type, whole."""
    return {Customer: winners_per_record(history)}
