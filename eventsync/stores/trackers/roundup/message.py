"""The messages of a Roundup tracker: the texts of issues and comments, and their marks.

It knows nothing of issues but that messages are in them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer
from eventsync.stores.trackers.marker import quoted
from eventsync.stores.trackers.roundup.item import Items, RoundupService

__all__ = ["EMPTY", "Messages"]

R = TypeVar("R", bound=Record)
EMPTY: Final = "(no text)"
"""In place of an empty text, which a message cannot have."""
_MESSAGE_ID: Final = re.compile(r"<eventsync\.([\w.-]+)\.([\w.%~]+)@eventsync>", re.ASCII)


class Messages(Items[R]):
    """What issues and comments share: texts are the content of messages."""

    leaves = True  # the message

    def __init__(
        self,
        record_type: type[R],
        service: RoundupService,
        *,
        identity: IdentityMap,
        view: View | None = None,
    ) -> None:
        super().__init__(record_type, service, view=view, identity=identity)
        # Messages of attempts that came no further than these.
        self._left: dict[str, str] = {}

    def message_id(self, key: str) -> str:
        """The ``messageid`` by which the message of a record is found."""
        return f"<eventsync.{self.type.name}.{quoted(key)}@eventsync>"

    def marker_in(self, data: dict[str, Any]) -> str | None:
        found = _MESSAGE_ID.fullmatch(str(data.get("@messageid") or ""))
        return unquote(found[2]) if found and found[1] == self.type.name else None

    def find_marked(self, key: str) -> str | None:
        self._left.pop(key, None)
        query = {"messageid:": self.message_id(key)}
        for message in self.select("msg", "messageid", query):
            owners = self.select("issue", "messages", {"messages": message["id"]})
            if not owners:
                self._left[key] = message["id"]
            for owner in owners:
                return self.id_of_marked(owner, message["id"])
        return None

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        """The id of the object whose marker is in a message of an issue."""
        raise NotImplementedError

    def write_message(self, key: str, text: str, author: str) -> str:
        """The id of a message of that content that no issue has yet."""
        content = text or EMPTY
        left = self._left.pop(key, None)
        if left is not None:
            self.rewrite(left, content)
            return left
        # The date is that of now.
        body = {
            "content": content,
            "author": author,
            "messageid": self.message_id(key),
            "date": ".",
        }
        return str(self.added("msg", body).json()["data"]["id"])

    def rewrite(self, message: str, content: str) -> Answer:
        """Put another content into a message."""
        return self.write("msg", self.item("msg", message), {"content": content or EMPTY})

    def contents(self, messages: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """By id, messages; ``None`` for all that are not retired."""
        if messages is None:
            found = self.select("msg", "content,messageid,author", {})
            return {data["id"]: data for data in found}
        return {id: self.item("msg", id).data for id in messages}
