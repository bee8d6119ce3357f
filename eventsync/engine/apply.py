"""The application of a batch of changes to a store.

``apply`` first rejects or holds the changes that break a limit. It groups the other changes by
record and passes them to the replica of each record type. If a change fails, ``apply`` isolates it,
so that the others succeed. ``apply`` does not retry: it raises retryable errors, and the caller
applies the whole batch again.
"""

from __future__ import annotations

import math
from collections.abc import Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from operator import attrgetter
from typing import Any, Final

from eventsync.changes.change import Change, read_patches, read_rows
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PATCH
from eventsync.engine.accessor import Accessor
from eventsync.engine.gate import Outcome, Verdict
from eventsync.engine.isolation import Failed, isolate, item_error
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.errors import (
    ChangeRefusedError,
    ClockDriftError,
    DependencyError,
    EventSyncError,
    RecordError,
)
from eventsync.index import Presence
from eventsync.records.record_type import same

__all__ = ["DEFAULT_LIMITS", "Limits", "Settled", "apply", "complete"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """The limits beyond which a store does not apply a change.

    - ``retention``: how many seconds tombstones are kept. A change older than ``retention`` minus
      ``drift`` is rejected, because the tombstone of its record may be gone already.
    - ``drift``: how many seconds a version may lie in the future. A later change is held.
    - ``hops``: how often a change may have been passed on from one synchronizer to another. A
      change with more hops is rejected.
    """

    retention: float = 10 * 86_400.0
    drift: float = 5.0
    hops: int = 8


DEFAULT_LIMITS: Final = Limits()

_version: Final = attrgetter("change.version")


@dataclass(slots=True)
class Settled:
    """The result of applying one change.

    ``error``: why the change was rejected or held, else ``None``. ``collision``: whether a
    different change has the same version.
    """

    change: Change
    outcome: Outcome = Outcome.HELD
    error: EventSyncError | None = None
    collision: bool = False
    loaded: Change | None = None
    """The change with values of the record type's types; ``None`` if they were not read."""


def apply(
    store: Store, changes: Sequence[Change], *, clock: Clock, limits: Limits = DEFAULT_LIMITS
) -> list[Settled]:
    """Apply ``changes`` to ``store``. Return the result of each change, in the given order.

    Idempotent. Changes may be given in any order. A change that cannot be applied does not stop the
    others. The values of superseded changes are not read. ``clock``: checks how far versions lie in
    the future, and observes the applied versions. Blocks on the store.

    Raises ``StoreUnavailableError`` or an ``OSError`` if the store is unreachable, and
    ``ConfigError`` if its configuration is wrong. Some changes may be applied already; call
    ``apply`` again with all of them.
    """
    settled = [Settled(change) for change in changes]
    by_type: dict[str, dict[str, list[Settled]]] = {type: {} for type in store.accessors}
    for item in _Admission(store, clock, limits).admitted(settled):
        change = item.change
        of_type = by_type[change.type]
        key = change.key
        if key in of_type:
            of_type[key].append(item)
        else:
            of_type[key] = [item]
    by_type = {type: batch for type, batch in by_type.items() if batch}
    with store.errors():
        for replica, batch in _in_order(store, by_type):
            if replica.type.rule == "record":
                _apply_greatest(replica, batch)
            else:
                _apply_all(replica, batch)
    for item in settled:
        if item.error is not None and not item.error.store:
            item.error.store = store.name
    applied = Outcome.APPLIED
    versions = [item.change.version for item in settled if item.outcome is applied]
    if versions:
        clock.observe(max(versions), max_drift=limits.drift)
    return settled


def _in_order(
    store: Store, by_type: Mapping[str, dict[str, list[Settled]]]
) -> Iterator[tuple[Replica, dict[str, list[Settled]]]]:
    """Yield one replica and its batch after the other, in the order of dependencies.

    ``by_type``: the batches by record type and key. Records to write come first, parents before
    children. Records to delete come second, children before parents.
    """
    replicas = [store.replicas[type] for type in by_type]
    above = {
        a.type.name: [b for b in replicas if a.accessor.depends_on(b.accessor)] for a in replicas
    }
    if not any(above.values()):
        yield from ((replica, by_type[replica.type.name]) for replica in replicas)
        return
    ordered: dict[str, Replica] = {}

    def place(replica: Replica, below: frozenset[str]) -> None:
        name = replica.type.name
        if name in ordered or name in below:
            return  # types that depend on each other have no order: some changes will be held
        for parent in above[name]:
            place(parent, below | {name})
        ordered[name] = replica

    for replica in replicas:
        place(replica, frozenset())
    for name, replica in ordered.items():
        yield replica, {k: i for k, i in by_type[name].items() if not _deletes(i)}
    for name, replica in reversed(ordered.items()):
        yield replica, {k: i for k, i in by_type[name].items() if _deletes(i)}


def _deletes(items: Sequence[Settled]) -> bool:
    """Return whether the greatest put or delete among ``items``, of one record, is a delete."""
    changes = [item.change for item in items if item.change.op != PATCH]
    return bool(changes) and max(changes, key=lambda change: change.stamp).op == DELETE


def complete(store: Store, peers: Iterable[Store], *, limit: int = 1000) -> dict[str, int]:
    """Fill the missing fields of the pending records of ``store`` from ``peers``.

    Returns, by record type, how many records were completed. A field that no peer holds gets its
    default. ``limit``: how many records of each type to complete at most. Idempotent. If a peer
    cannot be read, its error is raised and the records stay pending, because this peer may hold the
    missing values.
    """
    peers = [peer for peer in peers if peer is not store]
    completed: dict[str, int] = {}
    for type, replica in store.replicas.items():
        with store.errors():
            pending = store.index.scan(type, presence=Presence.PENDING, limit=limit)
        if not pending:
            continue
        states: dict[str, list[Change]] = {key: [] for key, _ in pending}
        for peer in peers:
            if type in peer.replicas:
                with peer.errors():
                    found = peer.replicas[type].states(list(states))
                for change in found:
                    states[change.key].append(change)
        with store.errors():
            completed[type] = replica.complete(states)
    return completed


class _Admission:
    """The checks of changes before the gate: record type, hops, and time. Reads no field values."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        now = clock.now()
        # A version from ``_oldest`` to ``_newest`` is neither too old nor too far in the future.
        oldest = max(0.0, now - limits.retention + limits.drift)
        self._oldest = Version.of(math.ceil(oldest * 1000))
        self._newest = Version.of(int((now + limits.drift) * 1000))

    def admitted(self, items: Iterable[Settled]) -> Iterator[Settled]:
        """Yield the items that pass all checks. Set ``outcome`` and ``error`` of the others."""
        accessors, hops = self._store.accessors, self._limits.hops
        oldest, newest = self._oldest, self._newest
        for item in items:
            change = item.change
            if (
                change.type in accessors
                and change.hops <= hops
                and oldest <= change.version <= newest
                and change.packed
            ) or self._admits(item):
                yield item

    def _admits(self, item: Settled) -> bool:
        """Return whether ``item`` passes all checks. If not, set its ``outcome`` and ``error``."""
        change = item.change
        try:
            if change.type not in self._store.accessors:
                raise self._unknown_type(change)
            if change.hops > self._limits.hops:
                raise self._too_many_hops(change)
            self._check_time(change)
            change.digest  # noqa: B018  # raises if the values may not travel
        except ClockDriftError as error:
            item.error = error
        except (ChangeRefusedError, RecordError) as error:
            item.outcome, item.error = Outcome.REJECTED, error
        else:
            return True
        return False

    def _check_time(self, change: Change) -> None:
        limits = self._limits
        self._clock.check_drift(change.version, max_drift=limits.drift)
        age = self._clock.now() - change.version.millis / 1000
        if age > limits.retention - limits.drift:
            raise ChangeRefusedError(
                f"the change of {change.type} {change.key!r} is {age / 86_400:.1f} days old, but "
                f"tombstones are kept for {limits.retention / 86_400:g} days; the change might "
                "bring a deleted record back",
                reason="too-old",
                hint="bring the store up to date with eventsync sync",
            )

    def _unknown_type(self, change: Change) -> ChangeRefusedError:
        types = ", ".join(self._store.accessors)
        return ChangeRefusedError(
            f"store {self._store.name!r} holds no records of type {change.type!r}",
            reason="unknown-type",
            hint=f"the store holds {types}; add an accessor for the type, or correct the producer",
        )

    def _too_many_hops(self, change: Change) -> ChangeRefusedError:
        return ChangeRefusedError(
            f"the change of {change.type} {change.key!r} was passed on {change.hops} times; "
            f"the limit is {self._limits.hops}",
            reason="hops",
            hint="probably two synchronizers send each other's changes back; "
            "see 'Echo' in docs/concepts.md",
        )


def _apply_greatest(replica: Replica, batch: Mapping[str, list[Settled]]) -> None:
    """Apply the greatest change of each record, under the per-record rule.

    If the store rejects the greatest change, try the next greatest. Set the outcomes in ``batch``.
    """
    while batch:
        greatest = _greatest(replica.accessor, batch)
        errors: dict[str, EventSyncError] = {}
        for part in _plain_apart(replica, greatest):
            errors |= _submit(replica, part)
        remaining = {}
        for key, error in errors.items():
            _set_aside(greatest[key], error)
            others = [item for item in batch[key] if item.outcome is not Outcome.REJECTED]
            if isinstance(error, DependencyError):
                _set_aside(others, error)
            elif others:
                remaining[key] = others
        batch = remaining


def _greatest(
    accessor: Accessor[Any], batch: Mapping[str, list[Settled]]
) -> dict[str, Sequence[Settled]]:
    """Return, by key, the greatest change of each record whose values fit the record type.

    Set the outcome of every other change: rejected if its values do not fit, duplicate if it equals
    the greatest change, otherwise superseded.
    """
    for items in batch.values():
        if len(items) > 1:
            _sort(items)
    firsts = [items[0].change for items in batch.values()]
    read_rows(firsts, accessor.reader)
    deletes = _sound_deletes(accessor, firsts)
    # Looked up once, because Python 3.11 looks up members of an enumeration slowly.
    duplicate, superseded = Outcome.DUPLICATE, Outcome.SUPERSEDED
    found: dict[str, Sequence[Settled]] = {}
    for key, items in batch.items():
        greatest = items[0]
        change = greatest.change
        if change.row is not None or key in deletes:
            greatest.loaded = change
        elif not _load(accessor, greatest):
            fitting = next((item for item in items[1:] if _load(accessor, item)), None)
            if fitting is None:
                continue
            greatest = fitting
        if len(items) > 1:
            for item in items:
                if item is not greatest and item.outcome is not Outcome.REJECTED:
                    item.outcome = duplicate if _is_same(item, greatest) else superseded
        found[key] = (greatest,)
    return found


def _sound_deletes(accessor: Accessor[Any], changes: Iterable[Change]) -> Container[str]:
    """Return the keys of the deletes among ``changes`` if all are valid keys of the record type.

    Returns no keys if one is invalid. The caller then checks each delete by itself.
    """
    keys = [change.key for change in changes if change.op == DELETE]
    return set() if accessor.type.key_columns(keys) is None else set(keys)


def _sort(items: list[Settled]) -> None:
    """Sort ``items`` in place, the greatest change first.

    Compares versions, and compares stamps, which need a digest, only if two versions are equal.
    """
    items.sort(key=_version, reverse=True)
    if any(one.change.version == other.change.version for one, other in pairwise(items)):
        items.sort(key=lambda item: item.change.stamp, reverse=True)


def _is_same(one: Settled, other: Settled) -> bool:
    return one.change.version == other.change.version and one.change.stamp == other.change.stamp


def _plain_apart(
    replica: Replica, batch: dict[str, Sequence[Settled]]
) -> Iterable[dict[str, Sequence[Settled]]]:
    """Split ``batch`` into the plain changes (``Replica.is_plain``) and the others.

    A batch that contains only plain changes is applied much faster.
    """
    plain = {
        key: items
        for key, items in batch.items()
        if items[0].loaded and replica.is_plain(items[0].loaded)
    }
    if not plain or len(plain) == len(batch):
        return (batch,)
    return plain, {key: items for key, items in batch.items() if key not in plain}


def _apply_all(replica: Replica, batch: Mapping[str, list[Settled]]) -> None:
    """Apply all changes of each record together, under the per-field rule.

    If the changes of a record are rejected, apply each of them alone. Set the outcomes in
    ``batch``.
    """
    changes = [item.change for items in batch.values() for item in items]
    read_rows(changes, replica.accessor.reader)
    read_patches(changes, replica.accessor.reader)
    loaded = {
        key: fitting
        for key, items in batch.items()
        if (fitting := [item for item in items if _load(replica.accessor, item)])
    }
    for key, error in _submit(replica, loaded).items():
        items = loaded[key]
        if len(items) == 1 or isinstance(error, DependencyError):
            _set_aside(items, error)
            continue
        for item in items:
            for alone in _submit(replica, {key: [item]}).values():
                _set_aside([item], alone)


def _load(accessor: Accessor[Any], item: Settled) -> bool:
    """Set ``item.loaded``. Return whether the values of the change fit the record type.

    If they do not fit, reject the item.
    """
    if item.loaded is None:
        change = item.change
        try:
            # If the change has a row, its values are known to fit (see ``read_rows``).
            item.loaded = change if change.row is not None else _loaded(accessor, change)
        except (ChangeRefusedError, RecordError) as error:
            _set_aside([item], error)
    return item.loaded is not None


def _loaded(accessor: Accessor[Any], change: Change) -> Change:
    """Return ``change`` with its values converted to the types of the record type.

    Raises ``RecordError`` if a value does not fit or the key is invalid. Raises
    ``ChangeRefusedError`` if the key fields in the data belong to another record.
    """
    type = accessor.type
    if change.op == DELETE:
        type.key_values(change.key)  # raises if this is not a key of the type
        return change
    data = change.data
    assert data is not None
    loaded = data if type.fits(data) else type.load(data, partial=True, unknown="ignore")
    known = change.known
    if change.op == PATCH:
        key = type.key_values(change.key)
        foreign = any(name in loaded and loaded[name] != value for name, value in key.items())
        if not key.keys().isdisjoint(loaded):
            loaded = {name: value for name, value in loaded.items() if name not in key}
        if known is not None:
            values = type.load(known.values, partial=True, unknown="ignore")
            known = replace(known, values=values)
    else:
        for name in type.keys:
            if name not in loaded:
                loaded = {**type.key_values(change.key), **loaded}
                break
        foreign = type.key_text(loaded) != change.key
    if foreign:
        raise ChangeRefusedError(
            f"the change of {type.name} {change.key!r} contains the key fields of another record",
            reason="key-mismatch",
            hint="the key of a record cannot change: delete the record, and add one with the new "
            "key",
        )
    if loaded is data and known is change.known:
        return change
    if len(loaded) == len(data) and known is change.known and same(dict(loaded), dict(data)):
        return change  # lists and dicts were copied, but no value has changed
    return change.adapted(loaded, known)


def _submit(replica: Replica, batch: Mapping[str, Sequence[Settled]]) -> dict[str, EventSyncError]:
    """Apply loaded changes, given by record key. Set the outcome of each change that succeeded.

    Returns the errors of the records that failed, by key. A ``DependencyError`` means that the
    record must wait for another record. Any other error means that the store refuses the record.
    """

    def apply_part(keys: Sequence[str]) -> dict[str, Sequence[Verdict]]:
        changes = {key: [item.loaded for item in batch[key] if item.loaded] for key in keys}
        try:
            return replica.apply(changes)
        except DependencyError:
            if not replica.accessor.atomic:
                raise
            # Nothing was written. Try again without the records that must wait for others.
            return replica.apply(changes, hold=True)

    errors: dict[str, EventSyncError] = {}
    for part in isolate(list(batch), apply_part):
        if isinstance(part, Failed):
            errors[part.item] = item_error(part.error)
            continue
        for key, verdicts in part.result.items():
            for item, verdict in zip(batch[key], verdicts, strict=True):
                item.outcome = verdict.outcome
                if verdict.collision:
                    item.collision = True
                if verdict.error is not None:
                    errors[key] = verdict.error
    return errors


def _set_aside(items: Iterable[Settled], error: EventSyncError) -> None:
    """Set ``error`` and ``outcome`` of items that failed.

    The outcome is held after a ``DependencyError`` and rejected after any other error.
    """
    outcome = Outcome.HELD if isinstance(error, DependencyError) else Outcome.REJECTED
    for item in items:
        item.outcome, item.error = outcome, error
