"""What is in a Jira project: issues, comments and versions.

It knows nothing of what else is on the site.
"""

from __future__ import annotations

import datetime as dt
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError, RejectedError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import (
    Answer,
    Cursor,
    Object,
    Resource,
    Since,
    Within,
)
from eventsync.stores.rest.path import at
from eventsync.stores.trackers.jira.service import SIZE, JiraAccessor, JiraService, pages
from eventsync.stores.trackers.marker import MarkedAccessor
from eventsync.stores.trackers.record import (
    Comment,
    Issue,
    Milestone,
)
from eventsync.stores.trackers.slot import Slot, day, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["JiraComments", "JiraIssues", "JiraMilestones"]

R = TypeVar("R", bound=Record)
_PROPERTY: Final = "eventsync"
_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
_SEARCH: Final = Cursor(
    items="issues", at="nextPageToken", name="nextPageToken", size_name="maxResults", size=SIZE
)
_FIELDS: Final = "summary,description,status,priority,assignee,fixVersions,labels,project,updated"


def _ago(moment: dt.datetime) -> str:
    """A time as Jira's search takes it whatever the time zone of its user: minutes ago."""
    passed = dt.datetime.now(dt.UTC) - moment
    return f"-{max(1, math.ceil(passed.total_seconds() / 60) + 1)}m"


def _changed(updated: str) -> Since:
    # The time is told from here to there, so the two clocks may differ by some minutes.
    return Since(updated=updated, query={"updated": "{since}"}, show=_ago, overlap=300.0)


class _OfProject(JiraAccessor[R]):
    """``project``: its key, as in ``SHOP``."""

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
    ) -> None:
        if not _KEY.fullmatch(project):
            raise ConfigError(f"{project!r} is no key of a Jira project", hint="as in SHOP")
        self.project = project
        base = f"/project/{project}"
        super().__init__(record_type, service, base, identity=identity, view=view)

    def ping(self) -> None:
        self.service.request("GET", f"/project/{self.project}")

    def searched(self, query: Mapping[str, str]) -> dict[str, str]:
        """The query of a search for the project's issues, or for those that changed."""
        since = f" AND updated >= {query['updated']}" if "updated" in query else ""
        return {"jql": f'project = "{self.project}"{since} ORDER BY created ASC, key ASC'}


class _WithProperty(_OfProject[R]):
    """Objects that carry the record's key in a property."""

    def mark(self, body: dict[str, Any], key: str) -> None:
        held = {"type": self.type.name, "key": key}
        body["properties"] = [{"key": _PROPERTY, "value": held}]

    def marker_in(self, data: dict[str, Any]) -> str | None:
        held = data.get("properties") or {}
        if isinstance(held, list):
            held = {one["key"]: one["value"] for one in held}
        if at(held, f"{_PROPERTY}.type") != self.type.name:
            return None
        key = at(held, f"{_PROPERTY}.key")
        return key if isinstance(key, str) else None


class JiraIssues(_WithProperty[R]):
    """Issues. Removing one deletes it, which takes a right of its own.

    ``issue_type``: of those that are created. ``settle``: how many seconds Jira is given to list
    what it has created, before something whose answer was lost is taken for not created.

    A status is closed if it is in the category that Jira calls done. It is changed by the first
    transition of the workflow that leads to one of the kind. An issue has one milestone here: the
    first of its versions to be fixed in, and writing it takes the others away.
    """

    shape = Issue
    destroyer = "a user with the right to delete issues"
    where = Resource(
        items="/search/jql",
        item="/issue/{id}",
        creations="/issue",
        query={"fields": _FIELDS, "properties": _PROPERTY},
        single={"fields": _FIELDS, "properties": _PROPERTY},
        pages=_SEARCH,
        update="PUT",
        etags=False,
        since=_changed("fields.updated"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="fields.summary"),
        "description": Slot(at="fields.description", read=text),
        "status": Slot(
            at="fields.status.statusCategory.key",
            to="",
            read=lambda category: "closed" if category == "done" else "open",
            words={"open": "open", "closed": "closed"},
            new="open",
        ),
        "priority": Slot(
            at="fields.priority.name",
            to="fields.priority",
            write=lambda name: None if name is None else {"name": name},
        ),
        "assignee": Slot(
            at="fields.assignee.accountId",
            to="fields.assignee",
            write=lambda id: None if id is None else {"accountId": id},
            of="Account",
        ),
        "milestone": Slot(
            at="fields.fixVersions",
            read=lambda versions: versions[0]["id"] if versions else None,
            write=lambda id: [] if id is None else [{"id": id}],
            of="Milestone",
        ),
        "labels": Slot(at="fields.labels", read=sorted_names),
    }

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
        issue_type: str = "Task",
        settle: float = 5.0,
    ) -> None:
        super().__init__(record_type, service, project, identity=identity, view=view)
        self._issue_type, self._settle = issue_type, settle

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        return super().objects(self.searched(query))

    def present(self, data: Mapping[str, Any]) -> bool:
        return bool(at(data, "fields.project.key") == self.project)  # it may have moved

    def find_marked(self, key: str) -> str | None:
        found = super().find_marked(key)
        if found is None:
            # What it lists is a little behind what it holds.
            time.sleep(self._settle)
            found = super().find_marked(key)
        return found

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for label in members.get("labels") or ():
            if len(label.split()) != 1:
                raise RejectedError(f"Jira takes no label with a blank in it: {label!r}")
        return super().fill(members, body)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        own = {"project": {"key": self.project}, "issuetype": {"name": self._issue_type}}
        body["fields"] = {**body.get("fields", {}), **own}
        return super().post(key, body)

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        self.fill(members, None)  # what is rejected is so before anything is written
        status = members.get("status")
        steps = [] if status is None else [self._move(key, status)]
        rest = {name: held for name, held in members.items() if name != "status"}
        if rest:
            # An issue that is closed may not be edited.
            place = 1 if status == "open" else 0
            steps.insert(place, partial(super().modify, key, found, rest))
        return [step() for step in steps][-1]

    def _move(self, key: str, status: str) -> Callable[[], Answer]:
        """What takes an issue through its workflow to a status of that kind."""
        path = f"{self.path_of(key)}/transitions"
        for transition in self.service.request("GET", path).json()["transitions"]:
            done = transition["to"]["statusCategory"]["key"] == "done"
            if done == (status == "closed"):
                body = {"transition": {"id": transition["id"]}}
                return partial(self.service.request, "POST", path, body=body)
        raise RejectedError(
            f"{self.type.name} {key!r}: its workflow in Jira leads to no status that is {status}",
            hint="move it there by hand, or change the workflow, then replay the dead letter",
        )


class JiraComments(_WithProperty[R]):
    """Comments. Their author is whose token it is."""

    shape = Comment
    where = Resource(
        items="/issue/{in}/comment",
        item="/issue/{in}/comment/{id}",
        within=Within(items="/search/jql", query={"fields": "updated"}, pages=_SEARCH),
        query={"orderBy": "created", "expand": "properties"},
        pages=pages("comments"),
        update="PUT",
        etags=False,
        returns=True,
        since=_changed("@in.fields.updated"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.id", of="Issue", fixed="cannot move to another issue"),
        "body": Slot(at="body"),
    }

    def outer(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        return super().outer(self.searched(query))


class JiraMilestones(MarkedAccessor[R], _OfProject[R]):
    """Versions of the project: a milestone is closed when its version is released."""

    shape = Milestone
    where = Resource(
        items="./version",
        item="/version/{id}",
        creations="/version",
        pages=pages("values"),
        update="PUT",
        etags=False,
        returns=True,
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "title": Slot(at="name"),
        "description": Slot(at="description", read=text, marked=True),
        "status": Slot(
            at="released",
            read=lambda released: "closed" if released else "open",
            words={"open": False, "closed": True},
        ),
        "due": Slot(
            at="releaseDate",
            read=day,
            kept="does not say how to take the date away from a version: give it another",
        ),
    }

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        return super().post(key, {**body, "project": self.project})
