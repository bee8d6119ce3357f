"""The REST API of Jira, and the base class of all accessors of Jira."""

from __future__ import annotations

from typing import Any, ClassVar, Final, TypeVar

from eventsync.engine.webhook import Webhook
from eventsync.records.record import Record
from eventsync.stores.rest import Basic, Numbers, Pages, Service
from eventsync.stores.trackers.tracker import NUMBER, TrackerAccessor
from eventsync.stores.trackers.webhook import JiraWebhook

__all__ = ["SIZE", "JiraAccessor", "JiraService", "pages"]

R = TypeVar("R", bound=Record)
SIZE: Final = 100
"""How many objects a page of a list has at most."""


def pages(items: str) -> Pages:
    """Return the paging of a list of Jira. ``items``: the path of the list in an answer."""
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
    """The REST API of a Jira Cloud site.

    ``url``: the URL of the site, for example ``https://acme.atlassian.net``. ``user``: the mail
    address of a user. ``token``: an API token of this user. ``options``: further parameters of
    ``Service``.
    """

    webhook: ClassVar[Webhook] = JiraWebhook()
    forbidden_hint: ClassVar[str] = "give the token's user the rights in Jira; the work waits"

    def __init__(self, url: str, user: str, token: str, **options: Any) -> None:
        super().__init__(f"{url.rstrip('/')}/rest/api/2", auth=Basic(user, token), **options)


class JiraAccessor(TrackerAccessor[R]):
    """The base of all accessors of Jira."""

    tracker = "Jira"
    id_form = NUMBER
