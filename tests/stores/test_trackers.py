"""What the accessors of all trackers share, at one of them: records of one's own, and markers."""

from __future__ import annotations

import pytest
from servers.gitlab import GitLabSimulator

from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers.gitlab import (
    GitLabComments,
    GitLabIssues,
    GitLabLabels,
    GitLabService,
)
from eventsync.stores.trackers.marker import marked, unmarked
from eventsync.testing.harness import put
from eventsync.testing.tracker import captured


@pytest.fixture
def gitlab():
    with GitLabSimulator() as running:
        yield running


def service_of(gitlab):
    return GitLabService("good-token", url=gitlab.url, allow=["127.0.0.1"])


class Word(Record, rule="field"):
    word: str = Field(key=True)
    colour: str = ""
    weight: int = 0


class Ticket(Record, rule="field"):
    number: str = Field(key=True)
    head: str = ""


class Remark(Record, rule="field"):
    id: str = Field(key=True)
    ticket: Ticket | None = None
    text: str = ""


def test_references_of_ones_own(gitlab, tmp_path):
    """References between record types of one's own are translated as those of the shared ones."""
    service = service_of(gitlab)
    identity = IdentityMap(tmp_path / "ids.db", name="gitlab")
    titled, about = View(rename={"head": "title"}), View(rename={"ticket": "issue", "text": "body"})
    with Store(
        "tickets",
        GitLabIssues(Ticket, service, "acme/shop", identity=identity, view=titled),
        GitLabComments(Remark, service, "acme/shop", identity=identity, view=about),
        index=FileIndex(tmp_path / "v.db"),
    ) as store:
        clock = Clock()
        remark = put(Remark(id="R", ticket="T", text="x"), clock.tick())
        (settled,) = apply(store, [remark], clock=clock)
        assert "refers to Ticket 'T'" in str(settled.error)
        changes = [remark, put(Ticket(number="T", head="h"), clock.tick())]
        settled = apply(store, changes, clock=clock)
        assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 2
        assert store[Remark, "R"]["ticket"] == "T"
        assert captured(store) == []


def test_record_type_of_ones_own(gitlab, tmp_path):
    """A type with other names and more fields will do, with a view that says which are which."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    view = View(omit=["weight"], rename={"colour": "color"})
    with Store("words", GitLabLabels(Word, service, "acme/shop", view=view), index=index) as store:
        store.add(Word(word="a/b", colour="00ff00"))
        assert store[Word, "a/b"].colour == "00ff00"
        assert gitlab.labels["a/b"]["color"] == "#00ff00"
        store.remove(store[Word, "a/b"])
        assert gitlab.labels == {}
    with pytest.raises(ConfigError, match="holds no 'colour', 'weight' of Word"):
        GitLabLabels(Word, service, "acme/shop")


def test_markers():
    """A marker is the last thing in a text and of its type; nothing in a key can end it early."""
    for text in ("", "a", "a\n\n", "<!-- x -->", "<!-- eventsync:Comment:K -->"):
        for key in ("K", "a/b", "-->", "é --> <!--", "a--b", "%2D"):
            assert unmarked(marked(text, "Issue", key), "Issue") == (text, key, False)
            gone = marked(text, "Issue", key, deleted=True)
            assert unmarked(gone, "Issue") == (text, key, True)
            assert "--" not in gone[len(text) :].strip().removeprefix("<!--").removesuffix("-->")
    assert unmarked("<!-- eventsync:Issue:K --> and more", "Issue")[1] is None
