"""The REST API of GitHub, and the base class of all accessors of GitHub."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.webhook import Webhook
from eventsync.errors import ConfigError, EventSyncError, StoreUnavailableError
from eventsync.records.record import Record
from eventsync.stores.rest import Answer, Links, Service, Token
from eventsync.stores.rest.resource import filled
from eventsync.stores.trackers.tracker import NUMBER, TrackerAccessor
from eventsync.stores.trackers.webhook import GitHubWebhook

__all__ = ["PAGES", "GitHubAccessor", "GitHubService", "repository_path"]

R = TypeVar("R", bound=Record)
PAGES: Final = Links(size=100)
"""The paging of GitHub's lists: 100 objects a page."""
_SHOWN: Final = 1000
_PAUSE: Final = 60.0
"""The seconds to wait after a secondary limit, as GitHub's documentation asks."""


class GitHubService(Service):
    """The REST API of GitHub or of a GitHub Enterprise Server.

    ``token``: a token with the right to write issues, or a function that returns one. ``url``: the
    URL of the API of your own server, for example ``https://github.example.org/api/v3``.
    ``options``: further parameters of ``Service``.
    """

    webhook: ClassVar[Webhook] = GitHubWebhook()
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

    def meaning(self, method: str, answer: Answer) -> EventSyncError:
        error = super().meaning(method, answer)
        if isinstance(error, StoreUnavailableError) or answer.status != 403:
            return error
        if b"rate limit" not in answer.content[:_SHOWN].lower():
            return error
        # A secondary limit may come without a header that says how long it lasts.
        self.pace.hold(_PAUSE)
        return StoreUnavailableError(error.message, retry_after=_PAUSE)


class GitHubAccessor(TrackerAccessor[R]):
    """The base of all accessors of GitHub."""

    tracker = "GitHub"
    id_form = NUMBER


def repository_path(repository: str) -> str:
    """Return the path in the API of a repository.

    Raises ``ConfigError`` if ``repository`` does not have the form ``owner/name``.
    """
    owner, slash, name = repository.partition("/")
    if not owner or not slash or not name or "/" in name:
        raise ConfigError(
            f"{repository!r} is not the full name of a repository", hint="pass owner/name"
        )
    return filled("/repos/{owner}/{name}", {"owner": owner, "name": name})
