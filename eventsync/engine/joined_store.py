"""A store inside a transaction of the caller's own."""

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
    """A store whose edits are part of a transaction of the caller's: see ``Store.using``.

    Edits and their envelopes commit with the transaction, or not at all. Envelopes are published
    after the commit. An edit that fails leaves nothing behind in the transaction, which may go on.

    Use it in the thread of the transaction. Other writers of the database wait while the
    transaction is open, so keep it short. There is no ``find`` and no ``count``: query the database
    in your transaction, which sees what it has written. After a rollback read your records again,
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
        """The store's index. Its transactions are part of the caller's."""
        self._replicas = replicas.with_index(self.index)
        self._publisher = publisher

    def __repr__(self) -> str:
        return f"{self._store!r}.using(...)"

    def add(self, records: Record | Iterable[Record]) -> None:
        """Add records, as ``Store.add``. Raises ``AlreadyExistsError``, ``RejectedError``."""
        self._edit("add", records)

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """Update records, as ``Store.update``. Raises ``NotFoundError``, ``RejectedError``."""
        self._edit("upsert" if upsert else "update", records)

    def remove(self, records: Record | Iterable[Record]) -> None:
        """Remove records, as ``Store.remove`` with records. Raises ``NotFoundError``."""
        self._edit("remove", records)

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """Return a record, as ``Store.get``, as the transaction has written it."""
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
        """Put changes in the outbox without applying them to this store.

        For a producer that writes its tables itself and wants its changes to commit with them.
        Raises ``ValueRefusedError``, and ``ConfigError`` without a publisher.
        """
        if self._publisher is None:
            raise ConfigError(
                f"{self._store!r} has no publisher, so nothing can be published",
                hint="Store(..., publisher=Bus(url)); it connects at first use",
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
    """The index of a store, with transactions that are part of the caller's."""

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

    def save_mark(self, name: str, text: str) -> None:
        self._index.save_mark(name, text)
