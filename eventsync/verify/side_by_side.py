"""One record as several stores hold it, side by side, with the winner of them all."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from eventsync.changes.clock import Version
from eventsync.changes.merge import State, join
from eventsync.engine.accessor import Accessor
from eventsync.engine.gate import UNVERSIONED
from eventsync.engine.isolation import Failed, isolate, item_error
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, EventSyncError, RecordError, RejectedError
from eventsync.index import Entry, IndexTransaction, Presence
from eventsync.records.record import Record, RecordType
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = ["Difference", "Kind", "SideBySide", "StoreState", "holding", "look"]


class Kind(StrEnum):
    """How a store differs from the merged state of all stores."""

    MISSING = "missing"
    """It lacks a record that it should hold."""
    EXTRA = "extra"
    """It holds a record that was deleted, or that does not match its filter."""
    FIELD = "field"
    """It holds another value in a field."""
    UNREADABLE = "unreadable"
    """It holds a record that could not be read."""


@dataclass(slots=True, frozen=True)
class Difference:
    """One way in which one store differs.

    ``field``, ``held`` and ``expected`` are set for ``Kind.FIELD``: the store holds ``held`` and
    should hold ``expected``. ``detail`` says why a record is missing or unreadable, if known.
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
    """One record as one store holds it.

    ``values``: its field values, or ``None`` if the store does not hold it. ``presence`` and
    ``version``: those of its index entry, or ``None`` if it has none. ``versions``: the versions of
    the fields that were patched since the last put. ``expected``: the field values that the store
    should hold, or ``None`` if it should not hold the record.
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

    ``merged``: the field values of the winner, or ``None`` if the record is deleted or never
    existed. ``version``: the greatest version in any store.
    """

    type: str
    key: str
    merged: Mapping[str, Any] | None
    version: Version | None
    stores: dict[str, StoreState]

    @property
    def differences(self) -> list[Difference]:
        """All differences, store by store."""
        return [found for state in self.stores.values() for found in state.differences]


def look(
    registry: StoreRegistry, record_type: type[Record], keys: Sequence[str]
) -> list[SideBySide]:
    """Return the records of these keys as each store holds them, in the order of ``keys``.

    A record that cannot be read is reported as unreadable. Raises ``ConfigError`` if no store holds
    the type, and ``StoreUnavailableError``.
    """
    name = record_type.__record__.name
    stores = holding(registry, name)
    if not stores:
        raise ConfigError(
            f"no store holds records of type {name!r}",
            hint=f"known types: {', '.join(registry.record_types)}",
        )
    copies = {store.name: _read(store.accessors[name], store, keys) for store in stores}
    return [
        _side_by_side(
            record_type.__record__, key, {store: held[key] for store, held in copies.items()}
        )
        for key in keys
    ]


# -- reading ---------------------------------------------------------------------------------------


class _Copy(NamedTuple):
    """What was read of one record in one store; ``error``: why its row could not be read."""

    view: BoundView
    entry: Entry | None
    row: Mapping[str, Any] | None
    error: EventSyncError | None

    @property
    def state(self) -> State:
        """The state for the merge. A row without an entry is older than every version."""
        if self.entry is None:
            return State() if self.row is None else State(UNVERSIONED, values=dict(self.row))
        return State(
            stamp=self.entry.stamp,
            versions=dict(self.entry.versions),
            values={**self.entry.deferred, **(self.row or {})},
        )


def holding(registry: StoreRegistry, type: str) -> list[Store]:
    """Return the stores that hold records of a type."""
    return [store for store in registry if type in store.accessors]


def _read(accessor: Accessor[Any], store: Store, keys: Sequence[str]) -> dict[str, _Copy]:
    """Read the index entry and the row of each record in one transaction."""
    name = accessor.type.name
    with store.index.transaction() as transaction:
        store.replicas[name].recover(transaction)
        entries = transaction.read(name, keys)
        rows, errors = _read_rows(accessor, keys, transaction)
    return {
        key: _Copy(accessor.view, entries.get(key), rows.get(key), errors.get(key)) for key in keys
    }


def _read_rows(
    accessor: Accessor[Any], keys: Sequence[str], transaction: IndexTransaction
) -> tuple[dict[str, Mapping[str, Any]], dict[str, EventSyncError]]:
    """Return the rows by key, and the errors by key of the rows that could not be read."""
    rows: dict[str, Mapping[str, Any]] = {}
    errors: dict[str, EventSyncError] = {}
    for part in isolate(keys, lambda part: accessor.read_rows(part, transaction)):
        if isinstance(part, Failed):
            errors[part.item] = item_error(part.error)
        else:
            rows |= part.result
    return rows, errors


# -- comparing -------------------------------------------------------------------------------------


def _side_by_side(record_type: RecordType, key: str, copies: Mapping[str, _Copy]) -> SideBySide:
    states = {store: copy.state for store, copy in copies.items()}
    joined = State()
    for state in states.values():
        joined = join(joined, state)
    merged = _winner(record_type, key, joined, states, copies) if joined.live else None
    version = Version(joined.version) if joined.version else None
    found = SideBySide(record_type.name, key, merged, version, {})
    for store, copy in copies.items():
        entry = copy.entry
        held = StoreState(
            values=copy.row,
            presence=entry.presence if entry else None,
            version=Version(entry.version) if entry else None,
            versions=entry.versions if entry else {},
            expected=_expected(copy.view, merged),
        )
        held.differences = _differences(found, store, held, copy)
        found.stores[store] = held
    return found


def _winner(
    record_type: RecordType,
    key: str,
    joined: State,
    states: Mapping[str, State],
    copies: Mapping[str, _Copy],
) -> dict[str, Any]:
    """Return the field values of the winner.

    Stores with conversions may hold different forms of one value at the same version. The winner is
    the form from which every other can be converted.
    """
    values = record_type.key_values(key)
    for name, declared in record_type.fields.items():
        if name in record_type.keys:
            continue
        version = joined.version_of(name)
        candidates = [
            (copies[store].view, state.values[name])
            for store, state in states.items()
            if name in state.values and state.version_of(name) == version
        ]
        # Values of stores without a conversion first.
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
    """Return whether ``held`` equals ``expected``, as it is or converted as the store does it."""
    if same(held, expected):
        return True
    if name not in view.convert:
        return False
    try:
        return same(held, view.to_record(view.to_store({name: expected}))[name])
    except (RecordError, RejectedError):
        return False  # the store cannot hold ``expected``


def _differences(row: SideBySide, store: str, held: StoreState, copy: _Copy) -> list[Difference]:
    if copy.error is not None:
        return [Difference(store, row.type, row.key, Kind.UNREADABLE, detail=str(copy.error))]
    if held.expected is None:
        if held.values is None:
            return []
        return [Difference(store, row.type, row.key, Kind.EXTRA)]
    if held.values is None:
        detail = "pending" if held.presence is Presence.PENDING else ""
        return [Difference(store, row.type, row.key, Kind.MISSING, detail=detail)]
    return [
        Difference(store, row.type, row.key, Kind.FIELD, name, held.values.get(name), expected)
        for name, expected in held.expected.items()
        if name not in held.values or not _agrees(copy.view, name, held.values[name], expected)
    ]
