"""Items of a Roundup tracker's database: how they are listed, read and written.

It knows nothing of what records are made of them.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import urlsplit

from eventsync.errors import DependencyError, EventSyncError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Basic, Numbers, Object, Resource, Service, Since
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["NOTHING", "Items", "NamedItems", "RoundupService", "resource_of", "since"]

R = TypeVar("R", bound=Record)
NOTHING: Final = ""
"""What unsets a link; a null is passed over."""
_TIME: Final = "%Y-%m-%d.%H:%M:%S"
_MISSING: Final = re.compile(r"property \w+: .* is not a \w+")


class RoundupService(Service):
    """A Roundup tracker. ``url``: of the tracker's pages, as ``https://example.org/tracker``.

    ``user`` needs the rights to edit issues, messages, keywords and (for accounts) users.
    ``options``: as for ``Service``.
    """

    def __init__(self, url: str, user: str, password: str, **options: Any) -> None:
        parts = urlsplit(url)
        super().__init__(
            f"{url.rstrip('/')}/rest/data",
            auth=Basic(user, password),
            headers={
                # Without these it takes a write for a forged one.
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
    """Items of one class of the tracker's database. ``fields``: what their list is asked for."""

    tracker = "Roundup"
    service: RoundupService
    item_class: ClassVar[str] = ""
    fields: ClassVar[str] = ""

    def select(
        self, item_class: str, fields: str, query: Mapping[str, str]
    ) -> list[dict[str, Any]]:
        """The items of a class that ``query`` selects and that are not retired."""
        pages = self.resource.pages
        asked = {"@fields": fields, "@verbose": "3", "@sort": "id", **query}
        return [data for page in pages.walk(self.service, f"/{item_class}", asked) for data in page]

    def item(self, item_class: str, id: str) -> Object:
        """One item, whether it is retired or not. Raises ``StoreUnavailableError`` without one."""
        answer = self.service.request("GET", f"/{item_class}/{id}", query={"@verbose": "3"})
        found = answer.json()["data"]
        return Object({**found["attributes"], "id": found["id"]}, answer.etag)

    def write(self, item_class: str, found: Object, body: Mapping[str, Any]) -> Answer:
        """Change an item that is as it was found. Raises ``OvertakenError``."""
        return self.sent(
            "PATCH", f"/{item_class}/{found.data['id']}", body, {"If-Match": found.etag or ""}
        )

    def retire(self, item_class: str, found: Object) -> None:
        """Retire an item that is as it was found. Raises ``OvertakenError``."""
        # It reads a body even where there is none.
        self.sent("DELETE", f"/{item_class}/{found.data['id']}", {}, {"If-Match": found.etag or ""})

    def added(self, item_class: str, body: Mapping[str, Any]) -> Answer:
        """Create an item."""
        return self.service.request("POST", f"/{item_class}", body=body)


class NamedItems(Items[R]):
    """Items that are known by a name, in the property that is the key's slot."""

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield from self.select(self.item_class, self.fields, query)

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        return self.found(name)

    def found(self, name: str) -> Object | None:
        """The item of that name, if it is there and not retired."""
        known_by = self.keys[-1].at
        for data in self.select(self.item_class, known_by, {f"{known_by}:": name}):
            return self.item(self.item_class, data["id"])
        return None

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        return self.write(self.item_class, found, body)

    def destroy(self, key: str, found: Object) -> None:
        self.retire(self.item_class, found)


def resource_of(item_class: str, *, by: str = "id", since: Since | None = None) -> Resource:
    """The lists of a class, whose items are known by a field, or by an id of the tracker's."""
    return Resource(
        items=f"/{item_class}",
        item=f"/{item_class}/{{{by}}}",
        pages=Numbers(
            items="data.collection", name="@page_index", size_name="@page_size", size=100
        ),
        body="data",
        since=since,
    )


def since() -> Since:
    """How to ask for what changed."""
    return Since(
        updated="activity",
        query={"activity": "{since};"},
        parse=lambda text: dt.datetime.strptime(text, _TIME),
        show=lambda moment: moment.strftime(_TIME),
    )
