"""The meaning of the JSON of one object of a REST service: its record, its key and its id."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, ClassVar, Final, NamedTuple, TypeVar

from eventsync.engine.accessor import Accessor
from eventsync.errors import ConfigError, DependencyError, RecordError
from eventsync.records.key import join as join_key
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.json_values import Members
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.ids import Ids
from eventsync.stores.rest.path import ABSENT, Place, at, member, place, put
from eventsync.stores.rest.resource import Reference, Resource, filled
from eventsync.stores.rest.service import Service
from eventsync.stores.rest.unreadable import Unreadable, reading

__all__ = ["IN", "DocumentAccessor", "Object"]

R = TypeVar("R", bound=Record)
IN: Final = "@in"
"""The member of an inner object that holds its outer object."""


class Object(NamedTuple):
    """An object as the service returned it.

    ``etag``: its strong entity tag, if it has one. ``listed``: the object comes from a list, and
    lists have no entity tags.
    """

    data: dict[str, Any]
    etag: str | None = None
    listed: bool = False


class DocumentAccessor(Accessor[R]):
    """The part of ``RestAccessor`` that reads and makes the JSON of one object. Sends nothing."""

    absent_is_none: ClassVar[bool] = True
    """Whether an optional field is ``None`` if an object that was read alone lacks its member."""

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
        self.ids: Ids | None = None
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

    # -- records -----------------------------------------------------------------------------------

    def record_to_data(self, record: R) -> dict[str, Any]:
        members = self._encoded(record.raw(), whole=True)
        body = self.fill(members, None)
        self.mark(body, record.key)
        return body

    def data_to_record(self, data: Any) -> R:
        return self._record(self.key_in(data), Object(data))

    # -- what a subclass may override --------------------------------------------------------------

    def present(self, data: Mapping[str, Any]) -> bool:
        """Return whether an object counts as a record.

        Return false, for example, for an object that the service only marks as deleted.
        """
        return True

    def marker_in(self, data: dict[str, Any]) -> str | None:
        """Return the key in the marker of an object, or ``None`` if it has no marker."""
        found = ABSENT if self._marker is None else self._marker.read(data)
        return found if isinstance(found, str) and found else None

    def mark(self, body: dict[str, Any], key: str) -> None:
        """Put the key of the record into the body of a creation, so that a search finds it."""
        if self._marker is not None:
            self._marker.write(body, key)

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

    def placed(self, key: str, data: dict[str, Any]) -> dict[str, Any]:
        """Return an object that was read alone, with its outer object as in a list."""
        within = self.resource.within
        if within is None or self.ids is None:
            return data
        outer: dict[str, Any] = {}
        put(outer, within.id, (self.ids.id_of(key) or "").rpartition(":")[0])
        return {**data, IN: outer}

    def data_of(self, answer: Answer) -> dict[str, Any]:
        """Return the object in the answer to a request for one. Raises ``RecordError``."""
        data = at(answer.json(), self.resource.body)
        if not isinstance(data, dict):
            where = f" at {self.resource.body!r}" if self.resource.body else ""
            raise RecordError(f"{answer.url}: the answer has no JSON object{where}")
        return data

    # -- identity ----------------------------------------------------------------------------------

    def id_in(self, data: Mapping[str, Any]) -> str | None:
        """Return the id that the service assigned to an object, or ``None`` if it has none."""
        id, within = at(data, self.resource.id), self.resource.within
        if id is None or within is None or self.identity is None:
            return None if id is None else str(id)
        outer = at(data, f"{IN}.{within.id}")
        return None if outer is None else f"{outer}:{id}"

    def path_of(self, key: str) -> str | None:
        """Return the path of the object of a record, or ``None`` if the record has no id."""
        if self.ids is None:
            parts = dict(zip(self.type.keys, split_key(key), strict=True))
            return filled(self.resource.item, {**parts, "key": key})
        id = self.ids.id_of(key)
        if id is None:
            return None
        return self.path_of_id(id)

    def path_of_id(self, id: str) -> str:
        """Return the path of the object with an id that the service has assigned."""
        outer, _, inner = id.rpartition(":")
        parts = {"id": id} if self.resource.within is None else {"in": outer, "id": inner}
        return filled(self.resource.item, parts)

    def known_path(self, key: str) -> str:
        """Return the path of an object that is known to exist, so that it has an id."""
        path = self.path_of(key)
        assert path is not None, f"{self.type.name} {key!r} has no object"
        return path

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

    # -- inside ------------------------------------------------------------------------------------

    def depends_on(self, other: Accessor[Any]) -> bool:
        return any(other.type.name == one.of for one in self.resource.references.values())

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
        if id is None:
            id = self.identity.id_minted(text)  # of a record that is not captured yet
        if id is None:
            raise DependencyError(
                f"{self.type.name}.{name} refers to {reference.of} {key!r}, which is not at "
                f"{self.service.url} yet"
            )
        return reference.write(id)

    def _key_at(self, reference: Reference, id: Any) -> Any:
        assert self.identity is not None
        key = self.identity.key_of(reference.of, str(id))
        return split_key(self.identity.minted(str(id)) if key is None else key)[0]

    def _record(self, key: str, found: Object) -> R:
        with reading(f"{self.type.name} {key!r}", key=key):
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


def _place(name: str, path: str | Place | None) -> Place:
    if isinstance(path, Place):
        return path
    if path is not None:
        return place(path)
    # Not a path: a point in the name of a member is part of the name.
    return Place(lambda data: member(data, name), lambda body, value: body.__setitem__(name, value))
