"""What is asked of a REST service about the objects of one kind, and what an object says.

It owns the requests that read and write one object, and what its JSON means. It knows nothing of
versions, transactions or other objects.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.errors import ConfigError, DependencyError, RecordError, RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.json_values import Members
from eventsync.stores.rest.ids import Ids, OvertakenError
from eventsync.stores.rest.path import ABSENT, Place, at, place, put
from eventsync.stores.rest.resource import Resource, filled
from eventsync.stores.rest.service import Answer, Service

__all__ = ["Object", "ObjectAccessor"]

R = TypeVar("R", bound=Record)
_IN: Final = "@in"


class Object(NamedTuple):
    """An object as the service gave it.

    ``etag``: its strong entity tag, if it has one. ``listed``: it comes from a list, which gives no
    tags.
    """

    data: dict[str, Any]
    etag: str | None = None
    listed: bool = False


class ObjectAccessor(Accessor[R]):
    """The part of ``RestAccessor`` that a service which is odd does otherwise."""

    leaves: ClassVar[bool] = False
    """Whether a creation that has to wait for another record may leave a part of it behind, which
    the next attempt has to look for."""

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        resource: Resource,
        *,
        view: View | None = None,
        identity: IdentityMap | None = None,
    ) -> None:
        super().__init__(record_type, view=view)
        self.service = service
        self.resource = resource
        self.identity = identity
        self.ids = None if identity is None else Ids(self, identity)
        self._members = Members(self.view)
        self._check_names(resource.names())
        left_out = self.type.keys if identity is not None else ()
        self._places: dict[str, Place] = {}
        for name, stored in self.view.names.items():
            path = resource.paths.get(stored)
            if path is None and name in left_out:
                continue  # the service has an id instead
            self._places[stored] = _place(stored, path)
        for stored in self.view.constant:
            self._places[stored] = _place(stored, resource.paths.get(stored))
        self._marker = None if resource.marker is None else _place("", resource.marker)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {self.service.url!r})"

    def _check_names(self, names: set[str]) -> None:
        known = {"key", *self.type.keys} if self.identity is None else {"id"}
        if self.resource.within is not None and self.identity is not None:
            known.add("in")
        if not names or not names <= known:
            raise ConfigError(
                f"{self.type.name}: item={self.resource.item!r} has to name the object by "
                + " or ".join(f"{{{name}}}" for name in sorted(known)),
                hint="and with {id} pass identity=IdentityMap(...)",
            )

    # -- lifecycle ---------------------------------------------------------------------------------

    def ping(self) -> None:
        listed = self.resource.within or self.resource
        pages = listed.pages or self.resource.pages
        few = {pages.size_name: "1"} if pages.first() and pages.size_name else {}
        self.service.request("GET", listed.items, query={**listed.query, **few})

    def close(self) -> None:
        self.service.close()
        if self.identity is not None:
            self.identity.close()

    def record_to_data(self, record: R) -> dict[str, Any]:
        members = self._encoded(record.raw(), whole=True)
        body = self.fill(members, None)
        self.mark(body, record.key)
        return body

    def data_to_record(self, data: Any) -> R:
        return self._record(self.key_in(data), Object(data))

    # -- what a subclass may do otherwise ----------------------------------------------------------

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """All objects, or those that ``query`` narrows the list down to."""
        pages, within = self.resource.pages, self.resource.within
        if within is None:
            asked = {**self.resource.query, **query}
            for page in pages.walk(self.service, self.resource.items, asked):
                yield from page
            return
        for outer in self.outer(query):
            path = filled(self.resource.items, {"in": at(outer, within.id)})
            for page in pages.walk(self.service, path, self.resource.query):
                yield from ({**data, _IN: outer} for data in page)

    def outer(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """With ``within``, the objects that those are in; ``query`` narrows them down."""
        within = self.resource.within
        assert within is not None
        asked = {**within.query, **query}
        pages = within.pages or self.resource.pages
        for page in pages.walk(self.service, within.items, asked):
            yield from page

    def fetch(self, key: str) -> Object | None:
        """The object of a record, ``None`` if there is none."""
        path = self.path_of(key)
        if path is None:
            return None
        answer = self.service.request("GET", path, query=self.resource.single, allow=(404, 410))
        if answer.status in (404, 410):
            return None
        data = self.placed(key, self.data_of(answer))
        if not self.present(data):
            return None
        return Object(data, answer.etag if self.resource.etags else None)

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        """Create the object of a record that has none. Raises ``OvertakenError`` if it has."""
        body = self.fill(members, None)
        self.mark(body, key)
        return self.post(key, body)

    def mark(self, body: dict[str, Any], key: str) -> None:
        """Put the record's key into the body of a creation, for the object to be found by."""
        if self._marker is not None:
            self._marker.write(body, key)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        """Send the body of a creation. Raises ``OvertakenError`` if the object is there."""
        items = self.resource.creations or self.resource.items
        within = self.resource.within
        if within is not None:
            outer = at(body, f"{_IN}.{within.id}")
            body = {name: held for name, held in body.items() if name != _IN}
            if outer is None:
                raise RejectedError(f"{self.type.name} {key!r} does not say what it is in")
            items = filled(items, {"in": outer})
        missing = frozenset() if within is None else frozenset({404})
        by_put = self.resource.create == "PUT" and self.identity is None
        if by_put:
            path = self.path_of(key)
            assert path is not None
            headers = {"If-None-Match": "*"} if self.resource.etags else {}
            method, taken = "PUT", frozenset({410, 412})
        else:
            path, headers = items, {}
            method, taken = "POST", self.resource.taken
        answer = self.service.request(
            method, path, body=body, headers=headers, allow=taken | missing
        )
        if answer.status == 404 and missing:
            raise DependencyError(
                f"{self.type.name} {key!r} is in {outer!r}, which is not in {self.service.url} yet"
            )
        if by_put and answer.status in taken:
            raise self.overtaken(key)
        if answer.status in taken:
            if self.identity is None and self.fetch(key) is not None:
                raise self.overtaken(key)
            raise RejectedError(self.service.meaning(method, answer).message)
        return answer

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        """Write changed members. Raises ``OvertakenError`` if the object is not as it was found."""
        path = self.path_of(key)
        assert path is not None
        base = None
        if self.resource.update == "PUT":
            held = {name: json for name, json in found.data.items() if name != _IN}
            base = copy.deepcopy(held)
        body = self.fill(members, base)
        if _IN in body:
            raise RejectedError(
                f"{self.type.name} {key!r} cannot move from what it is in to another"
            )
        return self.sent(self.resource.update, path, body, _if_match(found))

    def destroy(self, key: str, found: Object) -> None:
        """Remove the object. Raises ``OvertakenError`` if it is not as it was found. Idempotent."""
        path = self.path_of(key)
        assert path is not None
        answer = self.service.request(
            "DELETE", path, headers=_if_match(found), allow=(404, 410, 412)
        )
        if answer.status == 412:
            raise self.overtaken(key)
        if self.identity is not None:
            self.identity.forget(self.type.name, key)

    def present(self, data: Mapping[str, Any]) -> bool:
        """Whether an object is a record at all: not so of one that is only marked as deleted."""
        return True

    def marker_in(self, data: dict[str, Any]) -> str | None:
        """The key of the record that eventsync created the object for, ``None`` if it did not."""
        found = ABSENT if self._marker is None else self._marker.read(data)
        return found if isinstance(found, str) and found else None

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        """By the view's names, the JSON values that an object holds."""
        held = {name: place.read(data) for name, place in self._places.items()}
        return {name: json for name, json in held.items() if json is not ABSENT}

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        """The body to send: JSON values by the view's names, put into ``body`` or a new one."""
        body = {} if body is None else body
        for name, held in members.items():
            if name in self._places:
                self._places[name].write(body, held)
        return body

    def id_in(self, data: Mapping[str, Any]) -> str | None:
        """The service's own id of an object, ``None`` if it has none yet."""
        id, within = at(data, self.resource.id), self.resource.within
        if id is None or within is None or self.identity is None:
            return None if id is None else str(id)
        outer = at(data, f"{_IN}.{within.id}")
        return None if outer is None else f"{outer}:{id}"

    # -- identity ----------------------------------------------------------------------------------

    def path_of(self, key: str) -> str | None:
        """The path of a record's object, ``None`` if it has no id."""
        if self.ids is None:
            parts = dict(zip(self.type.keys, split_key(key), strict=True))
            return filled(self.resource.item, {**parts, "key": key})
        id = self.ids.id_of(key)
        if id is None:
            return None
        outer, _, inner = id.rpartition(":")
        parts = {"id": id} if self.resource.within is None else {"in": outer, "id": inner}
        return filled(self.resource.item, parts)

    def key_in(self, data: dict[str, Any]) -> str:
        """The key of the record that an object is. Raises ``RecordError``."""
        if self.ids is not None:
            return self.ids.key_in(data)
        keys = (self.view.names[name] for name in self.type.keys)
        held = self.values_in(data)
        part = {name: held[name] for name in keys if name in held}
        return self.type.key_text(self.view.to_record(self._members.decode(part)))

    def find_marked(self, key: str) -> str | None:
        """The id of the object that was created for a record, found by its marker."""
        query = {name: text.replace("{key}", key) for name, text in self.resource.marked.items()}
        for data in self.objects(query):
            if self.marker_in(data) == key and self.present(data):
                return self.id_in(data)
        return None

    def id_made(self, answer: Answer, members: Mapping[str, Any]) -> str:
        """The id in the answer to the creation of these members. Raises ``ConfigError``."""
        data = self.data_of(answer)
        if self.resource.within is not None:
            data |= {_IN: self.fill(members, None)[_IN]}
        id = self.id_in(data)
        if id is None:
            raise ConfigError(
                f"{self!r}: the answer to a creation has no id at {self.resource.id!r}"
            )
        return id

    # -- inside ------------------------------------------------------------------------------------

    def listed(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """The objects that are records, as ``objects`` gives them."""
        return (data for data in self.objects(query) if self.present(data))

    def _encoded(self, values: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        stored = dict(self.view.constant) if whole else {}
        return self._members.encode(stored | self.view.to_store(values))

    def _record(self, key: str, found: Object) -> R:
        values = self.view.to_record(self._members.decode(self.values_in(found.data)))
        for name in self.view.optional:
            values.setdefault(name, None)
        return self.make(self.type.key_values(key) | values)

    def data_of(self, answer: Answer) -> dict[str, Any]:
        """The object in the answer to a request about one. Raises ``RecordError``."""
        data = at(answer.json(), self.resource.body)
        if not isinstance(data, dict):
            raise RecordError(f"{answer.url}: the answer holds no object")
        return data

    def placed(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        """An object that was read by itself, with that which it is in."""
        within = self.resource.within
        if within is None or self.ids is None:
            return data
        outer: dict[str, Any] = {}
        put(outer, within.id, (self.ids.id_of(key) or "").rpartition(":")[0])
        return {**data, _IN: outer}

    def sent(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        """Send a write of what is there. Raises ``OvertakenError`` if it is there no more."""
        answer = self.service.request(
            method, path, body=body, headers=headers, allow=(404, 410, 412)
        )
        if answer.status in (404, 410, 412):
            raise self.overtaken(path)
        return answer

    def overtaken(self, what: str) -> OvertakenError:
        """The error that somebody else was faster with an object, or with its creation."""
        return OvertakenError(
            f"{self.service.url}: {self.type.name} {what!r} was changed by somebody else at the "
            "same moment",
            hint="it is tried again",
        )


def _if_match(found: Object) -> dict[str, str]:
    return {"If-Match": found.etag} if found.etag else {}


def _place(name: str, path: str | Place | None) -> Place:
    if isinstance(path, Place):
        return path
    if path is not None:
        return place(path)
    # A name is a name, even with a point in it.
    return Place(
        lambda data: data.get(name, ABSENT), lambda body, held: body.__setitem__(name, held)
    )
