"""One record as each store holds it, and the winning values that the stores should hold."""

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
    """The store lacks a record that it should hold."""
    EXTRA = "extra"
    """The store holds a record that was deleted, or that does not match the store's filter."""
    FIELD = "field"
    """The store holds another value in a field than the winning value."""
    UNREADABLE = "unreadable"
    """The store holds a record that cannot be read."""


@dataclass(slots=True, frozen=True)
class Difference:
    """A difference between one record in one store and the merged state of all stores.

    ``field``, ``held``, ``expected``: only for ``Kind.FIELD``; the name of the field, the value in
    the store, and the value that the store should hold. ``detail``: why the record is missing or
    unreadable, if that is known. ``secret``: whether the field is secret, so that its values must
    not be shown.
    """

    store: str
    type: str
    key: str
    kind: Kind
    field: str = ""
    held: Any = None
    expected: Any = None
    detail: str = ""
    secret: bool = False


@dataclass(slots=True)
class StoreState:
    """One record as one store holds it, and as the store should hold it.

    ``values``: the field values in the store, or ``None`` if the store does not hold the record.
    ``presence``, ``version``: from the index entry of the record, or ``None`` without an entry.
    ``versions``: the versions of the fields that were patched since the last put. ``expected``: the
    field values that the store should hold, or ``None`` if the store should not hold the record.
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

    ``merged``: the winning field values, or ``None`` if the record is deleted or never existed.
    ``version``: the greatest version of the record in any store, or ``None`` without one.
    ``stores``: the state of the record in each store, by the name of the store.
    """

    type: str
    key: str
    merged: Mapping[str, Any] | None
    version: Version | None
    stores: dict[str, StoreState]
    secret: frozenset[str] = frozenset()
    """The names of the secret fields, whose values must not be shown."""

    @property
    def differences(self) -> list[Difference]:
        """The differences of all stores, in the order of the stores."""
        return [found for state in self.stores.values() for found in state.differences]


def look(
    registry: StoreRegistry, record_type: type[Record], keys: Sequence[str]
) -> list[SideBySide]:
    """Return the records with these keys as each store holds them, in the order of ``keys``.

    A record that cannot be read is reported as a difference (``Kind.UNREADABLE``). Raises
    ``ConfigError`` if no store holds the type, and ``StoreUnavailableError`` if a store does not
    answer.
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
    """The result of reading one record in one store.

    ``row``: the field values, or ``None`` if the store does not hold the record or the row could
    not be read. ``error``: why the row could not be read.
    """

    view: BoundView
    entry: Entry | None
    row: Mapping[str, Any] | None
    error: EventSyncError | None

    @property
    def state(self) -> State:
        """The record as a ``State``, which can be merged with the states of other stores.

        A row without an index entry gets a stamp that is older than every version.
        """
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
    """Read the index entries and the rows of records in one transaction; return copies by key.

    Finishes or undoes writes that a crash interrupted.
    """
    name = accessor.type.name

    def read(transaction: IndexTransaction) -> dict[str, _Copy]:
        store.replicas[name].recover(transaction)
        entries = transaction.read(name, keys)
        rows, errors = _read_rows(accessor, keys, transaction)
        return {
            key: _Copy(accessor.view, entries.get(key), rows.get(key), errors.get(key))
            for key in keys
        }

    with store.errors():
        return store.index.run(read)


def _read_rows(
    accessor: Accessor[Any], keys: Sequence[str], transaction: IndexTransaction
) -> tuple[dict[str, Mapping[str, Any]], dict[str, EventSyncError]]:
    """Return the rows that could be read, by key, and the errors of the others, by key."""
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
    secret = frozenset(name for name, one in record_type.fields.items() if one.secret)
    found = SideBySide(record_type.name, key, merged, version, {}, secret)
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
    """Return the winning field values of a record: the values with the greatest versions.

    ``joined``: the merge of ``states``. Stores that convert a field may hold different forms of one
    value with the same version. The form that converts to the forms in all other stores wins.
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
        # Try the values of stores that do not convert this field first.
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
    """Return whether a store with this view holds the value that it should hold.

    True if ``held`` equals ``expected``, or equals ``expected`` after a round trip through the
    conversion of the field ``name`` in this view.
    """
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
        Difference(
            store,
            row.type,
            row.key,
            Kind.FIELD,
            name,
            held.values.get(name),
            expected,
            secret=name in row.secret,
        )
        for name, expected in held.expected.items()
        if name not in held.values or not _agrees(copy.view, name, held.values[name], expected)
    ]
