"""The objects of a GitLab project: issues, comments, milestones and labels."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import RejectedError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer, Object, Resource, Since, Within
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.gitlab.service import PAGES, GitLabAccessor, GitLabService
from eventsync.stores.trackers.marker import MarkedAccessor
from eventsync.stores.trackers.record import Comment, Issue, Label, Milestone
from eventsync.stores.trackers.slot import Slot, day, text, utc
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["GitLabComments", "GitLabIssues", "GitLabLabels", "GitLabMilestones"]

R = TypeVar("R", bound=Record)
_NO_COLOR: Final = "#6699cc"
"""The color that eventsync gives to a label with an empty color, because GitLab requires one."""
_ALL: Final = {"state": "all", "order_by": "created_at", "sort": "asc"}
_COMMAND: Final = re.compile(r"^([ \t]*)(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)
_ESCAPED_COMMAND: Final = re.compile(r"^([ \t]*)\\(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)


def _since(updated: str) -> Since:
    return Since(updated=updated, query={"updated_after": "{since}"}, show=utc)


def _escaped(value: str) -> str:
    """Return a text with a backslash before each command, so that GitLab does not execute it."""
    return _COMMAND.sub(r"\1\\\2", value)


def _unescaped(value: Any) -> str:
    """Return a text without the backslashes of ``_escaped``."""
    return _ESCAPED_COMMAND.sub(r"\1\2", text(value))


def _status(open_event: str) -> Slot:
    """Return the slot of a status.

    GitLab changes a status by an event in the request: ``open_event`` to open, ``close`` to close.
    """
    return Slot(
        at="state",
        to="state_event",
        read=lambda state: "closed" if state == "closed" else "open",
        words={"open": open_event, "closed": "close"},
        new="open",
    )


class _GitLabProjectAccessor(GitLabAccessor[R]):
    """The base of accessors of a project. ``project``: the path of the project, ``group/name``."""

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        project: str,
        *,
        identity: IdentityMap | None = None,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        self.project_key = project
        base = filled("/projects/{path}", {"path": project})
        super().__init__(record_type, service, base, identity=identity, view=view, new=new)


class GitLabIssues(MarkedAccessor[R], _GitLabProjectAccessor[R]):
    """Issues. Removing a record deletes the issue, which only an owner of the project may do.

    A record has one assignee: the first assignee of the issue at GitLab. A write of this field
    removes the other assignees.
    """

    shape = Issue
    destroyer = "an owner of the project"
    where = Resource(
        items="./issues",
        item="./issues/{id}",
        id="iid",
        query=_ALL,
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_since("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=_unescaped, write=_escaped, marked=True),
        "status": _status("reopen"),
        "assignee": Slot(
            at="assignee.username",
            to="assignee_ids",
            write=lambda id: [0 if id is None else int(id)],
            of="Account",
        ),
        "milestone": Slot(
            at="milestone.id",
            to="milestone_id",
            write=lambda id: 0 if id is None else int(id),
            of="Milestone",
        ),
        "labels": Slot(at="labels", read=sorted_names, write=",".join),
    }

    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="author.username", of="Account"),
        "url": Slot(at="web_url"),
        "created": Slot(at="created_at"),
        "updated": Slot(at="updated_at"),
    }

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for label in members.get("labels") or ():
            if "," in label:
                raise RejectedError(
                    f"GitLab allows no comma in a label: {label!r}", hint="rename the label"
                )
        return super().fill(members, body)


class GitLabComments(MarkedAccessor[R], _GitLabProjectAccessor[R]):
    """Comments on issues, without the notes that GitLab itself adds.

    The author of a new comment is the owner of the token.
    """

    shape = Comment
    where = Resource(
        items="./issues/{in}/notes",
        item="./issues/{in}/notes/{id}",
        within=Within(items="./issues", query=_ALL, id="iid"),
        query={"order_by": "created_at", "sort": "asc"},
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_since("@in.updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.iid", read=text, of="Issue", fixed="cannot move to another issue"),
        "body": Slot(at="body", read=_unescaped, write=_escaped, marked=True),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="author.username", of="Account"),
        "created": Slot(at="created_at"),
        "updated": Slot(at="updated_at"),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data["system"]


class GitLabMilestones(MarkedAccessor[R], _GitLabProjectAccessor[R]):
    """Milestones of the project, without the milestones of the groups above the project.

    Removing a record deletes the milestone, but not its issues.
    """

    shape = Milestone
    where = Resource(
        items="./milestones",
        item="./milestones/{id}",
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_since("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=text, marked=True),
        "status": _status("activate"),
        "due": Slot(at="due_date", read=day, write=text),
    }


class GitLabLabels(_GitLabProjectAccessor[R]):
    """Labels of the project, without the labels of the groups above the project."""

    shape = Label
    where = Resource(
        items="./labels",
        item="./labels/{id}",
        query={"include_ancestor_groups": "false"},
        single={"include_ancestor_groups": "false"},
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
    )
    keys = (Slot(at="name"),)
    slots: ClassVar[Mapping[str, Slot]] = {
        "color": Slot(
            at="color",
            read=lambda color: "" if color.lower() == _NO_COLOR else color.lower().lstrip("#"),
            write=lambda color: f"#{color.lstrip('#').lower()}" if color else _NO_COLOR,
        ),
        "description": Slot(at="description", read=text),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        return super().post(key, {"color": _NO_COLOR, **body})

    def send(self, key: str, found: Object, body: dict[str, Any]) -> Answer:
        # GitLab refuses a request that changes a label and does not name a color.
        return super().send(key, found, {"color": found.data["color"], **body})
