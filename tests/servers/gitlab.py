"""A simulated GitLab: one project, and the groups and users of its instance.

It follows the documentation of GitLab's REST API, version 4, because no package registry has a
description to check it against. It refuses what GitLab refuses, asserts that each request is
documented, and executes the commands in texts.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any, Final

from servers.gitlab_groups import Groups, listed, put_or_read
from servers.http_service import Asked, HttpService

__all__ = ["GitLabSimulator"]

_TAKES: Final = {
    "POST issues": "title description assignee_ids milestone_id labels",
    "PUT issues": "title description state_event assignee_ids milestone_id labels",
    "POST notes": "body",
    "PUT notes": "body",
    "POST milestones": "title description due_date",
    "PUT milestones": "title description due_date state_event",
    "POST labels": "name color description",
    "PUT labels": "color description",
    "POST groups": "name path description parent_id",
    "PUT groups": "name description",
    "POST members": "user_id access_level",
    "PUT members": "access_level",
    "POST uploads": "file",
    "POST projects": "name path namespace_id description visibility topics",
    "PUT projects": "name description visibility topics",
    "POST users": "email username name reset_password",
    "PUT users": "email name skip_reconfirmation",
}
_LISTS: Final = "page per_page state order_by sort updated_after"
_PAGED: Final = {
    "issues": _LISTS,
    "notes": "page per_page order_by sort",
    "milestones": "page per_page updated_after",
    "labels": "page per_page include_ancestor_groups",
    "groups": "page per_page min_access_level with_projects",
    "members": "page per_page query",
    "uploads": "page per_page",
    "projects": "page per_page include_subgroups with_shared archived",
    "users": "page per_page username humans",
}


class GitLabSimulator(HttpService):
    """The project ``acme/shop``, and those in ``others``.

    ``others``: by path, more projects.
    ``owner``: whether the token belongs to an owner of the project. ``around``: the groups and
    users. ``issues``: by ``iid``. ``notes``, ``milestones``: by ``id``. ``labels``: by name.
    """

    token = "good-token"

    def __init__(self, path: str = "acme/shop", beside: GitLabSimulator | None = None) -> None:
        super().__init__()
        self.path, self._beside = path, beside
        self.others: dict[str, GitLabSimulator] = {}
        self._ids = beside._ids if beside else itertools.count(101)
        self._clock = itertools.count()
        self.owner = True
        self.issues: dict[int, dict[str, Any]] = {}
        self.notes: dict[int, dict[str, Any]] = {}
        self.milestones: dict[int, dict[str, Any]] = {}
        self.labels: dict[str, dict[str, Any]] = {}
        self.files: dict[int, bytes] = {}
        self.uploads: dict[int, dict[str, Any]] = {}
        self.around = beside.around if beside else Groups()

    @property
    def url(self) -> str:
        return self._beside.url if self._beside else super().url

    def more(self, path: str) -> GitLabSimulator:
        """Return another project, which has no issues yet."""
        self.others[path] = GitLabSimulator(path, self)
        return self.others[path]

    # -- what a person does there ------------------------------------------------------------------

    def opens(self, **more: Any) -> int:
        """Create an issue as a person would, and return its number."""
        iid = len(self.issues) + 1
        self.issues[iid] = {
            "id": next(self._ids),
            "iid": iid,
            "project_id": 4,
            "title": "",
            "description": None,
            "state": "opened",
            "created_at": (now := self._now()),
            "updated_at": now,
            "closed_at": None,
            "labels": [],
            "milestone": None,
            "assignees": [],
            "assignee": None,
            "author": self.around.brief(1),
            "type": "ISSUE",
            "confidential": False,
            "discussion_locked": None,
            "issue_type": "issue",
            "web_url": f"https://gitlab.example.org/{self.path}/-/issues/{iid}",
            **more,
        }
        return iid

    def edits(self, iid: int, **more: Any) -> None:
        """Edit an issue as a person would."""
        self.issues[iid] |= {**more, "updated_at": self._now()}

    def says(self, iid: int, body: str, *, system: bool = False) -> int:
        """Comment on an issue as a person would, and return the id of the comment."""
        id = next(self._ids)
        self.notes[id] = {
            "id": id,
            "body": body,
            "author": self.around.brief(1),
            "created_at": (now := self._now()),
            "updated_at": now,
            "system": system,
            "noteable_id": self.issues[iid]["id"],
            "noteable_type": "Issue",
            "project_id": 4,
            "noteable_iid": iid,
            "resolvable": False,
            "confidential": False,
            "internal": False,
        }
        self.edits(iid)
        return id

    def uploads_file(self, name: str, type: str, content: bytes) -> dict[str, Any]:
        """Upload a file as a person would, and return the answer of GitLab."""
        id = next(self._ids)
        self.files[id] = content
        self.uploads[id] = {
            "id": id,
            "size": len(content),
            "filename": name,
            "created_at": self._now(),
            "uploaded_by": {"id": 1, "name": "Ann", "username": "ann"},
        }
        url = f"/uploads/66db{id}/{name}"
        path = f"/-/project/4{url}"
        return {"id": id, "alt": name, "url": url, "full_path": path, "markdown": f"[]({url})"}

    # -- requests ----------------------------------------------------------------------------------

    def act(self, asked: Asked) -> tuple[Any, ...]:
        assert asked.names[:2] == ["api", "v4"]
        if asked.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"message": "401 Unauthorized"}
        method, names = asked.method, asked.names[2:]
        kinds = [name for name in names if name in _PAGED]
        takes = _TAKES.get(f"{method} {kinds[-1]}", "").split() if kinds else []
        assert set(asked.body or {}) <= set(takes), asked
        assert set(asked.query) <= set(_PAGED[kinds[-1]].split()), asked
        match names:
            case ["projects", path, *_] if path in self.others:
                return self.others[path].act(asked)
            case ["projects", self.path, *inner]:
                return self._in_project(method, inner, asked) or self._missing()
            case ["groups" | "users" | "projects", *_]:
                return self.around.act(asked, names, self.url) or self._missing()
        return self._missing()

    def _in_project(self, method: str, names: list[str], asked: Asked) -> tuple[Any, ...] | None:
        body = asked.body
        match method, *names:
            case "GET", "issues":
                return listed(self.issues.values(), asked, self.url)
            case "POST", "issues":
                if not body.get("title"):
                    return 400, {"error": "title is missing"}
                return 201, self._edit(self.opens(), body)
            case _, "issues", iid, *rest if int(iid) in self.issues:
                return self._on_issue(method, int(iid), rest, asked)
            case "GET", "milestones":
                return listed(self.milestones.values(), asked, self.url)
            case "POST", "milestones":
                return 201, self._new_milestone(body)
            case _, "milestones", id if int(id) in self.milestones:
                return self._on(self.milestones, int(id), method, self._stated(body, "active"))
            case "GET", "uploads":
                assert self.owner
                return listed(self.uploads.values(), asked, self.url)
            case "POST", "uploads":
                return 201, self.uploads_file(*asked.body["file"])
            case _, "uploads", id if int(id) in self.uploads:
                if method == "DELETE":
                    del self.uploads[int(id)]
                    return 204, None
                return 200, self.files[int(id)]
            case "GET", "labels":
                return listed(self.labels.values(), asked, self.url)
            case "POST", "labels":
                if not re.fullmatch("#[0-9a-f]{6}", body.get("color", "")):
                    return 400, {"error": "color is missing"}
                if body["name"] in self.labels:
                    return 409, {"message": "Label already exists"}
                return 201, self._label(**body)
            case _, "labels", name if name in self.labels:
                if method == "PUT" and not body.get("color"):
                    return 400, {"error": "new_name, color are missing"}
                return self._on(self.labels, name, method, body)
        return None

    def _on_issue(self, method: str, iid: int, rest: list[str], asked: Asked) -> Any:
        issue = self.issues[iid]
        match method, *rest:
            case ("GET",):
                return 200, issue
            case ("PUT",):
                return 200, self._edit(iid, asked.body)
            case ("DELETE",):
                if not self.owner:
                    return 403, {"message": "403 Forbidden"}
                del self.issues[iid]
                return 204, None
            case "GET", "notes":
                notes = [note for note in self.notes.values() if note["noteable_iid"] == iid]
                return listed(notes, asked, self.url)
            case "POST", "notes":
                text, commands = _carried_out(asked.body["body"])
                if not text:
                    return 202, {"commands_changes": dict.fromkeys(commands, True), "summary": []}
                return 201, self.notes[self.says(iid, text)]
            case _, "notes", id if int(id) in self.notes:
                self.edits(iid)
                return self._on(self.notes, int(id), method, asked.body)
        return None

    # -- objects -----------------------------------------------------------------------------------

    def _missing(self) -> tuple[Any, ...]:
        return 404, {"message": "404 Not found"}

    def _on(self, held: dict[Any, Any], id: Any, method: str, body: Any) -> tuple[Any, ...]:
        if method == "DELETE":
            del held[id]
            return 204, None
        if method == "PUT" and "updated_at" in held[id]:
            held[id]["updated_at"] = self._now()
        return put_or_read(held[id], method, body)

    def _edit(self, iid: int, body: dict[str, Any]) -> dict[str, Any]:
        held = self.issues[iid]
        for name, value in self._stated(body, "opened").items():
            if name == "labels":
                words = [word.strip() for word in value.split(",") if word.strip()]
                for word in words:
                    self.labels.get(word) or self._label(word)
                held["labels"] = sorted(words)
            elif name == "assignee_ids":
                held["assignees"] = [self.around.brief(id) for id in value if id]
                held["assignee"] = next(iter(held["assignees"]), None)
            elif name == "milestone_id":
                held["milestone"] = self.milestones[value] if value else None
            elif name == "description":
                held["description"] = _carried_out(value)[0]
            else:
                held[name] = value
        held["updated_at"] = self._now()
        return held

    def _stated(self, body: dict[str, Any] | None, active: str) -> dict[str, Any]:
        events = {"close": "closed", "reopen": "opened", "activate": "active"}
        stated = dict(body or {})
        if "state_event" in stated:
            stated["state"] = events[stated.pop("state_event")]
            assert stated["state"] in ("closed", active)
        return stated

    def _new_milestone(self, body: dict[str, Any]) -> dict[str, Any]:
        id = next(self._ids)
        self.milestones[id] = {
            "id": id,
            "iid": len(self.milestones) + 1,
            "project_id": 4,
            "description": "",
            "due_date": None,
            "start_date": None,
            "state": "active",
            "created_at": (now := self._now()),
            "updated_at": now,
            "expired": False,
            **body,
        }
        return self.milestones[id]

    def _label(self, name: str, color: str = "#6699cc", description: str | None = None) -> Any:
        self.labels[name] = {
            "id": next(self._ids),
            "name": name,
            "color": color,
            "text_color": "#FFFFFF",
            "description": description,
            "subscribed": False,
            "priority": None,
            "is_project_label": True,
        }
        return self.labels[name]

    def _now(self) -> str:
        moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=next(self._clock))
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _carried_out(text: str) -> tuple[str, list[str]]:
    """Return a text without its commands, and the commands."""
    lines, commands = [], []
    for line in text.split("\n"):
        found = re.fullmatch(r"\s*/(close|assign|label|title|move|shrug)(\s.*)?", line)
        (commands if found else lines).append(line)
    return ("\n".join(lines).strip() if commands else text), commands
