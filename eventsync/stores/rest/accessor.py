"""The accessor of records that are objects of a REST service.

It owns what becomes of them: reads, conditional writes, and the search for what a lost answer may
have left. It knows nothing of other stores.

A service has neither transactions nor a place for versions, so these are in an index beside it.
Where it gives strong entity tags, each write is refused by the service if somebody else changed the
object since it was read; the change is then judged again. Without them a write of somebody else's
between reading and writing is overwritten, in the fields that are written.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.accessor import Write
from eventsync.errors import ConfigError, RecordError, StoreUnavailableError
from eventsync.index import IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.record_type import same
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest.object import Object, ObjectAccessor
from eventsync.stores.rest.path import at
from eventsync.stores.rest.replica import RestReplica
from eventsync.stores.rest.resource import Resource
from eventsync.stores.rest.service import Answer, Service

__all__ = ["RestAccessor"]

R = TypeVar("R", bound=Record)
_FEW: Final = 10


class RestAccessor(ObjectAccessor[R]):
    """Records of one type as the objects of a REST service.

    ``resource`` says where they are. ``identity``: for a service that gives ids of its own, the map
    from record keys to these. An object that others created there gets the key ``name:id``, with
    the name of the map; the record type then needs one key field of text.

    A service that is odd is a subclass: it overrides ``objects``, ``fetch``, ``create``, ``modify``
    and ``destroy``, which send the requests, and ``present``, ``marker_in``, ``values_in`` and
    ``fill``, which look at an object and make one.

    The store needs a version index: ``Store(..., index=FileIndex(...))``.
    """

    atomic: ClassVar[bool] = False
    replica_class = RestReplica
    alters: ClassVar[bool] = True
    """Whether the service may by itself alter fields that a write leaves alone. Without entity tags
    that is not to be told from what somebody else edits between reading and writing; where this is
    false it is taken for such an edit, and captured."""

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        resource: Resource,
        *,
        view: View | None = None,
        identity: IdentityMap | None = None,
    ) -> None:
        super().__init__(record_type, service, resource, view=view, identity=identity)
        # What was read in the transaction that goes on, and what its writes were answered with.
        self._reading: IndexTransaction | None = None
        self._objects: dict[str, Object] = {}
        self._answered: dict[str, dict[str, Any]] = {}
        # What was there when it was read, of that whose writing was not conditional.
        self._seen: dict[str, Mapping[str, Any]] = {}

    # -- the six -----------------------------------------------------------------------------------

    def add(self, record: R) -> None:
        self._write(Write(record.key, record.raw(), whole=True), self.fetch(record.key))

    def update(self, record: R) -> None:
        changed = record.changes() if record.is_dirty else record.raw()
        self._write(Write(record.key, changed, whole=False), self.fetch(record.key))

    def get(self, key: str) -> R | None:
        found = self.fetch(key)
        return None if found is None else self._record(key, found)

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.read(self.listed({}), query))

    def remove(self, key: str) -> None:
        found = self.fetch(key)
        if found is not None:
            self.destroy(key, found)

    # -- many at once ------------------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        self._reading, self._objects = transaction, {}
        self._answered = {}
        if len(keys) > _FEW:
            wanted = set(keys)
            for data in self.listed({}):
                try:
                    key = self.key_in(data)
                except RecordError:
                    continue  # if it is one of these, it is read by itself below
                if key in wanted:
                    self._objects[key] = Object(data, listed=True)
        for key in keys:
            # What a list lacks may have moved from page to page meanwhile.
            if key not in self._objects and (found := self.fetch(key)) is not None:
                self._objects[key] = found
        return {
            key: self._record(key, self._objects[key]).raw() for key in keys if key in self._objects
        }

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        self._answered, self._seen = {}, {}
        for write in writes:
            self._write(write, self._found(write.key, transaction))
        for key in removals:
            found = self._found(key, transaction)
            if found is not None:
                self.destroy(key, found)

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        answered = {key: Object(data) for key, data in self._answered.items() if key in writes}
        rows: dict[str, Mapping[str, Any]] = {
            key: self._record(key, found).raw() for key, found in answered.items()
        }
        rows |= self.read_rows([key for key in writes if key not in rows], transaction)
        for key, seen in self._seen.items() if not self.alters else ():
            if key in rows:
                left = {name: held for name, held in seen.items() if name not in writes[key]}
                rows[key] = {**rows[key], **left}
        return rows

    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        since = self.resource.since
        if since is None:
            return None
        query = {}
        latest = dt.datetime.fromisoformat(mark) if mark else None
        if latest is not None:
            shown = since.show(latest - dt.timedelta(seconds=since.overlap))
            query = {name: text.replace("{since}", shown) for name, text in since.query.items()}
        keys: dict[str, None] = {}
        for data in self.objects(query):
            try:
                moment = since.parse(str(at(data, since.updated)))
                latest = moment if latest is None else max(latest, moment)
                keys[self.key_in(data)] = None
            except ValueError as error:
                raise ConfigError(
                    f"{self!r}: no time at {since.updated!r}: {error}",
                    hint="correct Since(updated=..., parse=...)",
                ) from error
            except RecordError as error:
                if unreadable is None:
                    raise
                unreadable(error)
        return list(keys), "" if latest is None else latest.isoformat()

    # -- inside ------------------------------------------------------------------------------------

    def _found(self, key: str, transaction: IndexTransaction) -> Object | None:
        """The object as this transaction has read it, or as it is now."""
        held = self._objects.pop(key, None) if self._reading is transaction else None
        if held is None or (held.listed and self.resource.etags):
            now = self.fetch(key)
            if held is not None and (
                now is None or self._record(key, now).raw() != self._record(key, held).raw()
            ):
                raise self.overtaken(key)
            return now
        return held

    def _write(self, write: Write, found: Object | None) -> None:
        if found is None:
            if not write.whole:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} vanished while it was being updated"
                )
            members = self._encoded(write.values, whole=True)
            made = self.create if self.ids is None else self.ids.create
            self._note(write.key, made(write.key, members))
            return
        held = self._record(write.key, found).raw()
        if found.etag is None:
            self._seen[write.key] = held
        changed = {
            name: now
            for name, now in write.values.items()
            if name not in held or not same(held[name], now)
        }
        members = self._encoded(changed, whole=False)
        if any(name in self._places for name in members):
            self._note(write.key, self.modify(write.key, found, members))

    def _note(self, key: str, answer: Answer) -> None:
        if self.resource.returns and answer.content:
            self._answered[key] = self.placed(key, self.data_of(answer))
