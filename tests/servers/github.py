"""A simulated GitHub: one repository and its organization.

It follows the published description of the REST API, and refuses what GitHub refuses.
``tests/stores/check_trackers.py`` checks requests and answers against that description.
"""

from __future__ import annotations

import datetime as dt
import itertools
from typing import Any

from servers.github_organization import Organization, user
from servers.http_service import Asked, HttpService

__all__ = ["GitHubSimulator"]


class GitHubSimulator(HttpService):
    """The repository ``ann/shop``, and those in ``others``.

    ``others``: by name, more repositories of ``ann``.
    ``collaborators``: the users who can be assignees. ``organization``: the organization ``acme``.
    """

    token = "good-token"

    def __init__(self, name: str = "shop", beside: GitHubSimulator | None = None) -> None:
        super().__init__()
        self.name, self._beside = name, beside
        self.root = f"https://api.github.com/repos/ann/{name}"
        self.others: dict[str, GitHubSimulator] = {}
        self.issues: dict[int, dict[str, Any]] = {}
        self.comments: dict[int, dict[str, Any]] = {}
        self.milestones: dict[int, dict[str, Any]] = {}
        self.labels: dict[str, dict[str, Any]] = {}
        self.moved: dict[tuple[str, ...], str] = {}
        self.renamed = False
        self.collaborators = ["ann", "bob"]
        self.organization = Organization()
        self._ids = itertools.count(1001)
        self._clock = itertools.count()

    @property
    def url(self) -> str:
        return self._beside.url if self._beside else super().url

    def more(self, name: str) -> GitHubSimulator:
        """Return another repository of ``ann``, which has no issues yet."""
        self.others[name] = GitHubSimulator(name, self)
        return self.others[name]

    # -- what a person does there ------------------------------------------------------------------

    def opens(self, **more: Any) -> int:
        """Create an issue as a person would, and return its number."""
        number = len(self.issues) + 1
        self.issues[number] = {
            **self._common("issues", number),
            "number": number,
            "repository_url": self.root,
            "labels_url": f"{self.root}/issues/{number}/labels{{/name}}",
            "comments_url": f"{self.root}/issues/{number}/comments",
            "events_url": f"{self.root}/issues/{number}/events",
            "title": "",
            "body": None,
            "state": "open",
            "state_reason": None,
            "locked": False,
            "labels": [],
            "assignee": None,
            "assignees": [],
            "milestone": None,
            "comments": 0,
            "closed_at": None,
            "author_association": "OWNER",
            **more,
        }
        return number

    def edits(self, number: int, **more: Any) -> None:
        """Edit an issue as a person would."""
        self.issues[number] |= {**more, "updated_at": self._now()}

    def says(self, number: int, body: str, *, pull: bool = False) -> int:
        """Comment on an issue or pull request as a person would; return the id of the comment."""
        id = next(self._ids)
        kind = "pull" if pull else "issues"
        self.comments[id] = {
            **self._common("issues/comments", id),
            "html_url": f"https://github.com/ann/{self.name}/{kind}/{number}#issuecomment-{id}",
            "issue_url": f"{self.root}/issues/{number}",
            "id": id,
            "body": body,
            "author_association": "OWNER",
        }
        return id

    def transfers(self, number: int, name: str) -> int:
        """Move an issue, without its comments, to another repository; return its number there."""
        there = self.others[name]
        moved = self.issues.pop(number)
        found = there.opens(**{name: moved[name] for name in ("title", "body", "state")})
        self.moved["issues", str(number)] = f"{self.url}/repositories/{name}/issues/{found}"
        return found

    # -- requests ----------------------------------------------------------------------------------

    def act(self, asked: Asked) -> tuple[Any, ...]:
        if asked.headers.get("Authorization") != f"Bearer {self.token}":
            return 401, {"message": "Bad credentials", "documentation_url": "https://docs"}
        assert asked.headers.get("X-GitHub-Api-Version") == "2022-11-28"
        assert asked.headers.get("User-Agent")
        if asked.names[0] == "repositories":
            names = ["repos", "ann", *asked.names[1:]]
            return self.act(asked._replace(names=names))
        if self.renamed and asked.names[:3] == ["repos", "ann", self.name]:
            rest = "/".join(asked.names[3:])
            return 301, {}, {"Location": f"{self.url}/repositories/{self.name}-2/{rest}"}
        found = self.moved.get(tuple(asked.names[3:]))
        if found is not None and asked.names[:3] == ["repos", "ann", self.name]:
            return 301, {"message": "Moved Permanently", "url": found}, {"Location": found}
        if asked.names[:2] == ["repos", "ann"] and asked.names[2] in self.others:
            return self.others[asked.names[2]].act(asked)
        if asked.names[:3] != ["repos", "ann", self.name]:
            return self.organization.act(asked) or self._missing()
        match asked.method, *asked.names[3:]:
            case "GET", "issues":
                return self._list(list(self.issues.values()), asked)
            case "GET", "issues", "comments":
                return self._list(list(self.comments.values()), asked)
            case "GET", "milestones":
                return self._list(list(self.milestones.values()), asked)
            case "GET", "labels":
                return self._list(list(self.labels.values()), asked)
            case "POST", "issues":
                return self._write(self.opens(), asked.body, 201)
            case "POST", "issues", number, "comments" if int(number) in self.issues:
                return 201, self.comments[self.says(int(number), asked.body["body"])]
            case method, "issues", "comments", id if int(id) in self.comments:
                return self._on(self.comments, int(id), method, asked.body)
            case "POST", "issues", number, "sub_issues" if int(number) in self.issues:
                child = self._child(asked.body["sub_issue_id"])
                if child is None or (
                    "parent_issue_url" in child and not asked.body.get("replace_parent")
                ):
                    return self._invalid("sub_issue_id")
                child["parent_issue_url"] = f"{self.root}/issues/{number}"
                return 201, self.issues[int(number)]
            case "DELETE", "issues", number, "sub_issue" if int(number) in self.issues:
                child = self._child(asked.body["sub_issue_id"])
                if child is None or child.pop("parent_issue_url", None) is None:
                    return self._missing()
                return 200, self.issues[int(number)]
            case "PUT", "issues", number, "lock":
                self.edits(int(number), locked=True, active_lock_reason=asked.body["lock_reason"])
                return 204, None
            case method, "issues", number if number.isdigit() and int(number) in self.issues:
                held = self.issues[int(number)]
                return (200, held) if method == "GET" else self._write(int(number), asked.body, 200)
            case "POST", "milestones":
                return self._milestone(asked.body)
            case method, "milestones", number if int(number) in self.milestones:
                return self._on(self.milestones, int(number), method, asked.body)
            case "POST", "labels":
                return self._label(asked.body)
            case method, "labels", name if name.lower() in self.labels:
                return self._on(self.labels, name.lower(), method, asked.body)
        return self._missing()

    def _child(self, id: int) -> dict[str, Any] | None:
        return next((data for data in self.issues.values() if data["id"] == id), None)

    def _missing(self) -> tuple[Any, ...]:
        return 404, {"message": "Not Found", "documentation_url": "https://docs", "status": "404"}

    def _on(self, held: dict[Any, Any], id: Any, method: str, body: Any) -> tuple[Any, ...]:
        if method == "DELETE":
            del held[id]
            return 204, None
        if method == "PATCH":
            held[id] |= {**body, "updated_at": self._now()}
            if held is self.labels:
                held[id].pop("updated_at")
        return 200, held[id]

    def _list(self, found: list[dict[str, Any]], asked: Asked) -> tuple[Any, ...]:
        query = asked.query
        found = [data for data in found if data.get("updated_at", "~") >= query.get("since", "")]
        size, page = int(query.get("per_page", 30)), int(query.get("page", 1))
        headers = {}
        if len(found) > page * size:
            more = "&".join(f"{name}={value}" for name, value in query.items() if name != "page")
            headers["Link"] = f'<{self.url}{asked.path}?{more}&page={page + 1}>; rel="next"'
        return 200, found[(page - 1) * size : page * size], headers

    def _write(self, number: int, body: dict[str, Any], status: int) -> tuple[Any, ...]:
        held = self.issues[number]
        if status == 201 and not body.get("title"):
            del self.issues[number]
            return self._invalid("title")
        for name, value in body.items():
            if name == "labels":
                held["labels"] = [self._label({"name": label})[1] for label in value]
            elif name == "assignees":
                users = [user(login) for login in value if login in self.collaborators]
                held["assignees"], held["assignee"] = users, users[0] if users else None
            elif name == "milestone":
                if value is not None and value not in self.milestones:
                    return self._invalid("milestone")
                held["milestone"] = None if value is None else self.milestones[value]
            else:
                held[name] = value
        held["updated_at"] = self._now()
        return status, held

    def _invalid(self, field: str) -> tuple[Any, ...]:
        errors = [{"resource": "Issue", "field": field, "code": "invalid"}]
        return 422, {"message": "Validation Failed", "documentation_url": "d", "errors": errors}

    def _milestone(self, body: dict[str, Any]) -> tuple[Any, ...]:
        number = len(self.milestones) + 1
        common = self._common("milestones", number)
        self.milestones[number] = {
            **{name: held for name, held in common.items() if name != "user"},
            "number": number,
            "labels_url": f"{self.root}/milestones/{number}/labels",
            "creator": user("ann"),
            "description": None,
            "state": "open",
            "due_on": None,
            "open_issues": 0,
            "closed_issues": 0,
            "closed_at": None,
            **body,
        }
        return 201, self.milestones[number]

    def _label(self, body: dict[str, Any]) -> tuple[Any, ...]:
        name = body["name"]
        if name.lower() in self.labels and len(body) > 1:
            return 422, {"message": "Validation Failed", "documentation_url": "d", "errors": []}
        held = self.labels.setdefault(
            name.lower(),
            {
                "id": next(self._ids),
                "node_id": "n",
                "url": f"{self.root}/labels/{name}",
                "name": name,
                "description": None,
                "color": "ededed",
                "default": False,
            },
        )
        held |= body
        return 201, held

    def _common(self, kind: str, number: int) -> dict[str, Any]:
        return {
            "id": next(self._ids),
            "node_id": "n",
            "url": f"{self.root}/{kind}/{number}",
            "html_url": f"https://github.com/ann/{self.name}/{kind}/{number}",
            "user": user("ann"),
            "created_at": (now := self._now()),
            "updated_at": now,
        }

    def _now(self) -> str:
        seconds = next(self._clock)
        moment = dt.datetime(2026, 1, 1, tzinfo=dt.UTC) + dt.timedelta(seconds=seconds)
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
