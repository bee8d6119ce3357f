"""One record as several stores hold it, side by side, and what the winner of them all is.

It must not know how many records there are, nor how differences are counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from eventsync.changes.clock import Version
from eventsync.changes.merge import State, join
from eventsync.engine.accessor import Accessor
from eventsync.engine.gate import UNVERSIONED
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import Entry, IndexTransaction, Presence
from eventsync.records.record import Record, RecordType
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = ["Difference", "Kind", "SideBySide", "StoreState", "holding", "look"]


class Kind(StrEnum):
    """How a store differs from what all of them together know."""

    MISSING = "missing"
    """It lacks a record that it should hold."""
    EXTRA = "extra"
    """It holds a record that was deleted, or does not match its filter."""
    FIELD = "field"
    """It holds another value in a field."""
    UNREADABLE = "unreadable"
    """It holds a record whose values do not fit their fields."""


@dataclass(slots=True, frozen=True)
class Difference:
    """One way in which one store differs; ``field``, ``held`` and ``expected`` for ``FIELD``.

    ``detail`` says more where there is more to say: why a record is missing or unreadable.
    """

    store: str
    type: str
    key: str
    kind: Kind
    field: str = ""
    held: Any = None
    expected: Any = None
    detail: str = ""


@dataclass(slots=True)
class StoreState:
    """What one store holds of one record.

    ``values``: its fields, ``None`` if it is not there. ``presence`` and ``version``: what the
    store's index says, ``None`` if it does not know the record. ``expected``: the fields it should
    hold, ``None`` if it should not be there. ``versions``: of fields patched since the last put.
    """

    values: Mapping[str, Any] | None
    presence: Presence | None
    version: Version | None
    versions: Mapping[str, Version]
    expected: Mapping[str, Any] | None = None
    differences: list[Difference] = field(default_factory=list)


@dataclass(slots=True)
class SideBySide:
    """One record in all stores that hold its type.

    ``merged``: the field values of the winner, ``None`` if it is deleted or was never there.
    ``version``: the greatest that any store has seen.
    """

    type: str
    key: str
    merged: Mapping[str, Any] | None
    version: Version | None
    stores: dict[str, StoreState]

    @property
    def differences(self) -> list[Difference]:
        """All differences, store by store."""
        return [found for sight in self.stores.values() for found in sight.differences]


def look(
    registry: StoreRegistry, record_type: type[Record], keys: Sequence[str]
) -> list[SideBySide]:
    """These records as each store of the type holds them, in the order of ``keys``.

    Raises ``ConfigError`` when no store holds the type, and what reading the stores raises.
    """
    name = record_type.__record__.name
    stores = holding(registry, name)
    if not stores:
        raise ConfigError(f"no store holds records of type {name!r}")
    read = {store.name: _read(store.accessors[name], store, keys) for store in stores}
    return [
        _side_by_side(
            record_type.__record__,
            key,
            {store.name: (store.accessors[name].view, *read[store.name][key]) for store in stores},
        )
        for key in keys
    ]


# -- reading ---------------------------------------------------------------------------------------

_Held = tuple[Entry | None, Mapping[str, Any] | None, RecordError | None]


def holding(registry: StoreRegistry, type: str) -> list[Store]:
    """The stores that hold records of a type."""
    return [store for store in registry if type in store.accessors]


def _read(accessor: Accessor[Any], store: Store, keys: Sequence[str]) -> dict[str, _Held]:
    """The entry and the field values of each record, from one moment."""
    name = accessor.type.name
    with store.index.transaction() as transaction:
        store.replicas[name].recover(transaction)
        entries = transaction.read(name, keys)
        rows, errors = _rows(accessor, keys, transaction)
    return {key: (entries.get(key), rows.get(key), errors.get(key)) for key in keys}


def _rows(
    accessor: Accessor[Any], keys: Sequence[str], transaction: IndexTransaction
) -> tuple[dict[str, Mapping[str, Any]], dict[str, RecordError]]:
    try:
        return accessor.read_rows(keys, transaction), {}
    except (RecordError, RejectedError) as error:
        if len(keys) == 1:
            unreadable = error if isinstance(error, RecordError) else RecordError(str(error))
            return {}, {keys[0]: unreadable}
    rows: dict[str, Mapping[str, Any]] = {}
    errors: dict[str, RecordError] = {}
    for key in keys:
        row, wrong = _rows(accessor, [key], transaction)
        rows |= row
        errors |= wrong
    return rows, errors


# -- judging ---------------------------------------------------------------------------------------


def _side_by_side(
    record_type: RecordType,
    key: str,
    held: Mapping[
        str, tuple[BoundView, Entry | None, Mapping[str, Any] | None, RecordError | None]
    ],
) -> SideBySide:
    states = {name: _state(entry, row) for name, (_, entry, row, _) in held.items()}
    state = State()
    for known in states.values():
        state = join(state, known)
    merged = None
    if state.live:
        merged = _winner(record_type, key, state, states, held)
    found = SideBySide(
        record_type.name, key, merged, Version(state.version) if state.version else None, {}
    )
    for name, (view, entry, row, error) in held.items():
        sight = StoreState(
            values=row,
            presence=entry.presence if entry else None,
            version=Version(entry.version) if entry else None,
            versions=entry.versions if entry else {},
            expected=_expected(view, merged),
        )
        sight.differences = _judge(found, name, sight, view, error)
        found.stores[name] = sight
    return found


def _state(entry: Entry | None, row: Mapping[str, Any] | None) -> State:
    """What a store's entry and data say of a record; data without an entry are older than all."""
    if entry is None:
        return State() if row is None else State(stamp=UNVERSIONED, values=dict(row))
    return State(
        stamp=entry.stamp, versions=dict(entry.versions), values={**entry.deferred, **(row or {})}
    )


def _winner(
    record_type: RecordType,
    key: str,
    state: State,
    states: Mapping[str, State],
    held: Mapping[
        str, tuple[BoundView, Entry | None, Mapping[str, Any] | None, RecordError | None]
    ],
) -> dict[str, Any]:
    """The field values of the winner.

    Stores that converted a field may hold the same version of it in several forms; the one counts
    of which all others are forms.
    """
    values = record_type.key_values(key)
    for name, declared in record_type.fields.items():
        if name in record_type.keys:
            continue
        version = state.version_of(name)
        candidates = [
            (held[store][0], known.values[name])
            for store, known in states.items()
            if name in known.values and known.version_of(name) == version
        ]
        candidates.sort(key=lambda candidate: name in candidate[0].convert)
        if candidates:
            exact = [
                value
                for _, value in candidates
                if all(_agrees(view, name, other, value) for view, other in candidates)
            ]
            values[name] = exact[0] if exact else candidates[0][1]
        elif declared.has_default:
            values[name] = record_type.default_for(name)
    return values


def _expected(view: BoundView, merged: Mapping[str, Any] | None) -> dict[str, Any] | None:
    if merged is None or not view.matches(merged):
        return None
    return {name: merged[name] for name in view.fields if name in merged}


def _agrees(view: BoundView, name: str, held: Any, expected: Any) -> bool:
    """Whether ``held`` is ``expected``, or what the store's conversion makes of it."""
    if same(held, expected):
        return True
    if name not in view.convert:
        return False
    try:
        return same(held, view.to_record(view.to_store({name: expected}))[name])
    except (RecordError, RejectedError):
        return False  # the store could never hold it


def _judge(
    row: SideBySide, store: str, sight: StoreState, view: BoundView, error: RecordError | None
) -> list[Difference]:
    if error is not None:
        return [Difference(store, row.type, row.key, Kind.UNREADABLE, detail=str(error))]
    if sight.expected is None:
        if sight.values is None:
            return []
        return [Difference(store, row.type, row.key, Kind.EXTRA)]
    if sight.values is None:
        detail = "pending" if sight.presence is Presence.PENDING else ""
        return [Difference(store, row.type, row.key, Kind.MISSING, detail=detail)]
    return [
        Difference(store, row.type, row.key, Kind.FIELD, name, sight.values.get(name), expected)
        for name, expected in sight.expected.items()
        if name not in sight.values or not _agrees(view, name, sight.values[name], expected)
    ]
