"""The store: a named set of records that can be read and edited. Edits are published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar, overload

from eventsync.changes.change import Change, make_bodies
from eventsync.changes.clock import Clock, Version
from eventsync.engine.accessor import Accessor
from eventsync.engine.capture import ALLOWED_DELETES, SLICE, Capture
from eventsync.engine.change_source import ChangeSource, choose
from eventsync.engine.follower import (
    Copy,
    Follower,
    FollowerObserver,
    mark_name,
    saved_copies,
    since_with_old,
)
from eventsync.engine.joined_store import JoinedStore
from eventsync.engine.publisher import Backlog, Publisher
from eventsync.engine.replica import Replica
from eventsync.engine.replica_set import ReplicaSet
from eventsync.engine.unreadable import Notice, UnreadableKeys, UnreadableNotes, states_of
from eventsync.engine.webhook import Webhook
from eventsync.envelope import codec
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    RecordError,
    SuspiciousReadError,
    in_store,
)
from eventsync.index import Entry, FileIndex, Index, IndexTransaction, Outgoing, Presence
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.values.chunk import chunked

__all__ = ["Store"]

R = TypeVar("R", bound=Record)
_CHUNK = 1000


class Store:
    """A named set of records of one or several types.

    Each edit gets a new version. The edit is written, and its envelope is put into the store's
    outbox in the same transaction. Then the envelope is published. If the broker is unreachable,
    the edit succeeds nevertheless, and the envelope waits in the outbox until the next edit, a call
    of ``flush`` or the store's worker publishes it.

    - ``name``: the name of the store and of its queue.
    - ``accessors``: one accessor for each record type.
    - ``index``: the version index, or a path for a ``FileIndex``. By default the index that the
      first accessor provides; an SQL store keeps the index in its own database.
    - ``publisher``: publishes the envelopes; ``None`` to publish nothing.
    - ``clock``: issues the versions of changes.
    - ``capture_every``: seconds between two captures of the store's worker; ``None`` for never.
      While a change source gives hints, and captures find nothing beside them, the pause grows up
      to ``capture_whole_every`` seconds.
    - ``capture_whole_every``: after this many seconds, a capture of the worker reads all records.
      Other captures read only the records that changed, if the store knows them. Only a capture
      that reads all records finds deletes.
    - ``capture``: how the foreign writes of the store are captured as they happen: the kind of a
      change source, for example ``log`` or ``triggers``, or ``auto`` for the best that the store
      can do. ``eventsync capture`` does it. By default, only ``capture_every`` finds them.
    - ``copy_rate``: how many records a second ``eventsync capture`` reads at most when it has to
      read all records; ``None`` for no limit.
    - ``rate``: how many changes a second all workers of one ``eventsync worker`` command together
      apply at most; ``None`` for no limit.
    - ``refill``: whether the store's worker fills the store from the other stores, at its first
      start and after it was emptied, for example a cache. Set this only if the other stores
      together hold all records: what is missing here is then not taken for deleted.

    Use the store as a context manager to open and close it. As thread-safe as its accessors.
    Raises ``ConfigError`` if the name is invalid, or if there is no accessor, two accessors of one
    type, or no index.
    """

    def __init__(
        self,
        name: str,
        *accessors: Accessor[Any],
        index: Index | str | os.PathLike[str] | None = None,
        publisher: Publisher | None = None,
        clock: Clock | None = None,
        capture_every: float | None = None,
        capture_whole_every: float = 600.0,
        capture: str | None = None,
        copy_rate: float | None = None,
        rate: float | None = None,
        refill: bool = False,
    ) -> None:
        if not name or not all(c.isalnum() or c in "_-" for c in name):
            raise ConfigError(
                f"{name!r} cannot be the name of a store",
                hint="use letters, digits, '-' and '_'",
            )
        if not accessors:
            raise ConfigError(
                f"store {name!r} has no accessor", hint="pass accessors: Store(name, accessor, ...)"
            )
        self.name = name
        self.publisher = publisher
        self.clock = clock or Clock()
        self.capture_every = capture_every
        self.capture_whole_every = capture_whole_every
        self.captured_by = capture
        self.copy_rate = copy_rate
        self.rate = rate
        self.refill = refill
        self.publish_error: BusUnavailableError | None = None
        """The error of the last attempt to publish; ``None`` if the attempt succeeded."""
        self.accessors: dict[str, Accessor[Any]] = {}
        for accessor in accessors:
            if accessor.type.name in self.accessors:
                raise ConfigError(
                    f"store {name!r} has two accessors for records of type {accessor.type.name}",
                    hint="pass only one accessor for each record type",
                )
            self.accessors[accessor.type.name] = accessor
        if index is None:
            self.index: Index = accessors[0].default_index()
        else:
            self.index = FileIndex(Path(index)) if not isinstance(index, Index) else index
        self.index.marks_own = capture is not None
        for accessor in accessors:
            accessor.bind(self.index)
        self.replicas = ReplicaSet(
            self, name, {t: self._replica_of(a) for t, a in self.accessors.items()}
        )
        self._capture = Capture(self.index, name)
        self.unreadable_records = UnreadableNotes(self.index)
        """The notes of the records that could not be read when all records were last read."""

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self, *, publisher: Publisher | None = None) -> Store:
        """Create what the accessors need, for example tables. Return this store. Idempotent.

        ``publisher``: the publisher of the store from now on; ``None`` to keep the present one.
        """
        if publisher is not None:
            self.publisher = publisher
        with self.errors():
            for accessor in self.accessors.values():
                accessor.ensure()
        return self

    def ping(self) -> None:
        """Check that the store and its version index answer.

        Raises ``StoreUnavailableError`` or an ``OSError`` if they do not, and ``ConfigError`` if
        the store refuses what it is asked, for example because of a wrong password.
        """
        with self.errors():
            for name, accessor in self.accessors.items():
                accessor.ping()
                self.index.counts(name)

    def errors(self) -> AbstractContextManager[None]:
        """Return a context manager: errors that its block raises name this store."""
        return in_store(self.name)

    def close(self) -> None:
        """Close connections and files. Idempotent."""
        for accessor in self.accessors.values():
            accessor.close()
        self.index.close()

    def __enter__(self) -> Store:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"Store({self.name!r}, {', '.join(self.accessors)})"

    @property
    def record_types(self) -> list[type[Record]]:
        """The record classes that this store holds."""
        return [accessor.record_class for accessor in self.accessors.values()]

    def accessor(self, record: Record | type[Record] | str) -> Accessor[Any]:
        """Return the accessor for a record type, given as a record, a record class or a type name.

        Raises ``ConfigError`` if the store does not hold the type.
        """
        return self.replicas.of(record).accessor

    def using(self, transaction: Any) -> JoinedStore:
        """Return a store object whose edits are part of ``transaction``.

        ``transaction``: an SQLAlchemy session or connection. Edits made through the result, and
        their envelopes, commit or roll back with this transaction. After the commit, ``flush``, the
        store's worker or ``eventsync relay`` publishes the envelopes. The methods of the result
        raise ``ConfigError`` if the store is not an SQL store.
        """
        return JoinedStore(self, self.replicas, self.index, transaction, self.publisher)

    # -- CRUD ------------------------------------------------------------------------------------

    def add(self, records: Record | Iterable[Record]) -> None:
        """Add records and publish them.

        Raises ``AlreadyExistsError`` if the store holds a record with the same key, and
        ``RejectedError`` if the store refuses a record.
        """
        self._edit("add", _listed(records))

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """Write the changed fields of records and publish them.

        If a record was read from this store, its changed fields are those that were set after the
        read. For any other record they are the fields that differ from the store's values.
        ``upsert``: add records that do not exist; otherwise a missing record raises
        ``NotFoundError``. Raises ``RejectedError`` if the store refuses a record.
        """
        self._edit("upsert" if upsert else "update", _listed(records))

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """Return a record of this store, or ``None`` if it does not exist.

        Call ``get(record)`` to read the record with the same key as ``record``, or
        ``get(record_class, key)``. ``key``: the value of the key field; for a composite key, a
        tuple of values in the order of the key fields. Raises ``ConfigError`` if the store does not
        hold the record type.
        """
        accessor = self.accessor(record)
        text = record.key if isinstance(record, Record) else accessor.type.key_of(key)
        with self.errors():
            return self._ours(accessor.get(text))

    def find(
        self,
        record_type: type[R] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        sort: Sequence[str] = (),
        limit: int | None = None,
        skip: int = 0,
        unreadable: Callable[[RecordError], None] | None = None,
    ) -> Iterator[R]:
        """Yield the records that match the filter ``where``.

        ``record_type``: the type of the records; ``None`` for all types of the store. ``sort``:
        field names; a ``-`` before a name sorts in descending order. ``skip`` and ``limit``: how
        many records of each type to leave out at the start, and to return at most. ``unreadable``:
        called with the error of each record that cannot be read; such a record is left out. If
        ``None``, the error is raised. Raises ``FilterError`` if ``where`` or ``sort`` is invalid.
        """
        for type in self._types(record_type):
            accessor = self.accessors[type]
            query = Query.parse(
                accessor.type, where, sort=sort, limit=limit, skip=skip, unreadable=unreadable
            )
            with self.errors():
                for record in accessor.find(query):
                    yield self._ours(record)

    def count(
        self,
        record_type: type[Record] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        unreadable: Callable[[RecordError], None] | None = None,
    ) -> int:
        """Return how many records match the filter ``where``.

        ``record_type``: the type of the records; ``None`` for all types of the store.
        ``unreadable``: as in ``find``; but a store that counts without reading counts unreadable
        records, too. Raises ``FilterError`` if ``where`` is not a valid filter.
        """
        accessors = [self.accessors[type] for type in self._types(record_type)]
        queries = [Query.parse(each.type, where, unreadable=unreadable) for each in accessors]
        with self.errors():
            return sum(each.count(query) for each, query in zip(accessors, queries, strict=True))

    def remove(
        self,
        records: Record | Iterable[Record] | None = None,
        *,
        record_type: type[Record] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove records and publish the deletes. Return the number of removed records.

        Pass either ``records``, or ``record_type`` to remove all records of that type that match
        the filter ``where``. Raises ``NotFoundError`` if a record does not exist, ``FilterError``
        if ``where`` is not a valid filter, and ``ConfigError`` if no records and no type are given.
        """
        if records is None:
            if record_type is None:
                raise ConfigError(
                    "remove was called without records",
                    hint="pass records, or the arguments record_type and where",
                )
            records = list(self.find(record_type, where))
        listed = _listed(records)
        self._edit("remove", listed)
        return len(listed)

    def record_to_data(self, record: Record) -> Any:
        """Return ``record`` in the form in which this store keeps it."""
        return self.accessor(record).record_to_data(record)

    def data_to_record(self, record_type: type[R], data: Any) -> R:
        """Return the record that ``data`` describes, in the form in which this store keeps it."""
        record: R = self.accessor(record_type).data_to_record(data)
        return record

    def __contains__(self, record: Record) -> bool:
        return self.get(record) is not None

    def __getitem__(self, record: Any) -> Any:
        """Support ``store[record]`` and ``store[Customer, 1]``, with the arguments of ``get``.

        Raises ``KeyError`` if the record does not exist.
        """
        found = self.get(*record) if isinstance(record, tuple) else self.get(record)
        if found is None:
            raise KeyError(record)
        return found

    def __delitem__(self, record: Any) -> None:
        """Support ``del store[record]`` and ``del store[Customer, 1]``: remove the record.

        Raises ``KeyError`` if the record does not exist.
        """
        self.remove(self[record])

    def __iadd__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store += records``: call ``add`` and return this store."""
        self.add(records)
        return self

    def __ior__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store |= records``: call ``update`` with ``upsert``, and return this store."""
        self.update(records, upsert=True)
        return self

    def __isub__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store -= records``: call ``remove`` and return this store."""
        self.remove(records)
        return self

    # -- publishing --------------------------------------------------------------------------------

    def flush(self, publisher: Publisher | None = None, *, limit: int | None = None) -> int:
        """Publish the envelopes in the outbox. Return the number of published envelopes.

        ``publisher``: the publisher to use; by default the store's own. Without a publisher nothing
        is published. ``limit``: how many envelopes to publish at most; ``None`` for all. After a
        crash an envelope may be published again, which is harmless. Raises ``BusUnavailableError``
        if the broker does not accept the envelopes, which then stay in the outbox.
        """
        publisher = publisher or self.publisher
        if publisher is None:
            return 0
        published = 0
        with self.errors():
            while limit is None or published < limit:
                left = _CHUNK if limit is None else min(_CHUNK, limit - published)
                if not (waiting := self.index.outgoing(left)):
                    break
                self.send(waiting, publisher)
                self.index.sent([outgoing.number for outgoing in waiting])
                published += len(waiting)
        self.publish_error = None
        return published

    def send(self, waiting: Sequence[Outgoing], publisher: Publisher) -> None:
        """Publish the envelopes ``waiting``, but do not remove them from the outbox.

        Publishing an envelope twice is harmless. Raises ``BusUnavailableError`` if the broker does
        not accept the envelopes, and ``UnroutableError`` if no queue receives them.
        """
        by_type: dict[str, list[bytes]] = {}
        for outgoing in waiting:
            by_type.setdefault(outgoing.type, []).append(outgoing.body)
        for type, bodies in by_type.items():
            publisher.publish(type, bodies)

    def backlog(self) -> Backlog:
        """Return the number of envelopes in the outbox, and the age of the oldest one."""
        with self.errors():
            oldest = self.index.outgoing(1)
            age = None
            if oldest:
                made = codec.decode(oldest[0].body, max_bytes=len(oldest[0].body)).version.millis
                age = max(0.0, self.clock.now() - made / 1000)
            return Backlog(self.index.waiting() if oldest else 0, age)

    def republish(
        self,
        publisher: Publisher,
        *,
        since: float,
        unreadable: Callable[[RecordError], None] = lambda error: None,
    ) -> int:
        """Publish every record that changed since a time again. Return the number of records.

        Use this method if the broker lost envelopes that it had confirmed. ``since``: the time, in
        seconds since the epoch. Reads the whole version index. ``unreadable``: called with the
        error of each record that cannot be read, and is left out. Publishing a record twice is
        harmless. Raises ``BusUnavailableError`` if the broker does not accept the envelopes.
        """
        published = 0
        since = since_with_old(self.index, since)
        for name, replica in self.replicas.items():
            keys = (
                key
                for key, entry in self.index.entries(name)
                if Version(entry.version).millis >= since * 1000
            )
            for chunk in chunked(keys, _CHUNK):
                changes = list(states_of(replica, chunk, lambda key, error: unreadable(error)))
                if changes:
                    make_bodies(changes)
                    publisher.publish(name, [publisher.encode(change) for change in changes])
                    published += len(changes)
        return published

    def capture(
        self,
        record_type: type[Record] | None = None,
        *,
        whole: bool = True,
        deletes: float = ALLOWED_DELETES,
        publisher: Publisher | None = None,
        unreadable: Callable[[RecordError], None] | None = None,
        notice: Notice | None = None,
        count: int = SLICE,
    ) -> Iterator[list[Change]]:
        """Find foreign writes, give each a new version and publish it, in slices of records.

        Yields the changes of each slice, often none. Between two slices nothing is locked, so the
        caller may write to the store, pause, or give up.

        - ``record_type``: the type of the records to read; ``None`` for all types of the store.
        - ``whole``: whether to read all records. If false, read only the records that changed since
          the last capture, which finds no deletes. All records are read nevertheless if the store
          does not know which records changed, or if the last read of all records was more than
          ``capture_whole_every`` seconds ago.
        - ``deletes``: the share of the known records of a type that may be missing, from 0 to 1. If
          more records are missing, and more than ten, no record of that type is deleted, because
          the read may have failed. ``SuspiciousReadError`` is raised after the other types were
          captured.
        - ``publisher``: the publisher to use; by default the store's own.
        - ``unreadable``: called with the error of each record that cannot be read. Such a record is
          skipped, noted in ``unreadable_records``, and does not count as missing. If ``None``, the
          error is raised.
        - ``notice``: called once for each record that turns unreadable; again when its error
          changes, and when it is readable again or gone (see ``Notice``).
        - ``count``: how many records to compare at a time.

        Idempotent.
        """
        publisher = publisher or self.publisher
        whole_every = 0.0 if whole else self.capture_whole_every
        suspicious: list[SuspiciousReadError] = []
        for type in self._types(record_type):
            found = self._capture.search(
                self.replicas[type],
                publisher.encode if publisher else None,
                whole_every=whole_every,
                deletes=deletes,
                unreadable=unreadable,
                notice=notice,
                count=count,
            )
            try:
                with self.errors():
                    for changes in found:
                        if changes:
                            self._try_flush(publisher)
                        yield changes
            except SuspiciousReadError as error:
                suspicious.append(error)
        if suspicious:
            with self.errors():
                raise SuspiciousReadError.of(suspicious)

    def change_sources(self) -> list[ChangeSource]:
        """Return the change sources that this store can use, the best first."""
        # Accessors of several classes may share a source.
        classes: dict[type[Accessor[Any]], list[Accessor[Any]]] = {}
        for accessor in self.accessors.values():
            kind = next(each for each in type(accessor).__mro__ if "sources" in vars(each))
            classes.setdefault(kind, []).append(accessor)
        found = [kind.sources(them, self.name) for kind, them in classes.items()]
        return [source for sources in found for source in sources]

    def webhook(self) -> Webhook | None:
        """Return what reads the webhooks of the store's service, ``None`` if it sends none."""
        found = (accessor.webhook() for accessor in self.accessors.values())
        return next((webhook for webhook in found if webhook is not None), None)

    def change_source(self, kind: str | None = None) -> ChangeSource:
        """Return the change source of a kind, by default that which this store is declared with.

        Raises ``ConfigError`` if it is declared with none, or cannot use it.
        """
        with self.errors():
            kind = kind or self.captured_by
            if kind is None:
                raise ConfigError(
                    f"store {self.name!r} is not declared with a way to capture foreign writes",
                    hint='declare it with Store(..., capture="auto")',
                )
            return choose(self.change_sources(), kind, self.name)

    def whole_reads(self) -> dict[str, Copy]:
        """Return how far the reads of all records are that a follower has not ended, by type."""
        with self.errors():
            return saved_copies(self.index)

    def forget_mark(self, source: ChangeSource) -> None:
        """Forget how far a change source was read, so that the next follower begins anew."""
        with self.errors():
            self.index.save_mark(mark_name(source), "")

    def follower(
        self,
        publisher: Publisher,
        observer: FollowerObserver,
        *,
        source: ChangeSource | None = None,
        notice: Notice | None = None,
    ) -> Follower:
        """Return a follower, which captures foreign writes as a change source tells them.

        ``source``: the change source; by default that of ``change_source``. ``publisher``,
        ``notice``: as in ``capture``. ``observer``: is told what the follower does.
        """
        return Follower(
            source or self.change_source(),
            self.replicas,
            self.index,
            self._capture,
            publisher=publisher,
            flush=partial(self._try_flush, publisher),
            observer=observer,
            notice=notice,
            rate=self.copy_rate,
            polled=self.capture_every is not None,
        )

    def note_unreadable(self, type: str) -> None:
        """Read all records of a type, and note those that cannot be read. Publishes nothing.

        ``type``: the name of the record type. See ``unreadable_records``.
        """
        reading = self.unreadable_records.reading(type)
        query = Query.parse(self.accessors[type].type, None, unreadable=reading)
        for _ in self.accessors[type].find(query):
            pass  # only the calls of ``reading`` matter
        reading.read_known(self.accessors[type])
        reading.save(whole=True)

    def capture_before(self, changes: Iterable[Change], publisher: Publisher) -> UnreadableKeys:
        """Capture foreign writes to the records that ``changes`` are about. Idempotent.

        Call this method before ``changes`` are applied. Otherwise they overwrite foreign writes
        that were made since the last capture. Returns the errors of those records that cannot be
        read; pass them to ``apply``.
        """
        with self.errors():
            captured, unreadable = self._capture.before(changes, self.replicas, publisher.encode)
            if captured:
                self._try_flush(publisher)
        return unreadable

    def capture_known(
        self, record_type: type[Record], keys: Sequence[str], *, deletes: float
    ) -> int:
        """Capture foreign writes to records that this store has a version of. Return their number.

        Call this method before changes from another store are copied to these records.
        ``deletes``: as in ``capture``, but suspiciously missing records are left out. Idempotent.
        """
        encode = self.publisher.encode if self.publisher else None
        replica = self.replicas.of(record_type)
        changes = self._capture.known(replica, keys, encode, deletes=deletes)
        if changes:
            self._try_flush()
        return len(changes)

    def collect(self, before: float) -> int:
        """Remove the tombstones of deletes that were made before a time. Return their number.

        ``before``: the time, in seconds since the epoch. Choose a time so long ago that no older
        change can still arrive at this store. Idempotent.
        """
        forgotten = 0
        for name in self.accessors:
            old = (
                (key, entry)
                for key, entry in self.index.entries(name, presence=Presence.DELETED)
                if Version(entry.version).millis < before * 1000
            )
            for chunk in chunked(old, _CHUNK):
                forgotten += self.index.run(partial(_forget, name, dict(chunk)))
        return forgotten

    def _edit(self, op: str, records: Sequence[Record]) -> None:
        try:
            self.replicas.edit(op, records, self.publisher.encode if self.publisher else None)
        finally:
            self._try_flush()

    def _try_flush(self, publisher: Publisher | None = None) -> None:
        try:
            self.flush(publisher)
        except BusUnavailableError as error:
            # The envelopes stay in the outbox. ``eventsync status`` shows their number and the
            # error.
            self.publish_error = error

    def _replica_of(self, accessor: Accessor[Any]) -> Replica:
        make: type[Replica] = accessor.replica_class or Replica
        return make(accessor, self.index, self.clock, self.name)

    def _types(self, record_type: type[Record] | None) -> list[str]:
        if record_type is None:
            return list(self.accessors)
        return [self.accessor(record_type).type.name]

    def _ours(self, record: Any) -> Any:
        if record is not None:
            record.stores.add(self)
        return record


def _listed(records: Record | Iterable[Record]) -> list[Record]:
    return [records] if isinstance(records, Record) else list(records)


def _forget(type: str, known: Mapping[str, Entry], transaction: IndexTransaction) -> int:
    """Forget those of the entries ``known`` that have not changed. Return their number.

    Reads the entries again under the lock, because a record may have been added again meanwhile.
    """
    now = transaction.read(type, list(known))
    unchanged = [key for key, entry in now.items() if entry.stamp == known[key].stamp]
    transaction.forget(type, unchanged)
    return len(unchanged)
