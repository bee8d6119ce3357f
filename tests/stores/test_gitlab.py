"""The conformance suite on a simulated GitLab, and tests of what only GitLab does."""

from __future__ import annotations

from typing import ClassVar

import pytest
from servers.gitlab import GitLabSimulator

from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import RejectedError
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
from eventsync.stores.trackers.gitlab import (
    GitLabAccounts,
    GitLabComments,
    GitLabGroupAccounts,
    GitLabGroups,
    GitLabIssues,
    GitLabLabels,
    GitLabMembers,
    GitLabMilestones,
    GitLabProjects,
    GitLabService,
)
from eventsync.testing.harness import put
from eventsync.testing.tracker import TrackerContract, captured


class TestGitLab(TrackerContract):
    """The suite on a project, and the groups and users of its instance."""

    name = "gitlab"
    creates = (Account, Group, Member, Project, Label, Milestone, Issue, Comment)
    odd: ClassVar = {
        Group: ({"id": "acme/core", "name": "The Core"}, {"name": "Core"}),
        Member: ({"group": "acme/core", "role": "guest"}, {"role": "developer"}),
        Project: ({"id": "acme/core/site"},),
        Issue: ({"assignee": "zoe", "labels": ["a/b c", "ui"]},),
    }
    nobody = "yan"
    refuses: ClassVar = {Group: {"destroy": "would delete all projects in the group"}}
    refused = ((Issue(id="K", title=""), "title is missing"),)
    rejects = (
        (Issue(id="K", title="t", labels=["a,b"]), "comma"),
        (Account(id="zoe"), "no user without an address"),
        (Member(group="acme", account="bob"), "no role ''"),
        (Project(id="other/site"), "not a project of the group acme"),
    )
    since = "updated_after=2025-12-31T23%3A59"
    hint = "scope api"

    @pytest.fixture(autouse=True)
    def _gitlab(self):
        with GitLabSimulator() as self.gitlab:
            yield

    def service(self, token="good-token"):
        return GitLabService(token, url=self.gitlab.url, allow=["127.0.0.1"])

    def store(self, folder, secret=None):
        service = self.service(secret or "good-token")
        identity = IdentityMap(folder / "ids.db", name="gitlab")
        return Store(
            "gitlab",
            GitLabAccounts(Account, service),
            GitLabGroups(Group, service),
            GitLabMembers(Member, service),
            GitLabProjects(Project, service, "acme"),
            GitLabLabels(Label, service, "acme/shop"),
            GitLabMilestones(Milestone, service, "acme/shop", identity=identity),
            GitLabIssues(Issue, service, "acme/shop", identity=identity),
            GitLabComments(Comment, service, "acme/shop", identity=identity),
            index=FileIndex(folder / "v.db"),
        )

    def opens(self, *, title, description=None, labels=()):
        issue = self.gitlab.opens(title=title, description=description, labels=list(labels))
        return str(issue)

    def edits(self, issue, *, status):
        self.gitlab.edits(int(issue), state={"open": "opened"}.get(status, status))

    def says(self, issue, body):
        return f"{issue}:{self.gitlab.says(int(issue), body)}"

    def deletes(self, issue):
        del self.gitlab.issues[int(issue)]

    def text(self, issue):
        return self.gitlab.issues[int(issue)]["description"]

    def count(self):
        kinds = {Issue: "issues", Milestone: "milestones", Comment: "notes"}
        return {kind: len(getattr(self.gitlab, name)) for kind, name in kinds.items()}

    def test_objects_at_gitlab(self, tracker):
        """Records are stored as GitLab's objects."""
        gitlab = self.gitlab
        self.prepare(tracker, Issue)
        issue, _ = self.made(tracker, Issue)
        tracker.add(issue)
        held = gitlab.issues[1]
        assert (held["state"], held["assignee"]["username"]) == ("closed", "zoe")
        tracker.remove(issue)
        tracker.remove(tracker[Milestone, "M1"])
        for kind in (Milestone, Issue):
            self.tour(tracker, kind)
        (held,) = gitlab.issues.values()
        assert held["description"] == "Light\n\n<!-- eventsync:Issue:K1 -->"
        assert (held["title"], held["state"], held["labels"]) == ("Lamp!", "closed", ["ui"])
        assert (held["assignee"], held["milestone"]) == (None, None)
        milestone = tracker[Milestone, "M1"]
        milestone.status, milestone.due = "closed", None
        tracker.update(milestone)
        (held,) = gitlab.milestones.values()
        assert (held["state"], held["due_date"]) == ("closed", "")
        for record in (milestone, tracker[Label, "a/b c"], tracker[Issue, "K1"]):
            tracker.remove(record)
        assert (gitlab.issues, gitlab.milestones, list(gitlab.labels)) == ({}, {}, ["ui"])

    def test_its_own_notes(self, tracker):
        """A note that GitLab itself adds to an issue is not a comment."""
        issue = self.gitlab.opens(title="Theirs")
        self.gitlab.says(issue, "changed the title", system=True)
        assert [change.type for change in captured(tracker)] == ["Issue"]

    @pytest.mark.parametrize(
        "text",
        ["/close", "a\n  /label ~x y\nb", "\\/close", "/usr/bin/env", "\\\\/close now", "a /close"],
    )
    def test_commands(self, tracker, text):
        """A text that looks like a command is stored as a text and not executed."""
        tracker.add(Issue(id="K", title="t", description=text))
        tracker.add(Comment(id="C", issue="K", body=text))
        assert (tracker[Issue, "K"].description, tracker[Comment, "C"].body) == (text, text)
        assert captured(tracker) == []
        assert self.gitlab.issues[1]["state"] == "opened"
        if "/usr" in text or "a /" in text:
            assert self.gitlab.issues[1]["description"].startswith(text)

    def test_only_references_are_looked_for(self, tracker):
        """A retry of a held change looks up its references only, as nothing was sent before."""
        changes = [put(Issue(id="K", title="t", assignee="yan"), self.clock.tick())]
        changes.append(put(Comment(id="C", issue="K", body="x"), self.clock.tick()))
        self.outcomes(tracker, changes)
        self.line.clear()
        self.outcomes(tracker, changes)
        assert [path for _, path in self.line.requests if "/users" not in path] == []

    def test_who_may_delete(self, tracker):
        """Deleting an issue without the rights of an owner is rejected."""
        tracker.add(Issue(id="K", title="t"))
        self.gitlab.owner = False
        with pytest.raises(RejectedError, match="does not let eventsync delete"):
            tracker.remove(tracker[Issue, "K"])

    def test_instance(self, tracker):
        """Groups, accounts and members are stored as groups, users and access levels."""
        around = self.gitlab.around
        for kind in (Account, Member):
            self.tour(tracker, kind)
        core = around.group("acme/core")
        assert around.groups[core]["name"] == "The Core"
        assert around.levels[core, 4] == 30
        assert around.users[4]["email"] == "z@example.org"
        tracker.remove(tracker[Account, "zoe"])
        assert around.users[4]["state"] == "blocked"
        tracker.add(Account(id="zoe", name="Zoe", address="zoe@example.org"))
        assert (len(around.users), around.users[4]["state"]) == (4, "active")

    def test_groups_within(self, tracker):
        """A subgroup is held until its parent group exists."""
        early = put(Group(id="later/in", name="in"), self.clock.tick())
        assert self.outcomes(tracker, [early]) == [Outcome.HELD]
        tracker.add(Group(id="later", name="Later"))
        assert self.outcomes(tracker, [early]) == [Outcome.APPLIED]

    def test_accounts_of_a_group(self, tmp_path):
        """Without the rights of an administrator, the users of a group can be read only."""
        accounts = GitLabGroupAccounts(Account, self.service(), "acme")
        with Store("people", accounts, index=FileIndex(tmp_path / "people.v.db")) as people:
            assert [(one.key, one.name) for one in people.find(Account)] == [("ann", "Ann")]
            assert people.get(Account, "bob") is None
            ann = people[Account, "ann"]
            ann.name = "Another"
            with pytest.raises(RejectedError, match="GitLab does not modify"):
                people.update(ann)
