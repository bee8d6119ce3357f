"""The conformance suite on a simulated Jira, and tests of what only Jira does."""

from __future__ import annotations

from typing import ClassVar

import pytest
from servers.jira import JiraSimulator

from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import FileIndex
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import (
    Account,
    Comment,
    Group,
    Issue,
    Label,
    Member,
    Milestone,
    Project,
)
from eventsync.stores.trackers.jira import (
    JiraAccounts,
    JiraComments,
    JiraGroups,
    JiraIssues,
    JiraLabels,
    JiraMembers,
    JiraMilestones,
    JiraProjects,
    JiraService,
)
from eventsync.testing.harness import put
from eventsync.testing.tracker import TrackerContract, captured


class TestJira(TrackerContract):
    """The suite on a project and its site."""

    name = "jira"
    creates = (Group, Member, Project, Milestone, Issue, Comment)
    odd: ClassVar = {
        Group: ({"id": "core team"},),
        Member: ({"group": "core team", "account": "5b-bob"},),
        Project: ({"id": "NEW", "name": "New"}, {"name": "Newer"}),
        Issue: (
            {"assignee": "5b-bob", "priority": "High", "labels": ["a-b", "ui"]},
            {"priority": "Low"},
        ),
    }
    unique = (Project,)
    refuses: ClassVar = {
        Label: {"create": "as soon as an issue has it", "destroy": "as long as an issue has it"},
        Account: {
            "create": "accounts belong to Atlassian",
            "modify": "people edit their own profile",
            "destroy": "remove people there",
        },
    }
    refused = (
        (Issue(id="K", title=""), "specify a summary"),
        (Issue(id="K", title="t", assignee="zoe"), "assignee does not exist"),
    )
    rejects = ((Issue(id="K", title="t", labels=["a b"]), "no blank in a label"),)
    keeps_due = "no way to remove the date"
    since = "updated+%3E%3D+-"
    hint = "rights in Jira"

    @pytest.fixture(autouse=True)
    def _jira(self):
        with JiraSimulator() as self.jira:
            yield

    def store(self, folder, secret=None):
        service = JiraService(
            self.jira.url, "eventsync@example.org", secret or "good-token", allow=["127.0.0.1"]
        )
        identity = IdentityMap(folder / "ids.db", name="jira")
        return Store(
            "jira",
            JiraAccounts(Account, service),
            JiraGroups(Group, service),
            JiraMembers(Member, service),
            JiraProjects(Project, service),
            JiraLabels(Label, service),
            JiraMilestones(Milestone, service, "SHOP", identity=identity),
            JiraIssues(Issue, service, "SHOP", identity=identity, settle=0.01),
            JiraComments(Comment, service, "SHOP", identity=identity),
            index=FileIndex(folder / "v.db"),
        )

    def opens(self, *, title, description=None, labels=()):
        return self.jira.opens(summary=title, description=description, labels=list(labels))

    def edits(self, issue, *, status):
        self.jira.moves(issue, {"open": "2", "closed": "3"}[status])

    def says(self, issue, body):
        return f"{issue}:{self.jira.says(issue, body)}"

    def deletes(self, issue):
        del self.jira.issues[issue]

    def text(self, issue):
        return self.jira.issues[issue]["description"]

    def count(self):
        kinds = {Issue: "issues", Milestone: "versions", Comment: "comments"}
        return {kind: len(getattr(self.jira, name)) for kind, name in kinds.items()}

    def test_objects_at_jira(self, tracker):
        """Records are stored as Jira's objects."""
        jira = self.jira
        for kind in (Milestone, Issue, Comment):
            self.tour(tracker, kind)
        ((id, issue),) = jira.issues.items()
        assert jira.properties[id] == {"eventsync": {"type": "Issue", "key": "K1"}}
        assert (issue["summary"], issue["description"]) == ("Lamp!", "Light")
        assert (issue["status"]["name"], issue["labels"]) == ("Done", ["ui"])
        assert (issue["assignee"], issue["fixVersions"]) == (None, [])
        milestone = tracker[Milestone, "M1"]
        milestone.status, milestone.description = "closed", ""
        tracker.update(milestone)
        (version,) = jira.versions.values()
        assert (version["released"], version["releaseDate"]) == (True, "2026-04-01")
        assert version["description"] == "<!-- eventsync:Milestone:M1 -->"
        for record in (tracker[Comment, "C1"], milestone, tracker[Issue, "K1"]):
            tracker.remove(record)
        assert (jira.comments, jira.versions, jira.issues) == ({}, {}, {})

    def test_priority(self, tracker):
        """An issue that a person opens at Jira has Jira's default priority."""
        self.opens(title="Theirs")
        (change,) = captured(tracker)
        assert change.data["priority"] == "Medium"

    @pytest.mark.parametrize("how", ["unsent", "unanswered", "killed after"])
    @pytest.mark.parametrize("writes", [0, 1])
    def test_listed_late(self, tmp_path, how, writes):
        """An issue is created once, even if Jira lists it late."""
        self.jira.behind = 6
        self.written_once(tmp_path, Issue, how, skip=writes)

    def test_not_listed_yet(self, tracker):
        """An issue that Jira does not list yet is not captured as deleted."""
        self.jira.behind = 3
        tracker.add(Issue(id="K", title="t", priority="Low"))
        assert captured(tracker) == []
        assert captured(tracker, whole=False) == []

    @pytest.mark.parametrize(("before", "after"), [("open", "closed"), ("closed", "open")])
    def test_closed_issues_are_not_edited(self, tracker, before, after):
        """Fields that change together with the status are written while the issue is open."""
        tracker.add(Issue(id="K", title="t", status=before))
        issue = tracker[Issue, "K"]
        issue.title, issue.status = "T", after
        self.line.clear()
        tracker.update(issue)
        steps = [method for method, _ in self.line.writes()]
        assert steps == (["PUT", "POST"] if after == "closed" else ["POST", "PUT"])
        assert (tracker[Issue, "K"].title, tracker[Issue, "K"].status) == ("T", after)

    def test_workflow(self, tracker):
        """A status that the workflow does not allow is rejected, and no other field is written."""
        tracker.add(Issue(id="K", title="t"))
        self.jira.workflow = ["1", "2"]
        issue = tracker[Issue, "K"]
        issue.status, issue.title = "closed", "Closed"
        with pytest.raises(RejectedError, match="no transition from the present status"):
            tracker.update(issue)
        assert [held["summary"] for held in self.jira.issues.values()] == ["t"]

    def test_who_may_delete(self, tracker):
        """Deleting an issue without the right to is rejected."""
        tracker.add(Issue(id="K", title="t"))
        self.jira.deleter = False
        with pytest.raises(RejectedError, match="does not let eventsync delete"):
            tracker.remove(tracker[Issue, "K"])

    def test_keys_of_projects(self, tracker):
        """The key of a project in small letters is refused."""
        service, identity = tracker.accessor(Issue).service, tracker.accessor(Issue).identity
        with pytest.raises(ConfigError, match="not the key of a Jira project"):
            JiraMilestones(Milestone, service, "shop", identity=identity)

    def test_site(self, tracker):
        """Groups, members, accounts and projects are stored as those of the site."""
        site = self.jira.site
        for kind in (Member, Project):
            self.tour(tracker, kind)
        accounts = {account.key: account for account in tracker.find(Account)}
        assert accounts["5b-bob"].address == "bob@example.org"
        assert accounts["5b-ann"].name == "Ann"
        assert site.groups["core team"] == ["5b-bob"]
        assert site.projects["NEW"]["name"] == "Newer"
        site.groups["core team"].append("5b-eve")
        assert [c.key for c in captured(tracker)] == ["core team/5b-eve"]
        tracker.remove(tracker[Member, ("core team", "5b-bob")])
        assert site.groups["core team"] == ["5b-eve"]
        tracker.remove(tracker[Group, "core team"])
        assert "core team" not in site.groups
        assert {(c.type, c.op) for c in captured(tracker)} == {("Member", "delete")}
        tracker.remove(tracker[Project, "NEW"])
        assert site.trash == ["NEW"]

    def test_labels(self, tracker):
        """The labels of a site are those that its issues have."""
        self.opens(title="t", labels=["ui"])
        assert [label.key for label in tracker.find(Label)] == ["ui"]

    def test_issue_that_was_moved(self, tracker):
        """An issue that somebody moves to another project is not captured as deleted."""
        tracker.add(Issue(id="K", title="t"))
        self.jira.site.more("WEB")
        captured(tracker)
        issue = self.id_of(tracker, "K")
        self.jira.edits(issue, project=self.jira.site.projects["WEB"])
        unreadable: list[RecordError] = []
        for whole in (True, False):
            found = tracker.capture(whole=whole, unreadable=unreadable.append)
            assert [change for changes in found for change in changes] == []
        assert "moved to the project 'WEB'" in str(unreadable[-1])
        with pytest.raises(RecordError, match=r"Issue 'K': .* moved to the project 'WEB'"):
            tracker.get(Issue, "K")
        change = put(Issue(id="K", title="u"), self.clock.tick())
        (settled,) = apply(tracker, [change], clock=self.clock)
        assert "moved to the project" in str(settled.error)
        assert self.jira.issues[issue]["summary"] == "t"
        self.jira.edits(issue, project=self.jira.site.projects["SHOP"])
        assert tracker[Issue, "K"].title == "t"
