"""Records in the issues of a GitHub repository.

It owns what GitHub calls things. It knows no other tracker. Written against the published
description of GitHub's REST API, version 2022-11-28.

Issues, comments and milestones get their ids from GitHub; each that eventsync creates carries the
record's key in an HTML comment at the end of its text, by which it is found again. An issue cannot
be deleted: it is closed as not planned and locked, and its mark says that it is deleted. GitHub
takes no conditional writes, so an edit that somebody makes between the read and the write of the
same field is overwritten.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Literal, TypeVar

from eventsync.errors import ConfigError, RejectedError
from eventsync.identity import IdentityMap
from eventsync.record import Record
from eventsync.stores.rest import (
    Answer,
    Links,
    Object,
    Resource,
    RestAccessor,
    Service,
    Since,
    Token,
)
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.tracker import TrackerAccessor, marked, sorted_names, unmarked
from eventsync.view import View

__all__ = ["GitHubComments", "GitHubIssues", "GitHubLabels", "GitHubMilestones", "GitHubService"]

R = TypeVar("R", bound=Record)
_NO_COLOR = "ededed"
"""The color that GitHub gives a label without one."""


class GitHubService(Service):
    """GitHub's REST API, or that of an own GitHub, ``url="https://github.example.org/api/v3"``.

    ``token``: one with the right to write issues, or what gives it. ``options``: of ``Service``.
    """

    forbidden_hint: ClassVar[str] = "give the token the right to write issues; the work waits"

    def __init__(
        self,
        token: str | Callable[[], str],
        *,
        url: str = "https://api.github.com",
        **options: Any,
    ) -> None:
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        super().__init__(url, auth=Token(token), headers=headers, **options)


class _Marked(TrackerAccessor[R]):
    """Objects whose text carries the record's key. ``text``: its name at GitHub."""

    text: ClassVar[str] = "body"
    kind: ClassVar[str] = ""
    item: ClassVar[str] = ""
    id: ClassVar[str] = "number"
    query: ClassVar[Mapping[str, str]] = {}
    by_time: ClassVar[bool] = True
    left_out: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        repository: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
    ) -> None:
        self.base = _base(repository)
        since = Since(
            updated="updated_at",
            query={"since": "{since}"},
            show=lambda moment: moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
        )
        resource = Resource(
            items=f"{self.base}/{self.kind}",
            item=f"{self.base}/{self.item or self.kind}/{{id}}",
            pages=Links(size=100),
            query=self.query,
            id=self.id,
            etags=False,
            returns=True,
            since=since if self.by_time else None,
        )
        if view is None:
            known = record_type.__record__.fields
            view = View(omit=tuple(name for name in self.left_out if name in known))
        super().__init__(record_type, service, resource, view=view, identity=identity)

    def parts(self, data: Mapping[str, Any]) -> tuple[str, str | None, bool]:
        """An object's text, the key it is marked with, and whether that says it is deleted."""
        return unmarked(data.get(self.text) or "", self.type.name)

    def marker_in(self, data: dict[str, Any]) -> str | None:
        _, key, deleted = self.parts(data)
        return None if deleted else key

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        body = self.fill(members, None)
        body[self.text] = marked(body.get(self.text, ""), self.type.name, key)
        return self.service.request("POST", self.created_at(members), body=body)

    def created_at(self, members: Mapping[str, Any]) -> str:
        """The path that a creation is posted to."""
        return self.resource.items

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        body = self.fill(members, None)
        if self.text in body and self.marker_in(found.data) is not None:
            body[self.text] = marked(body[self.text], self.type.name, key)
        path = self.path_of(key)
        assert path is not None
        return self._sent("PATCH", path, body, {})


class GitHubIssues(_Marked[R]):
    """Issues. Pull requests, which GitHub lists among them, are left out.

    An issue has one assignee here: the first, and writing it takes the others away. GitHub passes
    over an assignee who has no access to the repository. There is no priority.
    """

    kind = "issues"
    query: ClassVar[Mapping[str, str]] = {"state": "all", "sort": "created", "direction": "asc"}
    holds = frozenset({"title", "description", "status", "assignee", "milestone", "labels"})
    references: ClassVar[Mapping[str, str]] = {"assignee": "Account", "milestone": "Milestone"}
    left_out = ("priority",)

    def present(self, data: Mapping[str, Any]) -> bool:
        deleted = self.parts(data)[2] and data["state"] == "closed"
        return "pull_request" not in data and not deleted

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        status = _status(members.get("status", "open"))
        answer = super().create(key, {n: held for n, held in members.items() if n != "status"})
        if status == "closed":
            # A new issue is open. From here on it is there, whatever becomes of the rest.
            assert self.identity is not None
            self.identity.bind(self.type.name, key, str(answer.json()["number"]))
            answer = self.modify(key, Object(answer.json()), {"status": status})
        return answer

    def destroy(self, key: str, found: Object) -> None:
        path = self.path_of(key)
        assert path is not None
        assert self.identity is not None
        self.service.request("PUT", f"{path}/lock", body={"lock_reason": "resolved"})
        text = marked(self.parts(found.data)[0], self.type.name, key, deleted=True)
        body = {"state": "closed", "state_reason": "not_planned", self.text: text}
        self.service.request("PATCH", path, body=body)
        self.identity.forget(self.type.name, key)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        assignee, milestone = data.get("assignee"), data.get("milestone")
        number = milestone and str(milestone["number"])
        labels = (one if isinstance(one, str) else one["name"] for one in data["labels"])
        return self.only_held(
            {
                "title": data["title"],
                "description": self.parts(data)[0],
                "status": data["state"],
                "assignee": self.referred("assignee", assignee and assignee["login"]),
                "milestone": self.referred("milestone", number),
                "labels": sorted_names(labels),
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        sent: dict[str, Any] = {}
        for name, held in members.items():
            if name == "description":
                sent["body"] = held
            elif name == "status":
                sent["state"] = _status(held)
            elif name == "assignee":
                login = self.reference(name, held)
                sent["assignees"] = [] if login is None else [login]
            elif name == "milestone":
                number = self.reference(name, held)
                sent["milestone"] = None if number is None else int(number)
            elif name in ("title", "labels"):
                sent[name] = held
        return sent


class GitHubComments(_Marked[R]):
    """Comments on issues, not on pull requests. Their author is whose token it is."""

    kind = item = "issues/comments"
    id = "id"
    query: ClassVar[Mapping[str, str]] = {"sort": "created", "direction": "asc"}
    holds = frozenset({"issue", "body"})
    references: ClassVar[Mapping[str, str]] = {"issue": "Issue"}
    left_out = ("author",)

    def present(self, data: Mapping[str, Any]) -> bool:
        return "/pull/" not in data["html_url"]

    def created_at(self, members: Mapping[str, Any]) -> str:
        number = self.reference("issue", members.get("issue"))
        if number is None:
            raise RejectedError(f"a {self.type.name} is about no issue")
        return filled(f"{self.base}/issues/{{id}}/comments", {"id": number})

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        if "issue" in members:
            raise RejectedError(f"{self.type.name} {key!r} cannot move to another issue")
        return super().modify(key, found, members)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        number = data["issue_url"].rpartition("/")[2]
        return self.only_held(
            {"issue": self.referred("issue", number), "body": self.parts(data)[0]}
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        return {"body": members["body"]} if "body" in members else {}


class GitHubMilestones(_Marked[R]):
    """Milestones. Removing one deletes it; its issues stay."""

    kind = "milestones"
    query: ClassVar[Mapping[str, str]] = {"state": "all"}
    by_time = False
    text = "description"
    holds = frozenset({"title", "description", "status", "due"})

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        due = data.get("due_on")
        return self.only_held(
            {
                "title": data["title"],
                "description": self.parts(data)[0],
                "status": data["state"],
                "due": due and due[:10],
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        sent: dict[str, Any] = {}
        for name, held in members.items():
            if name == "status":
                sent["state"] = _status(held)
            elif name == "due" and held is not None:
                # It keeps the day; noon is on the same one in nearly all of the world.
                sent["due_on"] = f"{held}T12:00:00Z"
            elif name == "due":
                raise RejectedError(
                    "GitHub takes no date away from a milestone", hint="give it another date"
                )
            elif name in ("title", "description"):
                sent[name] = held
        return sent

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        return super().create(key, {n: held for n, held in members.items() if held is not None})


class GitHubLabels(RestAccessor[R]):
    """Labels. GitHub takes names that differ in case only for the same."""

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        repository: str,
        *,
        view: View | None = None,
    ) -> None:
        base = _base(repository)
        self._name = record_type.__record__.keys[0]
        super().__init__(
            record_type,
            service,
            Resource(
                items=f"{base}/labels",
                item=f"{base}/labels/{{{self._name}}}",
                paths={(view or View()).bind(record_type.__record__).names[self._name]: "name"},
                pages=Links(size=100),
                etags=False,
                returns=True,
            ),
            view=view,
        )

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        answer = self.service.request(
            "POST", self.resource.items, body=self.fill(members, None), allow=(422,)
        )
        if answer.status == 422:
            if self.fetch(key) is not None:
                raise self.overtaken(key)
            raise RejectedError(self.service.meaning("POST", answer).message)
        return answer

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        held = super().values_in(data)
        if "color" in held:
            held["color"] = "" if held["color"] == _NO_COLOR else held["color"]
        if "description" in held:
            held["description"] = held["description"] or ""
        return held

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        sent = super().fill(members, body)
        if "color" in sent:
            sent["color"] = sent["color"].lstrip("#").lower() or _NO_COLOR
        return sent


def _base(repository: str) -> str:
    owner, slash, name = repository.partition("/")
    if not owner or not slash or not name or "/" in name:
        raise ConfigError(f"{repository!r} is no repository", hint="as in owner/name")
    return filled("/repos/{owner}/{name}", {"owner": owner, "name": name})


def _status(held: Any) -> Literal["open", "closed"]:
    if held not in ("open", "closed"):
        raise RejectedError(f"GitHub knows no status {held!r}", hint="it knows open and closed")
    return "closed" if held == "closed" else "open"
