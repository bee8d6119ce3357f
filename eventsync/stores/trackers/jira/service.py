"""Jira's REST API, and what all accessors of it share.

It knows no records.
"""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeVar

from eventsync.records.record import Record
from eventsync.stores.rest import (
    Basic,
    Numbers,
    Pages,
    Service,
)
from eventsync.stores.trackers.tracker import TrackerAccessor

__all__ = ["SIZE", "JiraAccessor", "JiraService", "pages"]

R = TypeVar("R", bound=Record)
SIZE: Final = 100
"""How many objects a page is asked for."""


def pages(items: str) -> Pages:
    """How a list is walked whose objects are at ``items`` in an answer."""
    return Numbers(
        items=items,
        name="startAt",
        start=0,
        offsets=True,
        total="total",
        size_name="maxResults",
        size=SIZE,
    )


class JiraService(Service):
    """Jira Cloud's REST API. ``url``: of the site, as ``https://acme.atlassian.net``.

    ``user``: a mail address, and ``token``: an API token of theirs. ``options``: of ``Service``.
    """

    forbidden_hint: ClassVar[str] = "give the token's user the rights in Jira; the work waits"

    def __init__(self, url: str, user: str, token: str, **options: Any) -> None:
        super().__init__(f"{url.rstrip('/')}/rest/api/2", auth=Basic(user, token), **options)


class JiraAccessor(TrackerAccessor[R]):
    """Objects at Jira."""

    tracker = "Jira"
