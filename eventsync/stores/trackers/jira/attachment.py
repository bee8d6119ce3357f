"""The attachments of the issues of a Jira project."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, ClassVar, TypeVar

from eventsync.errors import DependencyError, RecordError, shown
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Resource, Within
from eventsync.stores.rest.multipart import multipart
from eventsync.stores.rest.path import at
from eventsync.stores.rest.resource import filled
from eventsync.stores.rest.unreadable import Unreadable
from eventsync.stores.trackers.attachment import (
    CONTENT,
    MAX_CONTENT,
    AttachmentAccessor,
    binary,
)
from eventsync.stores.trackers.jira.project import SEARCH, ProjectSearch, recent
from eventsync.stores.trackers.jira.service import JiraAccessor, JiraService
from eventsync.stores.trackers.slot import Slot, text

__all__ = ["JiraAttachments"]

R = TypeVar("R", bound=Record)


class JiraAttachments(AttachmentAccessor[R], JiraAccessor[R]):
    """Attachments of issues. Jira cannot change one; it can be removed, and another added."""

    numbered_by_project = False
    where = Resource(
        items="/issue/{in}/attachments",
        item="/attachment/{id}",
        within=Within(items="/search/jql", query={"fields": "attachment,updated"}, pages=SEARCH),
        etags=False,
        since=recent("@in.fields.updated"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.id", of="Issue", fixed="cannot move to another issue"),
        "name": Slot(at="filename", fixed="cannot get another name"),
        "type": Slot(at="mimeType", read=text, fixed="cannot get another type"),
        "content": CONTENT,
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="author.accountId", of="Account", omitted=True),
        "created": Slot(at="created"),
    }
    size_at = "size"

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
        max_content: int = MAX_CONTENT,
    ) -> None:
        self._search = ProjectSearch(project)
        self.project_key = project
        super().__init__(
            record_type, service, identity=identity, view=view, max_content=max_content
        )

    def ping(self) -> None:
        self.service.request("GET", f"/project/{self.project_key}")

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        for issue in self.outer(self._search.query(query)):
            yield from self.inner(issue, _within)

    def files_of(self, issue: str | None) -> Iterable[dict[str, Any]]:
        path = filled("/issue/{id}", {"id": issue})
        answer = self.service.request("GET", path, query={"fields": "attachment"})
        return _within(self.data_of(answer))

    def upload(self, issue: str | None, name: str, type: str, content: bytes) -> str:
        path = filled(self.resource.items, {"in": issue})
        # Jira takes a request without this header for a forged one.
        headers = {"X-Atlassian-Token": "no-check"}
        body = multipart("file", name, type, content)
        answer = self.service.request("POST", path, body=body, headers=headers, allow=(404, 413))
        if answer.status == 404:
            raise DependencyError(f"the issue {issue} is not in {self.service.url}")
        return f"{issue}:{self.accepted('POST', answer).json()[0]['id']}"

    def download(self, data: Mapping[str, Any]) -> bytes:
        path = filled("/attachment/content/{id}", {"id": data["id"]})
        return binary(self, path, {"redirect": "false"})


def _within(issue: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for data in at(issue, "fields.attachment") or ():
        if isinstance(data, dict):
            yield data if isinstance(data, Unreadable) else {**data, "@in": issue}
        else:
            yield Unreadable(RecordError(f"an attachment is not an object: {shown(data)}"))
