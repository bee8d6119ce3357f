"""A store inside a transaction of its user's: edits and their envelopes commit with the user's own.

It knows nothing of databases: the store's index says how a transaction is joined.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, TypeVar, overload

from eventsync.changes.change import Change
from eventsync.engine.accessor import Edit
from eventsync.errors import ConfigError
from eventsync.index import Index, IndexTransaction
from eventsync.records.record import Record

if TYPE_CHECKING:
    from eventsync.engine.store import Store

__all__ = ["JoinedStore"]

R = TypeVar("R", bound=Record)


class JoinedStore:
    """What ``Store.using`` gives: the edits of a store within one transaction of the caller's.

    Nothing is published before the transaction has committed, and nothing ever if it does not. An
    edit that is refused leaves no trace in the transaction, which may go on. For the thread that
    has the transaction; while it is open other writers of the database wait, so keep it short.
    ``find`` and ``count`` are not here: ask the database through your own transaction, which sees
    what it has written. After a rollback read your records again, for they take themselves for
    written.
    """

    def __init__(self, store: Store, transaction: Any) -> None:
        self._store = store
        self._index = _JoinedIndex(store.index, transaction)
        self._accessors = {n: a.joined(self._index) for n, a in store.accessors.items()}

    def __repr__(self) -> str:
        return f"{self._store!r}.using(...)"

    def add(self, records: Record | Iterable[Record]) -> None:
        """As ``Store.add``. Raises ``AlreadyExistsError``, ``RejectedError``."""
        self._edit("add", records)

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """As ``Store.update``. Raises ``NotFoundError``, ``RejectedError``."""
        self._edit("upsert" if upsert else "update", records)

    def remove(self, records: Record | Iterable[Record]) -> None:
        """As ``Store.remove`` with records. Raises ``NotFoundError``."""
        self._edit("remove", records)

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """As ``Store.get``, with what the transaction has written itself."""
        name = self._store.accessor(record).type.name
        accessor = self._accessors[name]
        text = record.key if isinstance(record, Record) else accessor.type.key_of(key)
        with self._index.transaction() as transaction:
            row = accessor.read_rows([text], transaction).get(text)
        if row is None:
            return None
        found = accessor.make(row)
        found.stores.add(self._store)
        return found

    def publish(self, changes: Change | Iterable[Change]) -> None:
        """Put changes in the outbox as they are, without applying them to this store.

        For a producer that writes its tables itself and only wants what it tells others to commit
        with them. Raises ``ValueRefusedError``, ``ConfigError`` without a publisher.
        """
        if self._store.publisher is None:
            raise ConfigError(
                f"store {self._store.name!r} has no publisher, so nothing can be published",
                hint="Store(..., publisher=Bus(url)); it does not connect before it is used",
            )
        encode = self._store.publisher.encode
        listed = [changes] if isinstance(changes, Change) else list(changes)
        by_type: dict[str, list[bytes]] = {}
        for change in listed:
            by_type.setdefault(change.type, []).append(encode(change))
        with self._index.transaction() as transaction:
            for name, bodies in by_type.items():
                transaction.send(name, bodies)

    def _edit(self, op: str, records: Record | Iterable[Record]) -> None:
        listed = [records] if isinstance(records, Record) else list(records)
        by_type: dict[str, list[Edit]] = {}
        for record in listed:
            by_type.setdefault(record.__record__.name, []).append(self._store.edit_of(op, record))
        encode = self._store.publisher.encode if self._store.publisher else None
        for name, edits in by_type.items():
            self._store.accessor(name)  # an error that says what there is
            self._accessors[name].edit(edits, self._store.clock, self._store.name, encode)
        self._store.edited(op, listed)


class _JoinedIndex(Index):
    """The store's index, of which a transaction is always a part of the caller's."""

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
