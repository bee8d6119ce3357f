"""The replicas of one store, by record type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eventsync.engine.edit import Edit
from eventsync.engine.replica import Encode, Replica
from eventsync.errors import ConfigError
from eventsync.index import Index
from eventsync.records.record import Record

__all__ = ["ReplicaSet"]


class ReplicaSet(Mapping[str, Replica]):
    """The replicas of one store, by the name of their record type.

    ``store``: the store itself, which records remember as a store that holds them. ``name``: its
    name, for errors.
    """

    def __init__(self, store: Any, name: str, replicas: Mapping[str, Replica]) -> None:
        self._store = store
        self._name = name
        self._replicas = dict(replicas)

    def __getitem__(self, type: str) -> Replica:
        return self._replicas[type]

    def __iter__(self) -> Iterator[str]:
        return iter(self._replicas)

    def __len__(self) -> int:
        return len(self._replicas)

    def of(self, record: Record | type[Record] | str) -> Replica:
        """Return the replica of a record, a record type or its name. Raises ``ConfigError``."""
        name = record if isinstance(record, str) else record.__record__.name
        try:
            return self._replicas[name]
        except KeyError:
            raise ConfigError(
                f"store {self._name!r} holds no records of type {name!r}",
                hint=f"it holds {', '.join(self._replicas)}",
            ) from None

    def with_index(self, index: Index) -> ReplicaSet:
        """Return these replicas with another index: one that joins the caller's transactions."""
        replicas = {name: replica.with_index(index) for name, replica in self._replicas.items()}
        return ReplicaSet(self._store, self._name, replicas)

    def edit(self, op: str, records: Sequence[Record], encode: Encode | None) -> None:
        """Edit records of any types (``Replica.edit``). ``op``: see ``Edit``.

        Afterwards the records count as unchanged since they were read from the store.
        """
        by_type: dict[str, list[Edit]] = {}
        for record in records:
            by_type.setdefault(record.__record__.name, []).append(self._edit_of(op, record))
        for name, edits in by_type.items():
            self.of(name).edit(edits, encode)
        for record in records:
            if op == "remove":
                record.stores.discard(self._store)
            else:
                record.stores.add(self._store)
                record.clean()

    def _edit_of(self, op: str, record: Record) -> Edit:
        values = None if op == "remove" else record.raw()
        # Fields that were read from this store and not set since are no part of the edit. The store
        # may have newer values by now.
        touched = record.dirty if self._store in record.stores and op != "add" else None
        return Edit(op, record.key, values, touched)
