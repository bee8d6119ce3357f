"""Issues, comments, labels and accounts in a real Roundup tracker."""

from __future__ import annotations

import contextlib

import pytest
from servers.roundup import RoundupServer
from stores import trackers
from stores.trackers import checked, put

from eventsync.apply import apply
from eventsync.change import Change
from eventsync.clock import Clock
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.gate import Outcome
from eventsync.identity import IdentityMap
from eventsync.index import FileIndex
from eventsync.store import Store
from eventsync.stores.rest import OvertakenError
from eventsync.stores.trackers import Account, Comment, Issue, Label, Member
from eventsync.stores.trackers.roundup import (
    RoundupAccounts,
    RoundupComments,
    RoundupIssues,
    RoundupLabels,
    RoundupMembers,
    RoundupService,
)
from eventsync.testing import Crash, FakeBus
from eventsync.view import View


@pytest.fixture(scope="module")
def server():
    with RoundupServer() as running:
        yield running


@pytest.fixture
def tracker(server, tmp_path):
    with tracker_in(server, tmp_path) as store:
        yield store
    for kind in ("issue", "keyword", "msg", "user"):
        for item in server.ask("GET", f"/data/{kind}")["collection"]:
            if kind != "user" or int(item["id"]) > 2:
                server.change(f"{kind}/{item['id']}", "DELETE")


def tracker_in(server, folder, *, bus=None, password="secret", **more):
    service = RoundupService(server.url, "admin", password, allow=["127.0.0.1"])
    identity = IdentityMap(folder / "ids.db", name="roundup")
    return Store(
        "roundup",
        RoundupAccounts(Account, service),
        RoundupIssues(Issue, service, identity=identity),
        RoundupComments(Comment, service, identity=identity),
        index=FileIndex(folder / "v.db"),
        publisher=bus,
        **more,
    )


def captured(store, **more):
    """What is captured, but for the two accounts that a new tracker has."""
    return [c for c in trackers.captured(store, **more) if c.key not in ("admin", "anonymous")]


def issues(server):
    """The issues that are not retired."""
    fields = "title,status,keyword,assignedto,messages"
    return server.ask("GET", f"/data/issue?@fields={fields}&@verbose=2")["collection"]


def test_round_trip(server, tracker):
    """Records of every type go in, are found, changed and removed; and none of it is an edit."""
    captured(tracker)
    tracker.add(Account(id="ada", name="Ada L.", address="ada@example.org"))
    issue = Issue(
        id="K/1-é",
        title="Lamp",
        description="It is\ndark",
        priority="bug",
        assignee="ada",
        labels=["bug", "ui"],
    )
    tracker.add(issue)
    (held,) = issues(server)
    assert held["title"] == "Lamp"
    assert held["status"]["name"] == "unread"
    assert held["assignedto"]["username"] == "ada"
    assert {label["name"] for label in held["keyword"]} == {"ui", "bug"}
    tracker.add(Comment(id="C1", issue="K/1-é", author="ada", body="Indeed"))
    tracker.add(Comment(id="C2", issue="K/1-é", body=""))
    again = tracker[Issue, "K/1-é"]
    assert {name: issue[name] for name in again.raw()} == again.raw()
    assert {c.key: (c["issue"], c["author"], c.body) for c in tracker.find(Comment)} == {
        "C1": ("K/1-é", "ada", "Indeed"),
        "C2": ("K/1-é", None, ""),
    }
    again.status, again.labels, again.description = "closed", ["ui"], ""
    again["assignee"] = again.priority = None
    tracker.update(again)
    held = tracker[Issue, "K/1-é"]
    assert (held.status, held.labels, held.description) == ("closed", ["ui"], "")
    assert (held["assignee"], held.priority) == (None, None)
    said = tracker[Comment, "C1"]
    said.body = "No"
    tracker.update(said)
    assert captured(tracker) == []
    tracker.remove(tracker[Comment, "C2"])
    assert [(c.key, c.body) for c in tracker.find(Comment)] == [("C1", "No")]
    # The tracker itself opens an issue again whose messages change.
    assert [(c.type, c.data) for c in captured(tracker)] == [("Issue", {"status": "open"})]
    tracker.remove(tracker[Issue, "K/1-é"])
    assert list(tracker.find(Issue)) == list(tracker.find(Comment)) == []
    assert issues(server) == []
    # With the issue its comments are gone.
    assert [(c.key, c.op) for c in captured(tracker)] == [("C1", "delete")]
    ada = tracker[Account, "ada"]
    ada.name = ""
    tracker.update(ada)
    assert tracker[Account, "ada"].name == ""
    tracker.remove(ada)
    assert tracker.get(Account, "ada") is None
    tracker.add(Account(id="ada"))
    assert captured(tracker) == []


def test_made_in_the_tracker(server, tracker):
    """What people do in the tracker itself is captured under keys made of its ids, each once."""
    captured(tracker)
    word = server.ask("POST", "/data/keyword", {"name": "new"})["id"]
    message = {"content": "Hello", "author": "admin"}
    first = server.ask("POST", "/data/msg", message)["id"]
    second = server.ask("POST", "/data/msg", {**message, "content": "Me too"})["id"]
    body = {"title": "Theirs", "messages": [first, second], "keyword": [word]}
    id = server.ask("POST", "/data/issue", body)["id"]
    found = {(c.type, c.key): c.data for c in captured(tracker)}
    assert found.keys() == {
        ("Issue", f"roundup:{id}"),
        ("Comment", f"roundup:{second}"),
    }
    assert found["Issue", f"roundup:{id}"]["description"] == "Hello"
    assert found["Comment", f"roundup:{second}"]["issue"] == f"roundup:{id}"
    assert captured(tracker) == []
    server.change(f"issue/{id}", status="resolved")
    (change,) = captured(tracker, whole=False)
    assert (change.key, change.data) == (f"roundup:{id}", {"status": "closed"})
    server.change(f"issue/{id}", status="done-cbb")  # closed as well
    assert captured(tracker, whole=False) == []
    server.change(f"issue/{id}", "DELETE")
    assert {(c.type, c.op) for c in captured(tracker)} == {
        ("Issue", "delete"),
        ("Comment", "delete"),
    }
    tracker.add(Issue(id="mine", title="Mine"))
    tracker.add(Comment(id="C", issue="mine", body="x"))
    assert captured(tracker) == []


def test_what_comes_too_early(server, tracker):
    """An issue whose assignee is not here yet waits, and so does a comment on it."""
    clock = Clock()
    early = [
        put(clock, Comment(id="C", issue="K", body="x")),
        put(clock, Issue(id="K", title="t", assignee="eve")),
    ]
    outcomes = [item.outcome for item in apply(tracker, early, clock=clock)]
    assert outcomes == [Outcome.HELD] * 2
    assert issues(server) == []
    late = put(clock, Account(id="eve"))
    settled = apply(tracker, [*early, late], clock=clock)
    assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 3
    assert len(issues(server)) == 1
    assert captured(tracker) == []


STEPS = [
    ("write_message", 0),
    ("write_message", 1),
    ("added", 0),
    ("added", 1),
    ("added", 3),
]


@pytest.mark.parametrize("record", [Issue(id="K", title="t"), Comment(id="C", issue="P", body="c")])
@pytest.mark.parametrize(("method", "step"), STEPS)
def test_killed_while_creating(server, tracker, tmp_path, monkeypatch, record, method, step):
    """A process that dies at any request of a creation leaves what the next one completes, once."""
    clock = Clock()
    apply(tracker, [put(clock, Issue(id="P", title="p"))], clock=clock)
    change = put(clock, record)
    accessor = tracker.accessor(record)
    called, count = getattr(accessor, method), iter(range(100))

    def dying(*arguments):
        before = next(count) * 2
        if before == step:
            raise Crash
        answer = called(*arguments)
        if before + 1 == step:
            raise Crash
        return answer

    monkeypatch.setattr(accessor, method, dying)
    with contextlib.suppress(Crash):
        apply(tracker, [change], clock=clock)
    tracker.close()
    with tracker_in(server, tmp_path) as again:
        (settled,) = apply(again, [change], clock=clock)
        assert settled.outcome in (Outcome.APPLIED, Outcome.DUPLICATE)
        assert [r.key for r in again.find(type(record))].count(record.key) == 1
        assert len(issues(server)) == (2 if isinstance(record, Issue) else 1)
        assert len(server.ask("GET", "/data/msg")["collection"]) == 2
        assert captured(again) == []


def test_labels_and_members(server, tracker, tmp_path):
    """Keywords go in and out, and users get roles and lose them, one by one; none is an edit."""
    service = RoundupService(server.url, "admin", "secret", allow=["127.0.0.1"])
    checked(tracker, Account(id="ada", name="Ada L."))
    with Store(
        "roles",
        RoundupLabels(Label, service),
        RoundupMembers(Member, service),
        index=FileIndex(tmp_path / "roles.v.db"),
    ) as store:
        found = {(c.type, c.key) for c in trackers.captured(store)}
        assert found >= {("Member", "Admin/admin"), ("Member", "User/ada")}
        assert trackers.captured(store) == []
        checked(store, Label(id="bug"))
        checked(store, Member(group="Admin", account="ada"))
        (user,) = server.ask("GET", "/data/user?username:=ada&@fields=roles")["collection"]
        assert user["roles"] == "User,Admin"
        assert trackers.captured(store) == []
        server.change(f"user/{user['id']}", roles="User")
        assert [(c.op, c.key) for c in trackers.captured(store)] == [("delete", "Admin/ada")]
        store.remove(store[Member, ("User", "ada")])
        assert server.ask("GET", f"/data/user/{user['id']}")["attributes"]["roles"] is None
        store.remove(store[Label, "bug"])
        assert server.ask("GET", "/data/keyword")["collection"] == []
        checked(store, Label(id="bug"))
        with pytest.raises(RejectedError, match="does not exist"):
            store.add(Member(group="Nobody", account="ada"))
        early = put(Clock(), Member(group="User", account="zoe"))
        (settled,) = apply(store, [early], clock=store.clock)
        assert settled.outcome is Outcome.HELD


def test_overtaken(server, tracker):
    """What somebody changes in between is not overwritten, but judged with the change."""
    clock = Clock()
    apply(tracker, [put(clock, Issue(id="K", title="a"))], clock=clock)
    (held,) = issues(server)
    accessor = tracker.accessor(Issue)
    modify = accessor.modify

    def slowly(key, found, members):
        server.change(f"issue/{held['id']}", status="resolved")
        vars(accessor).pop("modify")
        return modify(key, found, members)

    vars(accessor)["modify"] = slowly
    change = Change(
        type="Issue", key="K", op="patch", version=clock.tick(), data={"title": "b"}, source="t"
    )
    with pytest.raises(OvertakenError):
        apply(tracker, [change], clock=clock)
    apply(tracker, [change], clock=clock)
    issue = tracker[Issue, "K"]
    assert (issue.title, issue.status) == ("b", "closed")
    assert [c.data for c in captured(tracker)] == [{"status": "closed"}]


def test_wrong_password(server, tmp_path):
    """A password that is not taken stops the store, and is in no message."""
    with tracker_in(server, tmp_path, password="hush") as store:
        with pytest.raises(StoreUnavailableError, match="credentials") as caught:
            store.accessor(Issue).ping()
        assert "hush" not in str(caught.value) + repr(store.accessor(Issue))


def test_fields_it_cannot_hold(server, tmp_path):
    """A field that the tracker has no place for is refused with those it has."""
    service = RoundupService(server.url, "admin", "secret")
    identity = IdentityMap(tmp_path / "ids.db", name="roundup")
    with pytest.raises(ConfigError, match="holds no 'milestone' of Issue"):
        RoundupIssues(Issue, service, identity=identity, view=View())


def test_new_changes_only(server, tracker):
    """Between whole reads the tracker is asked for what changed, and nothing is written."""
    bus = FakeBus()
    clock = Clock()
    apply(tracker, [put(clock, Issue(id=f"K{n}", title="t")) for n in range(15)], clock=clock)
    captured(tracker)
    tracker.publisher = bus
    assert captured(tracker, whole=False) == []
    (one, *_) = issues(server)
    server.change(f"issue/{one['id']}", title="Edited")
    changes = captured(tracker, whole=False)
    assert [change.data for change in changes] == [{"title": "Edited"}]
    assert captured(tracker, whole=False) == []
