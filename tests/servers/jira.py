"""A simulated Jira Cloud: one project, and the projects, users and groups of its site.

It follows the published description of the REST API, and refuses what Jira refuses.
``tests/stores/check_trackers.py`` checks requests and answers against that description.
"""

from __future__ import annotations

import base64
import datetime as dt
import itertools
import re
from typing import Any

from servers.http_service import Asked, HttpService
from servers.jira_site import Site, paged, refused

__all__ = ["JiraSimulator"]

_STATUSES = {"1": ("To Do", "new"), "2": ("Doing", "indeterminate"), "3": ("Done", "done")}
_JQL = re.compile(
    r'project = "([A-Z]+)"(?: AND updated >= -(\d+)m)? ORDER BY created ASC, key ASC', re.ASCII
)


class JiraSimulator(HttpService):
    """The project ``SHOP``, and others that are added to ``site``.

    ``site``: the projects, users and groups. ``behind``: in how many searches the newest issue is
    still missing. ``workflow``: the ids of the statuses that an issue can be moved to. ``deleter``:
    whether the user may delete issues.
    """

    token = "good-token"

    def __init__(self) -> None:
        super().__init__()
        self._ids = itertools.count(10001)
        self.behind = 0
        self._hidden: dict[str, int] = {}
        self.deleter = True
        self.workflow = list(_STATUSES)
        self.issues: dict[str, dict[str, Any]] = {}
        self.properties: dict[str, dict[str, Any]] = {}
        self.comments: dict[str, dict[str, Any]] = {}
        self.versions: dict[str, dict[str, Any]] = {}
        self.files: dict[str, bytes] = {}
        self.site = Site()

    # -- what a person does there ------------------------------------------------------------------

    def opens(self, **fields: Any) -> str:
        """Create an issue as a person would, and return its id."""
        id = str(next(self._ids))
        self.issues[id] = {
            "summary": "",
            "description": None,
            "status": self._status("1"),
            "priority": self._priority("Medium"),
            "assignee": None,
            "fixVersions": [],
            "labels": [],
            "attachment": [],
            "project": self.site.projects["SHOP"],
            "created": (now := self._now()),
            "updated": now,
            **fields,
        }
        self._hidden[id] = self.behind
        return id

    def edits(self, id: str, **fields: Any) -> None:
        """Edit an issue as a person would."""
        self.issues[id] |= {**fields, "updated": self._now()}

    def moves(self, id: str, status: str) -> None:
        """Move an issue to the status with this id, as a person would."""
        self.edits(id, status=self._status(status))

    def says(self, issue: str, body: str, properties: list[dict[str, Any]] | None = None) -> str:
        """Comment on an issue as a person would, and return the id of the comment."""
        id = str(next(self._ids))
        self.comments[id] = {
            "self": f"{self.url}/rest/api/2/issue/{issue}/comment/{id}",
            "id": id,
            "author": self.site.users["5b-ann"],
            "body": body,
            "created": (now := self._now()),
            "updated": now,
            "properties": properties or [],
        }
        self.edits(issue)
        return id

    def attaches(self, issue: str, name: str, type: str, content: bytes) -> dict[str, Any]:
        """Attach a file to an issue as a person would, and return its description."""
        id = str(next(self._ids))
        self.files[id] = content
        made = {
            "self": f"{self.url}/rest/api/2/attachment/{id}",
            "id": id,
            "filename": name,
            "author": self.site.users["5b-ann"],
            "created": self._now(),
            "size": len(content),
            "mimeType": type,
            "content": f"{self.url}/rest/api/2/attachment/content/{id}",
        }
        self.edits(issue, attachment=[*self.issues[issue]["attachment"], made])
        return made

    # -- requests ----------------------------------------------------------------------------------

    def act(self, asked: Asked) -> tuple[Any, ...]:
        assert asked.names[:3] == ["rest", "api", "2"]
        wanted = base64.b64encode(f"eventsync@example.org:{self.token}".encode()).decode()
        if asked.headers.get("Authorization") != f"Basic {wanted}":
            return 401, {"errorMessages": ["You are not authenticated."], "errors": {}}
        method, names = asked.method, asked.names[3:]
        answer = self._on_issues(method, names, asked) or self.site.act(asked, names)
        return answer or refused(404, "It does not exist or you may not see it.")

    def _on_issues(self, method: str, names: list[str], asked: Asked) -> tuple[Any, ...] | None:
        body = asked.body
        match method, *names:
            case "GET", "search", "jql":
                return self._search(asked)
            case "POST", "issue":
                return self._create(body)
            case _, "attachment", *rest:
                return self._on_attachment(method, rest, asked)
            case _, "issue", id, *rest if id in self.issues:
                return self._on_issue(method, id, rest, asked)
            case "GET", "project", key, "version" if key in self.site.projects:
                project = int(self.site.projects[key]["id"])
                versions = [v for v in self.versions.values() if v["projectId"] == project]
                return paged("values", versions, asked)
            case "POST", "version":
                same = [
                    held["name"]
                    for held in self.versions.values()
                    if held["projectId"] == int(self.site.projects[body["project"]]["id"])
                ]
                if body["name"] in same:
                    return refused(400, "A version with this name already exists.")
                return self._new_version(body)
            case _, "version", id if id in self.versions:
                if method == "DELETE":
                    del self.versions[id]
                    for issue in self.issues.values():
                        kept = [one for one in issue["fixVersions"] if one["id"] != id]
                        issue["fixVersions"] = kept
                    return 204, None
                self.versions[id] |= body or {}
                return 200, self.versions[id]
            case "GET", "label":
                words = {word for issue in self.issues.values() for word in issue["labels"]}
                return paged("values", sorted(words), asked)
        return None

    def _on_issue(self, method: str, id: str, rest: list[str], asked: Asked) -> Any:
        body = asked.body
        match method, *rest:
            case ("GET",):
                return 200, self._issue(id, asked)
            case ("PUT",):
                problem = self._edit(id, body["fields"])
                return refused(400, problem) if problem else (204, None)
            case ("DELETE",):
                if not self.deleter:
                    return refused(403, "You do not have permission to delete issues.")
                del self.issues[id]
                return 204, None
            case "GET", "transitions":
                offered = [
                    {"id": f"{status}1", "name": name, "to": self._status(status)}
                    for status, (name, _) in _STATUSES.items()
                    if status in self.workflow
                ]
                return 200, {"expand": "transitions", "transitions": offered}
            case "POST", "transitions":
                self.moves(id, body["transition"]["id"][0])
                return 204, None
            case "POST", "attachments":
                assert asked.headers["X-Atlassian-Token"] == "no-check"
                return 200, [self.attaches(id, *file) for file in body.values()]
            case "GET", "comment":
                found = [c for c in self.comments.values() if f"/issue/{id}/" in c["self"]]
                return paged("comments", found, asked)
            case "POST", "comment":
                made = self.says(id, body["body"], body.get("properties"))
                return 201, self._comment(made, asked)
            case _, "comment", number if number in self.comments:
                self.edits(id)
                if method == "DELETE":
                    del self.comments[number]
                    return 204, None
                self.comments[number] |= body or {}
                return 200, self._comment(number, asked)
        return None

    def _on_attachment(self, method: str, rest: list[str], asked: Asked) -> Any:
        match method, *rest:
            case "GET", "content", id if id in self.files:
                assert asked.query == {"redirect": "false"}
                return 200, self.files[id]
            case _, id if id in self.files:
                held = next(
                    (issue, one)
                    for issue, data in self.issues.items()
                    for one in data["attachment"]
                    if one["id"] == id
                )
                if method == "DELETE":
                    del self.files[id]
                    kept = [one for one in self.issues[held[0]]["attachment"] if one["id"] != id]
                    self.edits(held[0], attachment=kept)
                    return 204, None
                return 200, {**held[1], "id": int(id)}
        return None

    # -- objects -----------------------------------------------------------------------------------

    def _search(self, asked: Asked) -> tuple[Any, ...]:
        found = _JQL.fullmatch(asked.query["jql"])
        assert found, asked.query
        after = ""
        if found[2]:
            moment = dt.datetime.now(dt.UTC) - dt.timedelta(minutes=int(found[2]))
            after = _text(moment)
        listed = [
            id
            for id, data in self.issues.items()
            if data["updated"] >= after and data["project"]["key"] == found[1]
        ]
        hidden, self._hidden = self._hidden, {id: n - 1 for id, n in self._hidden.items() if n}
        listed = [id for id in listed if not hidden.get(id)]
        start, size = int(asked.query.get("nextPageToken", 0)), int(asked.query["maxResults"])
        page = {"issues": [self._issue(id, asked) for id in listed[start : start + size]]}
        if len(listed) > start + size:
            page["nextPageToken"] = str(start + size)
        return 200, page

    def _issue(self, id: str, asked: Asked) -> dict[str, Any]:
        wanted = asked.query["fields"].split(",")
        issue: dict[str, Any] = {
            "id": id,
            "key": f"SHOP-{id}",
            "self": f"{self.url}/rest/api/2/issue/{id}",
            "fields": {name: held for name, held in self.issues[id].items() if name in wanted},
        }
        if asked.query.get("properties") == "eventsync":
            issue["properties"] = self.properties.get(id, {})
        return issue

    def _create(self, body: dict[str, Any]) -> tuple[Any, ...]:
        fields = dict(body["fields"])
        project = self.site.projects[fields.pop("project")["key"]]
        kind = "Sub-task" if fields.get("parent") else "Task"
        assert fields.pop("issuetype") == {"name": kind}
        if not fields.get("summary"):
            return refused(400, "You must specify a summary of the issue.")
        id = self.opens(project=project)
        problem = self._edit(id, fields)
        if problem:
            del self.issues[id]
            return refused(400, problem)
        self.properties[id] = {one["key"]: one["value"] for one in body.get("properties", ())}
        link = f"{self.url}/rest/api/2/issue/{id}"
        return 201, {"id": id, "key": f"SHOP-{id}", "self": link}

    def _edit(self, id: str, fields: dict[str, Any]) -> str:
        """Set fields of an issue. Return the reason if they are refused, else an empty text."""
        made: dict[str, Any] = {}
        for name, value in fields.items():
            assert name in (*self.issues[id], "parent"), name
            assert name != "status", "a status is moved"
            if name == "labels" and any(" " in word for word in value):
                return "The label contains spaces."
            if name == "priority" and value is not None:
                made[name] = self._priority(value["name"])
            elif name == "assignee" and value is not None:
                if value["accountId"] not in self.site.users:
                    return "The assignee does not exist."
                made[name] = self.site.users[value["accountId"]]
            elif name == "fixVersions":
                for one in value:
                    if (
                        str(self.versions[one["id"]]["projectId"])
                        != self.issues[id]["project"]["id"]
                    ):
                        return f"Version id '{one['id']}' is not valid."
                made[name] = [self.versions[one["id"]] for one in value]
            elif name == "parent":
                if value["id"] not in self.issues:
                    return "The parent does not exist."
                made[name] = {"id": value["id"], "key": f"SHOP-{value['id']}"}
            elif name == "description":
                made[name] = value or None
            else:
                made[name] = value
        self.edits(id, **made)
        return ""

    def _comment(self, id: str, asked: Asked) -> dict[str, Any]:
        shown = dict(self.comments[id])
        if asked.query.get("expand") != "properties":
            shown.pop("properties")
        return shown

    def _new_version(self, body: dict[str, Any]) -> tuple[Any, ...]:
        id = str(next(self._ids))
        self.versions[id] = {
            "self": f"{self.url}/rest/api/2/version/{id}",
            "id": id,
            "archived": False,
            "released": False,
            "projectId": int(self.site.projects[body["project"]]["id"]),
            **{name: held for name, held in body.items() if name != "project"},
        }
        return 201, self.versions[id]

    def _status(self, id: str) -> dict[str, Any]:
        name, category = _STATUSES[id]
        held = {"id": 1, "key": category, "name": name, "colorName": "blue-gray", "self": "s"}
        return {"id": id, "name": name, "self": "s", "statusCategory": held}

    def _priority(self, name: str) -> dict[str, Any]:
        return {"id": "3", "name": name, "self": "s", "iconUrl": "i"}

    def _now(self) -> str:
        return _text(dt.datetime.now(dt.UTC))


def _text(moment: dt.datetime) -> str:
    return moment.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3] + "+0000"
