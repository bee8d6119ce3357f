"""The users of a Roundup tracker.

It knows nothing of issues.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, TypeVar

from eventsync.errors import RejectedError
from eventsync.record import Record
from eventsync.stores.rest import Answer, Object, Resource
from eventsync.stores.trackers.roundup.item import NOTHING, Items, RoundupService, resource_of
from eventsync.view import View

__all__ = ["RoundupAccounts"]

R = TypeVar("R", bound=Record)


class RoundupAccounts(Items[R]):
    """Users, known by the name they log in with, which is the record's key.

    A new one has the role ``User`` and no password; removing one retires it.
    """

    item_class = "user"
    holds = frozenset({"name", "address"})
    fields = "username,realname,address"

    def __init__(
        self, record_type: type[R], service: RoundupService, *, view: View | None = None
    ) -> None:
        pages = resource_of("user").pages
        resource = Resource(items="/user", item="/user/{key}", pages=pages)
        super().__init__(record_type, service, resource, view=view)
        self._key = self.view.names[self.type.keys[0]]

    def ping(self) -> None:
        self.select("user", "username", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        yield from self.select("user", self.fields, query)

    def fetch(self, key: str) -> Object | None:
        name = next(iter(self.type.key_values(key).values()))
        for data in self.select("user", "username", {"username:": name}):
            return self.item("user", data["id"])
        return None

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        filled = self.fill(members, None)
        body = {"roles": "User", **{name: held for name, held in filled.items() if held}}
        answer = self.service.request("POST", "/user", body=body, allow=(409,))
        if answer.status == 409:
            if self.fetch(key) is not None:
                raise self.overtaken(key)
            raise RejectedError(self.service.meaning("POST", answer).message)
        return answer

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        return self.write("user", found, self.fill(members, None))

    def destroy(self, key: str, found: Object) -> None:
        self.retire("user", found)

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        return self.only_held(
            {
                self._key: data["username"],
                "name": data.get("realname") or "",
                "address": data.get("address"),
            }
        )

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        own = {self._key: "username", "name": "realname", "address": "address"}
        return {own[name]: held or NOTHING for name, held in members.items() if name in own}
