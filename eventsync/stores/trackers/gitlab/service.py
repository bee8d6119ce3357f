"""GitLab's REST API, and what all accessors of it share.

It knows no records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from eventsync.records.record import Record
from eventsync.stores.rest import Links, Service, Token
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["PAGES", "GitLabAccessor", "GitLabService"]

R = TypeVar("R", bound=Record)
PAGES: Final = Links(size=100)
"""How its lists are walked."""


class GitLabService(Service):
    """GitLab's REST API; ``url`` for a GitLab of your own.

    ``token``: one with the scope ``api``, or what gives it. ``options``: of ``Service``.
    """

    forbidden_hint: ClassVar[str] = "give the token the scope api and a role; the work waits"

    def __init__(
        self, token: str | Callable[[], str], *, url: str = "https://gitlab.com", **options: Any
    ) -> None:
        super().__init__(f"{url.rstrip('/')}/api/v4", auth=Token(token), **options)

    def user(self, name: str) -> dict[str, Any] | None:
        """The user of that name, blocked or not, ``None`` if there is none."""
        for found in self.request("GET", "/users", query={"username": name}).json():
            if found["username"].lower() == name.lower():
                return dict(found)
        return None


class GitLabAccessor(TrackerAccessor[R]):
    """Objects at GitLab."""

    tracker = "GitLab"
    service: GitLabService

    def user_id(self, name: str, username: str) -> int:
        """The id of the user that the field ``name`` refers to. Raises ``DependencyError``."""
        found = self.service.user(username)
        if found is None:
            raise self.missing(name, username)
        return int(found["id"])
