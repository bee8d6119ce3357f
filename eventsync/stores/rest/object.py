"""The requests that read and write one object of a REST service."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import concerns_all
from eventsync.errors import ConfigError, DependencyError, RecordError, RejectedError, UniqueError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.document import IN, DocumentAccessor, Object
from eventsync.stores.rest.fence import fenced
from eventsync.stores.rest.ids import Ids, OvertakenError
from eventsync.stores.rest.path import at
from eventsync.stores.rest.resource import Resource, filled
from eventsync.stores.rest.service import OF_ONE_WRITE, Service
from eventsync.stores.rest.status import AccessRefusedError
from eventsync.stores.rest.unreadable import Unreadable, reading

__all__ = ["ObjectAccessor", "if_match"]

R = TypeVar("R", bound=Record)
_FIRST: Final = 20
"""How many objects a check looks at."""


class ObjectAccessor(DocumentAccessor[R]):
    """The part of ``RestAccessor`` that sends the requests for one object, and for lists."""

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
        super().__init__(record_type, service, resource, view=view, identity=identity)
        if identity is not None:
            self.ids = Ids(self, identity)
        self.others: dict[str, str] = {}
        """By key, the key of the object that the service returned instead."""

    # -- lifecycle ---------------------------------------------------------------------------------

    @fenced
    def ping(self) -> None:
        listed = self.resource.within or self.resource
        pages = listed.pages or self.resource.pages
        few = {pages.size_name: "1"} if pages.first() and pages.size_name else {}
        self.service.request("GET", listed.items, query={**listed.query, **few})

    def findings(self) -> Iterable[Finding]:
        """Yield which members the first objects of the list lack, also when they are read alone.

        Such a field agrees with no other store, and each synchronization writes it again.
        """
        try:
            lacking = self._lacking()
        finally:
            self.service.close()  # the store is not open yet, so nobody else closes it
        optional = {self.view.names[name] for name in self.view.optional}
        for name, path in lacking.items():
            if name not in optional or not self.absent_is_none:
                yield Finding(
                    Level.RISK,
                    self.type.name,
                    f"{self.service.url}/{path.lstrip('/')} has no member for the field {name!r}; "
                    f"say what its absence means, as in Resource(absent={{{name!r}: ...}}), or "
                    "omit the field from the view",
                )

    def _lacking(self) -> dict[str, str]:
        """Return the fields whose members objects lack, each with the path of such an object."""
        lacking: dict[str, str] = {}
        partial = (d for d in self.listed({}) if not isinstance(d, Unreadable))
        for data in (data for data in islice(partial, _FIRST) if self.is_partial(data)):
            with suppress(RecordError):  # an unreadable object says nothing
                path = self._path_in(data)
                answer = None if path is None else self.read_alone(path, query=self.resource.single)
                if answer is None or path is None:
                    continue
                values = self.values_in(self.data_of(answer))
                for name in self._shown:
                    if name not in values:
                        lacking.setdefault(name, path)
        return lacking

    def _path_in(self, data: dict[str, Any]) -> str | None:
        """Return the path of a listed object. Notes no id in the identity map."""
        if self.identity is None:
            return self.path_of(self.key_in(data))
        id = self.id_in(data)
        return None if id is None else self.path_of_id(id)

    def close(self) -> None:
        self.service.close()
        if self.identity is not None:
            self.identity.close()

    # -- what a subclass may override --------------------------------------------------------------

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        """Yield all objects, or those that ``query`` selects from the list."""
        pages, within = self.resource.pages, self.resource.within
        if within is None:
            merged = {**self.resource.query, **query}
            for page in pages.walk(self.service, self.resource.items, merged, name=self.name_in):
                yield from page
            return
        for outer in self.outer(query):
            yield from self.inner(outer, self._walk_within)

    def name_in(self, data: dict[str, Any]) -> Any:
        """Return what tells an object from the others of its list; ``None`` if it is not known."""
        if self.identity is not None:
            return at(data, self.resource.id)
        values = self.values_in(data)
        names = [self.view.names[name] for name in self.type.keys]
        return [values[name] for name in names] if set(names) <= values.keys() else None

    def _walk_within(self, outer: dict[str, Any]) -> Iterator[dict[str, Any]]:
        pages, within = self.resource.pages, self.resource.within
        assert within is not None
        id = at(outer, within.id)
        if id is None:
            raise RecordError(f"{self!r}: an object of {within.items} has no id at {within.id!r}")
        path = filled(self.resource.items, {"in": id})
        walk = pages.walk(self.service, path, self.resource.query, alone=True, name=self.name_in)
        for page in walk:
            yield from (
                data if isinstance(data, Unreadable) else {**data, IN: outer} for data in page
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
        merged = {**within.query, **query}
        name = partial(at, path=within.id)
        for page in pages.walk(self.service, within.items, merged, name=name):
            yield from page

    def fetch(self, key: str) -> Object | None:
        """Return the object of a record, or ``None`` if it has none."""
        path = self.path_of(key)
        if path is None:
            return None
        with reading(f"{self.type.name} {key!r}", key=key):
            answer = self.read_alone(path, query=self.resource.single)
            if answer is None:
                return None
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

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        """Send the body of a creation. Raises ``OvertakenError`` if the object exists already."""
        items = self.resource.creations or self.resource.items
        within = self.resource.within
        if within is not None:
            outer = at(body, f"{IN}.{within.id}")
            body = {name: value for name, value in body.items() if name != IN}
            if outer is None:
                raise RejectedError(
                    f"{self.type.name} {key!r} has no value at {IN}.{within.id}, which says in "
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
            error = self.service.meaning(method, answer)
            raise error if isinstance(error, UniqueError) else RejectedError(error.message)
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
        elif self.service.has_moved(answer) or isinstance(error, UniqueError):
            raise error
        raise RejectedError(error.message, hint="only this object is refused; correct the record")

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        """Write changed members. Raises ``OvertakenError`` if the object has changed since."""
        base = None
        if self.resource.update == "PUT":
            base = copy.deepcopy({name: v for name, v in found.data.items() if name != IN})
        body = self.fill(members, base)
        if IN in body:
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

    # -- identity ----------------------------------------------------------------------------------

    def forget(self, key: str) -> None:
        """Remove the id of a deleted object from the identity map, if there is one. Idempotent."""
        if self.identity is not None:
            self.identity.forget(self.type.name, key)

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
            data |= {IN: self.fill(members, None)[IN]}
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
