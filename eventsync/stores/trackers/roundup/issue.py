"""The issues of a Roundup tracker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer, Object
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.record import Issue
from eventsync.stores.trackers.roundup.item import (
    NOTHING,
    RoundupService,
    in_utc,
    resource_of,
    since,
)
from eventsync.stores.trackers.roundup.message import EMPTY, Messages, message_ids
from eventsync.stores.trackers.slot import Slot, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["RoundupIssues"]

R = TypeVar("R", bound=Record)


class RoundupIssues(Messages[R]):
    """Issues. Removing a record retires the issue.

    ``open``: the name of the status that is written to open an issue. ``closed``: the names of the
    statuses that mean closed; the first of them is written to close an issue. Every other status is
    read as open. A label that is not a keyword of the tracker yet is added to the keywords.
    """

    shape = Issue
    item_class = "issue"
    where = resource_of("issue", since=since())
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title", read=text),
        "description": Slot(at="@text"),
        "status": Slot(at="status.name", to="status", words={"open": "open", "closed": "closed"}),
        "priority": Slot(at="priority.name", to="priority", write=lambda name: name or NOTHING),
        "assignee": Slot(
            at="assignedto.username",
            to="assignedto",
            write=lambda name: name or NOTHING,
            of="Account",
        ),
        "labels": Slot(
            at="keyword",
            read=lambda keywords: sorted_names(word["name"] for word in keywords or ()),
        ),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="creator.username", of="Account"),
        "created": Slot(at="creation", read=in_utc),
        "updated": Slot(at="activity", read=in_utc),
    }
    fields = "title,status,priority,assignedto,keyword,messages,creator,creation,activity"

    def __init__(
        self,
        record_type: type[R],
        service: RoundupService,
        *,
        identity: IdentityMap,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
        open: str = "unread",
        closed: Sequence[str] = ("resolved", "done-cbb"),
    ) -> None:
        super().__init__(record_type, service, identity=identity, view=view, new=new)
        self._open, self._closed = open, tuple(closed)

    def ping(self) -> None:
        self.select("issue", "title", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        issues = self.select("issue", self.fields, query)
        texts = self.contents(None) if issues and not query else {}
        for data in issues:
            yield from self.inner(data, lambda issue: [self._with_text(issue, texts)])

    def fetch(self, key: str) -> Object | None:
        id = self._id(key)
        # A retired item can still be read by its id, but it is in no list.
        if id is None or not self.select("issue", "title", {"id": id}):
            return None
        found = self.item("issue", id, self.fields)
        return Object(self._with_text(found.data, {}), found.etag)

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        body = self.fill({"status": "open", **members}, None)
        self.complete_new(body)
        self._link_keywords(body)
        message = self.write_message(key, body.pop("@text", ""), self.service.user)
        return self.added("issue", {**body, "messages": [message]})

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        body = self.fill(members, None)
        self._link_keywords(body)
        text = body.pop("@text", None)
        first = found.data["@first"]
        answer: Answer | None = None
        if text is not None and first is not None:
            answer = self.rewrite(first, text)
        elif text is not None:
            body["messages"] = [self.write_message(key, text, self.service.user)]
        if body:
            answer = self.write("issue", found, body)
        return Answer(204, {}, b"", self.service.url) if answer is None else answer

    def destroy(self, key: str, found: Object) -> None:
        self.retire("issue", found)
        self.forget(key)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        values = super().values_in(data)
        if "status" in values:
            values["status"] = "closed" if values["status"] in self._closed else "open"
        return values

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        filled = super().fill(members, body)
        if "status" in filled:
            filled["status"] = self._closed[0] if filled["status"] == "closed" else self._open
        if priority := filled.get("priority"):
            filled["priority"] = self.linked("priority", priority)
            if filled["priority"] is None:
                raise RejectedError(f"Roundup has no priority with the name {priority!r}")
        return filled

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        return str(issue["id"])

    def _link_keywords(self, body: dict[str, Any]) -> None:
        """Replace the names of keywords in a body by their ids, and add those that are missing.

        In a list of names, Roundup takes numbers for ids, and ``+`` and ``-`` for operators.
        """
        names = body.get("keyword")
        if not names:
            return
        known = self._keywords()
        for name in names:
            if name not in known:
                # 409: another worker has added the keyword in the meantime.
                self.service.request("POST", "/keyword", body={"name": name}, allow=(409,))
        if any(name not in known for name in names):
            known = self._keywords()
        lost = [name for name in names if name not in known]
        if lost:
            raise RejectedError(f"Roundup keeps no keyword with the name {lost[0]!r}")
        body["keyword"] = [known[name] for name in names]

    def _keywords(self) -> dict[str, str]:
        found = self.select("keyword", "name", {})
        return {data["name"]: str(data["id"]) for data in found if "name" in data}

    def _id(self, key: str) -> str | None:
        path = self.path_of(key)
        return None if path is None else path.rpartition("/")[2]

    def _with_text(
        self, data: dict[str, Any], texts: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        first = next(iter(message_ids(data)), None)
        text, message = "", {}
        if first is not None:
            read = texts.get(first) or self.contents([first])[first]
            if isinstance(read, Unreadable):
                raise read.error
            message = dict(read)
            text = str(message["content"] or "")
        return {
            **data,
            "@first": first,
            "@text": "" if text == EMPTY else text,
            "@messageid": message.get("messageid"),
        }
