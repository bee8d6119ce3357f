"""The accessor of records that are objects of a REST service.

A service has no transactions and no place for versions, so the versions are in an index beside it.
If it returns strong entity tags, it refuses a write to an object that another client has changed
since it was read, and eventsync reads the object and decides again. Without entity tags, a write of
another client between our read and our write is overwritten in the fields that we write.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.accessor import Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.isolation import concerns_all, record_error
from eventsync.engine.webhook import Hint, Webhook, WebhookSource
from eventsync.errors import RecordError, StoreUnavailableError, UniqueError
from eventsync.index import IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.record_type import same
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.document import Object
from eventsync.stores.rest.fence import fenced
from eventsync.stores.rest.object import ObjectAccessor
from eventsync.stores.rest.path import at
from eventsync.stores.rest.replica import RestReplica
from eventsync.stores.rest.resource import Resource, Since
from eventsync.stores.rest.service import Service
from eventsync.stores.rest.unreadable import Unreadable

__all__ = ["RestAccessor"]

R = TypeVar("R", bound=Record)
_FEW: Final = 10
"""Up to this many records are read one by one; more are looked up in the list of all objects."""


class RestAccessor(ObjectAccessor[R]):
    """Records of one type as the objects of a REST service.

    ``resource``: where the objects are. ``identity``: the map from record keys to ids, for a
    service that assigns ids of its own. An object that another client created gets the key
    ``name:id``, with the name of the map; the record type then needs a single key field of type
    text.

    For a service that differs, write a subclass. Override ``objects``, ``fetch``, ``create``,
    ``modify`` and ``destroy`` to send other requests, and ``present``, ``marker_in``, ``values_in``
    and ``fill`` to read and make other JSON.

    The store needs a version index: ``Store(..., index=FileIndex(...))``.
    """

    atomic: ClassVar[bool] = False
    replica_class = RestReplica
    alters: ClassVar[bool] = True
    """Whether the service itself may alter fields that a write does not name.

    Without entity tags, such a field looks the same as one that another client edited between our
    read and our write. If this is false, the difference counts as an edit and is captured."""

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
        # Of the current transaction, by key: the objects read, and the objects in the answers to
        # writes.
        self._reading: IndexTransaction | None = None
        self._objects: dict[str, Object] = {}
        self._answered: dict[str, dict[str, Any]] = {}
        # By key, the field values before a write that was not conditional.
        self._seen: dict[str, Mapping[str, Any]] = {}

    # -- the six -----------------------------------------------------------------------------------

    @fenced
    def add(self, record: R) -> None:
        self._write(Write(record.key, record.raw(), whole=True), self.fetch(record.key))

    @fenced
    def update(self, record: R) -> None:
        changed = record.changes() if record.is_dirty else record.raw()
        self._write(Write(record.key, changed, whole=False), self.fetch(record.key))

    @fenced
    def get(self, key: str) -> R | None:
        found = self.fetch(key)
        return None if found is None else self._record(key, found)

    @fenced
    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.records(query))

    @fenced
    def records(self, query: Query) -> Iterator[R]:
        """Yield all records, unfiltered and unsorted. ``query`` says what unreadable ones cause."""
        return self.read(map(self._whole, self.listed({})), query)

    @fenced
    def remove(self, key: str) -> None:
        found = self.fetch(key)
        if found is not None:
            self.destroy(key, found)

    def _whole(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return a listed object as it is when read alone, if the list shows only a part of it."""
        try:
            if isinstance(data, Unreadable) or not self.is_partial(data):
                return data
            found = self.fetch(self.key_in(data))
        except Exception as error:
            return Unreadable.because(error, f"{self!r}: an object in a list")
        return data if found is None else found.data

    # -- many at once ------------------------------------------------------------------------------

    def writes_whole(self, *, new: bool) -> bool:
        # The object may have been there before, under an id that the map does not know.
        return not new or self.identity is None

    @fenced
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
                    if key not in wanted or self.is_partial(data):
                        continue  # if it is wanted, the loop below reads it alone
                except Exception as error:
                    if concerns_all(error):
                        raise
                    continue  # if it is one of the wanted, the loop below reads it alone
                self._objects[key] = Object(data, listed=True)
        for key in keys:
            # A record that is not in the list may have moved to another page during the read.
            if key not in self._objects and (found := self.fetch(key)) is not None:
                self._objects[key] = found
        return {
            key: self._record(key, self._objects[key]).raw() for key in keys if key in self._objects
        }

    @fenced
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

    @fenced
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
                untouched = {name: v for name, v in seen.items() if name not in writes[key]}
                rows[key] = {**rows[key], **untouched}
        return rows

    @fenced
    def changed_since(
        self, mark: str, unreadable: Callable[[RecordError], None] | None
    ) -> tuple[list[str], str] | None:
        since = self.resource.since
        if since is None:
            return None
        query = {}
        latest = dt.datetime.fromisoformat(mark) if mark else None
        if latest is not None:
            text = since.show(latest - dt.timedelta(seconds=since.overlap))
            query = {name: value.replace("{since}", text) for name, value in since.query.items()}
        keys: dict[str, None] = {}
        for data in self.objects(query):
            try:
                keys[self.key_in(data)] = None
                moment = self._updated(data, since)
                latest = moment if latest is None else max(latest, moment)
            except Exception as error:
                if concerns_all(error):
                    raise
                if unreadable is None:
                    raise
                unreadable(record_error(error, f"an object of {self!r}"))
        return list(keys), "" if latest is None else latest.isoformat()

    # -- webhooks ----------------------------------------------------------------------------------

    @classmethod
    def sources(cls, accessors: Sequence[RestAccessor[Any]], store: str) -> Sequence[ChangeSource]:
        return [WebhookSource(accessors)]

    def webhook(self) -> Webhook | None:
        return self.service.webhook

    def concerns(self, hint: Hint) -> bool:
        """Return whether a webhook may be about a record of this accessor. See ``Hinted``."""
        return hint.what == self.type.name

    def hinted_key(self, hint: Hint) -> str | None:
        """Return the key of the record that a webhook is about. See ``Hinted``."""
        if hint.key:
            self.type.key_values(hint.key)  # raises RecordError
            return hint.key
        if hint.id and self.identity is not None:
            return self.identity.key_of(self.type.name, hint.id)
        return None

    # -- inside ------------------------------------------------------------------------------------

    def _updated(self, data: Mapping[str, Any], since: Since) -> dt.datetime:
        """Return when an object was last changed. Raises ``RecordError``."""
        try:
            return since.parse(str(at(data, since.updated)))
        except ValueError as error:
            raise RecordError(
                f"{self!r}: an object has no time at {since.updated!r}: {error}",
                hint="if all objects are like this, correct Since(updated=..., parse=...)",
            ) from error

    def _found(self, key: str, transaction: IndexTransaction) -> Object | None:
        """Return the object that this transaction has read, or the present one if it has not.

        Raises ``OvertakenError`` if the object has changed since it was listed.
        """
        known = self._objects.pop(key, None) if self._reading is transaction else None
        if known is None or (known.listed and self.resource.etags):
            now = self.fetch(key)
            if known is not None and (
                now is None or self._record(key, now).raw() != self._record(key, known).raw()
            ):
                raise self.overtaken(key)
            return now
        return known

    def _write(self, write: Write, found: Object | None) -> None:
        if found is None:
            if not write.whole:
                raise StoreUnavailableError(
                    f"{self.type.name} {write.key!r} disappeared during its update"
                )
            if (other := self.others.pop(write.key, None)) is not None:
                raise UniqueError(
                    f"{self.type.name} {write.key!r}: {self.service.url} takes this key and the "
                    f"existing {other!r} for the same",
                    hint="use keys that differ in more than case and blanks",
                )
            members = self._encoded(write.values, whole=True)
            create = self.create if self.ids is None else self.ids.create
            self._keep_answer(write.key, create(write.key, members))
            return
        before = self._record(write.key, found).raw()
        if found.etag is None:
            self._seen[write.key] = before
        changed = {
            name: value
            for name, value in write.values.items()
            if name not in before or not same(before[name], value)
        }
        members = self._encoded(changed, whole=False)
        if any(name in self._places for name in members):
            self._keep_answer(write.key, self.modify(write.key, found, members))

    def _keep_answer(self, key: str, answer: Answer) -> None:
        """Keep the object in the answer to a write for ``read_back``, if the service returns it."""
        if self.resource.returns and answer.content:
            self._answered[key] = self.placed(key, self.data_of(answer))
