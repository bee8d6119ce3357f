"""A store that makes its edits inside a database transaction of the caller."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import Any, TypeVar, overload

from eventsync.changes.change import Change
from eventsync.engine.publisher import Publisher
from eventsync.engine.replica_set import ReplicaSet
from eventsync.errors import ConfigError
from eventsync.index import Index, IndexTransaction
from eventsync.records.record import Record

__all__ = ["JoinedStore"]

R = TypeVar("R", bound=Record)


class JoinedStore:
    """A store whose edits are part of the caller's database transaction. Made by ``Store.using``.

    Edits and their envelopes commit or roll back with the transaction. The envelopes are published
    after the commit. If an edit fails, only that edit is undone; the transaction can continue.

    Not thread-safe: use it in the thread of the transaction. Other writers of the database wait
    while the transaction is open, so keep it short. There are no methods ``find`` and ``count``:
    query the database in your transaction instead. After a rollback, read your records again,
    because they count as written.
    """

    def __init__(
        self,
        store: object,
        replicas: ReplicaSet,
        index: Index,
        transaction: Any,
        publisher: Publisher | None,
    ) -> None:
        self._store = store
        self.index = _JoinedIndex(index, transaction)
        """The version index of the store. Its transactions are part of the caller's transaction."""
        self._replicas = replicas.with_index(self.index)
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"{self._store!r}.using(...)"

    def add(self, records: Record | Iterable[Record]) -> None:
        """Add records, as ``Store.add`` does.

        Raises ``AlreadyExistsError`` if a record exists, ``RejectedError`` if the store refuses it.
        """
        self._edit("add", records)

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """Update records, as ``Store.update`` does.

        ``upsert``: add records that do not exist. Otherwise a missing record raises
        ``NotFoundError``. Raises ``RejectedError`` if the store refuses a record.
        """
        self._edit("upsert" if upsert else "update", records)

    def remove(self, records: Record | Iterable[Record]) -> None:
        """Remove records, as ``Store.remove`` does.

        Raises ``NotFoundError`` if a record does not exist.
        """
        self._edit("remove", records)

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """Return a record, or ``None`` if it does not exist. Arguments as for ``Store.get``.

        The result contains uncommitted writes of the transaction.
        """
        accessor = self._replicas.of(record).accessor
        text = record.key if isinstance(record, Record) else accessor.type.key_of(key)
        with self.index.transaction() as transaction:
            row = accessor.read_rows([text], transaction).get(text)
        if row is None:
            return None
        found = accessor.make(row)
        found.stores.add(self._store)
        return found

    def publish(self, changes: Change | Iterable[Change]) -> None:
        """Put changes into the outbox, but do not apply them to this store.

        For a program that writes its tables itself: its changes commit together with the tables.
        Raises ``ValueRefusedError`` if a value may not travel, and ``ConfigError`` if the store has
        no publisher.
        """
        if self._publisher is None:
            raise ConfigError(
                f"{self._store!r} has no publisher, so it cannot publish changes",
                hint="create the store with a publisher: Store(..., publisher=Bus(url))",
            )
        by_type: dict[str, list[bytes]] = {}
        for change in [changes] if isinstance(changes, Change) else changes:
            by_type.setdefault(change.type, []).append(self._publisher.encode(change))
        with self.index.transaction() as transaction:
            for name, bodies in by_type.items():
                transaction.send(name, bodies)

    def _edit(self, op: str, records: Record | Iterable[Record]) -> None:
        listed = [records] if isinstance(records, Record) else list(records)
        self._replicas.edit(op, listed, self._publisher.encode if self._publisher else None)


class _JoinedIndex(Index):
    """The index of a store. Its transactions are part of the caller's database transaction."""

    def __init__(self, index: Index, transaction: Any) -> None:
        self._index = index
        self._transaction = transaction

    def transaction(self) -> AbstractContextManager[IndexTransaction]:
        return self._index.join(self._transaction)

    def scan(self, type: str, **options: Any) -> Any:
        return self._index.scan(type, **options)

    def counts(self, type: str) -> Any:
        return self._index.counts(type)

    def outgoing(self, limit: int = 1000) -> Any:
        return self._index.outgoing(limit)

    def sent(self, numbers: Any) -> None:
        self._index.sent(numbers)

    def load_mark(self, name: str) -> str:
        return self._index.load_mark(name)

    def marks(self, prefix: str) -> Any:
        return self._index.marks(prefix)

    def save_marks(self, marks: Any) -> None:
        self._index.save_marks(marks)
