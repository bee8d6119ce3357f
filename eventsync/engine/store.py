"""The store: a named set of records with CRUD, whose changes are published."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, overload

from eventsync.changes.change import Change, make_bodies
from eventsync.changes.clock import Clock, Version
from eventsync.engine.accessor import Accessor
from eventsync.engine.capture import ALLOWED_DELETES, Capture
from eventsync.engine.joined_store import JoinedStore
from eventsync.engine.publisher import Backlog, Publisher
from eventsync.engine.replica import Replica
from eventsync.engine.replica_set import ReplicaSet
from eventsync.envelope import codec
from eventsync.errors import BusUnavailableError, ConfigError, RecordError
from eventsync.index import FileIndex, Index, Outgoing, Presence
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.values.chunk import chunked

__all__ = ["Store"]

R = TypeVar("R", bound=Record)
_CHUNK = 1000


class Store:
    """A set of records of one or several types.

    Each edit is written at a new version. In the same transaction its envelope is put in the
    store's outbox. Then it is published. If the broker is unreachable, the edit still succeeds and
    the envelope waits in the outbox: the next edit, ``flush`` or the store's worker publishes it.

    - ``name``: the name of the store and of its queue.
    - ``index``: where record versions are kept. A path makes a ``FileIndex``. By default the first
      accessor provides one; an SQL store keeps versions beside its data.
    - ``publisher``: ``None`` publishes nothing.
    - ``clock``: gives changes their versions.
    - ``capture_every``: how often the store's worker looks for foreign writes, in seconds;
      ``None`` for never.
    - ``capture_whole_every``: how often at least it then reads all records, in seconds. In between
      it reads only those that changed, if the store can tell. Only reading all records finds
      deletes.
    - ``rate``: how many changes a second the workers of one ``eventsync worker`` command apply at
      most, all together; ``None`` for no limit.

    A context manager: it opens and closes the store. As thread-safe as its accessors.
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
        rate: float | None = None,
    ) -> None:
        if not name or not all(c.isalnum() or c in "_-" for c in name):
            raise ConfigError(
                f"{name!r} cannot be the name of a store",
                hint="use letters, digits, '-' and '_'",
            )
        if not accessors:
            raise ConfigError(f"store {name!r} has no accessor", hint="Store(name, accessor, ...)")
        self.name = name
        self.publisher = publisher
        self.clock = clock or Clock()
        self.capture_every = capture_every
        self.capture_whole_every = capture_whole_every
        self.rate = rate
        self.publish_error: BusUnavailableError | None = None
        """Why the last attempt to publish failed; ``None`` if it succeeded."""
        self.accessors: dict[str, Accessor[Any]] = {}
        for accessor in accessors:
            if accessor.type.name in self.accessors:
                raise ConfigError(
                    f"store {name!r} has two accessors for records of type {accessor.type.name}",
                    hint="keep one of them",
                )
            self.accessors[accessor.type.name] = accessor
        if index is None:
            self.index: Index = accessors[0].default_index()
        else:
            self.index = FileIndex(Path(index)) if not isinstance(index, Index) else index
        for accessor in accessors:
            accessor.bind(self.index)
        self.replicas = ReplicaSet(
            self, name, {t: self._replica_of(a) for t, a in self.accessors.items()}
        )
        self._capture = Capture(self.index, name)

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self, *, publisher: Publisher | None = None) -> Store:
        """Create what the store needs and check that it can be used. Idempotent.

        ``publisher``: publish through this one from now on. A worker opens its store without one.
        """
        if publisher is not None:
            self.publisher = publisher
        for accessor in self.accessors.values():
            accessor.ensure()
        return self

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
        """The record types that this store holds."""
        return [accessor.record_class for accessor in self.accessors.values()]

    def accessor(self, record: Record | type[Record] | str) -> Accessor[Any]:
        """Return the accessor of a record, a record type or its name. Raises ``ConfigError``."""
        return self.replicas.of(record).accessor

    def using(self, transaction: Any) -> JoinedStore:
        """Return this store inside a transaction of yours: an SQLAlchemy session or connection.

        Edits made through it, and their envelopes, commit or roll back with your transaction.
        After the commit ``flush``, the store's worker or ``eventsync relay`` publishes them. Its
        methods raise ``ConfigError`` if the store cannot join such a transaction.
        """
        return JoinedStore(self, self.replicas, self.index, transaction, self.publisher)

    # -- CRUD ------------------------------------------------------------------------------------

    def add(self, records: Record | Iterable[Record]) -> None:
        """Add records and publish them. Raises ``AlreadyExistsError``, ``RejectedError``."""
        self._edit("add", _listed(records))

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """Write the changed fields of records and publish them.

        If a record was read from this store, the changed fields are those set since. Otherwise they
        are all fields that differ from what the store holds. ``upsert``: add records that do not
        exist. Raises ``RejectedError``, and ``NotFoundError`` without ``upsert``.
        """
        self._edit("upsert" if upsert else "update", _listed(records))

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """Return the record with the key of ``record``, or with a type and a key value.

        A composite key is a tuple in the order of the key fields. Return ``None`` if the record
        does not exist.
        """
        accessor = self.accessor(record)
        text = record.key if isinstance(record, Record) else accessor.type.key_of(key)
        return self._ours(accessor.get(text))

    def find(
        self,
        record_type: type[R] | None = None,
        where: Mapping[str, Any] | None = None,
        *,
        sort: Sequence[str] = (),
        limit: int | None = None,
        skip: int = 0,
    ) -> Iterator[R]:
        """Yield the records of one type or of all that match the filter ``where``.

        ``sort``: field names; a ``-`` before a name sorts descending. ``limit`` and ``skip`` count
        the records of each type. Raises ``FilterError``.
        """
        for type in self._types(record_type):
            accessor = self.accessors[type]
            query = Query.parse(accessor.type, where, sort=sort, limit=limit, skip=skip)
            for record in accessor.find(query):
                yield self._ours(record)

    def count(
        self, record_type: type[Record] | None = None, where: Mapping[str, Any] | None = None
    ) -> int:
        """Return how many records match. Raises ``FilterError``."""
        accessors = [self.accessors[type] for type in self._types(record_type)]
        return sum(accessor.count(Query.parse(accessor.type, where)) for accessor in accessors)

    def remove(
        self,
        records: Record | Iterable[Record] | None = None,
        *,
        record_type: type[Record] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove records, or all of a type that match ``where``, and publish the deletes.

        Return how many. Raises ``NotFoundError`` for a record that does not exist, and
        ``FilterError``.
        """
        if records is None:
            if record_type is None:
                raise ConfigError(
                    "remove was called without records",
                    hint="pass records, or record_type= and where=",
                )
            records = list(self.find(record_type, where))
        listed = _listed(records)
        self._edit("remove", listed)
        return len(listed)

    def record_to_data(self, record: Record) -> Any:
        """Return what this store keeps of ``record``."""
        return self.accessor(record).record_to_data(record)

    def data_to_record(self, record_type: type[R], data: Any) -> R:
        """Return the record in this store's ``data``."""
        record: R = self.accessor(record_type).data_to_record(data)
        return record

    def __contains__(self, record: Record) -> bool:
        return self.get(record) is not None

    def __getitem__(self, record: Any) -> Any:
        """Support ``store[record]`` and ``store[Customer, 1]``, as ``get``. Raises ``KeyError``."""
        found = self.get(*record) if isinstance(record, tuple) else self.get(record)
        if found is None:
            raise KeyError(record)
        return found

    def __delitem__(self, record: Any) -> None:
        """Support ``del store[record]`` and ``del store[Customer, 1]``, as ``remove``."""
        self.remove(self[record])

    def __iadd__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store += records``, as ``add``."""
        self.add(records)
        return self

    def __ior__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store |= records``, as ``update`` with ``upsert``."""
        self.update(records, upsert=True)
        return self

    def __isub__(self, records: Record | Iterable[Record]) -> Store:
        """Support ``store -= records``, as ``remove``."""
        self.remove(records)
        return self

    # -- publishing --------------------------------------------------------------------------------

    def flush(self, publisher: Publisher | None = None, *, limit: int | None = None) -> int:
        """Publish the envelopes in the outbox, and return how many.

        ``publisher``: use this one instead of the store's own. ``limit``: how many at most;
        ``None`` for all. A crash can publish an envelope twice, which has no further effect.
        Raises ``BusUnavailableError`` if the broker does not take them; they stay in the outbox.
        """
        publisher = publisher or self.publisher
        if publisher is None:
            return 0
        published = 0
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
        """Publish envelopes of the outbox and leave them there.

        Publishing an envelope twice has no further effect. Raises ``BusUnavailableError`` and
        ``UnroutableError``.
        """
        by_type: dict[str, list[bytes]] = {}
        for outgoing in waiting:
            by_type.setdefault(outgoing.type, []).append(outgoing.body)
        for type, bodies in by_type.items():
            publisher.publish(type, bodies)

    def backlog(self) -> Backlog:
        """Return how many envelopes wait in the outbox, and the age of the oldest."""
        oldest = self.index.outgoing(1)
        age = None
        if oldest:
            made = codec.decode(oldest[0].body, max_bytes=len(oldest[0].body)).version.millis
            age = max(0.0, self.clock.now() - made / 1000)
        return Backlog(self.index.waiting() if oldest else 0, age)

    def republish(self, publisher: Publisher, *, since: float) -> int:
        """Publish again every record that changed after a time, and return how many.

        For a broker that lost envelopes which it had confirmed. ``since``: seconds since the epoch.
        Reads the whole version index. Publishing a record twice has no further effect. Raises
        ``BusUnavailableError``.
        """
        published = 0
        for name, replica in self.replicas.items():
            keys = (
                key
                for key, entry in self.index.entries(name)
                if Version(entry.version).millis >= since * 1000
            )
            for chunk in chunked(keys, _CHUNK):
                changes = replica.states(chunk)
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
    ) -> Iterator[list[Change]]:
        """Find foreign writes, give each a version and publish it. Yield the changes in chunks.

        - ``whole``: read all records. Otherwise read only those that changed since the last
          capture, if the store can tell and all were read within ``capture_whole_every`` seconds.
          That finds no deletes.
        - ``deletes``: which part of the known records of a type may be missing. If more than that
          and more than ten are missing, ``SuspiciousReadError`` is raised and nothing is deleted,
          because a read that failed looks the same. 1 allows any number.
        - ``publisher``: use this one instead of the store's own.
        - ``unreadable``: receives the error of each record that cannot be read. Such a record is
          passed over and does not count as missing. Without it the error is raised.

        Idempotent.
        """
        publisher = publisher or self.publisher
        whole_every = 0.0 if whole else self.capture_whole_every
        for type in self._types(record_type):
            for changes in self._capture.search(
                self.replicas[type],
                publisher.encode if publisher else None,
                whole_every=whole_every,
                deletes=deletes,
                unreadable=unreadable,
            ):
                if changes:
                    self._try_flush(publisher)
                yield changes

    def capture_before(self, changes: Iterable[Change], publisher: Publisher) -> None:
        """Capture foreign writes to the records of ``changes`` before these are applied.

        Without this, a foreign write made since the last capture would be overwritten and lost.
        Records that cannot be read are left out: applying their changes reports that. Idempotent.
        """
        if self._capture.before(changes, self.replicas, publisher.encode):
            self._try_flush(publisher)

    def collect(self, before: float) -> int:
        """Drop the tombstones of deletes made before a time, and return how many.

        ``before``: seconds since the epoch. Every change that is still on its way to this store
        must be later than that. Idempotent.
        """
        forgotten = 0
        for name in self.accessors:
            old = (
                (key, entry)
                for key, entry in self.index.entries(name, presence=Presence.DELETED)
                if Version(entry.version).millis < before * 1000
            )
            for chunk in chunked(old, _CHUNK):
                known = dict(chunk)
                with self.index.transaction() as transaction:
                    # Read again under the lock: a record may have been added again meanwhile.
                    now = transaction.read(name, list(known))
                    unchanged = [
                        key for key, entry in now.items() if entry.stamp == known[key].stamp
                    ]
                    transaction.forget(name, unchanged)
                forgotten += len(unchanged)
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
            # The envelopes are safe in the outbox. ``eventsync status`` shows how many, and why.
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
