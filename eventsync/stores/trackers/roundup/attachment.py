"""The files of the issues of a Roundup tracker."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import DependencyError
from eventsync.records.record import Record
from eventsync.stores.rest import Object, OvertakenError
from eventsync.stores.rest.multipart import multipart
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.attachment import CONTENT, AttachmentAccessor, binary
from eventsync.stores.trackers.roundup.item import Items, in_utc, resource_of, since
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["RoundupAttachments"]

R = TypeVar("R", bound=Record)
_FIELDS: Final = "name,type,creator,creation"
_ATTEMPTS: Final = 5


class RoundupAttachments(AttachmentAccessor[R], Items[R]):
    """Attachments: the files of issues. Name and type of a file can change, its content cannot.

    A file that belongs to no issue is no record; of several issues, it belongs to the first. A
    rename alone does not count as activity of an issue, so it is found when all are read.
    """

    item_class = "file"
    where = resource_of("file", since=since("@in.activity"))
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.id", of="Issue", fixed="cannot move to another issue"),
        "name": Slot(at="name", read=text),
        "type": Slot(at="type", read=text),
        "content": CONTENT,
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="creator.username", of="Account"),
        "created": Slot(at="creation", read=in_utc),
    }

    def ping(self) -> None:
        self.select("file", "name", {"id": "1"})

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        issues = self.select("issue", "files,activity", query)
        wanted = {"id": ",".join(_ids(issues))} if query else {}
        if query and not wanted["id"]:
            return
        files = {d["id"]: d for d in self.select("file", _FIELDS, wanted) if "id" in d}
        seen: set[str] = set()
        for issue in issues:
            for data in self.inner(issue, lambda issue: _within(issue, files)):
                if isinstance(data, Unreadable) or data["id"] not in seen:
                    seen.add(data.get("id", ""))
                    yield data

    def fetch(self, key: str) -> Object | None:
        path = self.path_of(key)
        if path is None:
            return None
        id = path.rpartition("/")[2]
        for issue in self.select("issue", "files,activity", {"files": id}):
            found = self.item("file", id, _FIELDS)
            return Object({**found.data, "@in": issue}, found.etag)
        return None

    def files_of(self, issue: str | None) -> Iterable[dict[str, Any]]:
        holder = self.item("issue", str(issue), "files").data
        files = self.select("file", _FIELDS, {})
        return _within(holder, {data["id"]: data for data in files if "id" in data})

    def upload(self, issue: str | None, name: str, type: str, content: bytes) -> str:
        if not self.select("issue", "title", {"id": str(issue)}):
            raise DependencyError(f"the issue {issue} is not in {self.service.url}")
        body = multipart("content", "content", type, content, {"name": name, "type": type})
        id = str(self.service.request("POST", "/file", body=body).json()["data"]["id"])
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                holder = self.item("issue", str(issue))
                self.write("issue", holder, {"@op": "add", "files": [id]})
            except OvertakenError:
                if attempt == _ATTEMPTS:
                    raise
            else:
                break
        return id

    def download(self, data: Mapping[str, Any]) -> bytes:
        return binary(self, f"/file/{data['id']}/binary_content", {})

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Any:
        return self.write("file", found, body)

    def destroy(self, key: str, found: Object) -> None:
        issue = self.item("issue", found.data["@in"]["id"])
        self.write("issue", issue, {"@op": "remove", "files": [found.data["id"]]})
        self.retire("file", found)
        self.forget(key)


def _ids(issues: Iterable[Mapping[str, Any]]) -> list[str]:
    return [str(file["id"]) for issue in issues for file in issue.get("files") or ()]


def _within(issue: dict[str, Any], files: Mapping[str, dict[str, Any]]) -> Iterator[dict[str, Any]]:
    for id in _ids([issue]):
        if id in files:
            yield {**files[id], "@in": issue}
