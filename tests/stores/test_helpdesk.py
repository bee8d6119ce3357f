"""The conformance suite on a small tracker: issues with a title and a text, and nothing else."""

from __future__ import annotations

from typing import ClassVar

import pytest
from servers.objects import ObjectServer

from eventsync.engine.store import Store
from eventsync.index import FileIndex
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Links, Resource, Service, Token
from eventsync.stores.trackers import Issue
from eventsync.stores.trackers.marker import MarkedAccessor
from eventsync.stores.trackers.slot import Slot, text
from eventsync.testing.tracker import TrackerContract

STATES = {"open": "new", "closed": "solved"}


class Tickets(MarkedAccessor[Issue]):
    tracker = "Helpdesk"
    shape = Issue
    where = Resource(
        items="/tickets",
        item="/tickets/{id}",
        pages=Links(size=50),
        etags=False,
        returns=True,
    )
    slots: ClassVar = {
        "title": Slot(at="subject"),
        "description": Slot(at="text", read=text, marked=True),
    }


class Answered(Tickets):
    """Tickets with a status."""

    slots: ClassVar = {
        **Tickets.slots,
        "status": Slot(
            at="state", read=lambda state: "closed" if state == "solved" else "open", words=STATES
        ),
    }


class Helpdesk(TrackerContract):
    name = "helpdesk"
    creates = (Issue,)
    accessor: ClassVar[type[Tickets]] = Tickets

    @pytest.fixture(autouse=True)
    def _helpdesk(self):
        with ObjectServer(ids=True, etags=False) as self.server:
            self.server.token = "right"
            self.server.objects["tickets"] = {}
            yield

    def store(self, folder, secret=None):
        service = Service(self.server.url, auth=Token(secret or "right"), allow=["127.0.0.1"])
        identity = IdentityMap(folder / "ids.db", name="helpdesk")
        accessor = self.accessor(Issue, service, identity=identity)
        return Store("helpdesk", accessor, index=FileIndex(folder / "v.db"))

    @property
    def tickets(self):
        return self.server.objects["tickets"]

    def opens(self, *, title, description=None):
        id = f"1{len(self.tickets)}"
        self.tickets[id] = {"id": id, "subject": title, "text": description, "state": "new"}
        return id

    def edits(self, issue, *, title=None, status=None):
        if title is not None:
            self.tickets[issue]["subject"] = title
        if status is not None:
            self.tickets[issue]["state"] = STATES[status]

    def deletes(self, issue):
        del self.tickets[issue]

    def text(self, issue):
        return self.tickets[issue]["text"]

    def count(self):
        return {Issue: len(self.tickets)}


class TestTitlesAndTexts(Helpdesk):
    """Issues without a status, labels, comments, accounts or milestones."""


class TestWithStatus(Helpdesk):
    """Issues with a status, and without labels and comments."""

    accessor = Answered
