"""Apply a batch of changes to a store: refuse, hold, coalesce, gate, isolate what is poisonous.

It knows nothing of transports, messages or retries: retryable errors pass through, with nothing of
the batch's outcome decided, and the same batch may be applied again at any time.
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
from eventsync.engine.gate import Outcome
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.errors import (
    ChangeRefusedError,
    ClockDriftError,
    ConfigError,
    DependencyError,
    EventSyncError,
    RecordError,
    StoreError,
    is_retryable,
)
from eventsync.index import Presence
from eventsync.records.record_type import same

__all__ = ["DEFAULT_LIMITS", "Limits", "Settled", "apply", "complete"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Limits:
    """What a store refuses to apply. Times are in seconds.

    ``retention``: how long tombstones are kept; a change older than that, less ``drift``, is
    refused, since the tombstone that would stop it may be gone. ``drift``: how far in the future a
    version may lie; a change beyond that is held. ``hops``: how often a change may be
    passed on from store to store.
    """

    retention: float = 10 * 86_400.0
    drift: float = 5.0
    hops: int = 8


DEFAULT_LIMITS: Final = Limits()

_version: Final = attrgetter("change.version")


@dataclass(slots=True)
class Settled:
    """What became of one change, and why if it was rejected or held."""

    change: Change
    outcome: Outcome = Outcome.HELD
    error: EventSyncError | None = None
    collision: bool = False
    loaded: Change | None = None
    """The change with its values as the store's record type has them, once they were read."""


def apply(
    store: Store, changes: Sequence[Change], *, clock: Clock, limits: Limits = DEFAULT_LIMITS
) -> list[Settled]:
    """Apply ``changes`` to ``store``; the outcome of each, in their order.

    Idempotent, and any order will do. One change that cannot be applied stops no other. The values
    of a change that is superseded are not looked at. Blocks on the store. Raises retryable errors
    (``StoreUnavailableError``, ``OSError``); then the whole batch is to be tried again.
    """
    settled = [Settled(change) for change in changes]
    by_type: dict[str, dict[str, list[Settled]]] = {type: {} for type in store.accessors}
    for item in _Admission(store, clock, limits).admitted(settled):
        change = item.change
        of_type = by_type[change.type]
        if change.key in of_type:
            of_type[change.key].append(item)
        else:
            of_type[change.key] = [item]
    by_type = {type: batch for type, batch in by_type.items() if batch}
    for accessor, batch in _in_order(store, by_type):
        fit = _greatest if accessor.type.rule == "record" else _all_loaded
        replica = store.replicas[accessor.type.name]
        for part in _parts(replica, fit(accessor, batch)):
            _apply_or_split(replica, part)
    applied = Outcome.APPLIED
    newest = max((i.change.version for i in settled if i.outcome is applied), default=None)
    if newest is not None:
        clock.observe(newest, max_drift=limits.drift)
    return settled


def _in_order(
    store: Store, by_type: Mapping[str, dict[str, list[Settled]]]
) -> Iterator[tuple[Accessor[Any], dict[str, list[Settled]]]]:
    """Batches by type: parents first, then, for what is deleted, children first."""
    accessors = [store.accessors[type] for type in by_type]
    above = {a.type.name: [b for b in accessors if a.depends_on(b)] for a in accessors}
    if not any(above.values()):
        yield from ((accessor, by_type[accessor.type.name]) for accessor in accessors)
        return
    ordered: dict[str, Accessor[Any]] = {}

    def place(accessor: Accessor[Any], below: frozenset[str]) -> None:
        name = accessor.type.name
        if name in ordered or name in below:
            return  # a circle has no order: what comes too early is held
        for parent in above[name]:
            place(parent, below | {name})
        ordered[name] = accessor

    for accessor in accessors:
        place(accessor, frozenset())
    for name, accessor in ordered.items():
        yield accessor, {k: i for k, i in by_type[name].items() if not _deletes(i)}
    for name, accessor in reversed(ordered.items()):
        yield accessor, {k: i for k, i in by_type[name].items() if _deletes(i)}


def _parts(replica: Replica, batch: dict[str, list[Settled]]) -> Iterable[dict[str, list[Settled]]]:
    """A batch, the plain records apart: by themselves they take much less time."""
    plain = {key: i for key, i in batch.items() if i[0].loaded and replica.is_plain(i[0].loaded)}
    if not plain or len(plain) == len(batch):
        return (batch,)
    return plain, {key: items for key, items in batch.items() if key not in plain}


def _deletes(items: Sequence[Settled]) -> bool:
    """Whether the greatest put or delete among the changes of a record is a delete."""
    changes = [item.change for item in items if item.change.op != PATCH]
    return bool(changes) and max(changes, key=lambda change: change.stamp).op == DELETE


def complete(store: Store, peers: Iterable[Store], *, limit: int = 1000) -> dict[str, int]:
    """Fill in, from the stores that hold the rest, the records that are pending in ``store``.

    Returns how many records of each type became whole. A field of which no peer holds a value
    takes its default. Idempotent. Raises what reading the peers raises: while one that could know
    more cannot be asked, the records stay pending.
    """
    peers = [peer for peer in peers if peer is not store]
    completed: dict[str, int] = {}
    for type, replica in store.replicas.items():
        pending = store.index.scan(type, presence=Presence.PENDING, limit=limit)
        if not pending:
            continue
        states: dict[str, list[Change]] = {key: [] for key, _ in pending}
        for peer in peers:
            if type in peer.replicas:
                for change in peer.replicas[type].states(list(states)):
                    states[change.key].append(change)
        completed[type] = replica.complete(states)
    return completed


class _Admission:
    """Refuses, or has held, what must not reach the gate, without a look at its values."""

    def __init__(self, store: Store, clock: Clock, limits: Limits) -> None:
        self._store = store
        self._clock = clock
        self._limits = limits
        now = clock.now()
        # What lies between these two needs no closer look at its time.
        oldest = max(0.0, now - limits.retention + limits.drift)
        self._oldest = Version.of(math.ceil(oldest * 1000))
        self._newest = Version.of(int((now + limits.drift) * 1000))

    def admitted(self, items: Iterable[Settled]) -> Iterator[Settled]:
        """Those that may go on to the gate; the others say what became of them."""
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
        """The same of one that takes a closer look."""
        change = item.change
        try:
            if change.type not in self._store.accessors:
                raise self._unknown(change)
            if change.hops > self._limits.hops:
                raise self._hops(change)
            self._check_time(change)
            change.digest  # noqa: B018  # of what cannot even travel there is none
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
                f"{change.type} {change.key!r} was changed {age / 86_400:.1f} days ago; tombstones "
                f"are kept for {limits.retention / 86_400:g} days, so a delete of it may be "
                "forgotten",
                reason="too-old",
                hint="bring the store up to date with eventsync sync",
            )

    def _unknown(self, change: Change) -> ChangeRefusedError:
        held = ", ".join(self._store.accessors)
        return ChangeRefusedError(
            f"store {self._store.name!r} holds no records of type {change.type!r}",
            reason="unknown-type",
            hint=f"it holds {held}; add an accessor, or correct the producer",
        )

    def _hops(self, change: Change) -> ChangeRefusedError:
        return ChangeRefusedError(
            f"{change.type} {change.key!r} was passed on {change.hops} times; "
            f"{self._limits.hops} is the limit",
            reason="hops",
            hint="two systems answer each other's changes; see 'Echo' in docs/concepts.md",
        )


def _greatest(
    accessor: Accessor[Any], batch: Mapping[str, list[Settled]]
) -> dict[str, list[Settled]]:
    """The changes of each record, the greatest that can be read first: it supersedes the others."""
    for items in batch.values():
        if len(items) > 1:
            _sort(items)
    firsts = [items[0].change for items in batch.values()]
    read_rows(firsts, accessor.reader)
    deletes = _sound_deletes(accessor, firsts)
    duplicate, superseded = Outcome.DUPLICATE, Outcome.SUPERSEDED  # once: see ``gate``
    ready = {}
    for key, items in batch.items():
        first = items[0]
        if first.change.row is not None or key in deletes:
            first.loaded = first.change
        else:
            while items and not _load(accessor, items[0]):
                items = items[1:]
                read_rows([item.change for item in items[:1]], accessor.reader)
            if not items:
                continue
        if len(items) > 1:
            first = items[0]
            for item in items[1:]:
                item.outcome = duplicate if _is_same(item, first) else superseded
        ready[key] = items
    return ready


def _sound_deletes(accessor: Accessor[Any], changes: Iterable[Change]) -> Container[str]:
    """The keys of the deletes among ``changes``, if all of them are keys of the record type."""
    keys = [change.key for change in changes if change.op == DELETE]
    return set() if accessor.type.key_columns(keys) is None else set(keys)


def _sort(items: list[Settled]) -> None:
    """The greatest first. Digests are not taken of changes whose versions tell already."""
    items.sort(key=_version, reverse=True)
    if any(one.change.version == other.change.version for one, other in pairwise(items)):
        items.sort(key=lambda item: item.change.stamp, reverse=True)


def _is_same(one: Settled, other: Settled) -> bool:
    return one.change.version == other.change.version and one.change.stamp == other.change.stamp


def _all_loaded(
    accessor: Accessor[Any], batch: Mapping[str, list[Settled]]
) -> dict[str, list[Settled]]:
    """The changes of each record that can be read: under the per-field rule each has its part."""
    changes = [item.change for items in batch.values() for item in items]
    read_rows(changes, accessor.reader)
    read_patches(changes, accessor.reader)
    ready = {}
    for key, items in batch.items():
        loaded = [item for item in items if _load(accessor, item)]
        if loaded:
            ready[key] = loaded
    return ready


def _load(accessor: Accessor[Any], item: Settled) -> bool:
    """Bring a change's values into their types; ``False``, and rejected, if they do not fit."""
    if item.loaded is None:
        change = item.change
        try:
            # What was read in bulk is known to fit.
            item.loaded = change if change.row is not None else _loaded(accessor, change)
        except (ChangeRefusedError, RecordError) as error:
            item.outcome, item.error = Outcome.REJECTED, error
    return item.loaded is not None


def _loaded(accessor: Accessor[Any], change: Change) -> Change:
    type = accessor.type
    if change.op == DELETE:
        type.key_values(change.key)  # raises if it is no key of this type
        return change
    data = change.data
    assert data is not None
    loaded = data if type.fits(data) else type.load(data, partial=True, unknown="ignore")
    known = change.known
    if change.op == PATCH:
        key = type.key_values(change.key)
        foreign = any(name in loaded and loaded[name] != held for name, held in key.items())
        if not key.keys().isdisjoint(loaded):
            loaded = {name: held for name, held in loaded.items() if name not in key}
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
            f"the key fields in the data of {type.name} {change.key!r} name another record",
            reason="key-mismatch",
            hint="a record's key never changes: delete it and add another",
        )
    if loaded is data and known is change.known:
        return change
    if len(loaded) == len(data) and known is change.known and same(dict(loaded), dict(data)):
        return change  # its lists and dicts took a closer look, and are what they were
    return change.adapted(loaded, known)


def _apply_or_split(
    replica: Replica, batch: Mapping[str, list[Settled]], *, hold: bool = False
) -> None:
    """Apply a batch; if something in it is refused, halve it until that is alone.

    ``hold``: what waits for other records has been refused, and is to be left out.
    """
    if not batch:
        return
    try:
        verdicts = replica.apply(_to_judge(replica.accessor, batch), hold=hold)
    except Exception as error:
        waiting = isinstance(error, DependencyError)
        if not waiting and (is_retryable(error) or isinstance(error, ConfigError)):
            raise
        if waiting and replica.accessor.atomic and not hold:
            # The store took nothing of it, and may be able to tell which of them have to wait.
            _apply_or_split(replica, batch, hold=True)
            return
        if len(batch) == 1 and waiting:
            _hold(next(iter(batch.values())), _named(error))
            return
        if len(batch) == 1:
            _isolate(replica, *batch.items(), error=_named(error))
            return
        keys = list(batch)
        middle = len(keys) // 2
        for half in (keys[:middle], keys[middle:]):
            _apply_or_split(replica, {key: batch[key] for key in half}, hold=hold)
        return
    held = Outcome.HELD
    for key, items in batch.items():
        judged = verdicts[key]
        if judged[0].outcome is held:
            _hold(items, judged[0].error)
            continue
        # Under the per-record rule only the first was put to the store.
        for item, verdict in zip(items, judged, strict=False):
            item.outcome = verdict.outcome
            if verdict.collision:
                item.collision = True


def _to_judge(
    accessor: Accessor[Any], batch: Mapping[str, list[Settled]]
) -> dict[str, Sequence[Change]]:
    """The changes of each record that its store is to judge."""
    if accessor.type.rule == "record":
        return {key: (items[0].loaded,) for key, items in batch.items() if items[0].loaded}
    return {
        key: [item.loaded for item in items if item.loaded is not None]
        for key, items in batch.items()
    }


def _named(error: Exception) -> EventSyncError:
    if isinstance(error, EventSyncError):
        return error
    # Most likely a fault in an accessor: the record is put aside with it, and can be replayed.
    unexpected = StoreError(f"unexpected {type(error).__name__}: {error}")
    unexpected.__cause__ = error
    return unexpected


def _isolate(
    replica: Replica,
    entry: tuple[str, list[Settled]],
    *,
    error: EventSyncError,
) -> None:
    """Reject the one change of a record that is refused, and apply the others."""
    key, items = entry
    if len(items) == 1:
        items[0].outcome, items[0].error = Outcome.REJECTED, error
        return
    if replica.type.rule == "record":
        # The greatest was tried, and what it superseded is worth trying after all.
        items[0].outcome, items[0].error = Outcome.REJECTED, error
        _apply_or_split(replica, _greatest(replica.accessor, {key: items[1:]}))
        return
    for item in items:
        _apply_or_split(replica, {key: [item]})


def _hold(items: Sequence[Settled], error: EventSyncError | None) -> None:
    """All changes of a record wait, those too that the greatest would supersede."""
    for item in items:
        item.outcome, item.error = Outcome.HELD, error
