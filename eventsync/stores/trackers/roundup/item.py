"""The REST API of Roundup, and the base classes of its accessors, which read and write items."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

from eventsync.errors import DependencyError, EventSyncError, RecordError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Basic, Numbers, Object, Resource, Service, Since
from eventsync.stores.trackers.tracker import NUMBER, TrackerAccessor

__all__ = ["NOTHING", "Items", "NamedItems", "RoundupService", "in_utc", "resource_of", "since"]

R = TypeVar("R", bound=Record)
NOTHING: Final = ""
"""The value to write to remove a link. Roundup ignores null."""
_TIME: Final = "%Y-%m-%d.%H:%M:%S"
_MISSING: Final = re.compile(r"property \w+: .* is not a \w+")
_NUMBER: Final = re.compile(r"-?[0-9]+\s*")


class RoundupService(Service):
    """The REST API of a Roundup tracker.

    ``url``: the URL of the tracker, for example ``https://example.org/tracker``. ``user``: the
    login name of a user with the rights to edit issues, messages, keywords and, to write accounts,
    users. ``options``: further parameters of ``Service``.
    """

    def __init__(self, url: str, user: str, password: str, **options: Any) -> None:
        parts = urlsplit(url)
        super().__init__(
            f"{url.rstrip('/')}/rest/data",
            auth=Basic(user, password),
            headers={
                # Without these headers Roundup refuses a write as a possible forgery (CSRF).
                "Origin": f"{parts.scheme}://{parts.netloc}",
                "Referer": f"{url.rstrip('/')}/",
                "X-Requested-With": "eventsync",
            },
            **options,
        )
        self.user = user

    def meaning(self, method: str, answer: Answer) -> EventSyncError:
        error = super().meaning(method, answer)
        if answer.status == 400 and _MISSING.search(error.message):
            return DependencyError(error.message)
        return error


class Items(TrackerAccessor[R]):
    """The base of accessors of the items of one class in the database of the tracker.

    ``item_class``: the name of the class. ``fields``: the properties that a list request asks for,
    separated by commas.
    """

    tracker = "Roundup"
    id_form = NUMBER
    service: RoundupService
    item_class: ClassVar[str] = ""
    fields: ClassVar[str] = ""

    def select(
        self, item_class: str, fields: str, query: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """Return the items of a class that ``query`` selects, without retired items.

        ``fields``: the properties to return, separated by commas.
        """
        pages = self.resource.pages
        full = {"@fields": fields, "@verbose": "3", "@sort": "id", **query}
        return [data for page in pages.walk(self.service, f"/{item_class}", full) for data in page]

    def linked(self, item_class: str, name: str) -> str | None:
        """Return how a link to the item with this name is written; ``None`` if there is none.

        Roundup takes a number for an id, and -1 for no link, so the id of the item is written then.
        """
        if not _NUMBER.fullmatch(name):
            return name  # Roundup itself looks for the item
        property = "username" if item_class == "user" else "name"
        found = self.select(item_class, property, {f"{property}:": name})
        return next((str(data["id"]) for data in found if "id" in data), None)

    def reference(self, name: str, value: str | None) -> str | None:
        known = super().reference(name, value)
        if known is None or self.view_slots[name].of != "Account":
            return known
        link = self.linked("user", known)
        if link is None:
            raise self.missing(name, known)
        return link

    def item(self, item_class: str, id: str, fields: str = "") -> Object:
        """Return one item, also a retired one. Raises ``RecordError`` if there is none.

        ``fields``: the properties to return; empty: all that the schema of the class names.
        """
        query = {"@verbose": "3"} | ({"@fields": fields} if fields else {})
        answer = self.read_alone(f"/{item_class}/{id}", query=query)
        if answer is None:
            raise RecordError(f"{self!r}: there is no {item_class} {id}")
        found = answer.json()["data"]
        return Object({**found["attributes"], "id": found["id"]}, answer.etag)

    def write(self, item_class: str, found: Object, body: Mapping[str, Any]) -> Answer:
        """Change the properties in ``body`` of an item, and return the answer.

        Raises ``OvertakenError`` if somebody has changed the item since ``found`` was read.
        """
        return self.sent(
            "PATCH", f"/{item_class}/{found.data['id']}", body, {"If-Match": found.etag or ""}
        )

    def retire(self, item_class: str, found: Object) -> None:
        """Retire an item, which is Roundup's way to delete.

        Raises ``OvertakenError`` if somebody has changed the item since ``found`` was read.
        """
        # Roundup requires a body, although the request needs none.
        self.sent("DELETE", f"/{item_class}/{found.data['id']}", {}, {"If-Match": found.etag or ""})

    def added(self, item_class: str, body: Mapping[str, Any]) -> Answer:
        """Create an item of a class in Roundup, and return the answer, which holds the new id."""
        return self.service.request("POST", f"/{item_class}", body=body)


class NamedItems(Items[R]):
    """The base of accessors of items with a name. The last slot of ``keys`` says where it is."""

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield from self.select(self.item_class, self.fields, query)

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        return self.found(name)

    def found(self, name: str) -> Object | None:
        """Return the item with this name; ``None`` if there is no such item or it is retired."""
        property = self.keys[-1].at
        for data in self.select(self.item_class, property, {f"{property}:": name}):
            return self.item(self.item_class, data["id"])
        return None

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        return self.write(self.item_class, found, body)

    def destroy(self, key: str, found: Object) -> None:
        self.retire(self.item_class, found)


def resource_of(item_class: str, *, by: str = "id", since: Since | None = None) -> Resource:
    """Return the description of the REST paths of a class of items.

    ``by``: the name of the key field, or ``id`` if Roundup assigns ids as keys. ``since``: how to
    ask for recent changes, if that is possible.
    """
    return Resource(
        items=f"/{item_class}",
        item=f"/{item_class}/{{{by}}}",
        pages=Numbers(
            items="data.collection", name="@page_index", size_name="@page_size", size=100
        ),
        body="data",
        since=since,
    )


def in_utc(time: Any) -> str | None:
    """Return a time of Roundup in ISO 8601."""
    if not time:
        return None
    return dt.datetime.strptime(time, _TIME).replace(tzinfo=dt.UTC).isoformat()


def since(updated: str = "activity") -> Since:
    """Return how to ask Roundup for items that changed at or after a time.

    ``updated``: the path of the time of the last change in an object.
    """
    return Since(
        updated=updated,
        query={"activity": "{since};"},
        parse=lambda text: dt.datetime.strptime(text, _TIME),
        show=lambda moment: moment.strftime(_TIME),
    )
