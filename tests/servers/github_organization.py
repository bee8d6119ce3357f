"""The organization of the simulated GitHub: its repositories, members and teams."""

from __future__ import annotations

import re
from typing import Any

from servers.http_service import Asked

__all__ = ["Organization", "user"]

_API = "https://api.github.com"
_USER_URLS = (
    "followers following gists starred subscriptions organizations repos events received_events"
)
_REPOSITORY_URLS = """archive assignees blobs branches collaborators comments commits compare
    contents contributors deployments downloads events forks git_commits git_refs git_tags hooks
    issue_comment issue_events issues keys labels languages merges milestones notifications pulls
    releases stargazers statuses subscribers subscription tags teams trees"""
_NONE = "homepage language mirror_url license"
_COUNTS = """forks forks_count open_issues open_issues_count size stargazers_count watchers
    watchers_count network_count subscribers_count"""
_FLAGS = """has_issues has_projects has_wiki has_pages has_discussions archived disabled private
    fork"""
_TIME = "2026-01-01T00:00:00Z"


def user(login: str) -> dict[str, Any]:
    """Return a user in the form in which other objects contain it."""
    url = f"{_API}/users/{login}"
    return {
        "login": login,
        "id": 1,
        "node_id": "n",
        "avatar_url": url,
        "gravatar_id": "",
        "url": url,
        "html_url": f"https://github.com/{login}",
        "type": "User",
        "site_admin": False,
        **{f"{name}_url": f"{url}/{name}" for name in _USER_URLS.split()},
    }


class Organization:
    """The organization ``acme``.

    ``people``: the names of its members, by login. ``teams``: by slug. ``roles``: by slug, the role
    of each member of the team, by login.
    """

    def __init__(self) -> None:
        self.people = {"ann": "Ann A.", "bob": None, "eve": "Eve"}
        self.repositories: dict[str, dict[str, Any]] = {}
        self.teams: dict[str, dict[str, Any]] = {}
        self.roles: dict[str, dict[str, str]] = {}

    def act(self, asked: Asked) -> tuple[Any, ...] | None:
        """Return the answer, or ``None`` if the path does not exist."""
        method, names, body = asked.method, asked.names, asked.body
        match method, *names:
            case "GET", "users", login if login in self.people:
                return 200, self._person(login)
            case "GET", "orgs", "acme", "members":
                return 200, [user(login) for login in sorted(self.people)]
            case "GET", "orgs", "acme", "members", login if login in self.people:
                return 204, None
            case "GET", "orgs", "acme", "repos":
                return 200, list(self.repositories.values())
            case "POST", "orgs", "acme", "repos":
                return self._create_repository(body)
            case "GET" | "PATCH", "repos", "acme", name if name in self.repositories:
                held = self.repositories[name]
                if method == "PATCH" and held["archived"] and body != {"archived": False}:
                    return 403, {"message": "Repository was archived so is read-only."}
                held.update(body or {})
                return 200, held
            case "PUT", "repos", "acme", name, "topics" if name in self.repositories:
                held = self.repositories[name]
                if held["archived"]:
                    return 403, {"message": "Repository was archived so is read-only."}
                held["topics"] = body["names"]
                return 200, {"names": body["names"]}
            case "GET", "orgs", "acme", "teams":
                return 200, list(self.teams.values())
            case "POST", "orgs", "acme", "teams":
                return self._create_team(body)
            case _, "orgs", "acme", "teams", slug, *rest if slug in self.teams:
                return self._on_team(method, slug, rest, asked)
        return None

    def _on_team(self, method: str, slug: str, rest: list[str], asked: Asked) -> Any:
        roles = self.roles[slug]
        match method, *rest:
            case ("GET",):
                return 200, self.teams[slug]
            case ("PATCH",):
                team = self.teams.pop(slug) | asked.body
                team["slug"] = _slug(team["name"])
                self.teams[team["slug"]] = team
                return 200, team
            case ("DELETE",):
                del self.teams[slug]
                return 204, None
            case "GET", "members":
                chosen = [login for login in roles if roles[login] == asked.query["role"]]
                return 200, [user(login) for login in chosen]
            case "GET", "memberships", login if login in roles:
                return 200, self._membership(slug, login)
            case "PUT", "memberships", login:
                roles[login] = asked.body["role"]
                return 200, self._membership(slug, login)
            case "DELETE", "memberships", login if login in roles:
                del roles[login]
                return 204, None
        return None

    def _membership(self, slug: str, login: str) -> dict[str, Any]:
        url = f"{_API}/orgs/acme/teams/{slug}/memberships/{login}"
        return {"url": url, "role": self.roles[slug][login], "state": "active"}

    def _create_repository(self, body: dict[str, Any]) -> tuple[Any, ...]:
        name = body["name"]
        if name in self.repositories:
            return 422, {"message": "Repository creation failed.", "documentation_url": "d"}
        url = f"{_API}/repos/acme/{name}"
        self.repositories[name] = {
            "id": len(self.repositories) + 1,
            "node_id": "n",
            "name": name,
            "full_name": f"acme/{name}",
            "owner": user("acme"),
            "description": None,
            "url": url,
            "html_url": f"https://github.com/acme/{name}",
            "clone_url": f"https://github.com/acme/{name}.git",
            "git_url": f"git://github.com/acme/{name}.git",
            "ssh_url": f"git@github.com:acme/{name}.git",
            "svn_url": f"https://github.com/acme/{name}",
            "default_branch": "main",
            **{f"{part}_url": f"{url}/{part}" for part in _REPOSITORY_URLS.split()},
            **dict.fromkeys(_NONE.split()),
            **dict.fromkeys(_COUNTS.split(), 0),
            **dict.fromkeys(_FLAGS.split(), False),
            **dict.fromkeys(("pushed_at", "created_at", "updated_at"), _TIME),
            "topics": [],
            **body,
        }
        return 201, self.repositories[name]

    def _create_team(self, body: dict[str, Any]) -> tuple[Any, ...]:
        slug = _slug(body["name"])
        if slug in self.teams:
            return 422, {"message": "Validation Failed", "documentation_url": "d", "errors": []}
        url = f"{_API}/organizations/1/team/{len(self.teams) + 1}"
        organization = user("acme")
        unknown = ("gravatar_id", "site_admin", "node_id")
        self.teams[slug] = {
            "id": len(self.teams) + 1,
            "node_id": "n",
            "url": url,
            "html_url": f"https://github.com/orgs/acme/teams/{slug}",
            "slug": slug,
            "description": None,
            "permission": "pull",
            "members_url": f"{url}/members{{/member}}",
            "repositories_url": f"{url}/repos",
            "parent": None,
            "type": "organization",
            "members_count": 0,
            "repos_count": 0,
            "created_at": _TIME,
            "updated_at": _TIME,
            "organization": {
                **{name: held for name, held in organization.items() if name not in unknown},
                "node_id": "n",
                "type": "Organization",
                "description": None,
                "archived_at": None,
                "hooks_url": f"{_API}/orgs/acme/hooks",
                "issues_url": f"{_API}/orgs/acme/issues",
                "members_url": f"{_API}/orgs/acme/members{{/member}}",
                "public_members_url": f"{_API}/orgs/acme/public_members{{/member}}",
                **dict.fromkeys(("has_organization_projects", "has_repository_projects"), True),
                **dict.fromkeys(("public_repos", "public_gists", "followers", "following"), 0),
                **dict.fromkeys(("created_at", "updated_at"), _TIME),
            },
            **body,
        }
        self.roles[slug] = {}
        return 201, self.teams[slug]

    def _person(self, login: str) -> dict[str, Any]:
        return {
            **user(login),
            "name": self.people[login],
            "email": f"{login}@example.org" if login != "eve" else None,
            **dict.fromkeys(("bio", "blog", "company", "location", "hireable"), None),
            **dict.fromkeys(("followers", "following", "public_gists", "public_repos"), 0),
            **dict.fromkeys(("created_at", "updated_at"), _TIME),
        }


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9_]+", "-", name.lower()).strip("-")
