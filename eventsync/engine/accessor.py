"""The accessor: how one store reads and writes the records of one type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Generic, TypeVar

from eventsync.engine.isolation import concerns_all, record_error
from eventsync.engine.write import Puts, Write
from eventsync.errors import ConfigError, DependencyError, RecordError, StoreUnavailableError
from eventsync.index import Entry, Index, IndexTransaction
from eventsync.records.columnar import ColumnReader
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View

__all__ = ["Accessor", "Puts", "Write"]

R = TypeVar("R", bound=Record)


class Accessor(ABC, Generic[R]):
    """Reads and writes the records of one type in one store.

    To support a new kind of store, implement ``add``, ``update``, ``get``, ``find`` and ``remove``,
    and ``count`` if the store can count faster than it can read. Override ``record_to_data`` and
    ``data_to_record`` if your store does not keep records as dicts. Override ``read_rows`` and
    ``write_rows`` if it can read or write many records at once. ``Replica`` does the rest: the
    version gate, batches, edits, capture and recovery.

    In each process one thread at a time calls the methods that write. It holds the lock of the
    version index. Raise ``RejectedError`` for a record that the store will never take, and
    ``StoreUnavailableError`` or any ``OSError`` if the same call may succeed later.
    """

    atomic: ClassVar[bool] = False
    """Whether ``write_rows`` writes all or nothing, even if the process dies while it runs."""

    replica_class: type[Any] | None = None
    """A subclass of ``eventsync.engine.replica.Replica`` for a store whose transactions need steps
    of their own. ``None``: ``Replica`` itself."""

    def __init__(self, record_type: type[R], *, view: View | None = None) -> None:
        self.record_class = record_type
        self.type = record_type.__record__
        self.view = (view or View()).bind(self.type)
        self.reader = ColumnReader(self.type)
        self.forgets = False
        """Whether records may expire in the store. A missing record then counts as expired, not as
        deleted."""
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The version index of the store. Raises ``ConfigError`` before ``bind``."""
        if self._index is None:
            raise ConfigError(
                f"the accessor of {self.type.name} does not belong to a store yet",
                hint="pass it to Store(...)",
            )
        return self._index

    def bind(self, index: Index) -> None:
        """Attach the accessor to a store with this version index. ``Store`` calls it once.

        Override it to raise ``ConfigError`` for an index that does not fit your store.
        """
        self._index = index

    # -- what a new kind of store implements ------------------------------------------------

    @abstractmethod
    def add(self, record: R) -> None:
        """Write a record that the store does not hold. It may replace one that it does hold."""

    @abstractmethod
    def update(self, record: R) -> None:
        """Write the changed fields, ``record.dirty``, of a record that the store holds.

        Writing all fields is allowed too.
        """

    @abstractmethod
    def get(self, key: str) -> R | None:
        """Return the record with this key, or ``None``.

        ``self.type.key_values(key)`` returns the values of the key fields.
        """

    @abstractmethod
    def find(self, query: Query) -> Iterable[R]:
        """Return the records that match, sorted and sliced.

        ``query.select(records)`` filters, sorts and slices in Python.
        """

    def count(self, query: Query) -> int:
        """Return how many records match."""
        return sum(1 for _ in self.find(query))

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the record with this key. Idempotent."""

    def record_to_data(self, record: R) -> Any:
        """Return what the store keeps of ``record``: by default a dict by the store's own names.

        It includes the view's constants.
        """
        return dict(self.view.constant) | self.view.to_store(record.raw())

    def data_to_record(self, data: Any) -> R:
        """Return the record in the store's ``data``; the inverse of ``record_to_data``.

        Optional fields that ``data`` does not contain become ``None``.
        """
        values = self.view.to_record(data)
        for name in self.view.optional:
            values.setdefault(name, None)
        return self.make(values)

    # -- what a store overrides if it can read or write many records at once ---------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        """Return the field values of the records that the store holds, by key."""
        found = {}
        for key in keys:
            record = self.get(key)
            if record is not None:
                found[key] = record.raw()
        return found

    def read_with_entries(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Entry], dict[str, Mapping[str, Any]]]:
        """Return the index entries and the field values of records, each by key."""
        return transaction.read(self.type.name, keys), self.read_rows(keys, transaction)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        """Write and remove records. Idempotent: a repeated call leaves the same data."""
        for write in writes:
            record = self.get(write.key)
            if record is not None:
                for name, value in write.values.items():
                    record[name] = value
                if record.is_dirty:
                    self.update(record)
            elif write.whole:
                self.add(self.make(write.values))
            else:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} vanished while it was being updated"
                )
        for key in removals:
            self.remove(key)

    def update_rows(
        self, writes: Sequence[Write], transaction: IndexTransaction
    ) -> Collection[str]:
        """Write changed fields of the records that the store holds, and return their keys.

        Called only if the accessor is ``patchable``.
        """
        raise NotImplementedError

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        """Return the rows that were just written, as the store returns them, by key.

        ``writes``: the values that were written, by key. The result may leave out rows that the
        store returns with the values that were written.
        """
        return self.read_rows(list(writes), transaction)

    @property
    def verbatim(self) -> bool:
        """Whether the store keeps decimals as written, in rows that ``read_back`` leaves out.

        Otherwise they are equal but may have more or fewer trailing zeros.
        """
        return True

    @property
    def plain(self) -> bool:
        """Whether a put or delete that is newer can be written without reading anything else.

        That needs three things: the per-record rule; data and index in one transaction; and a
        ``read_back`` that leaves out every row of a put. ``write_rows`` then receives changes that
        were read in bulk as ``Puts``.
        """
        return False

    @property
    def patchable(self) -> bool:
        """Whether a patch that is newer in all its fields can be written without reading the row.

        That needs three things: data and index in one transaction; a view with all fields of every
        record; and an ``update_rows`` that stores just the values given and changes no other
        record.
        """
        return False

    def default_index(self) -> Index:
        """Return the version index for a store that was given none."""
        raise ConfigError(
            f"the store of {self.type.name} needs a version index",
            hint='pass one: Store(..., index=FileIndex("versions.db"))',
        )

    def depends_on(self, other: Accessor[Any]) -> bool:
        """Return whether records here may refer to records of ``other``, which must come first.

        A write that comes too early raises ``DependencyError``.
        """
        return False

    def waiting(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        removals: Sequence[str],
        transaction: IndexTransaction,
    ) -> Mapping[str, DependencyError]:
        """Return why records cannot be written or removed yet, by key.

        Called after ``write_rows`` raised ``DependencyError`` for a batch. ``rows``: all values
        that each record would have. Records that the store cannot judge may be left out: they are
        then written one by one.
        """
        return {}

    def ensure(self) -> None:
        """Create what the accessor needs in its store, for example a folder. Idempotent."""

    def ping(self) -> None:
        """Raise ``StoreUnavailableError`` or ``ConfigError`` if the store cannot be used now."""

    def close(self) -> None:
        """Close connections and files. Idempotent."""

    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        """Return the keys of all records that may have changed since ``mark``, and the next mark.

        ``mark``: what the last call returned. An empty mark means all records. ``unreadable``: as
        in ``Query``. Deleted records may be left out. Return ``None`` if the store cannot tell.
        """
        return None

    # -- what every accessor inherits ------------------------------------------------------------

    def make(self, values: Mapping[str, Any]) -> R:
        """Return a record with these values, which need not include every field."""
        return self.record_class.load(values, partial=True)

    def read(self, data: Iterable[Any], query: Query) -> Iterator[R]:
        """Yield the records in the store's ``data``, for ``find`` to select from.

        An unreadable record is treated as ``pass_over`` says.
        """
        for item in data:
            try:
                record = self.data_to_record(item)
            except Exception as error:
                self.pass_over(error, query)
            else:
                yield record

    def pass_over(self, error: Exception, query: Query) -> None:
        """Report one unreadable record to ``query.unreadable``.

        Raise ``error`` if there is no ``query.unreadable``, or if the error concerns the whole
        store.
        """
        if query.unreadable is None or concerns_all(error):
            raise error
        query.unreadable(record_error(error, f"a record of type {self.type.name}"))
