"""The store: a named set of records with CRUD, which delegates to accessors and publishes changes.

It knows nothing of brokers (a ``Publisher`` takes its envelopes) or of other stores.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, overload

from eventsync.changes.change import Change, make_bodies
from eventsync.changes.clock import Clock, Version
from eventsync.engine.accessor import Accessor, Edit
from eventsync.engine.capture import Capture
from eventsync.engine.publisher import Backlog, Publisher
from eventsync.envelope import codec
from eventsync.errors import BusUnavailableError, ConfigError, RecordError
from eventsync.index import FileIndex, Index, Outgoing, Presence
from eventsync.records.query import Query
from eventsync.records.record import Record

if TYPE_CHECKING:
    from eventsync.engine.joined_store import JoinedStore

__all__ = ["Store"]

R = TypeVar("R", bound=Record)
_CHUNK = 1000


class Store:
    """A set of records of one or several types.

    An edit made through a store is written at a fresh version, in one step with its envelope in the
    store's outbox, and then published. When the broker is away the edit stands and the envelope
    waits in the outbox: the next edit, ``flush`` or the store's worker sends it.

    ``name``: also the name of the store's queue. ``index``: where record versions are kept; a path
    makes a ``FileIndex``; by default what the accessors bring (an SQL store keeps them beside its
    data). ``publisher``: without one, edits are not published. ``capture_every``: how often, in
    seconds, the store's worker looks for edits made behind eventsync's back; ``None``: never.
    ``capture_whole_every``: how often at least it then reads everything, where the store can tell
    what changed since the last time; deletes are only seen so.
    ``rate``: how many changes a second its workers apply at most, all of them together as far as
    one ``eventsync worker`` command runs them; ``None``: as many as they can. Usable as a context
    manager. Thread-safe as far as its accessors are.
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
            raise ConfigError(f"{name!r} cannot name a store: use letters, digits, '-' and '_'")
        if not accessors:
            raise ConfigError(f"store {name!r} has no accessor")
        self.name = name
        self.publisher = publisher
        self.clock = clock or Clock()
        self.capture_every = capture_every
        self.capture_whole_every = capture_whole_every
        self._captures = Capture(self)
        self.rate = rate
        self.publish_error: BusUnavailableError | None = None
        """Why the last attempt to publish failed; ``None`` when it did not."""
        self.accessors: dict[str, Accessor[Any]] = {}
        for accessor in accessors:
            if accessor.type.name in self.accessors:
                raise ConfigError(f"store {name!r} has two accessors of {accessor.type.name}")
            self.accessors[accessor.type.name] = accessor
        if index is None:
            self.index: Index = accessors[0].default_index()
        else:
            self.index = FileIndex(Path(index)) if not isinstance(index, Index) else index
        for accessor in accessors:
            accessor.bind(self.index)

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self, *, publisher: Publisher | None = None) -> Store:
        """Create what the store needs and check that it can be used. Idempotent.

        ``publisher``: publish through this one from now on. A worker opens its store without.
        """
        if publisher is not None:
            self.publisher = publisher
        for accessor in self.accessors.values():
            accessor.ensure()
        return self

    def close(self) -> None:
        """Let go of connections and files. Idempotent."""
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
        """The accessor of a record, a record type or its name. Raises ``ConfigError``."""
        name = record if isinstance(record, str) else record.__record__.name
        try:
            return self.accessors[name]
        except KeyError:
            raise ConfigError(
                f"store {self.name!r} holds no {name!r}",
                hint=f"it holds {', '.join(self.accessors)}",
            ) from None

    def using(self, transaction: Any) -> JoinedStore:
        """This store inside a transaction of the caller's: an SQLAlchemy session or connection.

        Edits made through it, and the envelopes they make, commit or roll back with all else the
        transaction does. They are published after that, by ``flush``, the store's worker
        or ``eventsync relay``. Raises ``ConfigError`` where a store has no such transactions.
        """
        from eventsync.engine.joined_store import JoinedStore

        return JoinedStore(self, transaction)

    # -- CRUD ------------------------------------------------------------------------------------

    def add(self, records: Record | Iterable[Record]) -> None:
        """Add records and publish them. Raises ``AlreadyExistsError``, ``RejectedError``."""
        self._edit("add", _listed(records))

    def update(self, records: Record | Iterable[Record], *, upsert: bool = False) -> None:
        """Write the changed fields of records and publish them.

        Of a record that was read from a store the fields set since count, of any other record all
        its fields that differ from what is stored. ``upsert``: add those that are not there;
        otherwise ``NotFoundError``. Raises ``RejectedError``.
        """
        self._edit("upsert" if upsert else "update", _listed(records))

    @overload
    def get(self, record: R) -> R | None: ...
    @overload
    def get(self, record: type[R], key: Any) -> R | None: ...
    def get(self, record: Any, key: Any = None) -> Any:
        """The record of the same key as ``record``, or that of a type and a key value.

        A composite key is a tuple in the order of the key fields. ``None`` when there is none.
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
        """The records that match the filter ``where``, of one type or of all (see ``query``).

        ``sort``: field names, ``-`` before one for descending. ``limit`` and ``skip`` count records
        of each type. Raises ``FilterError``.
        """
        for accessor in self._of(record_type):
            query = Query.parse(accessor.type, where, sort=sort, limit=limit, skip=skip)
            for record in accessor.find(query):
                yield self._ours(record)

    def count(
        self, record_type: type[Record] | None = None, where: Mapping[str, Any] | None = None
    ) -> int:
        """How many records match. Raises ``FilterError``."""
        return sum(a.count(Query.parse(a.type, where)) for a in self._of(record_type))

    def remove(
        self,
        records: Record | Iterable[Record] | None = None,
        *,
        record_type: type[Record] | None = None,
        where: Mapping[str, Any] | None = None,
    ) -> int:
        """Remove records, or all of a type that match ``where``, and publish that. How many.

        Raises ``NotFoundError`` for a record that is not there, ``FilterError``.
        """
        if records is None:
            if record_type is None:
                raise ConfigError("remove needs records, or a record_type with a filter")
            records = list(self.find(record_type, where))
        listed = _listed(records)
        self._edit("remove", listed)
        return len(listed)

    def record_to_data(self, record: Record) -> Any:
        """What this store keeps for ``record``."""
        return self.accessor(record).record_to_data(record)

    def data_to_record(self, record_type: type[R], data: Any) -> R:
        """The record that this store's ``data`` hold."""
        record: R = self.accessor(record_type).data_to_record(data)
        return record

    def __contains__(self, record: Record) -> bool:
        return self.get(record) is not None

    def __getitem__(self, record: Any) -> Any:
        """``store[record]``, ``store[Customer, 1]``: as ``get``; ``KeyError`` when not there."""
        found = self.get(*record) if isinstance(record, tuple) else self.get(record)
        if found is None:
            raise KeyError(record)
        return found

    def __delitem__(self, record: Any) -> None:
        """``del store[record]``, ``del store[Customer, 1]``: as ``remove``."""
        self.remove(self[record])

    def __iadd__(self, records: Record | Iterable[Record]) -> Store:
        """``store += records``: as ``add``."""
        self.add(records)
        return self

    def __ior__(self, records: Record | Iterable[Record]) -> Store:
        """``store |= records``: as ``update`` with ``upsert``."""
        self.update(records, upsert=True)
        return self

    def __isub__(self, records: Record | Iterable[Record]) -> Store:
        """``store -= records``: as ``remove``."""
        self.remove(records)
        return self

    # -- publishing --------------------------------------------------------------------------------

    def flush(self, publisher: Publisher | None = None, *, limit: int | None = None) -> int:
        """Publish what waits in the outbox; how many envelopes. Idempotent in its effect.

        ``publisher``: instead of the store's own. ``limit``: how many at most; ``None`` for all.
        Raises ``BusUnavailableError`` when the broker does not take them; they go on waiting.
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
        """Publish these envelopes of the outbox, and leave them there. Idempotent in its effect.

        Raises ``BusUnavailableError``, ``UnroutableError``.
        """
        by_type: dict[str, list[bytes]] = {}
        for outgoing in waiting:
            by_type.setdefault(outgoing.type, []).append(outgoing.body)
        for type, bodies in by_type.items():
            publisher.publish(type, bodies)

    def backlog(self) -> Backlog:
        """How many envelopes wait in the outbox, and how long the oldest has, in seconds."""
        oldest = self.index.outgoing(1)
        age = None
        if oldest:
            made = codec.decode(oldest[0].body, max_bytes=len(oldest[0].body)).version.millis
            age = max(0.0, self.clock.now() - made / 1000)
        return Backlog(self.index.waiting() if oldest else 0, age)

    def republish(self, publisher: Publisher, *, since: float) -> int:
        """Publish once more what this store holds of every record changed after a time; how many.

        For a broker that has lost the last it had confirmed. ``since``: in seconds since the epoch.
        Reads the whole version index. Idempotent in its effect. Raises ``BusUnavailableError``.
        """
        published = 0
        for name, accessor in self.accessors.items():
            after = ""
            while entries := self.index.scan(name, after=after, limit=_CHUNK):
                after = entries[-1][0]
                keys = [
                    key for key, entry in entries if Version(entry.version).millis >= since * 1000
                ]
                changes = accessor.states(keys, self.name) if keys else []
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
        deletes: float = 0.5,
        publisher: Publisher | None = None,
        unreadable: Callable[[RecordError], None] | None = None,
    ) -> Iterator[list[Change]]:
        """Find edits made behind eventsync's back, give them versions and publish them.

        Reads all records; yields the changes found, chunk by chunk. ``whole``: if false, and this
        store read all records within ``capture_whole_every`` seconds, only those are read that
        changed since, where the store can tell; deletes are then not found. ``deletes``: the
        greatest part of the known records of a type that may have vanished. Beyond it, if more than
        ten are concerned, ``SuspiciousReadError`` is raised and nothing is deleted, since a read
        that fails or comes back empty looks just like that; 1 allows any. ``publisher``: instead of
        the store's own. ``unreadable`` is told of a record whose values do not fit its fields,
        which is then passed over and not taken for deleted; without it the error is raised.
        Idempotent.
        """
        publisher = publisher or self.publisher
        for accessor in self._of(record_type):
            yield from self._captures.of(
                accessor, publisher, whole=whole, deletes=deletes, unreadable=unreadable
            )

    def capture_before(self, changes: Iterable[Change], publisher: Publisher) -> None:
        """Capture edits of the records that ``changes`` are about, before they are applied.

        Otherwise an edit made behind eventsync's back since the last capture would be overwritten
        without a trace. What cannot be read is left to the gate. Idempotent.
        """
        self._captures.before(changes, publisher)

    def collect(self, before: float) -> int:
        """Forget the tombstones of deletes made before a time in seconds since the epoch; how many.

        Only for a time older than anything that may still be on its way to this store. Idempotent.
        """
        forgotten = 0
        for name in self.accessors:
            after = ""
            while entries := self.index.scan(
                name, after=after, presence=Presence.DELETED, limit=_CHUNK
            ):
                after = entries[-1][0]
                old = [
                    key for key, entry in entries if Version(entry.version).millis < before * 1000
                ]
                with self.index.transaction() as transaction:
                    # Read again under the lock: a record may have come back meanwhile.
                    now = transaction.read(name, old)
                    known = dict(entries)
                    old = [key for key in old if key in now and now[key].stamp == known[key].stamp]
                    transaction.forget(name, old)
                forgotten += len(old)
        return forgotten

    def _edit(self, op: str, records: Sequence[Record]) -> None:
        by_type: dict[str, list[Edit]] = {}
        for record in records:
            by_type.setdefault(record.__record__.name, []).append(self.edit_of(op, record))
        encode = self.publisher.encode if self.publisher else None
        try:
            for name, edits in by_type.items():
                self.accessor(name).edit(edits, self.clock, self.name, encode)
        finally:
            self._try_flush()
        self.edited(op, records)

    def edit_of(self, op: str, record: Record) -> Edit:
        """The edit that an operation on a record of the user's means."""
        values = None if op == "remove" else record.raw()
        # What was read from here and not set since may be old by now; it is not an edit.
        touched = record.dirty if self in record.stores and op != "add" else None
        return Edit(op, record.key, values, touched)

    def edited(self, op: str, records: Iterable[Record]) -> None:
        """Have records know that an operation on them was done."""
        for record in records:
            if op == "remove":
                record.stores.discard(self)
            else:
                record.stores.add(self)
                record.clean()

    def _try_flush(self, publisher: Publisher | None = None) -> None:
        try:
            self.flush(publisher)
        except BusUnavailableError as error:
            # The envelopes are safe in the outbox; ``status`` shows how many wait, and why.
            self.publish_error = error

    def _of(self, record_type: type[Record] | None) -> list[Accessor[Any]]:
        if record_type is None:
            return list(self.accessors.values())
        return [self.accessor(record_type)]

    def _ours(self, record: Any) -> Any:
        if record is not None:
            record.stores.add(self)
        return record


def _listed(records: Record | Iterable[Record]) -> list[Record]:
    return [records] if isinstance(records, Record) else list(records)
