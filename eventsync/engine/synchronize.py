"""The copying of records from some stores into others; see ``StoreRegistry.synchronize``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import Limits, Settled, apply
from eventsync.engine.gate import Outcome
from eventsync.engine.isolation import Failed, concerns_all, isolate, item_error
from eventsync.engine.store import Store
from eventsync.errors import EventSyncError
from eventsync.records.query import Filter, Query
from eventsync.records.record import Record
from eventsync.values.chunk import chunked

__all__ = ["SyncProgress", "SyncReport", "Synchronization"]


@dataclass(slots=True)
class SyncProgress:
    """How many records of one type have been copied from one source."""

    source: str
    type: str
    done: int
    total: int


@dataclass(slots=True)
class SyncReport:
    """What a synchronization did.

    - ``captured``: how many foreign writes were captured in the sources.
    - ``outcomes``: by target, how many records had each outcome.
    - ``rejected``: the target and the change, for each change that a target rejected.
    - ``unreadable``: the store and the error, for each record that could not be read.
    """

    captured: int = 0
    outcomes: dict[str, dict[Outcome, int]] = field(default_factory=dict)
    rejected: list[tuple[str, Settled]] = field(default_factory=list)
    unreadable: list[tuple[str, EventSyncError]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Synchronization:
    """One run of ``StoreRegistry.synchronize``, which explains the attributes."""

    count: int
    restart: bool
    deletes: float
    clock: Clock
    limits: Limits
    progress: Callable[[SyncProgress], None]
    report: SyncReport = field(default_factory=SyncReport)
    _reported: set[tuple[str, str]] = field(default_factory=set)

    def copy(
        self, source: Store, accessor: Accessor[Any], targets: Sequence[Store], where: Filter
    ) -> None:
        """Copy the records of one type from a source into the targets."""
        self._capture(source, accessor)
        type, index = accessor.type.name, source.index
        mark = _mark_name(type, [target.name for target in targets], where)
        after = "" if self.restart else index.load_mark(mark)
        total = sum(index.counts(type).values())
        done = 0
        for entries in chunked(index.entries(type, after=after, page=self.count), self.count):
            keys = [key for key, _ in entries]
            changes = [
                change
                for change in self._states(source, accessor, keys)
                if change.data is None or where.matches(_values_of(change, accessor))
            ]
            for target in targets:
                target.replicas[type].forget_missing(keys, deletes=self.deletes)
                self._apply(target, changes)
            index.save_mark(mark, keys[-1])
            done += len(keys)
            self.progress(SyncProgress(source.name, type, done, max(total, done)))
        index.save_mark(mark, "")

    def compare(
        self, source: Store, accessor: Accessor[Any], targets: Sequence[Store], where: Filter
    ) -> None:
        """Count what ``copy`` would change in the targets. Write nothing."""
        type = accessor.type.name
        query = Query.parse(
            accessor.type, None, unreadable=lambda error: self._unreadable(source, error)
        )
        total = accessor.count(query)
        for done, record in enumerate(accessor.find(query), start=1):
            if where.matches(record.raw()):
                for target in targets:
                    self._count_difference(record, target)
            if done % 1000 == 0 or done == total:
                self.progress(SyncProgress(source.name, type, done, total))

    def _capture(self, source: Store, accessor: Accessor[Any]) -> None:
        captured = source.capture(
            accessor.record_class,
            deletes=self.deletes,
            unreadable=lambda error: self._unreadable(source, error),
        )
        for changes in captured:
            self.report.captured += len(changes)

    def _states(
        self, source: Store, accessor: Accessor[Any], keys: Sequence[str]
    ) -> Iterable[Change]:
        """Yield the records of ``keys`` as changes. Report those that cannot be read."""
        for part in isolate(keys, lambda keys: source.replicas[accessor.type.name].states(keys)):
            if isinstance(part, Failed):
                error = item_error(part.error, f"{accessor.type.name} {part.item!r}")
                self._unreadable(source, error)
            else:
                yield from part.result

    def _apply(self, target: Store, changes: Sequence[Change]) -> None:
        # These changes are the present state of the source, so their age does not matter.
        limits = replace(self.limits, retention=math.inf)
        for settled in apply(target, changes, clock=self.clock, limits=limits):
            self._count(target, settled.outcome)
            if settled.outcome is Outcome.REJECTED:
                self.report.rejected.append((target.name, settled))

    def _count_difference(self, record: Record, target: Store) -> None:
        """Count one record as a duplicate if the target would not change, else as applied."""
        accessor, values = target.accessors[record.__record__.name], record.raw()
        try:
            found = accessor.get(record.key)
        except Exception as error:
            if concerns_all(error):
                raise
            self._unreadable(target, item_error(error, f"{accessor.type.name} {record.key!r}"))
            return
        if found is None:
            same = not accessor.view.matches(values)
        else:
            held = found.raw()
            same = all(held[name] == value for name, value in values.items() if name in held)
        self._count(target, Outcome.DUPLICATE if same else Outcome.APPLIED)

    def _count(self, target: Store, outcome: Outcome) -> None:
        outcomes = self.report.outcomes.setdefault(target.name, {})
        outcomes[outcome] = outcomes.get(outcome, 0) + 1

    def _unreadable(self, store: Store, error: EventSyncError) -> None:
        """Report a record that cannot be read, once, although it is read several times."""
        if (store.name, str(error)) not in self._reported:
            self._reported.add((store.name, str(error)))
            self.report.unreadable.append((store.name, error))


def _values_of(change: Change, accessor: Accessor[Any]) -> Mapping[str, Any]:
    known = change.known.values if change.known else {}
    return {**accessor.type.key_values(change.key), **known, **(change.data or {})}


def _mark_name(type: str, targets: Sequence[str], where: Filter) -> str:
    text = json.dumps([type, sorted(targets), where.to_json()], sort_keys=True, default=str)
    return f"sync:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
