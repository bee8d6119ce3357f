"""Synchronization: copies records between stores. See ``StoreRegistry.synchronize``."""

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
    """The progress of copying the records of one type from one source.

    ``source``: the name of the store. ``done``: the number of records that were read so far.
    ``total``: the number of records to read.
    """

    source: str
    type: str
    done: int
    total: int


@dataclass(slots=True)
class SyncReport:
    """The results of a synchronization. Stores are given by name.

    - ``captured``: the number of foreign writes that were captured in sources and targets.
    - ``outcomes``: for each target, the number of records with each outcome.
    - ``rejected``: a pair of target and change, for each change that a target rejected.
    - ``unreadable``: a pair of store and error, for each record that could not be read.
    """

    captured: int = 0
    outcomes: dict[str, dict[Outcome, int]] = field(default_factory=dict)
    rejected: list[tuple[str, Settled]] = field(default_factory=list)
    unreadable: list[tuple[str, EventSyncError]] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class Synchronization:
    """One run of ``StoreRegistry.synchronize``. The attributes are arguments of that method."""

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
        """Copy the records of one type that match ``where`` from ``source`` to ``targets``.

        ``accessor``: the accessor of ``source`` for the type. Continues an interrupted copy, unless
        ``restart`` is set. Writes the results to ``report``.
        """
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
                self._capture_known(target, accessor, keys)
                target.replicas[type].forget_missing(keys, deletes=self.deletes)
                self._apply(target, changes)
            index.save_mark(mark, keys[-1])
            done += len(keys)
            self.progress(SyncProgress(source.name, type, done, max(total, done)))
        index.save_mark(mark, "")

    def compare(
        self, source: Store, accessor: Accessor[Any], targets: Sequence[Store], where: Filter
    ) -> None:
        """Count in ``report`` how many records ``copy`` would change. Write nothing to the stores.

        Compares field values and ignores versions. ``accessor``: the accessor of ``source``.
        """
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

    def _capture_known(self, target: Store, accessor: Accessor[Any], keys: Sequence[str]) -> None:
        """Capture foreign writes to these records of a target, which a copy would overwrite."""
        self.report.captured += target.capture_known(
            accessor.record_class, keys, deletes=self.deletes
        )

    def _states(
        self, source: Store, accessor: Accessor[Any], keys: Sequence[str]
    ) -> Iterable[Change]:
        """Yield the records with these keys as changes. Report records that cannot be read."""
        for part in isolate(keys, lambda keys: source.replicas[accessor.type.name].states(keys)):
            if isinstance(part, Failed):
                error = item_error(part.error, f"{accessor.type.name} {part.item!r}")
                self._unreadable(source, error)
            else:
                yield from part.result

    def _apply(self, target: Store, changes: Sequence[Change]) -> None:
        # These changes are the current state of the source, so an old version is not an old change.
        limits = replace(self.limits, retention=math.inf)
        for settled in apply(target, changes, clock=self.clock, limits=limits):
            self._count(target, settled.outcome)
            if settled.outcome is Outcome.REJECTED:
                self.report.rejected.append((target.name, settled))

    def _count_difference(self, record: Record, target: Store) -> None:
        """Count ``record`` as applied if copying it would alter ``target``, else as duplicate."""
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
        """Add ``error`` to the report, unless the same error of this store was added before."""
        if (store.name, str(error)) not in self._reported:
            self._reported.add((store.name, str(error)))
            self.report.unreadable.append((store.name, error))


def _values_of(change: Change, accessor: Accessor[Any]) -> Mapping[str, Any]:
    known = change.known.values if change.known else {}
    return {**accessor.type.key_values(change.key), **known, **(change.data or {})}


def _mark_name(type: str, targets: Sequence[str], where: Filter) -> str:
    text = json.dumps([type, sorted(targets), where.to_json()], sort_keys=True, default=str)
    return f"sync:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
