"""A GitLab of the tests' own: one project's issues, and the groups and users beside.

Small, and made from the documentation of GitLab's REST API, version 4: there is no description of
it in the package registries that could be held against it. It refuses what GitLab refuses, asserts
that it is asked for nothing that is not documented, and carries out the commands in texts.
"""

from __future__ import annotations

import datetime as dt
import itertools
import re
from typing import Any, Final

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
    "POST projects": "name path namespace_id description",
    "PUT projects": "name description",
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
    "projects": "page per_page include_subgroups with_shared archived",
    "users": "page per_page username humans",
}


class GitLabSimulator(HttpService):
    """The project ``acme/shop`` in the group ``acme``; ``owner``: whether the token is an owner's.

    What is there is by the ids of GitLab: ``issues`` by ``iid``, ``notes``, ``milestones``,
    ``groups``, ``projects`` and ``users`` by ``id``, ``labels`` by name, ``levels`` by the ids of
    group and user.
    """

    token = "good-token"

    def __init__(self) -> None:
        super().__init__()
        self._ids = itertools.count(101)
        self._clock = itertools.count()
        self.owner = True
        self.issues: dict[int, dict[str, Any]] = {}
        self.notes: dict[int, dict[str, Any]] = {}
        self.milestones: dict[int, dict[str, Any]] = {}
        self.labels: dict[str, dict[str, Any]] = {}
        self.users = {n: self._user(n, name) for n, name in enumerate(("ann", "bob", "eve"), 1)}
        self.groups: dict[int, dict[str, Any]] = {}
        self.projects: dict[int, dict[str, Any]] = {}
        self.levels: dict[tuple[int, int], int] = {}
        self._new_group({"name": "Acme", "path": "acme"})
        self.levels[self.group("acme"), 1] = 50

    def group(self, path: str) -> int:
        """The id of a group."""
        return next(id for id, held in self.groups.items() if held["full_path"] == path)

    # -- what a person does on the pages -----------------------------------------------------------

    def opens(self, **more: Any) -> int:
        """Somebody opens an issue; its number."""
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
            "author": self._brief(1),
            "type": "ISSUE",
            "confidential": False,
            "discussion_locked": None,
            "issue_type": "issue",
            "web_url": f"https://gitlab.example.org/acme/shop/-/issues/{iid}",
            **more,
        }
        return iid

    def edits(self, iid: int, **more: Any) -> None:
        """Somebody edits an issue."""
        self.issues[iid] |= {**more, "updated_at": self._now()}

    def says(self, iid: int, body: str, *, system: bool = False) -> int:
        """Somebody comments on an issue; the comment's id."""
        id = next(self._ids)
        self.notes[id] = {
            "id": id,
            "body": body,
            "author": self._brief(1),
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
            case ["projects", "acme/shop", *inner]:
                return self._in_project(method, inner, asked) or self._missing()
            case ["groups" | "users" | "projects", *_]:
                return self._beside(method, names, asked) or self._missing()
        return self._missing()

    def _in_project(self, method: str, names: list[str], asked: Asked) -> tuple[Any, ...] | None:
        body = asked.body
        match method, *names:
            case "GET", "issues":
                return self._list(self.issues.values(), asked)
            case "POST", "issues":
                if not body.get("title"):
                    return 400, {"error": "title is missing"}
                return 201, self._edit(self.opens(), body)
            case _, "issues", iid, *rest if int(iid) in self.issues:
                return self._on_issue(method, int(iid), rest, asked)
            case "GET", "milestones":
                return self._list(self.milestones.values(), asked)
            case "POST", "milestones":
                return 201, self._new_milestone(body)
            case _, "milestones", id if int(id) in self.milestones:
                return self._on(self.milestones, int(id), method, self._stated(body, "active"))
            case "GET", "labels":
                return self._list(self.labels.values(), asked)
            case "POST", "labels":
                if not re.fullmatch("#[0-9a-f]{6}", body.get("color", "")):
                    return 400, {"error": "color is missing"}
                if body["name"] in self.labels:
                    return 409, {"message": "Label already exists"}
                return 201, self._label(**body)
            case _, "labels", name if name in self.labels:
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
                return self._list(notes, asked)
            case "POST", "notes":
                text, commands = _carried_out(asked.body["body"])
                if not text:
                    return 202, {"commands_changes": dict.fromkeys(commands, True), "summary": []}
                return 201, self.notes[self.says(iid, text)]
            case _, "notes", id if int(id) in self.notes:
                self.edits(iid)
                return self._on(self.notes, int(id), method, asked.body)
        return None

    def _beside(self, method: str, names: list[str], asked: Asked) -> tuple[Any, ...] | None:
        body, query = asked.body, asked.query
        match method, *names:
            case "GET", "users":
                wanted = query.get("username")
                found = [u for u in self.users.values() if wanted in (None, u["username"])]
                return self._list(found, asked)
            case "POST", "users":
                if any(user["username"] == body["username"] for user in self.users.values()):
                    return 409, {"message": "Username has already been taken"}
                made = self._user(len(self.users) + 1, body["username"])
                self.users[made["id"]] = made
                made |= {name: body[name] for name in ("name", "email")}
                return 201, made
            case "POST", "users", id, "block" | "unblock" as what:
                self.users[int(id)]["state"] = {"block": "blocked", "unblock": "active"}[what]
                return 201, True
            case _, "users", id if int(id) in self.users:
                fields = {n: held for n, held in (body or {}).items() if n in ("name", "email")}
                return self._on(self.users, int(id), method, fields)
            case "GET", "groups":
                assert query["min_access_level"] == "10"
                return self._list(self.groups.values(), asked)
            case "POST", "groups":
                return self._new_group(body)
            case _, "groups", path, *rest if path in self._paths(self.groups, "full_path"):
                id = self._paths(self.groups, "full_path")[path]
                return self._on_group(method, id, rest, asked)
            case "POST", "projects":
                return self._new_project(body)
            case method, "projects", path, *rest:
                id = self._paths(self.projects, "path_with_namespace").get(path)
                if id is None:
                    return None
                if rest:
                    self.projects[id]["archived"] = rest == ["archive"]
                    return 201, self.projects[id]
                return self._on(self.projects, id, method, body)
        return None

    def _on_group(self, method: str, id: int, rest: list[str], asked: Asked) -> Any:
        held = self.groups[id]
        match method, *rest:
            case ("GET",) | ("PUT",):
                return self._on(self.groups, id, method, asked.body)
            case "GET", "projects":
                inside = held["full_path"] + "/"
                found = [
                    project
                    for project in self.projects.values()
                    if project["path_with_namespace"].startswith(inside) and not project["archived"]
                ]
                return self._list(found, asked)
            case ("GET", "members") | ("GET", "members", "all"):
                members = [self._member(group, user) for group, user in self.levels if group == id]
                return self._list(members, asked)
            case "GET", "members", user if (id, int(user)) in self.levels:
                return 200, self._member(id, int(user))
            case "POST", "members":
                user = asked.body["user_id"]
                if (id, user) in self.levels:
                    return 409, {"message": "Member already exists"}
                self.levels[id, user] = asked.body["access_level"]
                return 201, self._member(id, user)
            case "PUT", "members", user if (id, int(user)) in self.levels:
                self.levels[id, int(user)] = asked.body["access_level"]
                return 200, self._member(id, int(user))
            case "DELETE", "members", user if (id, int(user)) in self.levels:
                del self.levels[id, int(user)]
                return 204, None
        return None

    # -- what it holds -----------------------------------------------------------------------------

    def _missing(self) -> tuple[Any, ...]:
        return 404, {"message": "404 Not found"}

    def _on(self, held: dict[Any, Any], id: Any, method: str, body: Any) -> tuple[Any, ...]:
        if method == "DELETE":
            del held[id]
            return 204, None
        if method == "PUT":
            held[id].update(body)
            if "updated_at" in held[id]:
                held[id]["updated_at"] = self._now()
        return 200, held[id]

    def _list(self, found: Any, asked: Asked) -> tuple[Any, ...]:
        query = asked.query
        after = query.get("updated_after", "")
        chosen = [data for data in found if data.get("updated_at", "~") >= after]
        size, page = int(query.get("per_page", 20)), int(query.get("page", 1))
        headers = {}
        if len(chosen) > page * size:
            more = "&".join(f"{name}={value}" for name, value in query.items() if name != "page")
            link = f"{self.url}{asked.path}?{more}&page={page + 1}"
            headers["Link"] = f'<{link}>; rel="next", <{self.url}>; rel="first"'
        return 200, chosen[(page - 1) * size : page * size], headers

    def _edit(self, iid: int, body: dict[str, Any]) -> dict[str, Any]:
        held = self.issues[iid]
        for name, value in self._stated(body, "opened").items():
            if name == "labels":
                words = [word.strip() for word in value.split(",") if word.strip()]
                for word in words:
                    self.labels.get(word) or self._label(word)
                held["labels"] = sorted(words)
            elif name == "assignee_ids":
                held["assignees"] = [self._brief(id) for id in value]
                held["assignee"] = held["assignees"][0] if value else None
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

    def _new_group(self, body: dict[str, Any]) -> tuple[Any, ...]:
        parent = self.groups.get(body.get("parent_id", 0))
        path = f"{parent['full_path']}/{body['path']}" if parent else body["path"]
        if path in self._paths(self.groups, "full_path"):
            return 400, {"message": 'Failed to save group {:path=>["has already been taken"]}'}
        id = next(self._ids)
        self.groups[id] = {
            "id": id,
            "parent_id": None,
            "description": "",
            "visibility": "private",
            "full_path": path,
            "full_name": path,
            "web_url": f"https://gitlab.example.org/groups/{path}",
            **body,
        }
        return 201, self.groups[id]

    def _new_project(self, body: dict[str, Any]) -> tuple[Any, ...]:
        space = self.groups[body.pop("namespace_id")]
        id = next(self._ids)
        self.projects[id] = {
            "id": id,
            "description": None,
            "path_with_namespace": f"{space['full_path']}/{body['path']}",
            "archived": False,
            "namespace": {"id": space["id"], "full_path": space["full_path"], "kind": "group"},
            **body,
        }
        return 201, self.projects[id]

    def _member(self, group: int, user: int) -> dict[str, Any]:
        level = self.levels[group, user]
        return {**self._brief(user), "access_level": level, "expires_at": None}

    def _user(self, id: int, username: str) -> dict[str, Any]:
        return {
            "id": id,
            "username": username,
            "name": username.title(),
            "state": "active",
            "avatar_url": None,
            "web_url": f"https://gitlab.example.org/{username}",
            "email": f"{username}@example.org",
            "bot": False,
        }

    def _brief(self, id: int) -> dict[str, Any]:
        shown = ("id", "username", "name", "state", "avatar_url", "web_url")
        return {name: self.users[id][name] for name in shown}

    def _paths(self, held: dict[int, dict[str, Any]], name: str) -> dict[str, int]:
        return {data[name]: id for id, data in held.items()}

    def _now(self) -> str:
        moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=next(self._clock))
        return moment.strftime("%Y-%m-%dT%H:%M:%S.000Z")


def _carried_out(text: str) -> tuple[str, list[str]]:
    """What is left of a text after the commands in it were carried out, and those."""
    lines, commands = [], []
    for line in text.split("\n"):
        found = re.fullmatch(r"\s*/(close|assign|label|title|move|shrug)(\s.*)?", line)
        (commands if found else lines).append(line)
    return ("\n".join(lines).strip() if commands else text), commands
