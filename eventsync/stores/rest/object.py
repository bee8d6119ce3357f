"""The requests that read and write one object of a REST service, and the meaning of its JSON."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.engine.isolation import concerns_all
from eventsync.errors import ConfigError, DependencyError, RecordError, RejectedError
from eventsync.records.key import join as join_key
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.json_values import Members
from eventsync.stores.rest.fence import fenced
from eventsync.stores.rest.ids import Ids, OvertakenError
from eventsync.stores.rest.path import ABSENT, Place, at, member, place, put
from eventsync.stores.rest.resource import Reference, Resource, filled
from eventsync.stores.rest.service import OF_ONE_WRITE, Answer, Service
from eventsync.stores.rest.status import AccessRefusedError
from eventsync.stores.rest.unreadable import Unreadable, reading

__all__ = ["Object", "ObjectAccessor", "if_match"]

R = TypeVar("R", bound=Record)
_IN: Final = "@in"


class Object(NamedTuple):
    """An object as the service returned it.

    ``etag``: its strong entity tag, if it has one. ``listed``: the object comes from a list, and
    lists have no entity tags.
    """

    data: dict[str, Any]
    etag: str | None = None
    listed: bool = False


class ObjectAccessor(Accessor[R]):
    """The part of ``RestAccessor`` that sends requests and reads the JSON of one object."""

    absent_is_none: ClassVar[bool] = True
    """Whether an optional field is ``None`` if an object that was read alone lacks its member."""
    leaves: ClassVar[bool] = False
    """Whether a creation that fails with ``DependencyError`` may leave a part of the object behind.

    The next attempt then searches for that part."""

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
                continue  # the id of the service stands in its place
            self._places[stored] = _place(stored, path)
        for stored in self.view.constant:
            self._places[stored] = _place(stored, resource.paths.get(stored))
        shown = [name for name in self._places if name not in self.view.constant]
        self._shown = [name for name in shown if name not in resource.absent]
        self.others: dict[str, str] = {}
        """By key, the key of the object that the service returned instead."""
        self._check_query()
        self._marker = None if resource.marker is None else _place("", resource.marker)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.type.name}, {self.service.url!r})"

    def _check_names(self, names: set[str]) -> None:
        known = {"key", *self.type.keys} if self.identity is None else {"id"}
        if self.resource.within is not None and self.identity is not None:
            known.add("in")
        if not names or not names <= known:
            raise ConfigError(
                f"{self.type.name}: item={self.resource.item!r} must name the object by "
                + " or ".join(f"{{{name}}}" for name in sorted(known)),
                hint="for a path with {id}, pass identity=IdentityMap(...)",
            )

    def _check_query(self) -> None:
        for name, text in self.resource.marked.items():
            if "{key}" in text and text != "{key}" and self.resource.quote is None:
                raise ConfigError(
                    f"{self.type.name}: marked={{{name!r}: {text!r}}} puts a key into a query, "
                    "which a quotation mark in the key would change",
                    hint="pass quote=, as in Resource(marked=..., quote=jql), and no quotation "
                    "marks of your own",
                )
        stored = set(self.view.names.values())
        for setting in ("absent", "references"):
            unknown = sorted(set(getattr(self.resource, setting)) - stored)
            if unknown:
                raise ConfigError(
                    f"{self.type.name}: {setting}= names {' and '.join(map(repr, unknown))}, which "
                    "is no field of the view",
                    hint="use the names of " + ", ".join(sorted(stored)),
                )
        if self.resource.references and self.identity is None:
            raise ConfigError(
                f"{self.type.name}: references= needs an identity map",
                hint="pass identity=IdentityMap(...), the same as for the other record types",
            )

    # -- lifecycle ---------------------------------------------------------------------------------

    @fenced
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

    # -- what a subclass may override --------------------------------------------------------------

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield all objects, or those that ``query`` selects from the list."""
        pages, within = self.resource.pages, self.resource.within
        if within is None:
            merged = {**self.resource.query, **query}
            for page in pages.walk(self.service, self.resource.items, merged):
                yield from page
            return
        for outer in self.outer(query):
            yield from self.inner(outer, self._walk_within)

    def _walk_within(self, outer: dict[str, Any]) -> Iterator[dict[str, Any]]:
        pages, within = self.resource.pages, self.resource.within
        assert within is not None
        id = at(outer, within.id)
        if id is None:
            raise RecordError(f"{self!r}: an object of {within.items} has no id at {within.id!r}")
        path = filled(self.resource.items, {"in": id})
        for page in pages.walk(self.service, path, self.resource.query, alone=True):
            yield from (
                data if isinstance(data, Unreadable) else {**data, _IN: outer} for data in page
            )

    def inner(
        self,
        outer: dict[str, Any],
        read: Callable[[dict[str, Any]], Iterable[dict[str, Any]]],
    ) -> Iterator[dict[str, Any]]:
        """Yield what ``read`` yields for an outer object, and an ``Unreadable`` if it raises.

        So an outer object that cannot be read, or that is gone since it was listed, does not stop
        the others.
        """
        try:
            if isinstance(outer, Unreadable):
                raise outer.error
            yield from read(outer)
        except Exception as error:
            yield Unreadable.because(error, f"{self!r}: an object in a list")

    def outer(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the outer objects (see ``Within``), or those that ``query`` selects."""
        within = self.resource.within
        assert within is not None
        pages = within.pages or self.resource.pages
        for page in pages.walk(self.service, within.items, {**within.query, **query}):
            yield from page

    def fetch(self, key: str) -> Object | None:
        """Return the object of a record, or ``None`` if it has none."""
        path = self.path_of(key)
        if path is None:
            return None
        answer = self.read_alone(path, query=self.resource.single)
        if answer is None:
            return None
        with reading(f"{self.type.name} {key!r}"):
            data = self.placed(key, self.data_of(answer))
            if not self.present(data) or self._is_of_another(key, data):
                return None
        return Object(data, answer.etag if self.resource.etags else None)

    def read_alone(self, path: str, *, query: Mapping[str, str] | None = None) -> Answer | None:
        """Return the answer to the read of one object, or ``None`` if there is no such object.

        Raises ``RecordError`` if the service refuses to show this object and shows others.
        """
        try:
            return self.service.read_one(path, query=query)
        except AccessRefusedError as error:
            self.ping()  # raises if the service refuses everything
            raise RecordError(
                error.message, hint="only this object is refused; give the right to read it"
            ) from error

    def _is_of_another(self, key: str, data: dict[str, Any]) -> bool:
        """Return whether the service returned the object of another key, which it takes for this.

        Names at a service may ignore case: a request for ``bug`` then returns ``Bug``.
        """
        self.others.pop(key, None)
        if self.identity is not None:
            return False
        values = self.values_in(data)
        if any(self.view.names[name] not in values for name in self.type.keys):
            return False  # the object does not show its key
        other = self._read_key(data)
        if other != key:
            self.others[key] = other
        return other != key

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        """Create the object of a record. Raises ``OvertakenError`` if the record has one."""
        body = self.fill(members, None)
        self.complete_new(body)
        self.mark(body, key)
        return self.post(key, body)

    def complete_new(self, body: dict[str, Any]) -> None:
        """Put the values that each new object gets into the body of a creation."""
        for path, value in self.resource.new.items():
            if place(path).read(body) is ABSENT:
                put(body, path, copy.deepcopy(value))

    def wrapped(self, body: dict[str, Any]) -> dict[str, Any]:
        """Return the body of a request with this object in it."""
        if not self.resource.wrap:
            return body
        outer: dict[str, Any] = {}
        put(outer, self.resource.wrap, body)
        return outer

    def mark(self, body: dict[str, Any], key: str) -> None:
        """Put the key of the record into the body of a creation, so that a search finds it."""
        if self._marker is not None:
            self._marker.write(body, key)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        """Send the body of a creation. Raises ``OvertakenError`` if the object exists already."""
        items = self.resource.creations or self.resource.items
        within = self.resource.within
        if within is not None:
            outer = at(body, f"{_IN}.{within.id}")
            body = {name: value for name, value in body.items() if name != _IN}
            if outer is None:
                raise RejectedError(
                    f"{self.type.name} {key!r} has no value at {_IN}.{within.id}, which says in "
                    "which object to create it"
                )
            items = filled(items, {"in": outer})
        by_put = self.resource.create == "PUT" and self.identity is None
        if by_put:
            headers = {"If-None-Match": "*"} if self.resource.etags else {}
            method, path, taken = "PUT", self.known_path(key), frozenset({412})
        else:
            headers = {}
            method, path, taken = "POST", items, self.resource.taken
        answer = self.service.request(
            method, path, body=self.wrapped(body), headers=headers, allow=taken | OF_ONE_WRITE
        )
        if answer.status == 404 and within is not None:
            raise DependencyError(
                f"{self.type.name} {key!r} belongs to {outer!r}, which is not at "
                f"{self.service.url} yet"
            )
        if by_put and answer.status in taken:
            raise self.overtaken(key)
        if answer.status in taken:
            if self.identity is None and self.fetch(key) is not None:
                raise self.overtaken(key)
            raise RejectedError(self.service.meaning(method, answer).message)
        return self.accepted(method, answer)

    def posted(self, path: str, body: Any, *, allow: Iterable[int] = ()) -> Answer:
        """Send a creation to ``path``. Raises ``RejectedError`` if there is no such path.

        For paths that depend on the record; a list that does not exist concerns all records.
        """
        answer = self.service.request("POST", path, body=body, allow=OF_ONE_WRITE | set(allow))
        return answer if answer.status in set(allow) else self.accepted("POST", answer)

    def accepted(self, method: str, answer: Answer) -> Answer:
        """Return the answer to a write, or raise the error of a refusal that may be the record's.

        A path that is missing, or leads elsewhere, is the record's failure if the list is there.
        """
        if answer.status < 300:
            return answer
        error = self.service.meaning(method, answer)
        if answer.status in (404, 410):
            self.ping()
        elif self.service.has_moved(answer):
            raise error
        raise RejectedError(error.message, hint="only this object is refused; correct the record")

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        """Write changed members. Raises ``OvertakenError`` if the object has changed since."""
        base = None
        if self.resource.update == "PUT":
            base = copy.deepcopy({name: v for name, v in found.data.items() if name != _IN})
        body = self.fill(members, base)
        if _IN in body:
            raise RejectedError(
                f"{self.type.name} {key!r} cannot move to another object than the one it was "
                "created in"
            )
        return self.sent(self.resource.update, self.known_path(key), body, if_match(found))

    def destroy(self, key: str, found: Object) -> None:
        """Delete the object. Raises ``OvertakenError`` if it has changed since. Idempotent."""
        answer = self.service.request(
            "DELETE",
            self.known_path(key),
            headers=if_match(found),
            allow=OF_ONE_WRITE | {412},
        )
        if answer.status == 412:
            raise self.overtaken(key)
        if answer.status not in (404, 410):
            self.accepted("DELETE", answer)
        self.forget(key)

    def present(self, data: Mapping[str, Any]) -> bool:
        """Return whether an object counts as a record.

        Return false, for example, for an object that the service only marks as deleted.
        """
        return True

    def marker_in(self, data: dict[str, Any]) -> str | None:
        """Return the key in the marker of an object, or ``None`` if it has no marker."""
        found = ABSENT if self._marker is None else self._marker.read(data)
        return found if isinstance(found, str) and found else None

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        """Return the JSON values of an object, by the view's names."""
        values = {name: place.read(data) for name, place in self._places.items()}
        absent = self.resource.absent
        return {
            name: absent[name] if value is ABSENT else value
            for name, value in values.items()
            if value is not ABSENT or name in absent
        }

    def is_partial(self, data: dict[str, Any]) -> bool:
        """Return whether an object lacks a member, as objects in a list may."""
        found = self.values_in(data)
        return any(name not in found for name in self._shown)

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        """Put JSON values, by the view's names, into a body or a new one, and return it."""
        body = {} if body is None else body
        for name, value in members.items():
            if name in self._places:
                self._places[name].write(body, value)
        return body

    def id_in(self, data: Mapping[str, Any]) -> str | None:
        """Return the id that the service assigned to an object, or ``None`` if it has none."""
        id, within = at(data, self.resource.id), self.resource.within
        if id is None or within is None or self.identity is None:
            return None if id is None else str(id)
        outer = at(data, f"{_IN}.{within.id}")
        return None if outer is None else f"{outer}:{id}"

    # -- identity ----------------------------------------------------------------------------------

    def path_of(self, key: str) -> str | None:
        """Return the path of the object of a record, or ``None`` if the record has no id."""
        if self.ids is None:
            parts = dict(zip(self.type.keys, split_key(key), strict=True))
            return filled(self.resource.item, {**parts, "key": key})
        id = self.ids.id_of(key)
        if id is None:
            return None
        outer, _, inner = id.rpartition(":")
        parts = {"id": id} if self.resource.within is None else {"in": outer, "id": inner}
        return filled(self.resource.item, parts)

    def known_path(self, key: str) -> str:
        """Return the path of an object that is known to exist, so that it has an id."""
        path = self.path_of(key)
        assert path is not None, f"{self.type.name} {key!r} has no object"
        return path

    def forget(self, key: str) -> None:
        """Remove the id of a deleted object from the identity map, if there is one. Idempotent."""
        if self.identity is not None:
            self.identity.forget(self.type.name, key)

    def key_in(self, data: dict[str, Any]) -> str:
        """Return the key of the record that an object holds. Raises ``RecordError``."""
        if isinstance(data, Unreadable):
            raise data.error
        with reading(f"{self!r}: an object in a list"):
            return self._read_key(data)

    def _read_key(self, data: dict[str, Any]) -> str:
        if self.ids is not None:
            return self.ids.key_in(data)
        keys = (self.view.names[name] for name in self.type.keys)
        values = self.values_in(data)
        part = {name: values[name] for name in keys if name in values}
        return self.type.key_text(self.view.to_record(self._members.decode(part)))

    def find_marked(self, key: str) -> str | None:
        """Search for the object that has the marker of a record, and return its id."""
        quote = self.resource.quote or str
        query = {
            name: text.replace("{key}", quote(key)) for name, text in self.resource.marked.items()
        }
        unreadable: Exception | None = None
        for data in self.listed(query):
            try:
                if isinstance(data, Unreadable):
                    raise data.error
                if self.marker_in(data) == key:
                    return self.id_in(data)
            except Exception as error:
                if concerns_all(error):
                    raise
                unreadable = error
        if unreadable is not None:
            raise RejectedError(
                f"{self.type.name} {key!r} may have been created by a request without an answer, "
                f"and an object of {self.service.url} cannot be read: {unreadable}",
                hint="correct that object, then replay the dead letter",
            )
        return None

    def id_made(self, answer: Answer, members: Mapping[str, Any]) -> str:
        """Return the id in the answer to the creation of these members. Raises ``ConfigError``."""
        data = self.data_of(answer)
        if self.resource.within is not None:
            data |= {_IN: self.fill(members, None)[_IN]}
        id = self.id_in(data)
        if id is None:
            raise ConfigError(
                f"{self!r}: the answer to a creation has no id at {self.resource.id!r}",
                hint="correct Resource(id=...)",
            )
        return id

    # -- inside ------------------------------------------------------------------------------------

    def listed(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield the objects that count as records, and an ``Unreadable`` for each odd object."""
        for data in self.objects(query):
            try:
                if isinstance(data, Unreadable) or self.present(data):
                    yield data
            except Exception as error:
                yield Unreadable.because(error, f"{self!r}: an object in a list")

    def _encoded(self, values: Mapping[str, Any], *, whole: bool) -> dict[str, Any]:
        stored = dict(self.view.constant) if whole else {}
        members = self._members.encode(stored | self.view.to_store(values))
        for name, reference in self.resource.references.items():
            if name in members:
                members[name] = self._each(members[name], partial(self._id_at, name, reference))
        return members

    def _each(self, value: Any, convert: Callable[[Any], Any]) -> Any:
        if value is None:
            return None
        return [convert(item) for item in value] if isinstance(value, list) else convert(value)

    def _id_at(self, name: str, reference: Reference, key: Any) -> Any:
        assert self.identity is not None
        text = join_key([key])
        id = self.identity.id_of(reference.of, text)
        prefix = self.identity.minted("")
        if id is None and text.startswith(prefix):
            id = text.removeprefix(prefix)  # of a record that is not captured yet
        if id is None:
            raise DependencyError(
                f"{self.type.name}.{name} refers to {reference.of} {key!r}, which is not at "
                f"{self.service.url} yet"
            )
        return reference.write(id)

    def _key_at(self, reference: Reference, id: Any) -> Any:
        assert self.identity is not None
        key = self.identity.key_of(reference.of, str(id))
        return self.identity.minted(str(id)) if key is None else split_key(key)[0]

    def depends_on(self, other: Accessor[Any]) -> bool:
        return any(other.type.name == one.of for one in self.resource.references.values())

    def _record(self, key: str, found: Object) -> R:
        with reading(f"{self.type.name} {key!r}"):
            return self._read_record(key, found)

    def _read_record(self, key: str, found: Object) -> R:
        members = self.values_in(found.data)
        for name, reference in self.resource.references.items():
            if name in members:
                members[name] = self._each(members[name], partial(self._key_at, reference))
        values = self.view.to_record(self._members.decode(members))
        for name in self.view.optional if self.absent_is_none else ():
            values.setdefault(name, None)
        return self.make(self.type.key_values(key) | values)

    def data_of(self, answer: Answer) -> dict[str, Any]:
        """Return the object in the answer to a request for one. Raises ``RecordError``."""
        data = at(answer.json(), self.resource.body)
        if not isinstance(data, dict):
            where = f" at {self.resource.body!r}" if self.resource.body else ""
            raise RecordError(f"{answer.url}: the answer has no JSON object{where}")
        return data

    def placed(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        """Return an object that was read alone, with its outer object as in a list."""
        within = self.resource.within
        if within is None or self.ids is None:
            return data
        outer: dict[str, Any] = {}
        put(outer, within.id, (self.ids.id_of(key) or "").rpartition(":")[0])
        return {**data, _IN: outer}

    def sent(self, method: str, path: str, body: Any, headers: Mapping[str, str]) -> Answer:
        """Send a change of an object. Raises ``OvertakenError`` if it is gone or has changed."""
        answer = self.service.request(
            method, path, body=self.wrapped(body), headers=headers, allow=OF_ONE_WRITE | {412}
        )
        if answer.status in (404, 410, 412):
            raise self.overtaken(path)
        return self.accepted(method, answer)

    def overtaken(self, what: str) -> OvertakenError:
        """Return the error that another client changed or created an object first."""
        return OvertakenError(
            f"{self.service.url}: another client changed {self.type.name} {what!r} at the same "
            "moment",
            hint="the change is retried",
        )


def if_match(found: Object) -> dict[str, str]:
    """Return the header that makes a write conditional on the entity tag, if there is one."""
    return {"If-Match": found.etag} if found.etag else {}


def _place(name: str, path: str | Place | None) -> Place:
    if isinstance(path, Place):
        return path
    if path is not None:
        return place(path)
    # Not a path: a point in the name of a member is part of the name.
    return Place(lambda data: member(data, name), lambda body, value: body.__setitem__(name, value))
