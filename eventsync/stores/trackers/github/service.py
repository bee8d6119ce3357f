"""GitHub's REST API, and what all accessors of it share.

It knows no records.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from eventsync.errors import ConfigError
from eventsync.records.record import Record
from eventsync.stores.rest import Links, Service, Token
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["PAGES", "GitHubAccessor", "GitHubService", "repository_path"]

R = TypeVar("R", bound=Record)
PAGES: Final = Links(size=100)
"""How its lists are walked."""


class GitHubService(Service):
    """GitHub's REST API, or that of an own GitHub, ``url="https://github.example.org/api/v3"``.

    ``token``: one with the right to write issues, or what gives it. ``options``: of ``Service``.
    """

    forbidden_hint: ClassVar[str] = "give the token the right to write issues; the work waits"

    def __init__(
        self,
        token: str | Callable[[], str],
        *,
        url: str = "https://api.github.com",
        **options: Any,
    ) -> None:
        headers = {
            "Accept": "application/vnd.github+json",
            "X-GitHub-Api-Version": "2022-11-28",
        }
        super().__init__(url, auth=Token(token), headers=headers, **options)


class GitHubAccessor(TrackerAccessor[R]):
    """Objects at GitHub."""

    tracker = "GitHub"


def repository_path(repository: str) -> str:
    """The path of a repository, as in ``owner/name``. Raises ``ConfigError``."""
    owner, slash, name = repository.partition("/")
    if not owner or not slash or not name or "/" in name:
        raise ConfigError(f"{repository!r} is no repository", hint="as in owner/name")
    return filled("/repos/{owner}/{name}", {"owner": owner, "name": name})
