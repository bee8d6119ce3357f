"""The replicas of one store, by record type."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from eventsync.engine.edit import Edit
from eventsync.engine.replica import Encode, Replica
from eventsync.errors import ConfigError, in_store
from eventsync.index import Index
from eventsync.records.record import Record

__all__ = ["ReplicaSet"]


class ReplicaSet(Mapping[str, Replica]):
    """The replicas of one store, by the name of their record type.

    ``store``: the store object that is added to ``Record.stores`` of the records that it holds.
    ``name``: the name of the store, for errors.
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
        """Return the replica for a record type, given as a record, a record class or a type name.

        Raises ``ConfigError`` if the store does not hold the type.
        """
        name = record if isinstance(record, str) else record.__record__.name
        try:
            return self._replicas[name]
        except KeyError:
            raise ConfigError(
                f"store {self._name!r} holds no records of type {name!r}",
                hint=f"the store holds {', '.join(self._replicas)}; add an accessor for the type",
            ) from None

    def with_index(self, index: Index) -> ReplicaSet:
        """Return a copy of this set whose replicas use ``index``.

        ``index``: an index whose transactions are part of a transaction of the caller.
        """
        replicas = {name: replica.with_index(index) for name, replica in self._replicas.items()}
        return ReplicaSet(self._store, self._name, replicas)

    def edit(self, op: str, records: Sequence[Record], encode: Encode | None) -> None:
        """Make one edit of each record, and mark the records as committed.

        The records may have different types. ``op``: as in ``Edit``. ``encode`` and the errors: as
        in ``Replica.edit``.
        """
        by_type: dict[str, list[Edit]] = {}
        for record in records:
            by_type.setdefault(record.__record__.name, []).append(self._edit_of(op, record))
        for name, edits in by_type.items():
            replica = self.of(name)
            with in_store(self._name):
                replica.edit(edits, encode)
        for record in records:
            if op == "remove":
                record.stores.discard(self._store)
            else:
                record.stores.add(self._store)
                record.clean()

    def _edit_of(self, op: str, record: Record) -> Edit:
        values = None if op == "remove" else record.raw()
        # Fields that were read from this store and not set by the program are not part of the edit,
        # because the store may have newer values for them.
        touched = record.dirty if self._store in record.stores and op != "add" else None
        return Edit(op, record.key, values, touched)
