"""The users of a Roundup tracker, and the roles of the users."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Object
from eventsync.stores.trackers.record import Account, Member
from eventsync.stores.trackers.roundup.item import NOTHING, NamedItems, resource_of
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["RoundupAccounts", "RoundupMembers"]

R = TypeVar("R", bound=Record)


class RoundupAccounts(NamedItems[R]):
    """Users. The key is the login name.

    A new user has the role ``User`` and no password. Removing a record retires the user.
    """

    shape = Account
    item_class = "user"
    fields = "username,realname,address"
    where = resource_of("user")
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="realname", read=text),
        "address": Slot(at="address", write=lambda address: address or NOTHING),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        given = {name: value for name, value in body.items() if value}
        return super().post(key, {"roles": "User", **given})


class RoundupMembers(NamedItems[R]):
    """The roles of users as memberships: a role is a group, and users with this role are members.

    The schema of the tracker defines the roles. The Roundup account that eventsync logs in with has
    its rights from a role too. If you remove the record of this membership, eventsync loses access.
    """

    shape = Member
    item_class = "user"
    fields = "username,roles"
    where = resource_of("user", by="account")
    keys = (Slot(at="@role", of="Group"), Slot(at="username", of="Account"))

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for user in super().objects(query):
            yield from self.inner(user, _memberships)

    def fetch(self, key: str) -> Object | None:
        role, name = split_key(key)
        user = self.found(name)
        if user is None or role not in _roles(user.data):
            return None
        return Object({**user.data, "@role": role}, user.etag)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        role, name = split_key(key)
        if not role or role != role.strip() or "," in role:
            raise RejectedError(
                f"{self.type.name} {key!r}: {role!r} is not the name of one role",
                hint="a name has no comma, and no blank at its ends",
            )
        user = self.found(name)
        if user is None:
            raise self.missing(self.view.names[self.type.keys[1]], name)
        return self._write_roles(user, [*_roles(user.data), role])

    def destroy(self, key: str, found: Object) -> None:
        removed = split_key(key)[0]
        self._write_roles(found, [role for role in _roles(found.data) if role != removed])

    def _write_roles(self, user: Object, roles: list[str]) -> Answer:
        return self.write("user", user, {"roles": ",".join(roles)})


def _memberships(user: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for role in _roles(user):
        yield {**user, "@role": role}


def _roles(user: Mapping[str, Any]) -> list[str]:
    return [role.strip() for role in (user.get("roles") or "").split(",") if role.strip()]
