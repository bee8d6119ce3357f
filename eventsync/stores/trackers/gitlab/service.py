"""The REST API of GitLab, and the base class of all accessors of GitLab."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.webhook import Webhook
from eventsync.records.record import Record
from eventsync.stores.rest import Links, Service, Token
from eventsync.stores.trackers.tracker import NUMBER, TrackerAccessor
from eventsync.stores.trackers.webhook import GitLabWebhook

__all__ = ["PAGES", "GitLabAccessor", "GitLabService"]

R = TypeVar("R", bound=Record)
PAGES: Final = Links(size=100)
"""The paging of GitLab's lists: 100 objects a page."""


class GitLabService(Service):
    """The REST API of gitlab.com or, with ``url``, of a GitLab instance of your own.

    ``token``: a token with the scope ``api``, or a function that returns one. ``options``: further
    parameters of ``Service``.
    """

    webhook: ClassVar[Webhook] = GitLabWebhook()
    forbidden_hint: ClassVar[str] = "give the token the scope api and a role; the work waits"

    def __init__(
        self, token: str | Callable[[], str], *, url: str = "https://gitlab.com", **options: Any
    ) -> None:
        super().__init__(f"{url.rstrip('/')}/api/v4", auth=Token(token), **options)

    def user(self, name: str) -> dict[str, Any] | None:
        """Return the user with this user name, even if blocked; ``None`` if there is none."""
        for found in self.request("GET", "/users", query={"username": name}).json():
            if found["username"].lower() == name.lower():
                return dict(found)
        return None


class GitLabAccessor(TrackerAccessor[R]):
    """The base of all accessors of GitLab."""

    tracker = "GitLab"
    id_form = NUMBER
    service: GitLabService

    def reference(self, name: str, value: str | None) -> str | None:
        known = super().reference(name, value)
        if known is None or self.view_slots[name].of != "Account":
            return known
        # Answers of GitLab hold the name of a user, but a write request must hold the id.
        user = self.service.user(known)
        if user is None:
            raise self.missing(name, known)
        return str(user["id"])
