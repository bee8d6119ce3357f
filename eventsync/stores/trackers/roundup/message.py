"""The messages of a Roundup tracker: the texts of issues and comments, and their markers."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, TypeVar
from urllib.parse import unquote

from eventsync.errors import RecordError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.marker import quoted
from eventsync.stores.trackers.roundup.item import Items, RoundupService

__all__ = ["EMPTY", "FIELDS", "Messages", "message_ids"]

R = TypeVar("R", bound=Record)
EMPTY: Final = "(no text)"
"""The content of a message whose text is empty, because Roundup requires a content."""
FIELDS: Final = "content,messageid,author,creation,activity"
"""The properties of a message that are read."""
_MESSAGE_ID: Final = re.compile(r"<eventsync\.([\w.-]+)\.([\w.%~]+)@eventsync>", re.ASCII)


def message_ids(issue: Mapping[str, Any]) -> list[str]:
    """Return the ids of the messages of an issue, oldest first."""
    return sorted((message["id"] for message in issue["messages"]), key=int)


class Messages(Items[R]):
    """The base of the accessors of issues and comments. The text of each record is a message."""

    leaves = True  # a failed creation may leave a message that belongs to no issue

    def __init__(
        self,
        record_type: type[R],
        service: RoundupService,
        *,
        identity: IdentityMap,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(record_type, service, view=view, identity=identity, new=new)
        # By key: the id of a message that an earlier attempt wrote and did not add to an issue.
        self._unattached: dict[str, str] = {}

    def message_id(self, key: str) -> str:
        """Return the ``messageid`` for the message of a record; it contains the key."""
        return f"<eventsync.{self.type.name}.{quoted(key)}@eventsync>"

    def marker_in(self, data: dict[str, Any]) -> str | None:
        found = _MESSAGE_ID.fullmatch(str(data.get("@messageid") or ""))
        return unquote(found[2]) if found and found[1] == self.type.name else None

    def find_marked(self, key: str) -> str | None:
        self._unattached.pop(key, None)
        query = {"messageid:": self.message_id(key)}
        for message in self.select("msg", "messageid", query):
            owners = self.select("issue", "messages", {"messages": message["id"]})
            if not owners:
                self._unattached[key] = message["id"]
            for owner in owners:
                return self.id_of_marked(owner, message["id"])
        return None

    def id_of_marked(self, issue: Mapping[str, Any], message: str) -> str:
        """Return the id of the object of a record, given the message with the marker.

        ``issue``: the issue to which the message belongs. ``message``: the id of the message.
        """
        raise NotImplementedError

    def write_message(self, key: str, text: str, author: str) -> str:
        """Write a message that belongs to no issue yet, and return the id of the message.

        ``author``: the login name of the author. If an earlier attempt to create the record has
        left a message, that message gets the new text, and no other is written.
        """
        content = text or EMPTY
        unattached = self._unattached.pop(key, None)
        if unattached is not None:
            self.rewrite(unattached, content)
            return unattached
        body = {
            "content": content,
            "author": author,
            "messageid": self.message_id(key),
            "date": ".",  # now
        }
        return str(self.added("msg", body).json()["data"]["id"])

    def rewrite(self, message: str, content: str) -> Answer:
        """Replace the content of the message with this id, and return the answer."""
        return self.write("msg", self.item("msg", message), {"content": content or EMPTY})

    def contents(self, messages: Sequence[str] | None) -> dict[str, dict[str, Any]]:
        """Return messages by id. A message that cannot be read is an ``Unreadable``.

        ``messages``: the ids to read, or ``None`` for all messages that are not retired.
        """
        if messages is None:
            found = self.select("msg", FIELDS, {})
            return {data["id"]: data for data in found if "id" in data}
        return {id: self._message(id) for id in messages}

    def _message(self, id: str) -> dict[str, Any]:
        try:
            return self.item("msg", id, FIELDS).data
        except RecordError as error:
            return Unreadable(error)
