"""What all trackers share, tested on one: record types of your own, and markers."""

from __future__ import annotations

import pytest
from servers.gitlab import GitLabSimulator

from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.index import FileIndex
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import Issue, Label
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
    """References between record types of your own are translated like those of the shared types."""
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
    """A record type with other names and more fields works with a view that maps them."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    view = View(omit=["weight"], rename={"colour": "color"})
    with Store("words", GitLabLabels(Word, service, "acme/shop", view=view), index=index) as store:
        store.add(Word(word="a/b", colour="00ff00"))
        assert store[Word, "a/b"].colour == "00ff00"
        assert gitlab.labels["a/b"]["color"] == "#00ff00"
        store.remove(store[Word, "a/b"])
        assert gitlab.labels == {}
    with pytest.raises(ConfigError, match=r"no place for Word\.colour and Word\.weight"):
        GitLabLabels(Word, service, "acme/shop")


def test_a_value_that_cannot_be_read_affects_no_other(gitlab, tmp_path):
    """An object with an odd value is unreadable, and its sibling is found and captured."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    with Store("labels", GitLabLabels(Label, service, "acme/shop"), index=index) as store:
        store.add([Label(id="good", color="00ff00"), Label(id="odd", color="00ff00")])
        gitlab.labels["odd"]["color"] = 7
        errors = []
        changes = [c for found in store.capture(unreadable=errors.append) for c in found]
        assert changes == []
        (error,) = errors
        assert "Label.color: the value 7 at 'color' in the answer of GitLab" in str(error)
        accessor = store.accessor(Label)
        query = Query.parse(accessor.type, unreadable=errors.append)
        assert [label.key for label in accessor.find(query)] == ["good"]


def test_members_of_every_new_object(gitlab, tmp_path):
    """Members that the tracker requires and no field holds are sent at creation, and only then."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    identity = IdentityMap(tmp_path / "ids.db", name="gitlab")
    new = {"labels": "triage", "title": "unnamed"}
    accessor = GitLabIssues(
        Issue,
        service,
        "acme/shop",
        identity=identity,
        new=new,
        view=View(omit=["labels", "priority"]),
    )
    with Store("issues", accessor, index=index) as store:
        store.add(Issue(id="A", title="t"))
        assert (gitlab.issues[1]["labels"], gitlab.issues[1]["title"]) == (["triage"], "t")
        gitlab.edits(1, labels=["theirs"])
        issue = store[Issue, "A"]
        issue.title = "u"
        store.update(issue)
        assert (gitlab.issues[1]["labels"], gitlab.issues[1]["title"]) == (["theirs"], "u")


@pytest.mark.parametrize("lacks", ["description", "labels", "state", "title", "milestone"])
def test_member_that_an_answer_lacks(gitlab, tmp_path, lacks):
    """A member that is not in an answer is not captured as blank, and null is."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    identity = IdentityMap(tmp_path / "ids.db", name="gitlab")
    accessor = GitLabIssues(Issue, service, "acme/shop", identity=identity)
    with Store("issues", accessor, index=index) as store:
        store.add(Issue(id="A", title="t", description="d", labels=["x"], status="closed"))
        held = gitlab.issues[1].pop(lacks)
        gitlab.edits(1)
        assert [c.data for c in captured(store) if c.key == "A"] == []
        gitlab.edits(1, **{lacks: held})
        assert captured(store) == []
        gitlab.edits(1, description=None)
        assert [c.data["description"] for c in captured(store)] == [""]


def test_markers():
    """A marker at the end of a text gives back text and key, whatever characters the key has."""
    for text in ("", "a", "a\n\n", "<!-- x -->", "<!-- eventsync:Comment:K -->"):
        for key in ("K", "a/b", "-->", "é --> <!--", "a--b", "%2D"):
            assert unmarked(marked(text, "Issue", key), "Issue") == (text, key, False)
            gone = marked(text, "Issue", key, deleted=True)
            assert unmarked(gone, "Issue") == (text, key, True)
            assert "--" not in gone[len(text) :].strip().removeprefix("<!--").removesuffix("-->")
    assert unmarked("<!-- eventsync:Issue:K --> and more", "Issue")[1] is None
