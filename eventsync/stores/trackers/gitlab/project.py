"""What is in a GitLab project: issues, comments, milestones and labels.

It knows nothing of groups.
"""

from __future__ import annotations

import datetime as dt
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
from eventsync.stores.trackers.record import (
    Comment,
    Issue,
    Label,
    Milestone,
)
from eventsync.stores.trackers.slot import Slot, day, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["GitLabComments", "GitLabIssues", "GitLabLabels", "GitLabMilestones"]

R = TypeVar("R", bound=Record)
_NO_COLOR: Final = "#6699cc"
"""The color that GitLab gives a label without one."""
_ALL: Final = {"state": "all", "order_by": "created_at", "sort": "asc"}
_COMMAND: Final = re.compile(r"^([ \t]*)(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)
_HARMLESS: Final = re.compile(r"^([ \t]*)\\(\\*/[a-z_]+(?=\s|\Z))", re.MULTILINE)


def _changed(updated: str) -> Since:
    return Since(
        updated=updated,
        query={"updated_after": "{since}"},
        show=lambda moment: moment.astimezone(dt.UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    )


def _said(held: Any) -> str:
    """A text as it was written by ``_quiet``."""
    return _HARMLESS.sub(r"\1\2", text(held))


def _quiet(held: str) -> str:
    """A text that GitLab takes for nothing but a text, and shows as it is."""
    return _COMMAND.sub(r"\1\\\2", held)


class _OfProject(GitLabAccessor[R]):
    """``project``: its path, as in ``group/name``."""

    def __init__(
        self,
        record_type: type[R],
        service: GitLabService,
        project: str,
        *,
        identity: IdentityMap | None = None,
        view: View | None = None,
    ) -> None:
        base = filled("/projects/{path}", {"path": project})
        super().__init__(record_type, service, base, identity=identity, view=view)


class GitLabIssues(MarkedAccessor[R], _OfProject[R]):
    """Issues. Removing one deletes it, which only an owner of the project may.

    An issue has one assignee here: the first, and writing it takes the others away.
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
        since=_changed("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=_said, write=_quiet, marked=True),
        "status": Slot(
            at="state",
            to="state_event",
            read=lambda state: "closed" if state == "closed" else "open",
            words={"open": "reopen", "closed": "close"},
            new="open",
        ),
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

    def reference(self, name: str, held: str | None) -> str | None:
        known = super().reference(name, held)
        if known is None or name != "assignee":
            return known
        return str(self.user_id(name, known))

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for label in members.get("labels") or ():
            if "," in label:
                raise RejectedError(f"GitLab takes no label with a comma in its name: {label!r}")
        return super().fill(members, body)


class GitLabComments(MarkedAccessor[R], _OfProject[R]):
    """Comments on issues, not those that GitLab itself makes. Their author is whose token it is."""

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
        since=_changed("@in.updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.iid", read=text, of="Issue", fixed="cannot move to another issue"),
        "body": Slot(at="body", read=_said, write=_quiet, marked=True),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        return not data["system"]


class GitLabMilestones(MarkedAccessor[R], _OfProject[R]):
    """Milestones of the project, not of its groups. Removing one deletes it; its issues stay."""

    shape = Milestone
    where = Resource(
        items="./milestones",
        item="./milestones/{id}",
        pages=PAGES,
        update="PUT",
        etags=False,
        returns=True,
        since=_changed("updated_at"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="title"),
        "description": Slot(at="description", read=text, marked=True),
        "status": Slot(
            at="state",
            to="state_event",
            read=lambda state: "closed" if state == "closed" else "open",
            words={"open": "activate", "closed": "close"},
            new="open",
        ),
        "due": Slot(at="due_date", read=day, write=text),
    }


class GitLabLabels(_OfProject[R]):
    """Labels of the project, not of its groups."""

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
        # It takes no change without a color.
        return super().send(key, found, {"color": found.data["color"], **body})
