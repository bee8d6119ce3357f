"""The objects of a GitHub organization: repositories, members and teams."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import RecordError, RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.rest import Answer, Object, Resource, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.archive import check_archive, check_removal
from eventsync.stores.trackers.github.service import (
    PAGES,
    GitHubAccessor,
    GitHubService,
    repository_path,
)
from eventsync.stores.trackers.record import Account, Group, Member, Project
from eventsync.stores.trackers.slot import Slot, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["GitHubAccounts", "GitHubGroups", "GitHubMembers", "GitHubProjects"]

R = TypeVar("R", bound=Record)
_TOPIC: Final = re.compile(r"[a-z0-9][a-z0-9-]{0,49}")
_NOT_A_WORD: Final = re.compile(r"[^\w]+", re.ASCII)


class _OrganizationAccessor(GitHubAccessor[R]):
    """The base of accessors of an organization. ``organization``: the login of the organization."""

    def __init__(
        self,
        record_type: type[R],
        service: GitHubService,
        organization: str,
        *,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        self.organization = organization
        super().__init__(
            record_type, service, filled("/orgs/{name}", {"name": organization}), view=view, new=new
        )


class GitHubProjects(_OrganizationAccessor[R]):
    """The repositories of an organization. The key is the full name: ``owner/name``.

    Removing a record archives the repository, and archived repositories are not records. Adding the
    record again takes the repository out of the archive. If the view has the field ``archived``,
    archived repositories are records, and none can be removed.
    """

    shape = Project
    where = Resource(
        items="./repos",
        item="/repos/{id}",
        query={"type": "all", "sort": "full_name"},
        pages=PAGES,
        etags=False,
        returns=True,
    )
    keys = (Slot(at="full_name", to="name", write=lambda name: name.partition("/")[2]),)
    slots: ClassVar[Mapping[str, Slot]] = {"description": Slot(at="description", read=text)}
    extra: ClassVar[Mapping[str, Slot]] = {
        "public": Slot(
            at="private",
            read=lambda private: not private,
            write=lambda public: not public,
            kept="has no repository that is neither public nor private; set public",
        ),
        "archived": Slot(at="archived", kept="needs to know whether it is archived", new=False),
        "tags": Slot(
            at="topics", read=sorted_names, kept="lists the topics; set an empty list", new=()
        ),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "url": Slot(at="html_url"),
        "owner": Slot(at="owner.login", of="Account"),
    }

    def path_of(self, key: str) -> str | None:
        (name,) = split_key(key)
        owner, _, rest = name.partition("/")
        if owner.lower() != self.organization.lower() or not rest or "/" in rest:
            raise RejectedError(
                f"{self.type.name} {key!r} is not a repository of {self.organization}",
                hint=f"use a key of the form {self.organization}/name",
            )
        return repository_path(name)

    def present(self, data: Mapping[str, Any]) -> bool:
        return "archived" in self.view_slots or not data["archived"]

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for tag in members.get("tags") or ():
            if not _TOPIC.fullmatch(tag):
                raise RejectedError(
                    f"GitHub allows no topic {tag!r}",
                    hint="use up to 50 small letters, digits and -, none of these first",
                )
        return super().fill(members, body)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        path = self.known_path(key)
        answer = self.service.request("GET", path, allow=(404,))
        if answer.status == 404:
            return super().post(key, body)
        return self.send(key, Object(self.data_of(answer)), {"archived": False, **body})

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        path = self.known_path(key)
        archived = body.pop("archived", found.data["archived"])
        check_archive(self, key, found.data["archived"] and archived, body)
        requests: list[tuple[str, str, dict[str, Any]]] = []
        if "topics" in body:
            requests.append(("PUT", f"{path}/topics", {"names": list(body.pop("topics"))}))
        if body:
            requests.append(("PATCH", path, body))
        if archived != found.data["archived"]:
            # An archived repository is read-only, so take it out first and put it in last.
            position = len(requests) if archived else 0
            requests.insert(position, ("PATCH", path, {"archived": archived}))
        for method, where, what in requests:
            self.sent(method, where, what, {})
        return self.service.request("GET", path)

    def destroy(self, key: str, found: Object) -> None:
        check_removal(self, key)
        self.service.request("PATCH", self.known_path(key), body={"archived": True})


class GitHubAccounts(_OrganizationAccessor[R]):
    """The members of an organization as accounts, read-only. The key is the login.

    One more request for each member reads the name and address. A view without these two fields
    avoids these requests.
    """

    shape = Account
    where = Resource(items="./members", item="/users/{id}", pages=PAGES, etags=False)
    keys = (Slot(at="login"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="name", read=text),
        "address": Slot(at="email"),
    }
    told: ClassVar[Mapping[str, Slot]] = {"avatar": Slot(at="avatar_url")}
    refuses: ClassVar[Mapping[str, str]] = {
        "create": "people sign up at GitHub; invite them there",
        "modify": "people edit their own profile",
        "destroy": "people leave the organization; remove them there",
    }

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        only_key = set(self.view.names) == set(self.type.keys)
        for data in super().objects(query):
            if only_key or isinstance(data, Unreadable):
                yield data
            else:
                yield from self.inner(data, self._profile)

    def _profile(self, member: dict[str, Any]) -> Iterator[dict[str, Any]]:
        path = filled("/users/{login}", {"login": member["login"]})
        answer = self.read_alone(path)
        if answer is None:
            raise RecordError(
                f"{self.type.name} {member['login']!r} is a member and has no profile"
            )
        yield self.data_of(answer)


class GitHubGroups(_OrganizationAccessor[R]):
    """The teams of an organization. The key is the slug that GitHub makes from the name of a team.

    The slug of the name in a record must be the key of the record. If the name is empty, the team
    gets the key as its name. Removing a record deletes the team.
    """

    shape = Group
    where = Resource(
        items="./teams",
        item="./teams/{id}",
        pages=PAGES,
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
        return super().post(key, self._with_name(key, {"name": "", **body}))

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        return super().send(key, found, self._with_name(key, body))

    def _with_name(self, key: str, body: dict[str, Any]) -> dict[str, Any]:
        """Return ``body`` with the key as the name of the team if its name is empty.

        Raises ``RejectedError`` if GitHub would make another slug than the key from the name.
        """
        (slug,) = split_key(key)
        if "name" not in body:
            return body
        name = body["name"] or slug
        if _NOT_A_WORD.sub("-", name.lower()).strip("-") != slug:
            raise RejectedError(
                f"{self.type.name} {key!r}: GitHub would not give a team named {name!r} the slug "
                f"{slug!r}",
                hint="a slug is the name in lower case, with - in place of all characters other "
                "than letters and digits",
            )
        return {**body, "name": name}


class GitHubMembers(_OrganizationAccessor[R]):
    """The memberships in the teams of an organization.

    The account must be a member of the organization. The role of an ordinary member is empty; the
    other role is ``maintainer``.
    """

    shape = Member
    where = Resource(
        items="./teams/{in}/members",
        item="./teams/{group}/memberships/{account}",
        within=Within(items="./teams", id="slug"),
        pages=PAGES,
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
            yield from self.inner(team, self._members_of)

    def _members_of(self, team: dict[str, Any]) -> Iterator[dict[str, Any]]:
        path = filled(self.resource.items, {"in": team["slug"]})
        for role in ("member", "maintainer"):
            pages = self.resource.pages.walk(self.service, path, {"role": role}, alone=True)
            for data in (data for page in pages for data in page):
                odd = isinstance(data, Unreadable)
                yield data if odd else {**data, "role": role, "@in": team}

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        login = split_key(key)[1]
        path = filled("/orgs/{name}/members/{login}", {"name": self.organization, "login": login})
        if self.service.request("GET", path, allow=(302, 404)).status != 204:
            raise RejectedError(
                f"{login!r} is not a member of the organization {self.organization} at GitHub",
                hint="invite this user there, then replay the dead letter",
            )
        return super().post(key, body)
