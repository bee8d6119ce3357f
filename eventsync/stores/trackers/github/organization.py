"""What is in a GitHub organization: repositories, members, and teams.

It knows nothing of what is in a repository.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.rest import Answer, Object, Resource, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.github.service import (
    PAGES,
    GitHubAccessor,
    GitHubService,
    repository_path,
)
from eventsync.stores.trackers.record import (
    Account,
    Group,
    Member,
    Project,
)
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["GitHubAccounts", "GitHubGroups", "GitHubMembers", "GitHubProjects"]

R = TypeVar("R", bound=Record)
_NOT_A_WORD: Final = re.compile(r"[^\w]+", re.ASCII)


class _OfOrganization(GitHubAccessor[R]):
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
        pages=PAGES,
        etags=False,
        returns=True,
    )
    keys = (Slot(at="full_name", to="name", write=lambda name: name.partition("/")[2]),)
    slots: ClassVar[Mapping[str, Slot]] = {"description": Slot(at="description", read=text)}

    def path_of(self, key: str) -> str | None:
        (name,) = split_key(key)
        owner, _, rest = name.partition("/")
        if owner.lower() != self.organization.lower() or not rest or "/" in rest:
            raise RejectedError(
                f"{self.type.name} {key!r} is no repository of {self.organization}",
                hint=f"its key has to be {self.organization}/ and a name",
            )
        return repository_path(name)

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
    where = Resource(items="./members", item="/users/{id}", pages=PAGES, etags=False)
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
    that of others ``maintainer``.
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
