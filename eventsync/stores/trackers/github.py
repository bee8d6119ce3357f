"""Records in the issues of a GitHub repository, and in the organization that it belongs to.

It owns what GitHub calls things. It knows no other tracker. Written against the published
description of GitHub's REST API, version 2022-11-28.

Issues, comments and milestones get their ids from GitHub; each that eventsync creates carries the
record's key in an HTML comment at the end of its text, by which it is found again. An issue cannot
be deleted: it is closed as not planned and locked, and its mark says that it is deleted. A
repository is archived instead. GitHub takes no conditional writes, so an edit that somebody makes
between the read and the write of the same field is overwritten.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError, RejectedError
from eventsync.identity import IdentityMap
from eventsync.key import split as split_key
from eventsync.record import Record
from eventsync.stores.rest import Answer, Links, Object, Resource, Service, Since, Token, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.marker import MarkedAccessor, marked
from eventsync.stores.trackers.record import (
    Account,
    Comment,
    Group,
    Issue,
    Label,
    Member,
    Milestone,
    Project,
)
from eventsync.stores.trackers.slot import Slot, day, text
from eventsync.stores.trackers.tracker import TrackerAccessor, sorted_names
from eventsync.view import View

__all__ = [
    "GitHubAccounts",
    "GitHubComments",
    "GitHubGroups",
    "GitHubIssues",
    "GitHubLabels",
    "GitHubMembers",
    "GitHubMilestones",
    "GitHubProjects",
    "GitHubService",
]

R = TypeVar("R", bound=Record)
_NO_COLOR: Final = "ededed"
"""The color that GitHub gives a label without one."""
_STATES: Final = {"open": "open", "closed": "closed"}
_PAGES: Final = Links(size=100)
_SINCE: Final = Since(
    updated="updated_at",
    query={"since": "{since}"},
    show=lambda moment: moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
)
_NOT_A_WORD: Final = re.compile(r"[^\w]+", re.ASCII)


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


class _GitHub(TrackerAccessor[R]):
    tracker = "GitHub"


class _OfRepository(_GitHub[R]):
    """``repository``: as in ``owner/name``."""

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        repository: str,
        *,
        identity: IdentityMap | None = None,
        view: View | None = None,
    ) -> None:
        super().__init__(record_type, service, _path(repository), identity=identity, view=view)


class _OfOrganization(_GitHub[R]):
    """``organization``: its login."""

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        organization: str,
        *,
        view: View | None = None,
    ) -> None:
        self.organization = organization
        super().__init__(
            record_type, service, filled("/orgs/{name}", {"name": organization}), view=view
        )


# -- of a repository -------------------------------------------------------------------------------


class GitHubIssues(MarkedAccessor[R], _OfRepository[R]):
    """Issues. Pull requests, which GitHub lists among them, are left out.

    An issue has one assignee here: the first, and writing it takes the others away. GitHub passes
    over an assignee who has no access to the repository. There is no priority.
    """

    shape = Issue
    where = Resource(
        items="./issues",
        item="./issues/{id}",
        id="number",
        query={"state": "all", "sort": "created", "direction": "asc"},
        pages=_PAGES,
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

    def present(self, data: Mapping[str, Any]) -> bool:
        deleted = self.parts(data)[2] and data["state"] == "closed"
        return "pull_request" not in data and not deleted

    def destroy(self, key: str, found: Object) -> None:
        path = self.path_of(key)
        assert path is not None
        assert self.identity is not None
        self.service.request("PUT", f"{path}/lock", body={"lock_reason": "resolved"})
        gone = marked(self.parts(found.data)[0], self.type.name, key, deleted=True)
        body = {"state": "closed", "state_reason": "not_planned", "body": gone}
        self.service.request("PATCH", path, body=body)
        self.identity.forget(self.type.name, key)


class GitHubComments(MarkedAccessor[R], _OfRepository[R]):
    """Comments on issues, not on pull requests. Their author is whose token it is."""

    shape = Comment
    where = Resource(
        items="./issues/comments",
        item="./issues/comments/{id}",
        query={"sort": "created", "direction": "asc"},
        pages=_PAGES,
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

    def present(self, data: Mapping[str, Any]) -> bool:
        return "/pull/" not in data["html_url"]

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        number = body.pop("issue_url", None)
        if number is None:
            raise RejectedError(f"{self.type.name} {key!r} is about no issue")
        path = self.resource.items.replace("issues/comments", f"issues/{number}/comments")
        return self.service.request("POST", path, body=body)


class GitHubMilestones(MarkedAccessor[R], _OfRepository[R]):
    """Milestones. Removing one deletes it; its issues stay."""

    shape = Milestone
    where = Resource(
        items="./milestones",
        item="./milestones/{id}",
        id="number",
        query={"state": "all"},
        pages=_PAGES,
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
            # It keeps the day; noon is on the same one in nearly all of the world.
            write=lambda date: f"{date}T12:00:00Z",
            kept="takes no date away from a milestone: give it another",
        ),
    }


class GitHubLabels(_OfRepository[R]):
    """Labels. GitHub takes names that differ in case only for the same."""

    shape = Label
    where = Resource(
        items="./labels",
        item="./labels/{id}",
        pages=_PAGES,
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


# -- of an organization ----------------------------------------------------------------------------


class GitHubProjects(_OfOrganization[R]):
    """The repositories of an organization, under their full names: ``owner/name``.

    Removing one archives it, and so it is no record any more; it is taken out of the archive when
    the record is there again.
    """

    shape = Project
    where = Resource(
        items="./repos",
        item="/repos/{id}",
        query={"type": "all", "sort": "full_name"},
        pages=_PAGES,
        etags=False,
        returns=True,
    )
    keys = (Slot(at="full_name", to="name", write=lambda name: name.partition("/")[2]),)
    slots: ClassVar[Mapping[str, Slot]] = {"description": Slot(at="description", read=text)}

    def path_of(self, key: str) -> str | None:
        (name,) = split_key(key)
        if name.partition("/")[0].lower() != self.organization.lower():
            raise RejectedError(
                f"{self.type.name} {key!r} is no repository of {self.organization}",
                hint=f"its key has to begin with {self.organization}/",
            )
        return _path(name)

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data["archived"]

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        path = self.path_of(key)
        assert path is not None
        if self.service.request("GET", path, allow=(404,)).status == 404:
            return super().post(key, body)
        self.service.request("PATCH", path, body={"archived": False})
        return self.service.request("PATCH", path, body=body)

    def destroy(self, key: str, found: Object) -> None:
        path = self.path_of(key)
        assert path is not None
        self.service.request("PATCH", path, body={"archived": True})


class GitHubAccounts(_OfOrganization[R]):
    """The members of an organization, under their logins. They can only be read.

    Their names and addresses take a request each: a view without them spares these.
    """

    shape = Account
    where = Resource(items="./members", item="/users/{id}", pages=_PAGES, etags=False)
    keys = (Slot(at="login"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email"),
    }
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "people sign up by themselves, and are invited by hand",
        "modify": "people describe themselves",
        "destroy": "people leave, or are removed by hand",
    }

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        alone = set(self.view.names) == set(self.type.keys)
        for data in super().objects(query):
            if alone:
                yield data
            else:
                path = filled("/users/{login}", {"login": data["login"]})
                yield self.service.request("GET", path).json()


class GitHubGroups(_OfOrganization[R]):
    """The teams of an organization, under what GitHub makes of their names for URLs.

    So the name of a team has to be one of which it makes the record's id. A team without a name is
    called as its id. Removing one deletes it.
    """

    shape = Group
    where = Resource(
        items="./teams",
        item="./teams/{id}",
        pages=_PAGES,
        etags=False,
        returns=True,
        taken=frozenset({422}),
    )
    keys = (Slot(at="slug", to=""),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name"),
        "description": Slot(at="description", read=text),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        return super().post(key, self._named(key, {"name": "", **body}))

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        return super().send(key, found, self._named(key, body))

    def _named(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        (slug,) = split_key(key)
        if "name" not in body:
            return body
        name = body["name"] or slug
        if _NOT_A_WORD.sub("-", name.lower()).strip("-") != slug:
            raise RejectedError(
                f"GitHub would not know a team of the name {name!r} as {slug!r}",
                hint="it takes the name in lower case, with - for what is no letter or digit",
            )
        return {**body, "name": name}


class GitHubMembers(_OfOrganization[R]):
    """Who is in which team: members of the organization only. An ordinary member's role is empty,
    that of others ``maintainer``."""

    shape = Member
    where = Resource(
        items="./teams/{in}/members",
        item="./teams/{group}/memberships/{account}",
        within=Within(items="./teams", id="slug"),
        pages=_PAGES,
        create="PUT",
        update="PUT",
        etags=False,
    )
    keys = (Slot(at="@in.slug", of="Group"), Slot(at="login", to="", of="Account"))
    slots: ClassVar[Mapping[str, Slot]] = {
        "role": Slot(
            at="role",
            read=lambda role: "" if role == "member" else role,
            words={"": "member", "maintainer": "maintainer"},
        )
    }

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for team in self.outer(query):
            path = filled(self.resource.items, {"in": team["slug"]})
            for role in ("member", "maintainer"):
                for page in self.resource.pages.walk(self.service, path, {"role": role}):
                    yield from ({**data, "role": role, "@in": team} for data in page)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        login = split_key(key)[1]
        path = filled("/orgs/{name}/members/{login}", {"name": self.organization, "login": login})
        if self.service.request("GET", path, allow=(302, 404)).status != 204:
            raise RejectedError(
                f"{login!r} is no member of {self.organization} at GitHub",
                hint="have them invited, then replay the dead letter",
            )
        return super().post(key, body)


def _path(repository: str) -> str:
    owner, slash, name = repository.partition("/")
    if not owner or not slash or not name or "/" in name:
        raise ConfigError(f"{repository!r} is no repository", hint="as in owner/name")
    return filled("/repos/{owner}/{name}", {"owner": owner, "name": name})
