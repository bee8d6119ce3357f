"""The application of a batch of changes to a store.

``apply`` first rejects or holds the changes that break a limit. It groups the other changes by
record and passes them to the replica of each record type. If a change fails, ``apply`` isolates it,
so that the others succeed. ``apply`` does not retry: it raises retryable errors, and the caller
applies the whole batch again.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import partial
from operator import attrgetter
from typing import Final

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PATCH
from eventsync.engine.admission import DEFAULT_LIMITS, Admission, Limits
from eventsync.engine.batch import apply_batch, ready, set_aside, set_outcomes
from eventsync.engine.gate import Outcome, Verdict
from eventsync.engine.isolation import Failed, concerns_all, isolate
from eventsync.engine.joint import apply_jointly, linked
from eventsync.engine.plan import RecordId
from eventsync.engine.replica import Replica
from eventsync.engine.settled import Settled
from eventsync.engine.store import Store
from eventsync.engine.unreadable import UnreadableKeys
from eventsync.errors import DependencyError, RecordError, UniqueError, UnreadableError
from eventsync.index import Entry, IndexTransaction

__all__ = ["DEFAULT_LIMITS", "Limits", "Settled", "apply"]


_version: Final = attrgetter("change.version")
_TAKEN: Final = frozenset({UniqueError.reason})
_ON_OTHERS: Final = frozenset({DependencyError.reason, UniqueError.reason})


def apply(
    store: Store,
    changes: Sequence[Change],
    *,
    clock: Clock,
    limits: Limits = DEFAULT_LIMITS,
    unreadable: UnreadableKeys | None = None,
) -> list[Settled]:
    """Apply ``changes`` to ``store``. Return the result of each change, in the given order.

    Idempotent. Changes may be given in any order. A change that cannot be applied does not stop the
    others. The values of superseded changes are not read. ``clock``: checks how far versions lie in
    the future, and observes the applied versions. ``unreadable``: the errors of records that the
    store holds and cannot read; their changes are held, because what they would overwrite has no
    version. Blocks on the store.

    Raises ``StoreUnavailableError`` or an ``OSError`` if the store is unreachable, and
    ``ConfigError`` if its configuration is wrong. Some changes may be applied already; call
    ``apply`` again with all of them.
    """
    settled = [Settled(change) for change in changes]
    by_type: dict[str, dict[str, list[Settled]]] = {type: {} for type in store.accessors}
    for item in Admission(store, clock, limits).admitted(settled):
        change = item.change
        of_type = by_type[change.type]
        key = change.key
        if key in of_type:
            of_type[key].append(item)
        else:
            of_type[key] = [item]
    for (type, key), cause in (unreadable or {}).items():
        _withhold(store, by_type[type].pop(key, ()), cause)
    by_type = {type: batch for type, batch in by_type.items() if batch}
    with store.errors():
        for replica, batch in _in_order(store, by_type):
            apply_batch(replica, batch)
        _apply_released(store, by_type)
        _apply_circles(store, by_type)
    for item in settled:
        if item.error is not None and not item.error.store:
            item.error.store = store.name
    applied = Outcome.APPLIED
    versions = [item.change.version for item in settled if item.outcome is applied]
    if versions:
        clock.observe(max(versions), max_drift=limits.drift)
    return settled


def _withhold(store: Store, items: Iterable[Settled], cause: RecordError) -> None:
    """Hold the changes of one record that the store cannot read, for the reason ``cause``.

    A change that the store has applied before, or that is older than what it applied, is stale or a
    duplicate; the record need not be read for that.
    """
    for item in items:
        change = item.change
        type, key = change.type, change.key
        entry = store.index.run(partial(_entry_of, type, key))
        if entry is not None and _is_known(entry, change):
            same = change.version == entry.version
            item.outcome = Outcome.DUPLICATE if same else Outcome.STALE
            continue
        item.error = UnreadableError(
            f"store {store.name!r} cannot read its {type} {key!r}, which this change would "
            f"overwrite: {cause.message}",
            hint=cause.hint or "correct or remove the record in the store",
        )


def _entry_of(type: str, key: str, transaction: IndexTransaction) -> Entry | None:
    return transaction.read(type, [key]).get(key)


def _is_known(entry: Entry, change: Change) -> bool:
    """Return whether nothing in ``change`` is newer than ``entry``."""
    if change.op != PATCH:
        return change.stamp <= entry.stamp
    versions: dict[str, bytes] = dict.fromkeys(change.data or (), change.version)
    known = change.known
    if known is not None:
        if known.stamp > entry.stamp:
            return False
        put = known.stamp[:16]
        versions |= {name: known.versions.get(name, put) for name in known.values}
    mine = entry.stamp[:16]
    return all(entry.versions.get(name, mine) >= version for name, version in versions.items())


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


def _apply_released(store: Store, by_type: Mapping[str, Mapping[str, list[Settled]]]) -> None:
    """Apply changes again that took a unique value before the same batch released it.

    Only for stores that write each record by itself. The changes are applied in the order of their
    versions, until that makes no difference any more.
    """
    for type, batch in by_type.items():
        replica = store.replicas[type]
        waiting = {} if replica.accessor.atomic else _waiting(batch, _TAKEN)
        before = len(batch)
        while waiting and len(waiting) < before:
            before = len(waiting)
            in_order = sorted(waiting, key=lambda key: max(map(_version, waiting[key])))
            apply_batch(replica, {key: waiting[key] for key in in_order})
            waiting = _waiting(waiting, _TAKEN)


def _apply_circles(store: Store, by_type: Mapping[str, Mapping[str, list[Settled]]]) -> None:
    """Apply held changes of record types that depend on each other, in one transaction."""
    waiting = {
        type: held
        for type, batch in by_type.items()
        if store.replicas[type].accessor.joint and (held := _waiting(batch, _ON_OTHERS))
    }
    for types in _circles(store, waiting):
        loaded = {type: ready(store.replicas[type], waiting[type]) for type in types}
        _submit_jointly(store, {type: batch for type, batch in loaded.items() if batch})
        for settled in (items for type in types for items in waiting[type].values()):
            failed = [item for item in settled if item.outcome is Outcome.HELD and item.error]
            if failed and failed[0].error is not None:
                set_aside(settled, failed[0].error)


def _circles(store: Store, types: Iterable[str]) -> list[list[str]]:
    """Return those of ``types`` that depend on each other, in groups of two or more types."""
    types = list(types)
    if len(types) < 2:
        return []
    accessors = store.accessors
    above = {
        one: {b for b in types if b != one and accessors[one].depends_on(accessors[b])}
        for one in types
    }
    for _ in types:
        for one in types:
            above[one] |= {far for near in above[one] for far in above[near]}
    circles = {frozenset(b for b in types if b in above[a] and a in above[b]) for a in types}
    return [[type for type in types if type in circle] for circle in circles if len(circle) > 1]


def _waiting(
    batch: Mapping[str, list[Settled]], reasons: frozenset[str]
) -> dict[str, list[Settled]]:
    """Return the changes of the records that are held for one of ``reasons``, by key."""
    found = {}
    for key, items in batch.items():
        if any(i.outcome is Outcome.HELD and i.error and i.error.reason in reasons for i in items):
            found[key] = [item for item in items if item.outcome is not Outcome.REJECTED]
    return found


def _submit_jointly(store: Store, waiting: Mapping[str, Mapping[str, Sequence[Settled]]]) -> None:
    """Apply held changes, given by record type and key, in one transaction. Set their outcomes.

    A change stays held, with the error that it has, if a change that it depends on fails.
    """

    def apply_records(records: Iterable[RecordId]) -> dict[RecordId, Sequence[Verdict]]:
        return apply_jointly(batches_of(records))

    def batches_of(records: Iterable[RecordId]) -> list[tuple[Replica, dict[str, list[Change]]]]:
        batches: dict[str, dict[str, list[Change]]] = {}
        for type, key in records:
            loaded = [item.loaded for item in waiting[type][key] if item.loaded]
            batches.setdefault(type, {})[key] = loaded
        return [(store.replicas[type], batch) for type, batch in batches.items()]

    records = [(type, key) for type, batch in waiting.items() for key in batch]
    found: dict[RecordId, Sequence[Verdict]] = {}
    try:
        found = apply_records(records)
    except Exception as error:
        if concerns_all(error):
            raise
        groups = linked(batches_of(records))
        for part in isolate(groups, lambda part: apply_records(r for group in part for r in group)):
            if not isinstance(part, Failed):
                found |= part.result
    for type, batch in waiting.items():
        for key, items in batch.items():
            set_outcomes(key, items, found.get((type, key), ()))
