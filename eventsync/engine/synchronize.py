"""Synchronization: copies records between stores. See ``StoreRegistry.synchronize``."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import groupby
from typing import Any, Final, NamedTuple

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.accessor import Accessor
from eventsync.engine.apply import Limits, Settled, apply
from eventsync.engine.capture import ALLOWED_DELETES
from eventsync.engine.gate import Outcome
from eventsync.engine.isolation import Failed, concerns_all, isolate
from eventsync.engine.refill import loss_of, note_filled
from eventsync.engine.store import Store
from eventsync.engine.unreadable import UnreadableKeys, error_of, states_of
from eventsync.errors import RecordError, UnreadableError
from eventsync.records.query import Filter, Query
from eventsync.records.record import Record
from eventsync.values.chunk import chunked

__all__ = ["SyncProgress", "SyncReport", "Synchronization"]

_MOST_TOGETHER: Final = 50_000
"""So many records that depend on each other are applied in one transaction at most."""


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
    unreadable: list[tuple[str, RecordError]] = field(default_factory=list)


class _Held(NamedTuple):
    """A record that a target held, because it depends on another record."""

    source: Store
    target: Store
    type: str
    key: str


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
    _reported: set[tuple[str, str, str]] = field(default_factory=set)
    _held: list[_Held] = field(default_factory=list)

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
                with target.errors():
                    self._capture_known(target, accessor, keys)
                    unreadable = self._forget_missing(target, type, keys)
                self._apply(source, target, changes, unreadable)
            index.save_mark(mark, keys[-1])
            done += len(keys)
            self.progress(SyncProgress(source.name, type, done, max(total, done)))
        index.save_mark(mark, "")
        if not where.fields and loss_of(source, type) is None:
            for target in targets:
                note_filled(target, type)

    def retry_held(self) -> None:
        """Copy the held records again, until no target takes another one.

        The records that they depend on may have been copied later. Records that depend on each
        other must be applied together, so ever more of them are.
        """
        size = self.count
        while self._held:
            held, self._held = self._held, []
            held.sort(key=lambda one: (one.source.name, one.target.name))
            for _, same in groupby(held, key=lambda one: (one.source.name, one.target.name)):
                for chunk in chunked(same, size):
                    self._copy_held(chunk)
            if len(self._held) == len(held):
                if size >= min(len(held), _MOST_TOGETHER):
                    return
                size *= 4

    def _copy_held(self, held: Sequence[_Held]) -> None:
        """Apply the present states of records of one source to their target."""
        source, target = held[0].source, held[0].target
        self.report.outcomes[target.name][Outcome.HELD] -= len(held)
        keys: dict[str, list[str]] = {}
        for one in held:
            keys.setdefault(one.type, []).append(one.key)
        changes = [
            change
            for type, of_type in keys.items()
            for change in self._states(source, source.accessors[type], of_type)
        ]
        self._apply(source, target, changes, {})

    def compare(
        self, source: Store, accessor: Accessor[Any], targets: Sequence[Store], where: Filter
    ) -> None:
        """Count in ``report`` how many records ``copy`` would change. Write nothing to the stores.

        Compares field values and ignores versions. ``accessor``: the accessor of ``source``.
        """
        type = accessor.type.name
        query = Query.parse(
            accessor.type, None, unreadable=lambda error: self._unreadable(source, type, error)
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
            unreadable=lambda error: self._unreadable(source, accessor.type.name, error),
        )
        for changes in captured:
            self.report.captured += len(changes)

    def _capture_known(self, target: Store, accessor: Accessor[Any], keys: Sequence[str]) -> None:
        """Capture foreign writes to these records of a target, which a copy would overwrite.

        ``deletes`` is about the sources: what a target has lost is never taken for deleted.
        """
        self.report.captured += target.capture_known(
            accessor.record_class, keys, deletes=ALLOWED_DELETES
        )

    def _states(
        self, source: Store, accessor: Accessor[Any], keys: Sequence[str]
    ) -> Iterable[Change]:
        """Return the records with these keys as changes. Report records that cannot be read."""
        replica = source.replicas[accessor.type.name]
        return states_of(
            replica, keys, lambda key, error: self._unreadable(source, replica.type.name, error)
        )

    def _forget_missing(self, target: Store, type: str, keys: Sequence[str]) -> UnreadableKeys:
        """Call ``Replica.forget_missing``; report and return the errors of unreadable records."""
        unreadable: dict[tuple[str, str], RecordError] = {}
        forget = partial(target.replicas[type].forget_missing, deletes=ALLOWED_DELETES)
        for part in isolate(keys, forget):
            if isinstance(part, Failed):
                unreadable[type, part.item] = error_of(part, type)
                self._unreadable(target, type, unreadable[type, part.item])
        return unreadable

    def _apply(
        self,
        source: Store,
        target: Store,
        changes: Sequence[Change],
        unreadable: UnreadableKeys,
    ) -> None:
        # These changes are the current state of the source, so an old version is not an old change.
        limits = replace(self.limits, retention=math.inf)
        for settled in apply(
            target, changes, clock=self.clock, limits=limits, unreadable=unreadable
        ):
            self._count(target, settled.outcome)
            if settled.outcome is Outcome.REJECTED:
                self.report.rejected.append((target.name, settled))
            elif settled.outcome is Outcome.HELD and not isinstance(settled.error, UnreadableError):
                change = settled.change
                self._held.append(_Held(source, target, change.type, change.key))

    def _count_difference(self, record: Record, target: Store) -> None:
        """Count ``record`` as applied if copying it would alter ``target``, else as duplicate."""
        type, values = record.__record__.name, record.raw()
        accessor = target.accessors[type]
        try:
            found = target.get(record)
        except Exception as error:
            if concerns_all(error):
                raise
            self._unreadable(target, type, error_of(Failed(record.key, error), type))
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

    def _unreadable(self, store: Store, type: str, error: RecordError) -> None:
        """Add ``error`` to the report, unless an error of this record was added before."""
        record = store.name, type, error.key or error.message
        if record not in self._reported:
            self._reported.add(record)
            self.report.unreadable.append((store.name, error))


def _values_of(change: Change, accessor: Accessor[Any]) -> Mapping[str, Any]:
    known = change.known.values if change.known else {}
    return {**accessor.type.key_values(change.key), **known, **(change.data or {})}


def _mark_name(type: str, targets: Sequence[str], where: Filter) -> str:
    text = json.dumps([type, sorted(targets), where.to_json()], sort_keys=True, default=str)
    return f"sync:{hashlib.sha256(text.encode()).hexdigest()[:32]}"
