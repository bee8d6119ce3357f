"""The groups of the simulated GitLab, their members and projects, and the users."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from typing import Any

from servers.http_service import Asked

__all__ = ["Groups", "listed", "put_or_read"]


def listed(found: Iterable[dict[str, Any]], asked: Asked, url: str) -> tuple[Any, ...]:
    """Return a page of a list, with the link to the next one."""
    query = asked.query
    after = query.get("updated_after", "")
    chosen = [data for data in found if data.get("updated_at", "~") >= after]
    size, page = int(query.get("per_page", 20)), int(query.get("page", 1))
    headers = {}
    if len(chosen) > page * size:
        more = "&".join(f"{name}={value}" for name, value in query.items() if name != "page")
        link = f"{url}{asked.path}?{more}&page={page + 1}"
        headers["Link"] = f'<{link}>; rel="next", <{url}>; rel="first"'
    return 200, chosen[(page - 1) * size : page * size], headers


def put_or_read(held: dict[str, Any], method: str, body: Any) -> tuple[Any, ...]:
    """Change an object with PUT or return it with GET."""
    if method == "PUT":
        held.update(body)
    return 200, held


class Groups:
    """The groups, users and projects of the instance. ``ann`` is an owner of the group ``acme``.

    ``users``, ``groups``, ``projects``: by id. ``levels``: by the ids of a group and a user.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(101)
        self.users = {n: self._user(n, name) for n, name in enumerate(("ann", "bob", "eve"), 1)}
        self.groups: dict[int, dict[str, Any]] = {}
        self.projects: dict[int, dict[str, Any]] = {}
        self.levels: dict[tuple[int, int], int] = {}
        self._new_group({"name": "Acme", "path": "acme"})
        self.levels[self.group("acme"), 1] = 50

    def group(self, path: str) -> int:
        """Return the id of a group."""
        return next(id for id, held in self.groups.items() if held["full_path"] == path)

    def act(self, asked: Asked, names: list[str], url: str) -> tuple[Any, ...] | None:
        """Return the answer, or ``None`` if the path does not exist."""
        method, body, query = asked.method, asked.body, asked.query
        match method, *names:
            case "GET", "users":
                wanted = query.get("username")
                found = [u for u in self.users.values() if wanted in (None, u["username"])]
                return listed(found, asked, url)
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
                return put_or_read(self.users[int(id)], method, fields)
            case "GET", "groups":
                assert query["min_access_level"] == "10"
                return listed(self.groups.values(), asked, url)
            case "POST", "groups":
                return self._new_group(body)
            case _, "groups", path, *rest if path in self._paths(self.groups, "full_path"):
                id = self._paths(self.groups, "full_path")[path]
                return self._on_group(method, id, rest, asked, url)
            case "POST", "projects":
                return self._new_project(body)
            case method, "projects", path, *rest:
                id = self._paths(self.projects, "path_with_namespace").get(path)
                if id is None:
                    return None
                if rest:
                    self.projects[id]["archived"] = rest == ["archive"]
                    return 201, self.projects[id]
                if method == "PUT" and self.projects[id]["archived"]:
                    return 403, {"message": "403 Forbidden"}
                return put_or_read(self.projects[id], method, body)
        return None

    def _on_group(self, method: str, id: int, rest: list[str], asked: Asked, url: str) -> Any:
        held = self.groups[id]
        match method, *rest:
            case ("GET",) | ("PUT",):
                return put_or_read(held, method, asked.body)
            case "GET", "projects":
                inside = held["full_path"] + "/"
                found = [
                    project
                    for project in self.projects.values()
                    if project["path_with_namespace"].startswith(inside)
                    and (not project["archived"] or "archived" not in asked.query)
                ]
                return listed(found, asked, url)
            case ("GET", "members") | ("GET", "members", "all"):
                members = [self._member(group, user) for group, user in self.levels if group == id]
                return listed(members, asked, url)
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
            "visibility": "private",
            "topics": [],
            "avatar_url": None,
            "web_url": f"https://gitlab.example.org/{space['full_path']}/{body['path']}",
            "namespace": {"id": space["id"], "full_path": space["full_path"], "kind": "group"},
            **body,
        }
        return 201, self.projects[id]

    def _member(self, group: int, user: int) -> dict[str, Any]:
        level = self.levels[group, user]
        return {**self.brief(user), "access_level": level, "expires_at": None}

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

    def brief(self, id: int) -> dict[str, Any]:
        """Return a user in the form in which other objects contain it."""
        shown = ("id", "username", "name", "state", "avatar_url", "web_url")
        return {name: self.users[id][name] for name in shown}

    def _paths(self, held: dict[int, dict[str, Any]], name: str) -> dict[str, int]:
        return {data[name]: id for id, data in held.items()}
