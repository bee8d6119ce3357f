"""The conformance suite on a simulated GitHub, and tests of what only GitHub does."""

from __future__ import annotations

from typing import ClassVar

import pytest
from servers.github import GitHubSimulator

from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, StoreUnavailableError
from eventsync.index import FileIndex
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Answer
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
from eventsync.stores.trackers.github import (
    GitHubAccounts,
    GitHubComments,
    GitHubGroups,
    GitHubIssues,
    GitHubLabels,
    GitHubMembers,
    GitHubMilestones,
    GitHubProjects,
    GitHubService,
)
from eventsync.testing.tracker import TrackerContract, captured


class TestGitHub(TrackerContract):
    """The suite on a repository and its organization."""

    name = "github"
    creates = (Group, Member, Project, Label, Milestone, Issue, Comment)
    odd: ClassVar = {
        Group: ({"id": "the-core", "name": "The Core"}, {"name": "The: core"}),
        Member: ({"group": "the-core", "account": "ann", "role": "maintainer"}, {"role": ""}),
        Project: ({"id": "acme/site"},),
        Issue: ({"assignee": "bob", "labels": ["a/b c", "ui"]},),
    }
    refuses: ClassVar = {
        Account: {
            "create": "people sign up at GitHub",
            "modify": "people edit their own profile",
            "destroy": "people leave",
        },
    }
    refused = ((Issue(id="K", title=""), "Validation Failed"),)
    rejects = (
        (Group(id="core", name="Core team"), "not give a team named 'Core team' the slug 'core'"),
        (Project(id="ann/shop"), "not a repository of acme"),
        (Project(id="acme"), "not a repository of acme"),
        (Project(id="acme/"), "not a repository of acme"),
        (Project(id="acme/a/b"), "not a repository of acme"),
        (Member(group="the-core", account="zoe"), "'zoe' is not a member of the organization acme"),
        (Member(group="the-core", account="ann", role="owner"), "no role 'owner'"),
    )
    keeps_due = "cannot remove the date"
    since = "since=2025-12-31T23%3A59"
    hint = "right to write issues"

    @pytest.fixture(autouse=True)
    def _github(self):
        with GitHubSimulator() as self.github:
            yield

    def store(self, folder, secret=None):
        service = GitHubService(secret or "good-token", url=self.github.url, allow=["127.0.0.1"])
        identity = IdentityMap(folder / "ids.db", name="github")
        return Store(
            "github",
            GitHubAccounts(Account, service, "acme"),
            GitHubGroups(Group, service, "acme"),
            GitHubMembers(Member, service, "acme"),
            GitHubProjects(Project, service, "acme"),
            GitHubLabels(Label, service, "ann/shop"),
            GitHubMilestones(Milestone, service, "ann/shop", identity=identity),
            GitHubIssues(Issue, service, "ann/shop", identity=identity),
            GitHubComments(Comment, service, "ann/shop", identity=identity),
            index=FileIndex(folder / "v.db"),
        )

    def opens(self, *, title, description=None, labels=()):
        return str(self.github.opens(title=title, body=description, labels=list(labels)))

    def edits(self, issue, *, status):
        self.github.edits(int(issue), state=status)

    def says(self, issue, body):
        return str(self.github.says(int(issue), body))

    def deletes(self, issue):
        del self.github.issues[int(issue)]

    def text(self, issue):
        return self.github.issues[int(issue)]["body"]

    def count(self):
        kinds = {Issue: "issues", Milestone: "milestones", Comment: "comments"}
        return {kind: len(getattr(self.github, name)) for kind, name in kinds.items()}

    def test_objects_at_github(self, tracker):
        """Records are stored as GitHub's objects, and a removed issue is marked as deleted."""
        github = self.github
        for kind in (Label, Milestone, Issue):
            self.tour(tracker, kind)
        issue = github.issues[1]
        assert issue["body"] == "Light\n\n<!-- eventsync:Issue:K1 -->"
        assert (issue["state"], [label["name"] for label in issue["labels"]]) == ("closed", ["ui"])
        assert (issue["assignee"], issue["milestone"]) == (None, None)
        assert github.milestones[1]["due_on"][:10] == "2026-04-01"
        tracker.remove(tracker[Milestone, "M1"])
        tracker.remove(tracker[Label, "a/b c"])
        assert (github.milestones, list(github.labels)) == ({}, ["ui"])
        tracker.remove(tracker[Issue, "K1"])
        ended = {"state": "closed", "state_reason": "not_planned", "locked": True}
        assert issue.items() >= ended.items()
        assert issue["body"] == "Light\n\n<!-- eventsync:Issue:K1 deleted -->"
        tracker.add(Issue(id="K1", title="Again"))
        assert [record.title for record in tracker.find(Issue)] == ["Again"]
        assert (len(github.issues), captured(tracker)) == (2, [])
        github.edits(1, state="open")  # a person reopens the deleted issue
        assert [(c.key, c.data["title"]) for c in captured(tracker)] == [("github:1", "Lamp!")]

    def test_colors(self, tracker):
        """A color that GitHub returns in another spelling is not captured as an edit."""
        tracker.add(Label(id="ui", color="#FF0000"))
        assert self.github.labels["ui"]["color"] == "ff0000"
        assert captured(tracker) == []

    def test_pull_requests(self, tracker):
        """Pull requests and their comments are not records."""
        pull = self.github.opens(title="A pull request", pull_request={"url": "u"})
        self.github.says(pull, "Looks good", pull=True)
        assert captured(tracker) == []

    def test_organization(self, tracker):
        """Projects, groups and members are stored as repositories, teams and memberships."""
        acme = self.github.organization
        for kind in (Project, Member):
            self.tour(tracker, kind)
        accounts = {account.key: account for account in tracker.find(Account)}
        assert (accounts["ann"].name, accounts["eve"].address) == ("Ann A.", None)
        assert acme.repositories["site"]["description"] == ""
        assert acme.teams["the-core"]["name"] == "The Core"
        tracker.add(Member(group="the-core", account="bob", role="maintainer"))
        assert acme.roles == {"the-core": {"ann": "member", "bob": "maintainer"}}
        tracker.remove(tracker[Member, ("the-core", "bob")])
        assert acme.roles == {"the-core": {"ann": "member"}}
        acme.roles["the-core"]["eve"] = "maintainer"
        found = [(c.key, c.data["role"]) for c in captured(tracker)]
        assert found == [("the-core/eve", "maintainer")]
        team = tracker[Group, "the-core"]
        team.name = "The: core"
        tracker.update(team)
        assert acme.teams["the-core"]["name"] == "The: core"
        tracker.remove(team)
        assert acme.teams == {}
        assert {(c.type, c.op) for c in captured(tracker)} == {("Member", "delete")}
        tracker.remove(tracker[Project, "acme/site"])
        assert acme.repositories["site"]["archived"]
        tracker.add(Project(id="acme/site", description="Again"))
        assert not acme.repositories["site"]["archived"]

    def test_its_quota(self, tracker):
        """A used-up quota is retryable, although GitHub answers with the status 403."""
        quota = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999999"}
        self.line.answers.append(Answer(403, quota, b"rate limit exceeded", "quota"))
        with pytest.raises(StoreUnavailableError) as caught:
            list(tracker.find(Issue))
        assert caught.value.retry_after == 3600

    def test_repositories(self):
        """A repository without an owner in its name is refused."""
        with pytest.raises(ConfigError, match="owner/name"):
            GitHubLabels(Label, GitHubService("x"), "shop")

    def seen_by(self, store):
        """Capture. Return kind, key and operation of each change, and what is unreadable."""
        unreadable = []
        found = store.capture(unreadable=unreadable.append)
        changes = [(c.type, c.key, c.op) for part in found for c in part]
        return changes, [str(error) for error in unreadable]

    def test_issue_that_was_transferred(self, tracker):
        """An issue that GitHub shows in another repository is gone from this one: a delete."""
        self.github.more("site")
        tracker.add(Issue(id="K", title="t"))
        captured(tracker)
        self.github.transfers(int(self.id_of(tracker, "K")), "site")
        assert tracker.get(Issue, "K") is None
        assert self.seen_by(tracker) == ([("Issue", "K", "delete")], [])
        assert self.seen_by(tracker) == ([], [])
        (there,) = self.github.others["site"].issues.values()
        assert (there["title"], there["state"]) == ("t", "open")

    def test_comment_that_was_transferred(self, tracker):
        """A comment whose issue is in another repository is gone with it."""
        site = self.github.more("site")
        tracker.add(Issue(id="K", title="t"))
        tracker.add(Comment(id="C", issue="K", body="b"))
        captured(tracker)
        id = tracker.accessor(Comment).identity.id_of("Comment", "C")
        there = site.says(self.github.transfers(int(self.id_of(tracker, "K")), "site"), "b")
        del self.github.comments[int(id)]
        to = f"{self.github.url}/repositories/site/issues/comments/{there}"
        self.github.moved["issues", "comments", id] = to
        assert sorted(self.seen_by(tracker)[0]) == [
            ("Comment", "C", "delete"),
            ("Issue", "K", "delete"),
        ]

    @pytest.mark.parametrize(
        "target",
        [
            "{url}/repositories/site/issues/99",  # nothing that this token may read
            "{url}/repos/ann/shop/issues/2",  # another issue of the same repository
            "{url}/repos/ann/shop/labels",  # a list
            "http://127.0.0.1:1/repos/ann/site/issues/1",  # another host
            "http://[",
            "",
        ],
    )
    def test_redirects_that_say_nothing(self, tracker, target):
        """A redirect to what is not known to be in another repository deletes nothing."""
        self.github.more("site")
        tracker.add(Issue(id="K", title="t"))
        tracker.add(Issue(id="L", title="u"))
        captured(tracker)
        number = self.id_of(tracker, "K")
        del self.github.issues[int(number)]
        self.github.moved["issues", number] = target.format(url=self.github.url)
        changes, unreadable = self.seen_by(tracker)
        assert changes == []
        assert "301" in unreadable[0]
        with pytest.raises(RecordError, match="only this object is affected"):
            tracker.get(Issue, "K")

    def test_repository_with_a_new_name(self, tracker):
        """A repository that redirects as a whole is an error of the store; nothing is deleted."""
        tracker.add(Issue(id="K", title="t"))
        captured(tracker)
        self.github.renamed = True
        with pytest.raises(ConfigError, match="redirects are not followed"):
            self.seen_by(tracker)
        with pytest.raises((ConfigError, RecordError)):
            tracker.get(Issue, "K")
        self.github.renamed = False
        assert self.seen_by(tracker) == ([], [])
