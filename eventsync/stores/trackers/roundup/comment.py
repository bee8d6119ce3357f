"""The comments of a Roundup tracker."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Object
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.record import Comment
from eventsync.stores.trackers.roundup.item import in_utc, resource_of, since
from eventsync.stores.trackers.roundup.message import EMPTY, FIELDS, Messages, message_ids
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["RoundupComments"]

R = TypeVar("R", bound=Record)


class RoundupComments(Messages[R]):
    """Comments: the messages of an issue except the first. They cannot move to another issue.

    A comment without an author is written under the Roundup account that eventsync logs in with. A
    comment under this account is read as a comment without an author. Therefore give eventsync an
    account that no person uses.
    """

    shape = Comment
    item_class = "msg"
    where = resource_of("msg", since=since())
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@issue", of="Issue", fixed="cannot move to another issue"),
        "author": Slot(at="author.username", to="author", of="Account"),
        "body": Slot(
            at="content",
            read=lambda content: "" if content == EMPTY else text(content),
            write=lambda content: content or EMPTY,
        ),
    }

    told: ClassVar[Mapping[str, Slot]] = {
        "created": Slot(at="creation", read=in_utc),
        "updated": Slot(at="activity", read=in_utc),
    }

    def ping(self) -> None:
        self.select("msg", "messageid", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        recent = None
        if query:
            changed = self.select("msg", "activity", query)
            recent = {data["id"]: data for data in changed if "id" in data}
            if not recent:
                return
        issues = self.select("issue", "messages", {})
        texts = self.contents(None if recent is None else list(recent))

        def comments(issue: dict[str, Any]) -> Iterator[dict[str, Any]]:
            for id in message_ids(issue)[1:]:
                if isinstance(texts.get(id), Unreadable):
                    yield texts[id]
                elif id in texts:
                    activity = {} if recent is None else {"activity": recent[id]["activity"]}
                    yield {**self._comment(texts[id], issue), **activity}

        for issue in issues:
            yield from self.inner(issue, comments)

    def fetch(self, key: str) -> Object | None:
        path = self.path_of(key)
        if path is None:
            return None
        id = path.rpartition("/")[2]
        for issue in self.select("issue", "messages", {"messages": id}):
            if id != message_ids(issue)[0]:
                found = self.item("msg", id, FIELDS)
                return Object(self._comment(found.data, issue), found.etag)
        return None

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        issue = self.reference("issue", members.get("issue"))
        if issue is None:
            raise RejectedError(
                f"{self.type.name} {key!r} has no issue", hint="set its field issue"
            )
        author = self.reference("author", members.get("author")) or self.service.user
        found = self.item("issue", issue)
        if not message_ids(found.data):
            self._describe(key, found)
        message = self.write_message(key, members.get("body", ""), author)
        found = self.item("issue", issue)
        self.write("issue", found, {"@op": "add", "messages": [message]})
        return self.service.request("GET", f"/msg/{message}")

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        if "author" in body:
            body["author"] = body["author"] or self.service.user
        return self.write("msg", found, body)

    def destroy(self, key: str, found: Object) -> None:
        issue = self.item("issue", found.data["@issue"])
        self.write("issue", issue, {"@op": "remove", "messages": [found.data["id"]]})
        self.retire("msg", found)
        self.forget(key)

    def referred(self, name: str, id: str) -> str | None:
        # A comment under the account of eventsync has no author.
        if name == "author" and id == self.service.user:
            return None
        return super().referred(name, id)

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        return message

    def _describe(self, key: str, issue: Object) -> None:
        """Add an empty description to an issue without messages.

        The first message of an issue is its description, so the comment would become that.
        ``key``: the key of the comment.
        """
        unattached = self._unattached.pop(key, None)
        if unattached is not None:  # it is older than the description, so it would come first
            self.retire("msg", self.item("msg", unattached))
        body = {"content": EMPTY, "author": self.service.user, "date": "."}
        message = str(self.added("msg", body).json()["data"]["id"])
        self.write("issue", issue, {"@op": "add", "messages": [message]})

    def _comment(self, message: Mapping[str, Any], issue: Mapping[str, Any]) -> dict[str, Any]:
        return {**message, "@issue": issue["id"], "@messageid": message.get("messageid")}
