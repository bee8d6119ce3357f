"""Records in a Roundup issue tracker.

It owns what Roundup calls things, and in how many steps they are written. It knows no other
tracker. Written against Roundup 2.6 with its classic schema.

An issue's description is the content of its first message; the others are its comments. Each
message that eventsync writes carries the record's key in its ``messageid``, as a mail would, by
which it is found again.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, TypeVar
from urllib.parse import unquote, urlsplit

from eventsync.errors import DependencyError, EventSyncError, RejectedError
from eventsync.identity import IdentityMap
from eventsync.record import Record
from eventsync.stores.rest import Answer, Basic, Numbers, Object, Resource, Service, Since
from eventsync.stores.trackers.tracker import TrackerAccessor, quoted, sorted_names
from eventsync.view import View

__all__ = ["RoundupAccounts", "RoundupComments", "RoundupIssues", "RoundupService"]

R = TypeVar("R", bound=Record)
_EMPTY: Final = "(no text)"
"""In place of an empty text, which a message cannot have."""
_NOTHING: Final = ""
"""What unsets a link; a null is passed over."""
_TIME: Final = "%Y-%m-%d.%H:%M:%S"
_MISSING: Final = re.compile(r"property \w+: .* is not a \w+")
_MESSAGE_ID: Final = re.compile(r"<eventsync\.([\w.-]+)\.([\w.%~]+)@eventsync>", re.ASCII)
_TRIES: Final = 5


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


class _Items(TrackerAccessor[R]):
    """Items of one class of the tracker's database."""

    service: RoundupService
    item_class: ClassVar[str] = ""
    fields: ClassVar[str] = ""

    def listed(
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
        return self._sent(
            "PATCH", f"/{item_class}/{found.data['id']}", body, {"If-Match": found.etag or ""}
        )

    def retire(self, item_class: str, found: Object) -> None:
        """Retire an item that is as it was found. Raises ``OvertakenError``."""
        # It reads a body even where there is none.
        self._sent(
            "DELETE", f"/{item_class}/{found.data['id']}", {}, {"If-Match": found.etag or ""}
        )

    def added(self, item_class: str, body: Mapping[str, Any]) -> Answer:
        """Create an item."""
        return self.service.request("POST", f"/{item_class}", body=body)


def _resource(item_class: str, *, since: Since | None = None) -> Resource:
    return Resource(
        items=f"/{item_class}",
        item=f"/{item_class}/{{id}}",
        pages=Numbers(
            items="data.collection", name="@page_index", size_name="@page_size", size=100
        ),
        body="data",
        since=since,
    )


def _since() -> Since:
    return Since(
        updated="activity",
        query={"activity": "{since};"},
        parse=lambda text: dt.datetime.strptime(text, _TIME),
        show=lambda moment: moment.strftime(_TIME),
    )


class _Messages(_Items[R]):
    """What issues and comments share: texts are the content of messages."""

    def __init__(
        self,
        record_type: type[R],
        service: RoundupService,
        *,
        identity: IdentityMap,
        view: View | None = None,
    ) -> None:
        resource = _resource(self.item_class, since=_since())
        super().__init__(record_type, service, resource, view=view, identity=identity)
        # Messages of attempts that came no further than these.
        self._left: dict[str, str] = {}

    def message_id(self, key: str) -> str:
        """The ``messageid`` by which the message of a record is found."""
        return f"<eventsync.{self.type.name}.{quoted(key)}@eventsync>"

    def marker_in(self, data: dict[str, Any]) -> str | None:
        found = _MESSAGE_ID.fullmatch(str(data.get("@messageid") or ""))
        return unquote(found[2]) if found and found[1] == self.type.name else None

    def find_marked(self, key: str) -> str | None:
        self._left.pop(key, None)
        query = {"messageid:": self.message_id(key)}
        for message in self.listed("msg", "messageid", query):
            owners = self.listed("issue", "messages", {"messages": message["id"]})
            if not owners:
                self._left[key] = message["id"]
            for owner in owners:
                return self.id_of_marked(owner, message["id"])
        return None

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        """The id of the object whose marker is in a message of an issue."""
        raise NotImplementedError

    def write_message(self, key: str, text: str, author: str) -> str:
        """The id of a message of that content that no issue has yet."""
        content = text or _EMPTY
        left = self._left.pop(key, None)
        if left is not None:
            self.rewrite(left, content)
            return left
        # The date is that of now.
        body = {
            "content": content,
            "author": author,
            "messageid": self.message_id(key),
            "date": ".",
        }
        return str(self.added("msg", body).json()["data"]["id"])

    def rewrite(self, message: str, content: str) -> Answer:
        """Put another content into a message."""
        return self.write("msg", self.item("msg", message), {"content": content or _EMPTY})

    def contents(self, messages: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """By id, messages; ``None`` for all that are not retired."""
        if messages is None:
            found = self.listed("msg", "content,messageid,author", {})
            return {data["id"]: data for data in found}
        return {id: self.item("msg", id).data for id in messages}


class RoundupIssues(_Messages[R]):
    """Issues. ``open``, ``closed``: names of statuses, the first of which is written.

    Every status that is not one of ``closed`` reads as ``open``. A label that the tracker does not
    have among its keywords yet is added to them. Removing an issue retires it.
    """

    item_class = "issue"
    holds = frozenset({"title", "description", "status", "priority", "assignee", "labels"})
    references: ClassVar[Mapping[str, str]] = {"assignee": "Account"}
    fields = "title,status,priority,assignedto,keyword,messages,activity"

    def __init__(
        self,
        record_type: type[R],
        service: RoundupService,
        *,
        identity: IdentityMap,
        view: View | None = None,
        open: str = "unread",
        closed: Sequence[str] = ("resolved", "done-cbb"),
    ) -> None:
        view = view or View(omit=("milestone",))
        super().__init__(record_type, service, identity=identity, view=view)
        self._open, self._closed = open, tuple(closed)

    def ping(self) -> None:
        self.listed("issue", "title", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        issues = self.listed("issue", self.fields, query)
        texts = self.contents(None) if issues and not query else {}
        for data in issues:
            yield self._with_text(data, texts)

    def fetch(self, key: str) -> Object | None:
        id = self._id(key)
        # An item that is retired is still there to be read, but in no list.
        if id is None or not self.listed("issue", "title", {"id": id}):
            return None
        found = self.item("issue", id)
        return Object(self._with_text(found.data, {}), found.etag)

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        body = self.fill({"status": "open", **members}, None)
        self._add_keywords(body.get("keyword", ()))
        message = self.write_message(key, body.pop("@text", ""), self.service.user)
        return self.added("issue", {**body, "messages": [message]})

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        body = self.fill(members, None)
        self._add_keywords(body.get("keyword", ()))
        text = body.pop("@text", None)
        first = found.data["@first"]
        answer: Answer | None = None
        if text is not None and first is not None:
            answer = self.rewrite(first, text)
        elif text is not None:
            body["messages"] = [self.write_message(key, text, self.service.user)]
        if body:
            answer = self.write("issue", found, body)
        assert answer is not None
        return answer

    def destroy(self, key: str, found: Object) -> None:
        self.retire("issue", found)
        assert self.identity is not None
        self.identity.forget(self.type.name, key)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        status, priority = data.get("status"), data.get("priority")
        assignee = data.get("assignedto")
        return self.only_held(
            {
                "title": data.get("title") or "",
                "description": data["@text"],
                "status": "closed" if status and status["name"] in self._closed else "open",
                "priority": priority and priority["name"],
                "assignee": self.referred("assignee", assignee and assignee["username"]),
                "labels": sorted_names(label["name"] for label in data.get("keyword") or ()),
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        filled: dict[str, Any] = {}
        for name, held in members.items():
            if name == "status":
                filled["status"] = self._closed[0] if held == "closed" else self._open
            elif name == "assignee":
                filled["assignedto"] = self.reference(name, held) or _NOTHING
            elif name == "labels":
                filled["keyword"] = held
            elif name == "description":
                filled["@text"] = held
            elif name == "priority":
                filled[name] = held or _NOTHING
            elif name == "title":
                filled[name] = held
        return filled

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        return str(issue["id"])

    def _add_keywords(self, names: Sequence[str]) -> None:
        if not names:
            return
        known = {data["name"] for data in self.listed("keyword", "name", {})}
        for name in names:
            if name not in known:
                # Another worker may have added it meanwhile.
                self.service.request("POST", "/keyword", body={"name": name}, allow=(409,))

    def _id(self, key: str) -> str | None:
        path = self.path_of(key)
        return None if path is None else path.rpartition("/")[2]

    def _with_text(
        self, data: dict[str, Any], texts: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, Any]:
        first = min((m["id"] for m in data["messages"]), key=int, default=None)
        text, message = "", {}
        if first is not None:
            message = dict(texts.get(first) or self.contents([first])[first])
            text = str(message["content"] or "")
        return {
            **data,
            "@first": first,
            "@text": "" if text == _EMPTY else text,
            "@messageid": message.get("messageid"),
        }


class RoundupComments(_Messages[R]):
    """Comments: the messages of an issue but for the first. They cannot move to another issue.

    A comment without an author is written, and read, as one of the service's own user: have it use
    a user that nobody else does.
    """

    item_class = "msg"
    holds = frozenset({"issue", "author", "body"})
    references: ClassVar[Mapping[str, str]] = {"issue": "Issue", "author": "Account"}

    def ping(self) -> None:
        self.listed("msg", "messageid", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        recent = None
        if query:
            recent = {data["id"]: data for data in self.listed("msg", "activity", query)}
            if not recent:
                return
        issues = self.listed("issue", "messages", {})
        texts = self.contents(None if recent is None else list(recent))
        for issue in issues:
            for id in sorted((m["id"] for m in issue["messages"]), key=int)[1:]:
                if id in texts:
                    activity = {} if recent is None else {"activity": recent[id]["activity"]}
                    yield {**self._comment(texts[id], issue), **activity}

    def fetch(self, key: str) -> Object | None:
        path = self.path_of(key)
        if path is None:
            return None
        id = path.rpartition("/")[2]
        for issue in self.listed("issue", "messages", {"messages": id}):
            if id != min((m["id"] for m in issue["messages"]), key=int):
                found = self.item("msg", id)
                return Object(self._comment(found.data, issue), found.etag)
        return None

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        issue = self.reference("issue", members.get("issue"))
        if issue is None:
            raise RejectedError(f"{self.type.name} {key!r} is about no issue")
        author = self.reference("author", members.get("author")) or self.service.user
        message = self.write_message(key, members.get("body", ""), author)
        found = self.item("issue", issue)
        self.write("issue", found, {"@op": "add", "messages": [message]})
        return self.service.request("GET", f"/msg/{message}")

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        if "issue" in members:
            raise RejectedError(f"{self.type.name} {key!r} cannot move to another issue")
        body: dict[str, Any] = {}
        if "body" in members:
            body["content"] = members["body"] or _EMPTY
        if "author" in members:
            body["author"] = self.reference("author", members["author"]) or self.service.user
        return self.write("msg", found, body)

    def destroy(self, key: str, found: Object) -> None:
        issue = self.item("issue", found.data["@issue"])
        self.write("issue", issue, {"@op": "remove", "messages": [found.data["id"]]})
        self.retire("msg", found)
        assert self.identity is not None
        self.identity.forget(self.type.name, key)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        author, text = data.get("author"), str(data.get("content") or "")
        name = author and author["username"]
        return self.only_held(
            {
                "issue": self.referred("issue", data["@issue"]),
                # What the service's own user says it says for nobody.
                "author": self.referred("author", None if name == self.service.user else name),
                "body": "" if text == _EMPTY else text,
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        return dict(members)

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        return message

    def _comment(self, message: Mapping[str, Any], issue: Mapping[str, Any]) -> dict[str, Any]:
        return {**message, "@issue": issue["id"], "@messageid": message.get("messageid")}


class RoundupAccounts(_Items[R]):
    """Users, known by the name they log in with, which is the record's key.

    A new one has the role ``User`` and no password; removing one retires it.
    """

    item_class = "user"
    holds = frozenset({"name", "address"})
    fields = "username,realname,address"

    def __init__(
        self, record_type: type[R], service: RoundupService, *, view: View | None = None
    ) -> None:
        pages = _resource("user").pages
        resource = Resource(items="/user", item="/user/{key}", pages=pages)
        super().__init__(record_type, service, resource, view=view)
        self._key = self.view.names[self.type.keys[0]]

    def ping(self) -> None:
        self.listed("user", "username", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield from self.listed("user", self.fields, query)

    def fetch(self, key: str) -> Object | None:
        name = next(iter(self.type.key_values(key).values()))
        for data in self.listed("user", "username", {"username:": name}):
            return self.item("user", data["id"])
        return None

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        filled = self.fill(members, None)
        body = {"roles": "User", **{name: held for name, held in filled.items() if held}}
        answer = self.service.request("POST", "/user", body=body, allow=(409,))
        if answer.status == 409:
            if self.fetch(key) is not None:
                raise self._overtaken(key)
            raise RejectedError(self.service.meaning("POST", answer).message)
        return answer

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        return self.write("user", found, self.fill(members, None))

    def destroy(self, key: str, found: Object) -> None:
        self.retire("user", found)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.only_held(
            {
                self._key: data["username"],
                "name": data.get("realname") or "",
                "address": data.get("address"),
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        own = {self._key: "username", "name": "realname", "address": "address"}
        return {own[name]: held or _NOTHING for name, held in members.items() if name in own}
