"""The accessor: how one store reads and writes the records of one type."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, Generic, Self, TypeVar

from eventsync.engine.discretion import secret_fields
from eventsync.engine.finding import Finding
from eventsync.engine.isolation import concerns_all, record_error
from eventsync.engine.plan import Part, Plan
from eventsync.engine.write import Puts, Write
from eventsync.errors import ConfigError, DependencyError, RecordError, StoreUnavailableError
from eventsync.index import Entry, Index, IndexTransaction
from eventsync.records.columnar import ColumnReader
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View

if TYPE_CHECKING:
    from eventsync.engine.change_source import ChangeSource
    from eventsync.engine.webhook import Webhook

__all__ = ["Accessor", "Puts", "Write"]

R = TypeVar("R", bound=Record)


class Accessor(ABC, Generic[R]):
    """Reads and writes the records of one type in one store.

    To support a new kind of store, implement ``add``, ``update``, ``get``, ``find`` and ``remove``.
    Implement ``count``, too, if the store can count without reading. Override ``record_to_data``
    and ``data_to_record`` if the store does not keep records as dicts. Override ``read_rows`` and
    ``write_rows`` if the store can read or write many records in one call. ``Replica`` does the
    rest: the version gate, batches, edits, capture and recovery.

    Methods that write are called while the lock of the version index is held, so only one thread
    of a process calls them at a time. Raise ``RejectedError`` for a record that the store will
    never accept. Raise ``StoreUnavailableError`` or an ``OSError`` if the same call may succeed
    later.
    """

    atomic: ClassVar[bool] = False
    """Whether ``write_rows`` writes either all records or none, even if the process dies."""

    replica_class: type[Any] | None = None
    """The subclass of ``eventsync.engine.replica.Replica`` to use for this accessor.

    For a store whose transactions need additional steps. ``None`` means ``Replica`` itself.
    """

    def __init__(self, record_type: type[R], *, view: View | None = None) -> None:
        self.record_class = record_type
        self.type = record_type.__record__
        self.view = (view or View()).bind(self.type)
        self.reader = ColumnReader(self.type)
        self.secret_fields = secret_fields(self.type)
        """The names of the secret fields, whose values no error may quote."""
        self.forgets = False
        """Whether records may expire in the store. If so, a missing record is not a delete."""
        self._index: Index | None = None

    @property
    def index(self) -> Index:
        """The version index of the store. Raises ``ConfigError`` before ``bind`` was called."""
        if self._index is None:
            raise ConfigError(
                f"the accessor of {self.type.name} does not belong to a store yet",
                hint="pass the accessor to Store(...)",
            )
        return self._index

    def bind(self, index: Index) -> None:
        """Set the version index. ``Store`` calls this method once.

        Override the method to raise ``ConfigError`` if the accessor cannot work with ``index``.
        """
        self._index = index

    # -- what a new kind of store implements ------------------------------------------------

    @abstractmethod
    def add(self, record: R) -> None:
        """Write ``record``, which the store does not hold.

        If the store holds a record with the same key nevertheless, this method may replace it.
        """

    @abstractmethod
    def update(self, record: R) -> None:
        """Write the changed fields (``record.dirty``) of ``record``, which the store holds.

        An implementation may also write all fields.
        """

    @abstractmethod
    def get(self, key: str) -> R | None:
        """Return the record with the canonical key ``key``, or ``None`` if there is none.

        ``self.type.key_values(key)`` returns the values of the key fields.
        """

    @abstractmethod
    def find(self, query: Query) -> Iterable[R]:
        """Return the records that ``query`` selects, in its order and within its limits.

        ``query.select(records)`` filters, sorts and limits any records in Python.
        """

    def count(self, query: Query) -> int:
        """Return how many records ``query`` selects."""
        return sum(1 for _ in self.find(query))

    @abstractmethod
    def remove(self, key: str) -> None:
        """Remove the record with the canonical key ``key``, if there is one. Idempotent."""

    def record_to_data(self, record: R) -> Any:
        """Return ``record`` in the form in which the store keeps it.

        By default this is a dict of values by the store's field names, with the view's constants.
        """
        return dict(self.view.constant) | self.view.to_store(record.raw())

    def data_to_record(self, data: Any) -> R:
        """Return the record that ``data`` describes: the inverse of ``record_to_data``.

        Optional fields that ``data`` does not contain become ``None``. Raises ``FieldError`` or
        ``RejectedError`` if a value cannot be converted.
        """
        values = self.view.to_record(data)
        for name in self.view.optional:
            values.setdefault(name, None)
        return self.make(values)

    # -- what a store overrides if it can read or write many records at once ---------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        """Return the field values of the records with these keys, by key.

        Keys that the store does not hold are left out.
        """
        found = {}
        for key in keys:
            record = self.get(key)
            if record is not None:
                found[key] = record.raw()
        return found

    def read_with_entries(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Entry], dict[str, Mapping[str, Any]]]:
        """Return the index entries by key, and the field values by key, of the given ``keys``."""
        return transaction.read(self.type.name, keys), self.read_rows(keys, transaction)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        """Make ``writes``, and remove the records whose keys are in ``removals``. Idempotent."""
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
                    f"{self.type.name} {write.key!r} was removed from the store while eventsync "
                    "updated the record",
                    hint="repeat the update; a worker repeats it by itself",
                )
        for key in removals:
            self.remove(key)

    def update_rows(
        self, writes: Sequence[Write], transaction: IndexTransaction
    ) -> Collection[str]:
        """Write the changed fields of those records that the store holds. Return their keys.

        Called only if ``patchable`` is true.
        """
        raise NotImplementedError

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        """Read rows that were just written. Return the field values by key.

        ``writes``: the values that were written, by key. The result may leave out each row that the
        store returns exactly as it was written.
        """
        return self.read_rows(list(writes), transaction)

    @property
    def verbatim(self) -> bool:
        """Whether the store keeps the trailing zeros of decimals in rows left out by ``read_back``.

        If false, the store may return such a decimal with more or fewer trailing zeros.
        """
        return True

    def writes_whole(self, *, new: bool) -> bool:
        """Return whether a record with some of the values of an interrupted write was written.

        Others have then edited it since. If false, the record may as well be half written, or have
        been there before under another id, and it is written again. ``new``: whether the index had
        no such record before the write.
        """
        return True

    @property
    def plain(self) -> bool:
        """Whether a put or delete with the newest version can be written without any read.

        This requires the per-record rule, data and index in one transaction, and a ``read_back``
        that leaves out every row of a put. If true, ``write_rows`` may receive ``Puts``.
        """
        return False

    @property
    def patchable(self) -> bool:
        """Whether a patch that is newer in all its fields can be written without reading the row.

        This requires data and index in one transaction, a view with all fields of all records, and
        an ``update_rows`` that stores exactly the given values and changes no other record.
        """
        return False

    def default_index(self) -> Index:
        """Return the version index for a store that was created without the argument ``index``.

        Raises ``ConfigError`` if this kind of store has no default index.
        """
        raise ConfigError(
            f"the store of {self.type.name} needs a version index",
            hint='pass a version index: Store(..., index=FileIndex("versions.db"))',
        )

    def depends_on(self, other: Accessor[Any]) -> bool:
        """Return whether records of this type may refer to records of ``other``.

        The records of ``other`` are then written first. A store raises ``DependencyError`` if a
        record is written before the record that it refers to.
        """
        return False

    def waiting(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        removals: Sequence[str],
        transaction: IndexTransaction,
    ) -> Mapping[str, DependencyError]:
        """Return, by key, the error of each record that cannot be written or removed yet.

        Called after ``write_rows`` raised ``DependencyError`` for a batch. ``rows``: all values
        that each record would have after the write, by key. ``removals``: the keys of the records
        to remove. The result may be incomplete: if the batch fails again, eventsync finds the other
        records by trying smaller batches.
        """
        return {}

    joint: ClassVar[bool] = False
    """Whether ``plan`` accepts parts of other accessors of the same store."""

    def plan(self, parts: Sequence[Part], transaction: IndexTransaction) -> Plan:
        """Return how to write ``parts`` after ``write_rows`` raised ``DependencyError``.

        One part is about the records of this accessor. There are others only if ``joint`` is true.
        """
        waiting = {
            (part.accessor.type.name, key): error
            for part in parts
            for key, error in part.accessor.waiting(part.rows, part.removals, transaction).items()
        }
        return Plan(parts, transaction, waiting)

    def ensure(self) -> None:
        """Create what the accessor needs in its store, for example a folder. Idempotent."""

    def findings(self) -> Iterable[Finding]:
        """Return what a check should say of the store before it is opened. Creates nothing.

        Raises ``ConfigError`` or ``StoreUnavailableError`` for what keeps it from being opened.
        """
        return ()

    def ping(self) -> None:
        """Check that the store can be used.

        Raises ``StoreUnavailableError`` if the store does not answer, and ``ConfigError`` if its
        configuration is wrong.
        """

    def loss(self) -> str | None:
        """Return what shows that the store lost its records or versions as a whole, else ``None``.

        A lost store publishes no deletes. ``accept_loss`` and a synchronization fill it again.
        """
        return None

    def accept_loss(self) -> int:
        """Drop the versions of records that are missing, and return how many.

        They can then be copied to this store again. Publishes nothing. Idempotent.
        """
        return 0

    def close(self) -> None:
        """Close connections and files. Idempotent."""

    @classmethod
    def sources(cls, accessors: Sequence[Self], store: str) -> Sequence[ChangeSource]:
        """Return the change sources of a store, the best first; none if there are none.

        ``accessors``: all accessors of this class that the store has. ``store``: the name of the
        store. Connects to nothing.
        """
        return ()

    def webhook(self) -> Webhook | None:
        """Return what reads the webhooks of the store's service, ``None`` if it sends none.

        The class then also offers a ``WebhookSource`` in ``sources``.
        """
        return None

    resumable: ClassVar[bool] = False
    """Whether ``list_keys`` can continue after a key."""

    def list_keys(self, query: Query, *, after: str = "") -> Iterator[str]:
        """Yield the keys of the records that ``query`` selects, which has no order and no limit.

        ``after``: continue after the record with this key, which may be gone, in the store's own
        order. Called only if ``resumable`` is true.
        """
        return (record.key for record in self.find(query))

    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        """Return the keys of all records that may have changed since ``mark``, and a new mark.

        ``mark``: the mark that the last call returned; empty for all records. ``unreadable``: as in
        ``Query``. Deleted records may be left out. Returns ``None`` if the store does not know
        which records changed.
        """
        return None

    # -- what every accessor inherits ------------------------------------------------------------

    def make(self, values: Mapping[str, Any]) -> R:
        """Return a record with these field values. Fields without a value are absent.

        Raises ``FieldError`` if a value does not fit its field.
        """
        return self.record_class.load(values, partial=True)

    def read(self, data: Iterable[Any], query: Query) -> Iterator[R]:
        """Yield a record for each item of ``data``, converted by ``data_to_record``.

        Does not filter or sort. If an item cannot be converted, call ``pass_over``, which reports
        or raises the error.
        """
        for item in data:
            try:
                record = self.data_to_record(item)
            except Exception as error:
                self.pass_over(error, query, key=self._readable_key(item))
            else:
                yield record

    def key_in(self, data: Any) -> str:
        """Return the key of the record that ``data`` describes, from its key fields only.

        Raises any error if they cannot be read. Override this method together with
        ``data_to_record``, so that a record with an unreadable field is reported by its key.
        """
        names = [self.view.names[name] for name in self.type.keys]
        return self.type.key_text(self.view.to_record({name: data[name] for name in names}))

    def pass_over(self, error: Exception, query: Query, *, key: str | None = None) -> None:
        """Call ``query.unreadable`` with ``error``, the error of one record that cannot be read.

        ``key``: the key of the record, if it is known. Raises ``error`` instead if
        ``query.unreadable`` is ``None``, or if the error concerns the whole store.
        """
        if query.unreadable is None or concerns_all(error):
            raise error
        if key is not None:
            error = record_error(error, f"{self.type.name} {key!r}", key=key)
        elif not isinstance(error, RecordError):
            error = record_error(error, f"a record of type {self.type.name}")
        query.unreadable(error)

    def _readable_key(self, data: Any) -> str | None:
        """Return ``key_in(data)``, or ``None`` if the key cannot be read either."""
        try:
            return self.key_in(data)
        except Exception as error:
            if concerns_all(error):
                raise
            return None
