"""The objects of a Jira project: issues, comments and versions."""

from __future__ import annotations

import datetime as dt
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer, Cursor, Object, Resource, Since, Within
from eventsync.stores.rest.path import at
from eventsync.stores.trackers.jira.service import SIZE, JiraAccessor, JiraService, pages
from eventsync.stores.trackers.marker import MarkedAccessor
from eventsync.stores.trackers.record import Comment, Issue, Milestone
from eventsync.stores.trackers.slot import Slot, day, text
from eventsync.stores.trackers.tracker import sorted_names

__all__ = ["SEARCH", "JiraComments", "JiraIssues", "JiraMilestones", "ProjectSearch", "recent"]

R = TypeVar("R", bound=Record)
_PROPERTY: Final = "eventsync"
_KEY: Final = re.compile(r"[A-Z][A-Z0-9_]*", re.ASCII)
SEARCH: Final = Cursor(
    items="issues", at="nextPageToken", name="nextPageToken", size_name="maxResults", size=SIZE
)
_FIELDS: Final = (
    "summary,description,status,priority,assignee,fixVersions,labels,project,reporter,created,"
    "updated,parent"
)


def _ago(moment: dt.datetime) -> str:
    """Return a time for Jira's search, as a negative number of minutes before now: ``-5m``.

    This is the only form of a time in a search that does not depend on a time zone.
    """
    passed = dt.datetime.now(dt.UTC) - moment
    return f"-{max(1, math.ceil(passed.total_seconds() / 60) + 1)}m"


def recent(updated: str) -> Since:
    """Return how to ask Jira for issues that changed at or after a time."""
    # Our clock and Jira's clock may differ. The overlap covers differences up to five minutes.
    return Since(updated=updated, query={"updated": "{since}"}, show=_ago, overlap=300.0)


class ProjectSearch:
    """The search for the issues of a project. Raises ``ConfigError`` for what is not its key."""

    def __init__(self, project: str) -> None:
        if not _KEY.fullmatch(project):
            raise ConfigError(
                f"{project!r} is not the key of a Jira project",
                hint="pass capital letters, digits and _, beginning with a letter, as in SHOP",
            )
        self._project = project

    def query(self, query: Mapping[str, str]) -> dict[str, str]:
        """Return the query parameters of the search.

        ``query``: the query of ``Since``, to find only issues that changed recently, or empty.
        """
        since = f" AND updated >= {query['updated']}" if "updated" in query else ""
        return {"jql": f'project = "{self._project}"{since} ORDER BY created ASC, key ASC'}


class _JiraProjectAccessor(JiraAccessor[R]):
    """The base of accessors of a project. ``project``: the key of the project, such as ``SHOP``."""

    numbered_by_project = False

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
    ) -> None:
        self._search = ProjectSearch(project)
        self.project = self.project_key = project
        self.projects = frozenset({project})
        base = f"/project/{project}"
        super().__init__(record_type, service, base, identity=identity, view=view, new=new)

    def ping(self) -> None:
        self.service.request("GET", f"/project/{self.project}")

    def searched(self, query: Mapping[str, str]) -> dict[str, str]:
        return self._search.query(query)


class _PropertyAccessor(_JiraProjectAccessor[R]):
    """The base of accessors whose objects have their marker in a property of the object."""

    def mark(self, body: dict[str, Any], key: str) -> None:
        marker = {"type": self.type.name, "key": key}
        body["properties"] = [{"key": _PROPERTY, "value": marker}]

    def marker_in(self, data: dict[str, Any]) -> str | None:
        properties = data.get("properties") or {}
        if isinstance(properties, list):
            properties = {one["key"]: one["value"] for one in properties}
        if at(properties, f"{_PROPERTY}.type") != self.type.name:
            return None
        key = at(properties, f"{_PROPERTY}.key")
        return key if isinstance(key, str) else None


class JiraIssues(_PropertyAccessor[R]):
    """Issues. Removing a record deletes the issue, which requires a right of its own.

    ``issue_type``: the name of the type of new issues. ``child_type``: that of new issues with a
    ``parent``, if the view has this field. ``settle``: for how many seconds
    after its creation an issue may be missing from Jira's search. If the answer to a creation is
    lost, eventsync searches for the issue, searches again after this time, and only then creates
    the issue again.

    The status of a record is closed if Jira has the status of the issue in the category *done*. To
    change the status, eventsync uses the first transition of the workflow that leads to a status of
    the other kind. A record has one milestone: the first *fix version* of the issue. A write of
    this field removes the other fix versions.
    """

    shape = Issue
    destroyer = "a user with the right to delete issues"
    where = Resource(
        items="/search/jql",
        item="/issue/{id}",
        creations="/issue",
        query={"fields": _FIELDS, "properties": _PROPERTY},
        single={"fields": _FIELDS, "properties": _PROPERTY},
        pages=SEARCH,
        update="PUT",
        etags=False,
        since=recent("fields.updated"),
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
    extra: ClassVar[Mapping[str, Slot]] = {
        "parent": Slot(
            at="fields.parent.id",
            to="fields.parent",
            write=lambda id: {"id": id},
            of="Issue",
            kept="removes a parent only from some types of issues; remove it there",
            omitted=True,
        ),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="fields.reporter.accountId", of="Account"),
        "created": Slot(at="fields.created"),
        "updated": Slot(at="fields.updated"),
    }

    def __init__(
        self,
        record_type: type[R],
        service: JiraService,
        project: str,
        *,
        identity: IdentityMap,
        view: View | None = None,
        new: Mapping[str, Any] | None = None,
        issue_type: str = "Task",
        child_type: str = "Sub-task",
        settle: float = 5.0,
    ) -> None:
        super().__init__(record_type, service, project, identity=identity, view=view, new=new)
        self._issue_type, self._child_type, self._settle = issue_type, child_type, settle

    def objects(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        return super().objects(self.searched(query))

    def present(self, data: Mapping[str, Any]) -> bool:
        # An issue keeps its id when it is moved to another project, so check the project.
        project = at(data, "fields.project.key")
        if project not in self.projects:
            raise RecordError(
                f"an issue was moved to the project {project!r}, which this store does not hold",
                hint="the record is not deleted; move the issue back, or hold that project too",
            )
        return bool(project == self.project)

    def find_marked(self, key: str) -> str | None:
        found = super().find_marked(key)
        if found is None:
            time.sleep(self._settle)  # Jira lists a new issue with a delay
            found = super().find_marked(key)
        return found

    def fill(self, members: Mapping[str, Any], body: dict[str, Any] | None) -> dict[str, Any]:
        for label in members.get("labels") or ():
            if len(label.split()) != 1:
                raise RejectedError(
                    f"Jira allows no blank in a label: {label!r}", hint="rename the label"
                )
        return super().fill(members, body)

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        fields = body.get("fields", {})
        name = self._child_type if fields.get("parent") else self._issue_type
        own = {"project": {"key": self.project}, "issuetype": {"name": name}}
        body["fields"] = {**fields, **own}
        return super().post(key, body)

    def modify(self, key: str, found: Object, members: Mapping[str, Any]) -> Answer:
        self.fill(members, None)  # raises RejectedError before anything is written
        status = members.get("status")
        requests = [] if status is None else [self._transition(key, status)]
        rest = {name: value for name, value in members.items() if name != "status"}
        if rest:
            # Jira may refuse to edit a closed issue. So edit before closing, and after opening.
            position = 1 if status == "open" else 0
            requests.insert(position, partial(super().modify, key, found, rest))
        return [send() for send in requests][-1]

    def _transition(self, key: str, status: str) -> Callable[[], Answer]:
        """Return a function that sends the request to move an issue to another status.

        ``status``: ``open`` or ``closed``. Raises ``RejectedError`` if the workflow has no
        transition from the present status to such a status.
        """
        path = f"{self.known_path(key)}/transitions"
        for transition in self.service.request("GET", path).json()["transitions"]:
            done = transition["to"]["statusCategory"]["key"] == "done"
            if done == (status == "closed"):
                body = {"transition": {"id": transition["id"]}}
                return partial(self.service.request, "POST", path, body=body)
        raise RejectedError(
            f"{self.type.name} {key!r}: its workflow in Jira has no transition from the present "
            f"status to one that is {status}",
            hint="move the issue in Jira, or change the workflow, then replay the dead letter",
        )


class JiraComments(_PropertyAccessor[R]):
    """Comments. The author of a new comment is the owner of the token."""

    shape = Comment
    where = Resource(
        items="/issue/{in}/comment",
        item="/issue/{in}/comment/{id}",
        within=Within(items="/search/jql", query={"fields": "updated"}, pages=SEARCH),
        query={"orderBy": "created", "expand": "properties"},
        pages=pages("comments"),
        update="PUT",
        etags=False,
        returns=True,
        since=recent("@in.fields.updated"),
    )
    slots: ClassVar[Mapping[str, Slot]] = {
        "issue": Slot(at="@in.id", of="Issue", fixed="cannot move to another issue"),
        "body": Slot(at="body"),
    }
    told: ClassVar[Mapping[str, Slot]] = {
        "author": Slot(at="author.accountId", of="Account", omitted=True),
        "created": Slot(at="created"),
        "updated": Slot(at="updated"),
    }

    def outer(self, query: Mapping[str, str]) -> Iterator[dict[str, Any]]:
        return super().outer(self.searched(query))


class JiraMilestones(MarkedAccessor[R], _JiraProjectAccessor[R]):
    """Milestones: the versions of the project. A milestone is closed if the version is released."""

    shape = Milestone
    _id: str | None = None  # of the project
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
            kept="documents no way to remove the date of a version; set another date",
        ),
    }

    def present(self, data: Mapping[str, Any]) -> bool:
        # Ids of versions are unique in the site, and any of its projects can be asked for them.
        return len(self.projects) == 1 or str(data["projectId"]) == self._project_id()

    def _project_id(self) -> str:
        if self._id is None:
            self._id = str(self.service.request("GET", f"/project/{self.project}").json()["id"])
        return self._id

    def post(self, key: str, body: dict[str, Any]) -> Answer:
        return super().post(key, {**body, "project": self.project})
