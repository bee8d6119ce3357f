"""The conformance suite on a real Roundup tracker, and tests of what only Roundup does."""

from __future__ import annotations

import datetime as dt
from typing import ClassVar

import pytest
from servers.roundup import RoundupServer

from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RejectedError
from eventsync.index import FileIndex
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import Account, Comment, Issue, Label, Member
from eventsync.stores.trackers.roundup import (
    RoundupAccounts,
    RoundupComments,
    RoundupIssues,
    RoundupLabels,
    RoundupMembers,
    RoundupService,
)
from eventsync.testing.harness import put
from eventsync.testing.tracker import TrackerContract, captured


@pytest.fixture(scope="module")
def server():
    with RoundupServer() as running:
        yield running


class TestRoundup(TrackerContract):
    """The suite on a tracker with the classic schema."""

    name = "roundup"
    creates = (Account, Member, Label, Issue, Comment)
    odd: ClassVar = {
        Member: ({"group": "Admin"},),
        Label: ({"id": "new word"},),
        Issue: (
            {"id": "K/1-é", "assignee": "admin", "priority": "bug", "labels": ["bug", "ui"]},
            {"priority": None},
        ),
        Comment: ({"issue": "K/1-é", "author": "zoe"},),
    }
    nobody = "eve"
    refused = (
        (Issue(id="K", title=""), "title"),
        (Member(group="Nobody", account="admin"), "does not exist"),
    )
    since = "activity="
    tags = True
    hint = "credentials"
    ways = ("killed before", "killed after")

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server
        yield
        for kind in ("issue", "keyword", "msg", "user"):
            for item in server.ask("GET", f"/data/{kind}")["collection"]:
                if kind != "user" or int(item["id"]) > 2:
                    server.change(f"{kind}/{item['id']}", "DELETE")

    def store(self, folder, secret=None):
        service = RoundupService(self.server.url, "admin", secret or "secret", allow=["127.0.0.1"])
        identity = IdentityMap(folder / "ids.db", name="roundup")
        return Store(
            "roundup",
            RoundupAccounts(Account, service),
            RoundupMembers(Member, service),
            RoundupLabels(Label, service),
            RoundupIssues(Issue, service, identity=identity),
            RoundupComments(Comment, service, identity=identity),
            index=FileIndex(folder / "v.db"),
        )

    def brought(self, change):
        """Return whether the change is the membership ``User`` that every new account has."""
        return change.type == "Member" and change.key.startswith("User/")

    def opens(self, *, title, description="", labels=()):
        for word in labels:
            self.server.ask("POST", "/data/keyword", {"name": word})
        body = {"title": title, "keyword": list(labels)}
        if description:
            body["messages"] = [self.message(description)]
        return self.server.ask("POST", "/data/issue", body)["id"]

    def message(self, text):
        return self.server.ask("POST", "/data/msg", {"content": text, "author": "admin"})["id"]

    def messages(self, issue):
        """Return the ids of the messages of an issue."""
        attributes = self.server.ask("GET", f"/data/issue/{issue}")["attributes"]
        return [message["id"] for message in attributes["messages"]]

    def edits(self, issue, *, status):
        names = {"open": "chatting", "closed": "resolved"}
        self.server.change(f"issue/{issue}", status=names[status])

    def says(self, issue, body):
        message = self.message(body)
        self.server.change(f"issue/{issue}", messages=[*self.messages(issue), message])
        return message

    def deletes(self, issue):
        self.server.change(f"issue/{issue}", "DELETE")

    def text(self, issue):
        (message,) = self.messages(issue)
        asked = f"/data/msg?@fields=content&@verbose=3&id={message}"
        return self.server.ask("GET", asked)["collection"][0]["content"]

    def issues(self):
        """Return the issues that are not retired."""
        fields = "title,status,keyword,assignedto,messages"
        return self.server.ask("GET", f"/data/issue?@fields={fields}&@verbose=2")["collection"]

    def count(self):
        about = [len(issue["messages"]) for issue in self.issues()]
        return {Issue: len(about), Comment: sum(max(0, number - 1) for number in about)}

    def written_once(self, folder, kind, failure, *, skip):
        super().written_once(folder, kind, failure, skip=skip)
        about = [message["id"] for issue in self.issues() for message in issue["messages"]]
        messages = self.server.ask("GET", "/data/msg")["collection"]
        assert sorted(about) == sorted(message["id"] for message in messages)

    def test_objects_at_roundup(self, tracker):
        """Records are stored as Roundup's items, and removing an issue removes its comments."""
        tracker.add(Account(id="zoe"))
        issue, _ = self.made(tracker, Issue)
        issue["status"], issue["assignee"] = "open", "zoe"
        tracker.add(issue)
        (held,) = self.issues()
        assert (held["title"], held["status"]["name"]) == ("Lamp", "unread")
        assert held["assignedto"]["username"] == "zoe"
        assert {word["name"] for word in held["keyword"]} == {"ui", "bug"}
        for number, author in enumerate(["zoe", None]):
            comment = Comment(id=f"C{number}", body="")
            comment["issue"], comment["author"] = "K/1-é", author
            tracker.add(comment)
            held = tracker[Comment, f"C{number}"].raw()
            assert held == {name: comment[name] for name in held}
        issue = tracker[Issue, "K/1-é"]
        issue.status = "closed"
        tracker.update(issue)
        captured(tracker)
        tracker.remove(tracker[Comment, "C1"])
        # Roundup itself reopens an issue whose messages change.
        assert [(c.type, c.data) for c in captured(tracker)] == [("Issue", {"status": "open"})]
        tracker.remove(tracker[Issue, "K/1-é"])
        assert list(tracker.find(Issue)) == list(tracker.find(Comment)) == self.issues() == []
        assert [(c.key, c.op) for c in captured(tracker)] == [("C0", "delete")]

    def test_names_of_accounts(self, tracker):
        """The name of an account can be removed."""
        tracker.add(Account(id="ada", name="Ada L."))
        ada = tracker[Account, "ada"]
        ada.name = ""
        tracker.update(ada)
        assert tracker[Account, "ada"].name == ""

    def test_statuses(self, tracker):
        """A change from one closed status to another is not captured as an edit."""
        issue = self.opens(title="Theirs", description="Hello")
        self.server.change(f"issue/{issue}", status="resolved")
        captured(tracker)
        self.server.change(f"issue/{issue}", status="done-cbb")
        assert captured(tracker, whole=False) == []

    def test_roles(self, tracker):
        """Members are added to the roles of a user, and removed, one by one."""
        assert {member.key for member in tracker.find(Member)} >= {"Admin/admin"}
        self.prepare(tracker, Member)
        captured(tracker)
        member, _ = self.made(tracker, Member)
        tracker.add(member)
        (user,) = self.server.ask("GET", "/data/user?username:=zoe&@fields=roles")["collection"]
        assert user["roles"] == "User,Admin"
        self.server.change(f"user/{user['id']}", roles="User")
        assert [(c.op, c.key) for c in captured(tracker)] == [("delete", "Admin/zoe")]
        tracker.remove(tracker[Member, ("User", "zoe")])
        assert self.server.ask("GET", f"/data/user/{user['id']}")["attributes"]["roles"] is None

    def test_fields_it_cannot_hold(self, tmp_path):
        """A view with a field that the tracker cannot hold is refused, with the possible fields."""
        service = RoundupService(self.server.url, "admin", "secret")
        identity = IdentityMap(tmp_path / "ids.db", name="roundup")
        with pytest.raises(ConfigError, match=r"has no place for Issue\.milestone"):
            RoundupIssues(Issue, service, identity=identity, view=View())

    def test_fields_that_it_decides(self, tmp_path):
        """Author and times of an issue are read if the view names them."""
        service = RoundupService(self.server.url, "admin", "secret", allow=["127.0.0.1"])
        identity = IdentityMap(tmp_path / "ids.db", name="roundup")
        view = View(only=["id", "title", "author", "created", "updated"])
        accessor = RoundupIssues(Issue, service, identity=identity, view=view)
        with Store("roundup", accessor, index=FileIndex(tmp_path / "told.db")) as store:
            store.add(Issue(id="told", title="t"))
            issue = store[Issue, "told"]
            assert (issue["author"], issue.created.tzinfo) == ("admin", dt.UTC)
            assert abs(dt.datetime.now(dt.UTC) - issue.updated) < dt.timedelta(minutes=5)
            listed = [found for found in store.find(Issue) if found.key == "told"]
            assert listed[0].raw() == issue.raw()
            store.remove(issue)

    def test_new_changes_only(self, tracker):
        """Between full reads, recent changes are captured, and nothing is written."""
        changes = [put(Issue(id=f"K{n}", title="t"), self.clock.tick()) for n in range(15)]
        apply(tracker, changes, clock=self.clock)
        captured(tracker)
        self.line.clear()
        assert captured(tracker, whole=False) == []
        (one, *_) = self.issues()
        self.server.change(f"issue/{one['id']}", title="Edited")
        found = captured(tracker, whole=False)
        assert [change.data for change in found] == [{"title": "Edited"}]
        assert captured(tracker, whole=False) == self.line.writes() == []

    @pytest.mark.parametrize("label", ["12", "-ui", "+ui", "-", "a,b", "-1"])
    def test_labels_that_look_like_operators(self, tracker, label):
        """A label is the keyword of this name: no id, and no sign that adds or removes."""
        tracker.add(Issue(id="A", title="t", labels=["ui"]))
        tracker.add(Issue(id="B", title="t", labels=[label, "ui"]))
        issue = tracker[Issue, "A"]
        issue.labels = [label]
        tracker.update(issue)
        assert tracker[Issue, "A"].labels == [label]
        assert tracker[Issue, "B"].labels == sorted([label, "ui"])
        assert captured(tracker, Issue) == []

    @pytest.mark.parametrize("name", ["1", "2", "-1"])
    def test_names_that_look_like_ids(self, tracker, name):
        """A user whose name is a number is that user, not the one with this id."""
        change = put(Issue(id="A", title="t", assignee=name), self.clock.tick())
        assert self.outcomes(tracker, [change]) == ["held"]
        tracker.add(Account(id=name, address="n@example.org"))
        assert self.outcomes(tracker, [change]) == ["applied"]
        assert tracker[Issue, "A"]["assignee"] == name
        tracker.add(Comment(id="C", issue="A", author=name, body="b"))
        assert tracker[Comment, "C"]["author"] == name
        with pytest.raises(RejectedError, match="priority"):
            tracker.add(Issue(id="B", title="t", priority=name))
        assert captured(tracker, Issue) == []

    @pytest.mark.parametrize("role", ["User,Admin", "Admin,", " Admin", ","])
    def test_roles_that_look_like_a_list(self, tracker, role):
        """A membership gives one role, not those of a list in its name."""
        tracker.add(Account(id="zoe"))
        with pytest.raises(RejectedError, match="one role"):
            tracker.add(Member(group=role, account="zoe"))
        (user,) = self.server.ask("GET", "/data/user?username:=zoe&@fields=roles")["collection"]
        assert user["roles"] == "User"

    def test_comment_on_an_issue_without_messages(self, tracker):
        """A comment is never taken for the description of an issue that a person left empty."""
        number = self.opens(title="empty")
        captured(tracker)
        issue = f"roundup:{number}"
        for key in ("C", "D"):
            tracker.add(Comment(id=key, issue=issue, body=f"text of {key}"))
        assert tracker[Issue, issue].description == ""
        assert {one.key: one.body for one in tracker.find(Comment)} == {
            "C": "text of C",
            "D": "text of D",
        }
        assert captured(tracker) == []
        comment = tracker[Comment, "C"]
        comment.body = "other"
        tracker.update(comment)
        described = tracker[Issue, issue]
        described.description = "what it is about"
        tracker.update(described)
        assert tracker[Comment, "C"].body == "other"
        assert tracker[Issue, issue].description == "what it is about"
        assert len(self.messages(number)) == 3
        tracker.remove(tracker[Comment, "D"])
        assert captured(tracker) == []

    def test_message_left_by_a_failed_comment(self, tracker):
        """A message that an earlier attempt wrote does not come before the description."""
        number = self.opens(title="empty")
        captured(tracker)
        comments = tracker.accessor(Comment)
        comments.identity.begin("Comment", "C")
        comments.write_message("C", "left", "admin")
        tracker.add(Comment(id="C", issue=f"roundup:{number}", body="whole"))
        assert tracker[Comment, "C"].body == "whole"
        assert tracker[Issue, f"roundup:{number}"].description == ""
        assert len(self.messages(number)) == 2
        assert captured(tracker) == []
