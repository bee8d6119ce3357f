"""The users of a Roundup tracker, and their roles.

It knows nothing of issues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.records.key import split as split_key
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Object
from eventsync.stores.trackers.record import Account, Member
from eventsync.stores.trackers.roundup.item import NOTHING, NamedItems, resource_of
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["RoundupAccounts", "RoundupMembers"]

R = TypeVar("R", bound=Record)


class RoundupAccounts(NamedItems[R]):
    """Users, known by the name they log in with, which is the record's key.

    A new one has the role ``User`` and no password; removing one retires it.
    """

    shape = Account
    item_class = "user"
    fields = "username,realname,address"
    where = resource_of("user")
    keys = (Slot(at="username"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="realname", read=text),
        "address": Slot(at="address", write=lambda held: held or NOTHING),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        said = {name: held for name, held in body.items() if held}
        return super().post(key, {"roles": "User", **said})


class RoundupMembers(NamedItems[R]):
    """Which users have which roles: a role is a group.

    Roles themselves are made in the tracker's schema. Its own user's rights come from a role too.
    """

    shape = Member
    item_class = "user"
    fields = "username,roles"
    where = resource_of("user", by="account")
    keys = (Slot(at="@role", of="Group"), Slot(at="username", of="Account"))

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for user in super().objects(query):
            for role in _roles(user):
                yield {**user, "@role": role}

    def fetch(self, key: str) -> Object | None:
        role, name = split_key(key)
        user = self.found(name)
        if user is None or role not in _roles(user.data):
            return None
        return Object({**user.data, "@role": role}, user.etag)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        role, name = split_key(key)
        user = self.found(name)
        if user is None:
            raise self.missing(self.view.names[self.type.keys[1]], name)
        return self._give(user, [*_roles(user.data), role])

    def destroy(self, key: str, found: Object) -> None:
        role = split_key(key)[0]
        self._give(found, [held for held in _roles(found.data) if held != role])

    def _give(self, user: Object, roles: list[str]) -> Answer:
        return self.write("user", user, {"roles": ",".join(roles)})


def _roles(user: Mapping[str, Any]) -> list[str]:
    return [role.strip() for role in (user.get("roles") or "").split(",") if role.strip()]
