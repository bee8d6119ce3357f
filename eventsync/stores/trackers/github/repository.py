"""The objects of a GitHub repository: issues, comments, milestones and labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer, Object, Resource, Since
from eventsync.stores.rest.path import at
from eventsync.stores.rest.status import MovedError
from eventsync.stores.trackers.github.service import (
    PAGES,
    GitHubAccessor,
    GitHubService,
    repository_path,
)
from eventsync.stores.trackers.marker import MarkedAccessor, marked
from eventsync.stores.trackers.record import Comment, Issue, Label, Milestone
from eventsync.stores.trackers.slot import Slot, day, text, utc
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["GitHubComments", "GitHubIssues", "GitHubLabels", "GitHubMilestones"]

R = TypeVar("R", bound=Record)
_NO_COLOR: Final = "ededed"
"""The color that GitHub gives to a label if none is chosen. Stands for an empty color."""
_REDIRECTS: Final = 5
_STATES: Final = {"open": "open", "closed": "closed"}
_SINCE: Final = Since(updated="updated_at", query={"since": "{since}"}, show=utc)


class _RepositoryAccessor(GitHubAccessor[R]):
    """The base of accessors of a repository. ``repository``: its full name, ``owner/name``."""

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        repository: str,
        *,
        identity: IdentityMap | None = None,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        self.project_key = self._repository = repository
        super().__init__(
            record_type, service, repository_path(repository), identity=identity, view=view, new=new
        )

    def read_alone(self, path: str, *, query: Mapping[str, str] | None = None) -> Answer | None:
        try:
            return super().read_alone(path, query=query)
        except MovedError as error:
            if self._is_in_another(error.to):
                return None  # transferred: this repository has it no more
            raise

    def _is_in_another(self, url: str) -> bool:
        """Return whether a redirect leads to an object that is now in another repository.

        A repository with a new name redirects, too, but then its list does as well. What cannot be
        read at the other end is not known to be there.
        """
        self.ping()  # raises if the whole repository has another name
        try:
            answer = self._followed(url)
            found = None if answer is None else answer.json()
            there = at(found, "repository_url") or at(found, "issue_url")
        except (RecordError, ConfigError):
            return False  # the redirect itself is reported
        if not isinstance(there, str) or "/repos/" not in there:
            return False
        # The URL of a repository, or of an issue in one.
        repository = there.rpartition("/repos/")[2].split("/")[:2]
        return len(repository) == 2 and "/".join(repository).lower() != self._repository.lower()

    def _followed(self, url: str) -> Answer | None:
        """Return the answer at the end of the redirects of an issue that moved several times."""
        for _ in range(_REDIRECTS):
            try:
                return self.service.read_one(url)
            except MovedError as error:
                url = error.to
        raise RecordError(f"{self!r}: more than {_REDIRECTS} redirects for one object")


def _issue_in(url: str) -> tuple[str, str]:
    """Return the repository and the number in the URL of an issue."""
    owner, name, _, number = url.rsplit("/", 4)[1:]
    return f"{owner}/{name}", number


class GitHubIssues(MarkedAccessor[R], _RepositoryAccessor[R]):
    """Issues, without the pull requests that GitHub lists among them.

    A record has one assignee: the first assignee of the issue at GitHub. A write of this field
    removes the other assignees. GitHub ignores an assignee who has no access to the repository. An
    issue has no priority.
    """

    shape = Issue
    where = Resource(
        items="./issues",
        item="./issues/{id}",
        id="number",
        query={"state": "all", "sort": "created", "direction": "asc"},
        pages=PAGES,
        etags=False,
        returns=True,
        since=_SINCE,
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="body", marked=True),
        "status": Slot(at="state", words=_STATES, new="open"),
        "assignee": Slot(
            at="assignee.login",
            to="assignees",
            write=lambda login: [] if login is None else [login],
            of="Account",
        ),
        "milestone": Slot(
            at="milestone.number",
            to="milestone",
            write=lambda number: None if number is None else int(number),
            of="Milestone",
        ),
        "labels": Slot(
            at="labels",
            read=lambda labels: sorted_names(
                one if isinstance(one, str) else one["name"] for one in labels
            ),
        ),
    }

    extra: ClassVar[Mapping[str, Slot]] = {
        "parent": Slot(at="parent_issue_url", to="@parent", of="Issue", omitted=True, new=""),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="user.login", of="Account"),
        "url": Slot(at="html_url"),
        "created": Slot(at="created_at"),
        "updated": Slot(at="updated_at"),
    }

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        seen: dict[str, str] = {}
        for label in members.get("labels") or ():
            if seen.setdefault(label.lower(), label) != label:
                raise RejectedError(
                    f"GitHub takes the labels {seen[label.lower()]!r} and {label!r} for the same",
                    hint="use one of them",
                )
        return super().fill(members, body)

    def present(self, data: Mapping[str, Any]) -> bool:
        deleted = self.parts(data)[2] and data["state"] == "closed"
        return "pull_request" not in data and not deleted

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        if "@parent" not in body:
            return super().send(key, found, body)
        number = body.pop("@parent")
        if body:
            super().send(key, found, body)
        child = {"sub_issue_id": found.data["id"]}
        if number is not None:
            path = f"{self.resource.items}/{number}/sub_issues"
            self.posted(path, {**child, "replace_parent": True})
        elif url := found.data.get("parent_issue_url"):
            repository, former = _issue_in(url)
            path = f"{repository_path(repository)}/issues/{former}/sub_issue"
            # 404: somebody else has removed it from its parent.
            self.service.request("DELETE", path, body=child, allow=(404,))
        return self.service.request("GET", self.known_path(key))

    def referred(self, name: str, id: str) -> str | None:
        if self.view_slots[name].at != "parent_issue_url":
            return super().referred(name, id)
        repository, number = _issue_in(id)
        if repository.lower() == str(self.project_key).lower() or self.identity is None:
            return super().referred(name, number)
        # An issue of another repository, which may be one of the same store.
        known, there = self.identity.whole, f"{repository}:{number}"
        key = known.key_of(self.target_type(name), there) or known.minted(there)
        return split_key(key)[0]

    def destroy(self, key: str, found: Object) -> None:
        path = self.known_path(key)
        self.service.request("PUT", f"{path}/lock", body={"lock_reason": "resolved"})
        deleted = marked(self.parts(found.data)[0], self.type.name, key, deleted=True)
        body = {"state": "closed", "state_reason": "not_planned", "body": deleted}
        self.service.request("PATCH", path, body=body)
        self.forget(key)


class GitHubComments(MarkedAccessor[R], _RepositoryAccessor[R]):
    """Comments on issues, without the comments on pull requests.

    The author of a new comment is the owner of the token.
    """

    shape = Comment
    where = Resource(
        items="./issues/comments",
        item="./issues/comments/{id}",
        query={"sort": "created", "direction": "asc"},
        pages=PAGES,
        etags=False,
        returns=True,
        since=_SINCE,
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(
            at="issue_url",
            read=lambda url: url.rpartition("/")[2],
            of="Issue",
            fixed="cannot move to another issue",
        ),
        "body": Slot(at="body", marked=True),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="user.login", of="Account"),
        "url": Slot(at="html_url"),
        "created": Slot(at="created_at"),
        "updated": Slot(at="updated_at"),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return "/pull/" not in data["html_url"]

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        number = body.pop("issue_url", None)
        if number is None:
            raise RejectedError(
                f"{self.type.name} {key!r} has no issue", hint="set its field issue"
            )
        path = self.resource.items.replace("issues/comments", f"issues/{number}/comments")
        return self.posted(path, body)


class GitHubMilestones(MarkedAccessor[R], _RepositoryAccessor[R]):
    """Milestones. Removing a record deletes the milestone, but not its issues."""

    shape = Milestone
    where = Resource(
        items="./milestones",
        item="./milestones/{id}",
        id="number",
        query={"state": "all"},
        pages=PAGES,
        etags=False,
        returns=True,
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", marked=True),
        "status": Slot(at="state", words=_STATES),
        "due": Slot(
            at="due_on",
            read=day,
            # GitHub keeps only the date. Noon in UTC has the same date in nearly all time zones.
            write=lambda date: f"{date}T12:00:00Z",
            kept="cannot remove the date of a milestone; set another date",
        ),
    }


class GitHubLabels(_RepositoryAccessor[R]):
    """Labels. GitHub treats two names as the same if they differ only in case."""

    shape = Label
    where = Resource(
        items="./labels",
        item="./labels/{id}",
        pages=PAGES,
        etags=False,
        returns=True,
        taken=frozenset({422}),
    )
    keys = (Slot(at="name"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "color": Slot(
            at="color",
            read=lambda color: "" if color == _NO_COLOR else color,
            write=lambda color: color.lstrip("#").lower() or _NO_COLOR,
        ),
        "description": Slot(at="description", read=text),
    }
