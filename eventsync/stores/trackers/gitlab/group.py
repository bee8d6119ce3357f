"""The groups of GitLab, their members and projects, and the users."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import DependencyError, RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.rest import Answer, Object, Resource, Service, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.archive import check_archive, check_removal
from eventsync.stores.trackers.gitlab.service import PAGES, GitLabAccessor, GitLabService
from eventsync.stores.trackers.record import Account, Group, Member, Project
from eventsync.stores.trackers.slot import Slot, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = [
    "GitLabAccounts",
    "GitLabGroupAccounts",
    "GitLabGroups",
    "GitLabMembers",
    "GitLabProjects",
]

R = TypeVar("R", bound=Record)
_ROLES: Final = {
    "minimal": 5,
    "guest": 10,
    "planner": 15,
    "reporter": 20,
    "developer": 30,
    "maintainer": 40,
    "owner": 50,
}
_NAMES: Final = {level: role for role, level in _ROLES.items()}


class _GroupAccessor(GitLabAccessor[R]):
    """The base of accessors of a group. ``group``: the path of the group."""

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        group: str,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        self.group = group
        base = filled("/groups/{path}", {"path": group})
        super().__init__(record_type, service, base, view=view, new=new)


class _InstanceAccessor(GitLabAccessor[R]):
    """The base of accessors of a whole GitLab instance."""

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(record_type, service, view=view, new=new)


class GitLabProjects(_GroupAccessor[R]):
    """The projects of a group and its subgroups. The key is the path: ``group/name``.

    Removing a record archives the project, and archived projects are not records. Adding the record
    again takes the project out of the archive. If the view has the field ``archived``, archived
    projects are records, and none can be removed.
    """

    shape = Project
    where = Resource(
        items="./projects",
        item="/projects/{id}",
        creations="/projects",
        query={"include_subgroups": "true", "with_shared": "false", "archived": "false"},
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="path_with_namespace", to="path"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name"),
        "description": Slot(at="description", read=text),
    }
    extra: ClassVar[Mapping[str, Slot]] = {
        "public": Slot(
            at="visibility",
            read=lambda visibility: visibility == "public",
            write=lambda public: "public" if public else "private",
            kept="has no project without a visibility; set public",
        ),
        "archived": Slot(at="archived", kept="needs to know whether it is archived", new=False),
        "tags": Slot(at="topics", read=sorted_names, kept="lists the topics; set an empty list"),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "avatar": Slot(at="avatar_url"),
        "url": Slot(at="web_url"),
        "owner": Slot(at="owner.username", of="Account"),
    }

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        group: str,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(record_type, service, group, view=view, new=new)
        if "archived" in self.view_slots:
            query = {name: v for name, v in self.resource.query.items() if name != "archived"}
            self.resource = replace(self.resource, query=query)

    def present(self, data: Mapping[str, Any]) -> bool:
        shown = "archived" in self.view_slots or not data["archived"]
        return shown and not data.get("marked_for_deletion_on")

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        path = self.known_path(key)
        namespace, _, name = body.pop("path").rpartition("/")
        if not f"{namespace}/".startswith(f"{self.group}/"):
            raise RejectedError(
                f"{self.type.name} {key!r} is not a project of the group {self.group}",
                hint=f"use a key that begins with {self.group}/",
            )
        body["name"] = body.get("name") or name
        answer = self.service.request("GET", path, allow=(404,))
        if answer.status != 404:
            return self.send(key, Object(self.data_of(answer)), {"archived": False, **body})
        body |= {"path": name, "namespace_id": _group_id(self.service, namespace)}
        return super().post(key, body)

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        path = self.known_path(key)
        archived = body.pop("archived", found.data["archived"])
        check_archive(self, key, found.data["archived"] and archived, body)
        # An archived project is read-only, so take it out first and put it in last.
        if found.data["archived"] and not archived:
            self.service.request("POST", f"{path}/unarchive")
        if body:
            super().send(key, found, body)
        if archived and not found.data["archived"]:
            self.service.request("POST", f"{path}/archive")
        return self.service.request("GET", path)

    def destroy(self, key: str, found: Object) -> None:
        check_removal(self, key)
        self.service.request("POST", f"{self.known_path(key)}/archive")


class GitLabGroupAccounts(_GroupAccessor[R]):
    """The members of a group and of its parent groups as accounts, read-only.

    The key is the user name.
    """

    shape = Account
    where = Resource(items="./members/all", item="/users/{id}", pages=PAGES, etags=False)
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email"),
    }
    told: ClassVar[Mapping[str, Slot]] = {"avatar": Slot(at="avatar_url")}
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "people sign up at GitLab",
        "modify": "people edit their own profile",
        "destroy": "people leave the group; remove them there",
    }

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        query = {"query": name}
        return self.among(self.objects(query), lambda data: data["username"] == name)


class GitLabMembers(_InstanceAccessor[R]):
    """The memberships in groups, without the memberships inherited from parent groups.

    The role is ``minimal``, ``guest``, ``planner``, ``reporter``, ``developer``, ``maintainer`` or
    ``owner``.
    """

    shape = Member
    where = Resource(
        items="/groups/{in}/members",
        item="/groups/{group}/members/{account}",
        within=Within(items="/groups", query={"min_access_level": "10"}, id="full_path"),
        pages=PAGES,
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
            read=lambda level: _NAMES.get(level, str(level)),
            words=_ROLES,
        )
    }

    def path_of(self, key: str) -> str | None:
        group, name = split_key(key)
        user = self.service.user(name)
        if user is None:
            return None
        return filled(self.where.item, {"group": group, "account": user["id"]})


class GitLabGroups(_InstanceAccessor[R]):
    """The groups to which the owner of the token belongs. The key is the full path of the group.

    If the name of a new record is empty, the group gets the last part of the path as its name.
    """

    shape = Group
    where = Resource(
        items="/groups",
        item="/groups/{id}",
        query={"min_access_level": "10"},
        single={"with_projects": "false"},
        pages=PAGES,
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
        "destroy": "GitLab would delete all projects in the group too; delete it there"
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data.get("marked_for_deletion_on")

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        parent, _, name = body["path"].rpartition("/")
        body |= {"path": name, "name": body.get("name") or name}
        if parent:
            body["parent_id"] = _group_id(self.service, parent)
        return super().post(key, body)


class GitLabAccounts(_InstanceAccessor[R]):
    """The users of a GitLab instance of your own. The token must belong to an administrator.

    A new user gets a mail to choose a password. Removing a record blocks the user, and adding the
    record again unblocks the user.
    """

    shape = Account
    where = Resource(
        items="/users",
        item="/users/{id}",
        query={"humans": "true"},
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email", kept="requires an address for each user; set another address"),
    }

    told: ClassVar[Mapping[str, Slot]] = {"avatar": Slot(at="avatar_url")}

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
            raise RejectedError(
                f"{self.type.name} {key!r}: GitLab creates no user without an address",
                hint="set its field address",
            )
        return super().post(key, {**body, "reset_password": True})

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        if "email" in body:
            body["skip_reconfirmation"] = True
        return super().send(key, found, body)

    def destroy(self, key: str, found: Object) -> None:
        path = self.path_of(key)
        if path is not None:
            self.service.request("POST", f"{path}/block")


def _group_id(service: Service, path: str) -> int:
    """Return the id of the group at a path. Raises ``DependencyError`` if there is none yet."""
    query = {"with_projects": "false"}
    found = service.request(
        "GET", filled("/groups/{path}", {"path": path}), query=query, allow=(404,)
    )
    if found.status == 404:
        raise DependencyError(f"the group {path!r} does not exist in {service.url} yet")
    return int(found.json()["id"])
