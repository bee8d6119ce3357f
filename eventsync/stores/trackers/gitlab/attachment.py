"""The files that were uploaded to a GitLab project."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Object, Resource
from eventsync.stores.rest.multipart import multipart
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.attachment import (
    CONTENT,
    MAX_CONTENT,
    AttachmentAccessor,
    binary,
)
from eventsync.stores.trackers.gitlab.service import PAGES, GitLabAccessor, GitLabService
from eventsync.stores.trackers.slot import Slot

__all__ = ["GitLabAttachments"]

R = TypeVar("R", bound=Record)
_NAME: Final = re.compile(r"[\w.+-]{1,255}")


class GitLabAttachments(AttachmentAccessor[R], GitLabAccessor[R]):
    """The files that were uploaded to a project. The token needs the role of a maintainer.

    GitLab keeps no issue for a file: a file belongs to an issue if a text of it has the link, which
    eventsync does not write. GitLab cannot change a file; it can be removed,
    and another added.
    """

    where = Resource(items="./uploads", item="./uploads/{id}", pages=PAGES, etags=False)
    slots: ClassVar[Mapping[str, Slot]] = {
        "name": Slot(at="filename", fixed="cannot get another name"),
        "content": CONTENT,
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="uploaded_by.username", of="Account"),
        "created": Slot(at="created_at"),
    }
    size_at = "size"

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
        max_content: int = MAX_CONTENT,
    ) -> None:
        self.project_key = project
        base = filled("/projects/{path}", {"path": project})
        super().__init__(
            record_type, service, base, identity=identity, view=view, max_content=max_content
        )

    def fetch(self, key: str) -> Object | None:
        # A request for one file returns its content; only the list has its name.
        path = self.path_of(key)
        id = None if path is None else path.rpartition("/")[2]
        if id is None:
            return None
        return self.among(self.objects({}), lambda data: str(data["id"]) == id)

    def files_of(self, issue: str | None) -> Iterable[dict[str, Any]]:
        return self.objects({})

    def upload(self, issue: str | None, name: str, type: str, content: bytes) -> str:
        if not _NAME.fullmatch(name):
            raise RejectedError(
                f"GitLab would alter the name {name!r}", hint="use letters, digits, and . _ - +"
            )
        body = multipart("file", name, type, content)
        answer = self.service.request("POST", self.resource.items, body=body, allow=(413,))
        return str(self.accepted("POST", answer).json()["id"])

    def download(self, data: Mapping[str, Any]) -> bytes:
        return binary(self, filled(self.resource.item, {"id": data["id"]}), {})
