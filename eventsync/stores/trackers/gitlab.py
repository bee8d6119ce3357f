"""Records in the issues of a GitLab project, and in the groups and users beside.

It owns what GitLab calls things. It knows no other tracker. Written against the documentation of
GitLab's REST API, version 4.

Issues, comments and milestones get their ids from GitLab; each that eventsync creates carries the
record's key in an HTML comment at the end of its text, by which it is found again. GitLab takes no
conditional writes, so an edit that somebody makes between the read and the write of the same field
is overwritten. It carries out commands in texts (``/close`` on a line of its own): those of records
are written so that it does not.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import DependencyError, RejectedError
from eventsync.identity import IdentityMap
from eventsync.key import split as split_key
from eventsync.record import Record
from eventsync.stores.rest import Answer, Links, Object, Resource, Service, Since, Token, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.marker import MarkedAccessor
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
    "GitLabAccounts",
    "GitLabComments",
    "GitLabGroupAccounts",
    "GitLabGroups",
    "GitLabIssues",
    "GitLabLabels",
    "GitLabMembers",
    "GitLabMilestones",
    "GitLabProjects",
    "GitLabService",
]

R = TypeVar("R", bound=Record)
_NO_COLOR: Final = "#6699cc"
"""The color that GitLab gives a label without one."""
_ROLES: Final = {
    "guest": 10,
    "planner": 15,
    "reporter": 20,
    "developer": 30,
    "maintainer": 40,
    "owner": 50,
}
_PAGES: Final = Links(size=100)
_ALL: Final = {"state": "all", "order_by": "created_at", "sort": "asc"}
_COMMAND: Final = re.compile(r"^([ \t]*)(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)
_HARMLESS: Final = re.compile(r"^([ \t]*)\\(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)


def _changed(updated: str) -> Since:
    return Since(
        updated=updated,
        query={"updated_after": "{since}"},
        show=lambda moment: moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _said(held: Any) -> str:
    """A text as it was written by ``_quiet``."""
    return _HARMLESS.sub(r"\1\2", text(held))


def _quiet(held: str) -> str:
    """A text that GitLab takes for nothing but a text, and shows as it is."""
    return _COMMAND.sub(r"\1\\\2", held)


class GitLabService(Service):
    """GitLab's REST API; ``url`` for a GitLab of your own.

    ``token``: one with the scope ``api``, or what gives it. ``options``: of ``Service``.
    """

    forbidden_hint: ClassVar[str] = "give the token the scope api and a role; the work waits"

    def __init__(
        self, token: str | Callable[[], str], *, url: str = "https://gitlab.com", **options: Any
    ) -> None:
        super().__init__(f"{url.rstrip('/')}/api/v4", auth=Token(token), **options)

    def user(self, name: str) -> dict[str, Any] | None:
        """The user of that name, blocked or not, ``None`` if there is none."""
        for found in self.request("GET", "/users", query={"username": name}).json():
            if found["username"].lower() == name.lower():
                return dict(found)
        return None


class _GitLab(TrackerAccessor[R]):
    tracker = "GitLab"
    service: GitLabService

    def user_id(self, name: str, username: str) -> int:
        """The id of the user that the field ``name`` refers to. Raises ``DependencyError``."""
        found = self.service.user(username)
        if found is None:
            raise self.missing(name, username)
        return int(found["id"])


class _OfProject(_GitLab[R]):
    """``project``: its path, as in ``group/name``."""

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        project: str,
        *,
        identity: IdentityMap | None = None,
        view: View | None = None,
    ) -> None:
        base = filled("/projects/{path}", {"path": project})
        super().__init__(record_type, service, base, identity=identity, view=view)


class _OfGroup(_GitLab[R]):
    """``group``: its path."""

    def __init__(
        self, record_type: type[R], service: GitLabService, group: str, *, view: View | None = None
    ) -> None:
        self.group = group
        base = filled("/groups/{path}", {"path": group})
        super().__init__(record_type, service, base, view=view)


class _OfInstance(_GitLab[R]):
    def __init__(
        self, record_type: type[R], service: GitLabService, *, view: View | None = None
    ) -> None:
        super().__init__(record_type, service, view=view)


# -- of a project ----------------------------------------------------------------------------------


class GitLabIssues(MarkedAccessor[R], _OfProject[R]):
    """Issues. Removing one deletes it, which only an owner of the project may.

    An issue has one assignee here: the first, and writing it takes the others away.
    """

    shape = Issue
    destroyer = "an owner of the project"
    where = Resource(
        items="./issues",
        item="./issues/{id}",
        id="iid",
        query=_ALL,
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_changed("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=_said, write=_quiet, marked=True),
        "status": Slot(
            at="state",
            to="state_event",
            read=lambda state: "closed" if state == "closed" else "open",
            words={"open": "reopen", "closed": "close"},
            new="open",
        ),
        "assignee": Slot(
            at="assignee.username",
            to="assignee_ids",
            write=lambda id: [] if id is None else [int(id)],
            of="Account",
        ),
        "milestone": Slot(
            at="milestone.id",
            to="milestone_id",
            write=lambda id: 0 if id is None else int(id),
            of="Milestone",
        ),
        "labels": Slot(at="labels", read=sorted_names, write=",".join),
    }

    def reference(self, name: str, held: str | None) -> str | None:
        known = super().reference(name, held)
        if known is None or name != "assignee":
            return known
        return str(self.user_id(name, known))

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for label in members.get("labels") or ():
            if "," in label:
                raise RejectedError(f"GitLab takes no label with a comma in its name: {label!r}")
        return super().fill(members, body)


class GitLabComments(MarkedAccessor[R], _OfProject[R]):
    """Comments on issues, not those that GitLab itself makes. Their author is whose token it is."""

    shape = Comment
    where = Resource(
        items="./issues/{in}/notes",
        item="./issues/{in}/notes/{id}",
        within=Within(items="./issues", query=_ALL, id="iid"),
        query={"order_by": "created_at", "sort": "asc"},
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_changed("@in.updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.iid", read=text, of="Issue", fixed="cannot move to another issue"),
        "body": Slot(at="body", read=_said, write=_quiet, marked=True),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data["system"]


class GitLabMilestones(MarkedAccessor[R], _OfProject[R]):
    """Milestones of the project, not of its groups. Removing one deletes it; its issues stay."""

    shape = Milestone
    where = Resource(
        items="./milestones",
        item="./milestones/{id}",
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_changed("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=text, marked=True),
        "status": Slot(
            at="state",
            to="state_event",
            read=lambda state: "closed" if state == "closed" else "open",
            words={"open": "activate", "closed": "close"},
            new="open",
        ),
        "due": Slot(at="due_date", read=day, write=text),
    }


class GitLabLabels(_OfProject[R]):
    """Labels of the project, not of its groups."""

    shape = Label
    where = Resource(
        items="./labels",
        item="./labels/{id}",
        query={"include_ancestor_groups": "false"},
        single={"include_ancestor_groups": "false"},
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="name"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "color": Slot(
            at="color",
            read=lambda color: "" if color.lower() == _NO_COLOR else color.lower().lstrip("#"),
            write=lambda color: f"#{color.lstrip('#').lower()}" if color else _NO_COLOR,
        ),
        "description": Slot(at="description", read=text),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        return super().post(key, {"color": _NO_COLOR, **body})


# -- of a group ------------------------------------------------------------------------------------


class GitLabProjects(_OfGroup[R]):
    """The projects of a group and those within, under their paths: ``group/name``.

    Removing one archives it, and so it is no record any more; it is taken out of the archive when
    the record is there again.
    """

    shape = Project
    where = Resource(
        items="./projects",
        item="/projects/{id}",
        creations="/projects",
        query={"include_subgroups": "true", "with_shared": "false", "archived": "false"},
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="path_with_namespace", to="path"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name"),
        "description": Slot(at="description", read=text),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data["archived"]

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        path = self.path_of(key)
        assert path is not None
        space, _, name = body.pop("path").rpartition("/")
        if not f"{space}/".startswith(f"{self.group}/"):
            raise RejectedError(
                f"{self.type.name} {key!r} is no project of {self.group}",
                hint=f"its key has to begin with {self.group}/",
            )
        body["name"] = body.get("name") or name
        if self.service.request("GET", path, allow=(404,)).status != 404:
            self.service.request("POST", f"{path}/unarchive")
            return self.service.request("PUT", path, body=body)
        body |= {"path": name, "namespace_id": _group_id(self.service, space)}
        return super().post(key, body)

    def destroy(self, key: str, found: Object) -> None:
        self.service.request("POST", f"{self.path_of(key)}/archive")


class GitLabGroupAccounts(_OfGroup[R]):
    """The users in a group and those above it, under their names. They can only be read."""

    shape = Account
    where = Resource(items="./members/all", item="/users/{id}", pages=_PAGES, etags=False)
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email"),
    }
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "people sign up by themselves",
        "modify": "people describe themselves",
        "destroy": "people leave, or are removed by hand",
    }

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        query = {"query": name}
        found = (data for data in self.objects(query) if data["username"] == name)
        return next((Object(data) for data in found), None)


class GitLabMembers(_OfInstance[R]):
    """Who is directly in which group, as ``guest``, ``planner``, ``reporter``, ``developer``,
    ``maintainer`` or ``owner``."""

    shape = Member
    where = Resource(
        items="/groups/{in}/members",
        item="/groups/{group}/members/{account}",
        within=Within(items="/groups", query={"min_access_level": "10"}, id="full_path"),
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (
        Slot(at="@in.full_path", of="Group"),
        Slot(at="username", to="user_id", write=int, of="Account"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "role": Slot(
            at="access_level",
            read={level: role for role, level in _ROLES.items()}.get,
            words=_ROLES,
        )
    }

    def path_of(self, key: str) -> str | None:
        group, name = split_key(key)
        user = self.service.user(name)
        if user is None:
            return None
        return filled(self.where.item, {"group": group, "account": user["id"]})

    def reference(self, name: str, held: str | None) -> str | None:
        known = super().reference(name, held)
        if known is None or self.held[name].of != "Account":
            return known
        return str(self.user_id(name, known))


# -- of the instance -------------------------------------------------------------------------------


class GitLabGroups(_OfInstance[R]):
    """The groups that the token's user is in, under their paths. A group without a name is called
    as its path ends."""

    shape = Group
    where = Resource(
        items="/groups",
        item="/groups/{id}",
        query={"min_access_level": "10"},
        single={"with_projects": "false"},
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="full_path", to="path"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name"),
        "description": Slot(at="description", read=text),
    }
    refuses: ClassVar[Mapping[str, str]] = {
        "destroy": "with a group all that is in it would go; that is done by hand"
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        space, _, name = body["path"].rpartition("/")
        body |= {"path": name, "name": body.get("name") or name}
        if space:
            body["parent_id"] = _group_id(self.service, space)
        return super().post(key, body)


class GitLabAccounts(_OfInstance[R]):
    """The users of a GitLab of your own; the token has to be an administrator's.

    A new one gets a mail to choose a password. Removing one blocks it, and it is unblocked when the
    record is there again.
    """

    shape = Account
    where = Resource(
        items="/users",
        item="/users/{id}",
        query={"humans": "true"},
        pages=_PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email", kept="has no user without an address"),
    }

    def path_of(self, key: str) -> str | None:
        user = self.service.user(split_key(key)[0])
        return None if user is None else filled("/users/{id}", {"id": user["id"]})

    def present(self, data: Mapping[str, Any]) -> bool:
        return bool(data["state"] == "active")

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        username = body["username"]
        body["name"] = body.get("name") or username
        path = self.path_of(key)
        if path is not None:
            self.service.request("POST", f"{path}/unblock")
            del body["username"]
            return self.send(key, Object({}), body)
        if "email" not in body:
            raise RejectedError(f"GitLab creates no user without an address: {key!r}")
        return super().post(key, {**body, "reset_password": True})

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        if "email" in body:
            body["skip_reconfirmation"] = True
        return super().send(key, found, body)

    def destroy(self, key: str, found: Object) -> None:
        self.service.request("POST", f"{self.path_of(key)}/block")


def _group_id(service: Service, path: str) -> int:
    """The id of a group. Raises ``DependencyError`` if there is none yet."""
    query = {"with_projects": "false"}
    found = service.request(
        "GET", filled("/groups/{path}", {"path": path}), query=query, allow=(404,)
    )
    if found.status == 404:
        raise DependencyError(f"there is no group {path!r} in {service.url} yet")
    return int(found.json()["id"])
