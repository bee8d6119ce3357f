"""Attachments: the files of issues, for trackers that keep them."""

from __future__ import annotations

import base64
import json
from abc import abstractmethod
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import Presence
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer, Object, Service
from eventsync.stores.rest.path import at
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.record import Attachment
from eventsync.stores.trackers.slot import Slot
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["CONTENT", "MAX_CONTENT", "AttachmentAccessor", "binary"]

R = TypeVar("R", bound=Record)
MAX_CONTENT: Final = 180 * 1024
"""The largest content in bytes, so that a change with it fits into an envelope of 256 KiB."""
CONTENT: Final = Slot(at="@content", fixed="cannot change its content; add another attachment")
"""The slot of the content, which is not a member of the JSON object but a request of its own."""


class AttachmentAccessor(TrackerAccessor[R]):
    """The base of accessors of attachments.

    ``max_content``: the largest content in bytes. A larger file is unreadable, so it is neither
    captured nor deleted; a larger record is rejected.

    No tracker has a place in a file for the key of its record. If the answer to an upload is lost,
    the next attempt takes the file of the same name and content that no record has yet. Until then
    no file without a record is captured, because it may be that one. A lost identity map cannot be
    made again, so a new one beside a version index that knows attachments is refused.
    """

    shape = Attachment
    max_content: int
    size_at: ClassVar[str] = ""
    """The path of the size in bytes in an object; empty if objects do not show it."""

    def __init__(
        self,
        record_type: type[R],
        service: Service,
        base: str = "",
        *,
        identity: IdentityMap,
        view: View | None = None,
        max_content: int = MAX_CONTENT,
    ) -> None:
        super().__init__(record_type, service, base, view=view, identity=identity)
        self.max_content = max_content
        self._names = identity
        self._repeated: set[str] = set()

    def ensure(self) -> None:
        super().ensure()
        name = self.type.name
        if self._names.is_surveyed(name):
            return
        if self.index.counts(name)[Presence.PRESENT]:
            raise ConfigError(
                f"{self._names!r} is new, and the version index knows records of type {name}; "
                f"{self.tracker} cannot say which of its files they are",
                hint="restore the identity map from a backup",
            )
        self._names.surveyed(name)

    # -- what a tracker defines --------------------------------------------------------------------

    @abstractmethod
    def files_of(self, issue: str | None) -> Iterable[dict[str, Any]]:
        """Return the files of an issue, by its id in the tracker; ``None``: of the project."""

    @abstractmethod
    def upload(self, issue: str | None, name: str, type: str, content: bytes) -> str:
        """Add a file to an issue, and return its id."""

    @abstractmethod
    def download(self, data: Mapping[str, Any]) -> bytes:
        """Return the content of a file. Raises ``RecordError``."""

    # -- objects -----------------------------------------------------------------------------------

    def values_in(self, data: dict[str, Any]) -> dict[str, Any]:
        if "content" in self.view_slots and "@content" not in data:
            size = at(data, self.size_at) if self.size_at else 0
            self._check_size(size, RecordError)
            content = self.download(data)
            self._check_size(len(content), RecordError)
            data["@content"] = base64.b64encode(content).decode("ascii")
        return super().values_in(data)

    def create(self, key: str, members: Mapping[str, Any]) -> Answer:
        self._check_allowed("create", key)
        issue = self._issue(key, members)
        name, type = members.get("name") or "", members.get("type") or "application/octet-stream"
        if members.get("content") is None:
            raise RejectedError(
                f"{self.type.name} {key!r} has no content, so there is nothing to upload",
                hint="set its content, or add the field to the view",
            )
        if not name or any(sign in name for sign in '/\\"') or not name.isprintable():
            raise RejectedError(
                f"{self.type.name} {key!r}: {name!r} is not the name of a file",
                hint='use printable characters other than / \\ and "',
            )
        content = base64.b64decode(members["content"])
        self._check_size(len(content), RejectedError)
        id = self._twin(issue, name, content) if key in self._repeated else None
        if id is None:
            id = self.upload(issue, name, type, content)
        self._repeated.discard(key)
        return Answer(201, {}, json.dumps({"id": id}).encode(), self.service.url)

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        # Without a type, the file got one when it was created.
        members = {name: v for name, v in members.items() if name != "type" or v}
        return super().modify(key, found, members)

    def id_made(self, answer: Answer, members: Mapping[str, Any]) -> str:
        return str(answer.json()["id"])

    def find_marked(self, key: str) -> str | None:
        self._repeated.add(key)  # ``create`` looks for the file, whose name and content it knows
        return None

    def key_in(self, data: dict[str, Any]) -> str:
        if not isinstance(data, Unreadable):
            id, name = self.id_in(data), self.type.name
            known = None if id is None else self._names.key_of(name, id)
            if known is None and self._names.has_open(name):
                raise RecordError(
                    f"{self!r}: the file {id} may be one whose upload had no answer",
                    hint="it is read as soon as that upload is repeated",
                )
        return super().key_in(data)

    def _issue(self, key: str, members: Mapping[str, Any]) -> str | None:
        if "issue" not in self.slots:
            return None
        issue = self.reference("issue", members.get("issue"))
        if issue is None:
            raise RejectedError(
                f"{self.type.name} {key!r} has no issue", hint="set its field issue"
            )
        return issue

    def _twin(self, issue: str | None, name: str, content: bytes) -> str | None:
        """Return the id of a file that no record has, with this name and content."""
        for data in self.files_of(issue):
            id = None if isinstance(data, Unreadable) else self.id_in(data)
            if id is None or self._names.key_of(self.type.name, id) is not None:
                continue
            if at(data, self.slots["name"].at) == name and self.download(data) == content:
                return id
        return None

    def _check_size(self, size: Any, error: type[RecordError | RejectedError]) -> None:
        if isinstance(size, int) and size > self.max_content:
            raise error(
                f"the file has {size} bytes, more than max_content={self.max_content}",
                hint="raise max_content= and max_envelope, or omit the field content from the view",
            )


def binary(accessor: TrackerAccessor[Any], path: str, query: Mapping[str, str]) -> bytes:
    """Return the bytes at a path. Raises ``RecordError`` if there are none."""
    answer = accessor.service.read_one(
        path, query=query, headers={"Accept": "application/octet-stream"}
    )
    if answer is None:
        raise RecordError(f"{accessor!r}: there is no file at {path}")
    return answer.content
