"""The objects of a Jira site outside projects: projects, accounts, groups, members and labels."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.errors import RecordError, shown
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.rest import Answer, Object, Resource, Within
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.jira.service import SIZE, JiraAccessor, JiraService, pages
from eventsync.stores.trackers.record import Account, Group, Label, Member, Project
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["JiraAccounts", "JiraGroups", "JiraLabels", "JiraMembers", "JiraProjects"]

R = TypeVar("R", bound=Record)


class _SiteAccessor(JiraAccessor[R]):
    """The base of accessors of the whole site."""

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(record_type, service, view=view, new=new)


class JiraLabels(_SiteAccessor[R]):
    """The labels of all issues of the site, read-only.

    A label exists as long as an issue has this label.
    """

    shape = Label
    where = Resource(items="/label", item="/label/{id}", etags=False)
    keys = (Slot(at="name"),)
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "a label exists as soon as an issue has it",
        "destroy": "a label exists as long as an issue has it",
    }

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        start, last = 0, False
        while not last:
            position = {"startAt": str(start), "maxResults": "1000"}
            page = self.service.request("GET", "/label", query=position).json()
            for name in page["values"]:
                yield {"name": name} if isinstance(name, str) else _odd(name, "/label")
            start, last = start + len(page["values"]), page["isLast"] or not page["values"]

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        return self.among(self.objects({}), lambda data: bool(data["name"] == name))


class JiraProjects(_SiteAccessor[R]):
    """Projects. The key of a record is the key of the project.

    ``project_type``: the type of new projects. The lead of a new project is its ``owner``, if the
    view has this field, and else the owner of the token.
    Removing a record moves the project to the trash, where Jira keeps it for 60 days.
    """

    shape = Project
    where = Resource(
        items="/project/search",
        item="/project/{id}",
        creations="/project",
        query={"expand": "description,lead,url"},
        pages=pages("values"),
        update="PUT",
        etags=False,
        taken=frozenset({400}),
    )
    keys = (Slot(at="key"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name"),
        "description": Slot(at="description", read=text),
    }
    extra: ClassVar[Mapping[str, Slot]] = {
        "url": Slot(at="url", read=lambda url: url or None, write=text, omitted=True),
        "owner": Slot(
            at="lead.accountId",
            to="leadAccountId",
            of="Account",
            kept="requires a lead of each project; set another owner",
        ),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "avatar": Slot(at="avatarUrls.48x48"),
        "public": Slot(at="isPrivate", read=lambda private: not private),
    }

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
        project_type: str = "software",
    ) -> None:
        super().__init__(record_type, service, view=view, new=new)
        self._project_type = project_type

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        if "leadAccountId" not in body:
            body["leadAccountId"] = self.service.request("GET", "/myself").json()["accountId"]
        body["name"] = body.get("name") or body["key"]
        body["projectTypeKey"] = self._project_type
        return super().post(key, body)

    def destroy(self, key: str, found: Object) -> None:
        self.service.request("DELETE", f"{self.known_path(key)}?enableUndo=true", allow=(404,))


class JiraAccounts(_SiteAccessor[R]):
    """The people on the site as accounts, read-only. The key is the account id.

    The address is ``None`` for people who do not show their address.
    """

    shape = Account
    where = Resource(items="/users/search", item="/user?accountId={id}", etags=False)
    keys = (Slot(at="accountId"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="displayName", read=text),
        "address": Slot(at="emailAddress", read=lambda address: address or None),
    }
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "accounts belong to Atlassian; invite people there",
        "modify": "people edit their own profile",
        "destroy": "accounts belong to Atlassian; remove people there",
    }

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        start = 0
        while True:
            position = {"startAt": str(start), "maxResults": str(SIZE)}
            page = self.service.request("GET", "/users/search", query=position).json()
            if not page:
                return
            for data in page:
                yield data if isinstance(data, dict) else _odd(data, "/users/search")
            start += SIZE  # a page may have fewer users than SIZE and not be the last

    def present(self, data: Mapping[str, Any]) -> bool:
        return bool(data["active"] and data["accountType"] == "atlassian")


class JiraGroups(_SiteAccessor[R]):
    """Groups. A group has only its name, which is the key of the record."""

    shape = Group
    where = Resource(
        items="/group/bulk",
        item="/group?groupname={id}",
        creations="/group",
        pages=pages("values"),
        etags=False,
        taken=frozenset({400}),
    )
    keys = (Slot(at="name"),)

    def fetch(self, key: str) -> Object | None:
        (name,) = split_key(key)
        found = self.objects({"groupName": name})
        return self.among(found, lambda data: bool(data["name"] == name))


class JiraMembers(_SiteAccessor[R]):
    """The memberships of accounts in groups.

    Jira keeps no role for a membership, so the default view omits the field.
    """

    shape = Member
    where = Resource(
        items="/group/member",
        creations="/group/user?groupname={in}",
        item="/group/user?groupname={group}&accountId={account}",
        within=Within(items="/group/bulk", id="name"),
        pages=pages("values"),
        etags=False,
    )
    keys = (Slot(at="@in.name", of="Group"), Slot(at="accountId", of="Account"))

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for group in self.outer(query):
            yield from self.inner(group, self._members_of)

    def _members_of(self, group: dict[str, Any]) -> Iterator[dict[str, Any]]:
        query, items = {"groupname": group["name"]}, self.resource.items
        for page in self.resource.pages.walk(self.service, items, query, alone=True):
            for data in page:
                yield data if isinstance(data, Unreadable) else {**data, "@in": group}

    def fetch(self, key: str) -> Object | None:
        group, account = split_key(key)
        found = self.objects({"groupName": group})
        return self.among(
            found,
            lambda data: bool(data["accountId"] == account and data["@in"]["name"] == group),
        )


def _odd(item: Any, path: str) -> Unreadable:
    return Unreadable(RecordError(f"{path}: an item of the list is odd: {shown(item)}"))
