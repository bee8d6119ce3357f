"""The site of the simulated Jira: projects, people and groups."""

from __future__ import annotations

import itertools
from typing import Any

from servers.http_service import Asked

__all__ = ["Site", "paged", "refused"]


def refused(status: int, message: str) -> tuple[Any, ...]:
    """Return the answer of Jira to a refused request."""
    return status, {"errorMessages": [message], "errors": {}}


def paged(name: str, found: list[Any], asked: Asked) -> tuple[Any, ...]:
    """Return a page of a list."""
    start, size = int(asked.query.get("startAt", 0)), int(asked.query.get("maxResults", 50))
    chosen = found[start : start + size]
    page = {name: chosen, "startAt": start, "maxResults": size, "total": len(found)}
    if name == "values":
        page["isLast"] = start + size >= len(found)
    return 200, page


class Site:
    """The site, with the project ``SHOP``.

    ``users``: by account id. ``groups``: the account ids of the members, by name. ``projects``: by
    key. ``trash``: the keys of deleted projects.
    """

    def __init__(self) -> None:
        self._ids = itertools.count(1)
        self.users = {id: self._user(id) for id in ("5b-ann", "5b-bob", "5b-eve")}
        self.groups: dict[str, list[str]] = {"site-admins": ["5b-ann"]}
        self.projects: dict[str, dict[str, Any]] = {}
        self.trash: list[str] = []
        self._new_project({"key": "SHOP", "name": "Shop"})

    def more(self, key: str) -> None:
        """Add another project."""
        self._new_project({"key": key, "name": key.title()})

    def act(self, asked: Asked, names: list[str]) -> tuple[Any, ...] | None:
        """Return the answer, or ``None`` if the path does not exist."""
        method, body, query = asked.method, asked.body, asked.query
        match method, *names:
            case "GET", "myself":
                return 200, self.users["5b-ann"]
            case "GET", "users", "search":
                start = int(query.get("startAt", 0))
                size = int(query.get("maxResults", 50))
                return 200, list(self.users.values())[start : start + size]
            case "GET", "user" if query["accountId"] in self.users:
                return 200, self.users[query["accountId"]]
            case "GET", "group", "bulk":
                named = query.get("groupName")
                found = [self._group(name) for name in self.groups if named in (None, name)]
                return paged("values", found, asked)
            case "POST", "group":
                if body["name"] in self.groups:
                    return refused(400, "A group or user with this name already exists.")
                self.groups[body["name"]] = []
                return 201, self._group(body["name"])
            case _, "group", *rest if query["groupname"] in self.groups:
                return self._on_group(method, query["groupname"], rest, asked)
            case "GET", "project", "search":
                return paged("values", list(self.projects.values()), asked)
            case "POST", "project":
                if body["key"] in [*self.projects, *self.trash]:
                    return refused(400, "A project with that key already exists.")
                return self._new_project(body)
            case _, "project", key if key in self.projects:
                if method == "DELETE":
                    assert query == {"enableUndo": "true"}
                    self.trash.append(self.projects.pop(key)["key"])
                    return 204, None
                changes = dict(body or {})
                if "leadAccountId" in changes:
                    changes["lead"] = self.users[changes.pop("leadAccountId")]
                self.projects[key] |= changes
                return 200, self.projects[key]
        return None

    def _on_group(self, method: str, name: str, rest: list[str], asked: Asked) -> Any:
        members = self.groups[name]
        match method, *rest:
            case ("DELETE",):
                del self.groups[name]
                return 200, None
            case "GET", "member":
                return paged("values", [self.users[id] for id in members], asked)
            case "POST", "user":
                if asked.body["accountId"] not in self.users:
                    return refused(404, "The user was not found.")
                members.append(asked.body["accountId"])
                return 201, self._group(name)
            case "DELETE", "user":
                members.remove(asked.query["accountId"])
                return 200, None
        return None

    def _new_project(self, body: dict[str, Any]) -> tuple[Any, ...]:
        id = next(self._ids)
        link = f"https://acme.atlassian.net/rest/api/2/project/{id}"
        self.projects[body["key"]] = {
            "self": link,
            "id": str(id),
            "key": body["key"],
            "name": body["name"],
            "description": body.get("description", ""),
            "projectTypeKey": "software",
            "simplified": False,
            "lead": self.users[body.get("leadAccountId", "5b-ann")],
            "isPrivate": False,
            "avatarUrls": {"48x48": f"{link}/avatar"},
            **({"url": body["url"]} if body.get("url") else {}),
        }
        return 201, {"id": id, "key": body["key"], "self": link}

    def _group(self, name: str) -> dict[str, Any]:
        return {"name": name, "groupId": f"id-of-{name}"}

    def _user(self, id: str) -> dict[str, Any]:
        name = id.partition("-")[2]
        return {
            "self": f"https://acme.atlassian.net/rest/api/2/user?accountId={id}",
            "accountId": id,
            "accountType": "atlassian",
            "active": True,
            "displayName": name.title(),
            "emailAddress": f"{name}@example.org",
        }
