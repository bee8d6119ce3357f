"""Issues, comments, labels and milestones of a GitHub repository, at a simulated GitHub."""

from __future__ import annotations

import datetime as dt

import pytest
from servers.github import GitHubSimulator
from stores.trackers import captured, checked, created_once, put

from eventsync.apply import apply
from eventsync.clock import Clock
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.gate import Outcome
from eventsync.identity import IdentityMap
from eventsync.index import FileIndex
from eventsync.store import Store
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
from eventsync.stores.trackers.marker import marked, unmarked


@pytest.fixture
def github():
    with GitHubSimulator() as running:
        yield running


@pytest.fixture
def store(github, tmp_path):
    with store_in(github, tmp_path) as made:
        yield made


def store_in(github, folder, token="good-token"):
    service = GitHubService(token, url=github.url, allow=["127.0.0.1"])
    identity = IdentityMap(folder / "ids.db", name="github")
    return Store(
        "github",
        GitHubLabels(Label, service, "ann/shop"),
        GitHubMilestones(Milestone, service, "ann/shop", identity=identity),
        GitHubIssues(Issue, service, "ann/shop", identity=identity),
        GitHubComments(Comment, service, "ann/shop", identity=identity),
        index=FileIndex(folder / "v.db"),
    )


def organization_in(github, folder):
    service = GitHubService("good-token", url=github.url, allow=["127.0.0.1"])
    return Store(
        "organization",
        GitHubProjects(Project, service, "acme"),
        GitHubAccounts(Account, service, "acme"),
        GitHubGroups(Group, service, "acme"),
        GitHubMembers(Member, service, "acme"),
        index=FileIndex(folder / "organization.v.db"),
    )


@pytest.fixture
def organization(github, tmp_path):
    with organization_in(github, tmp_path) as made:
        yield made


def tour(store, github):
    """Every operation once, on records of every type; what it leaves is looked at by the caller."""
    store.add(Label(id="ui", color="#FF0000", description="what one sees"))
    store.add(Label(id="a/b c"))
    store.add(Milestone(id="M1", title="Spring", description="soon", due=dt.date(2026, 3, 1)))
    issue = Issue(
        id="K1",
        title="Lamp",
        description="It is\ndark",
        assignee="bob",
        milestone="M1",
        labels=["a/b c", "ui"],
        status="closed",
    )
    store.add(issue)
    store.add(Comment(id="C1", issue="K1", body="Indeed"))
    for record in (issue, store[Milestone, "M1"], store[Label, "ui"], store[Comment, "C1"]):
        assert store.get(record) is not None
    held = store[Issue, "K1"]
    assert {name: issue[name] for name in held.raw()} == held.raw()
    held.status, held.title, held.description, held.labels = "open", "Lamp!", "Light", []
    held["assignee"] = held["milestone"] = None
    store.update(held)
    milestone = store[Milestone, "M1"]
    milestone.status, milestone.due, milestone.description = "closed", dt.date(2026, 4, 1), ""
    store.update(milestone)
    label = store[Label, "ui"]
    label.color = ""
    store.update(label)
    comment = store[Comment, "C1"]
    comment.body = "No"
    store.update(comment)
    assert captured(store) == []


def test_round_trip(store, github):
    """Records of every type go in, are found, changed and removed; and none of it is an edit."""
    tour(store, github)
    (issue,) = github.issues.values()
    assert issue["body"] == "Light\n\n<!-- eventsync:Issue:K1 -->"
    assert (issue["title"], issue["state"], issue["labels"]) == ("Lamp!", "open", [])
    assert (issue["assignee"], issue["milestone"]) == (None, None)
    assert github.milestones[1]["due_on"][:10] == "2026-04-01"
    assert store[Label, "ui"].color == ""
    store.remove(store[Comment, "C1"])
    store.remove(store[Milestone, "M1"])
    store.remove(store[Label, "a/b c"])
    assert (github.comments, github.milestones, list(github.labels)) == ({}, {}, ["ui"])
    store.remove(store[Issue, "K1"])
    assert list(store.find(Issue)) == []
    assert (issue["state"], issue["state_reason"], issue["locked"]) == (
        "closed",
        "not_planned",
        True,
    )
    assert issue["body"] == "Light\n\n<!-- eventsync:Issue:K1 deleted -->"
    assert captured(store) == []
    store.add(Issue(id="K1", title="Again"))
    assert len(github.issues) == 2
    assert [record.title for record in store.find(Issue)] == ["Again"]
    github.edits(1, state="open")  # somebody opens the deleted one again
    assert [(c.key, c.data["title"]) for c in captured(store)] == [("github:1", "Lamp!")]


def organize(organization, github):
    """Every operation on what is of an organization."""
    project = checked(organization, Project(id="acme/site", description="What one sees"))
    project.description = ""
    organization.update(project)
    group = checked(organization, Group(id="the-core", name="The Core", description="d"))
    group.name, group.description = "The: core", ""
    organization.update(group)
    member = checked(organization, Member(group="the-core", account="ann", role="maintainer"))
    member.role = ""
    organization.update(member)
    checked(organization, Member(group="the-core", account="bob", role="maintainer"))
    accounts = {account.key: account for account in organization.find(Account)}
    assert (accounts["ann"].name, accounts["eve"].address) == ("Ann A.", None)
    assert captured(organization) == []


def test_organization(organization, github):
    """Repositories, teams and their members go in, are changed and removed, and are no edits."""
    captured(organization)
    organize(organization, github)
    acme = github.organization
    assert acme.repositories["site"]["description"] == ""
    assert acme.teams["the-core"]["name"] == "The: core"
    assert acme.roles == {"the-core": {"ann": "member", "bob": "maintainer"}}
    organization.remove(organization[Member, ("the-core", "bob")])
    assert acme.roles == {"the-core": {"ann": "member"}}
    acme.roles["the-core"]["eve"] = "maintainer"
    assert [(c.key, c.data["role"]) for c in captured(organization)] == [
        ("the-core/eve", "maintainer")
    ]
    organization.remove(organization[Group, "the-core"])
    assert acme.teams == {}
    assert {(c.type, c.op) for c in captured(organization)} == {("Member", "delete")}
    organization.remove(organization[Project, "acme/site"])
    assert acme.repositories["site"]["archived"]
    assert captured(organization) == []
    checked(organization, Project(id="acme/site", description="Again"))
    assert not acme.repositories["site"]["archived"]


def test_what_an_organization_refuses(organization, github):
    """What GitHub offers no way to do is rejected with the reason, and nothing is done."""
    with pytest.raises(RejectedError, match="GitHub does not create Account 'zoe'"):
        organization.add(Account(id="zoe"))
    ann = organization[Account, "ann"]
    with pytest.raises(RejectedError, match="does not destroy"):
        organization.remove(ann)
    ann.name = "Another"
    with pytest.raises(RejectedError, match="does not modify"):
        organization.update(ann)
    with pytest.raises(RejectedError, match="not know a team of the name 'Core team' as 'core'"):
        organization.add(Group(id="core", name="Core team"))
    for key in ("ann/shop", "acme", "acme/", "acme/a/b"):
        with pytest.raises(RejectedError, match="no repository of acme"):
            organization.add(Project(id=key))
    organization.add(Group(id="core"))
    with pytest.raises(RejectedError, match="'zoe' is no member of acme"):
        organization.add(Member(group="core", account="zoe"))
    with pytest.raises(RejectedError, match="no role 'owner'"):
        organization.add(Member(group="core", account="ann", role="owner"))
    assert github.writes() == [("POST", "/orgs/acme/teams")]


def test_made_at_github(store, github):
    """What people do at GitHub itself is captured under keys of its ids; pull requests are not."""
    captured(store)
    number = github.opens(title="Theirs", body="Please", labels=["x"])
    pull = github.opens(title="A pull request", pull_request={"url": "u"})
    said = github.says(number, "Me too")
    github.says(pull, "Looks good", pull=True)
    found = {(c.type, c.key): c.data for c in captured(store, whole=False)}
    assert found.keys() == {("Issue", "github:1"), ("Comment", f"github:{said}")}
    assert found["Issue", "github:1"]["labels"] == ["x"]
    assert found["Comment", f"github:{said}"]["issue"] == "github:1"
    github.edits(number, state="closed")
    github.requests.clear()
    assert [c.data for c in captured(store, whole=False)] == [{"status": "closed"}]
    assert captured(store, whole=False) == []
    assert github.writes() == []
    assert any("since=2025-12-31T23%3A59" in path for _, path in github.requests)
    record = store[Issue, "github:1"]
    record.description = "Thanks"
    store.update(record)
    assert github.issues[1]["body"] == "Thanks"  # no mark in what is not ours


def test_somebody_edits_meanwhile(store, github):
    """What somebody edits between our reading and our writing is captured."""
    store.add(Issue(id="K", title="a"))
    github.between = lambda: github.edits(1, state="closed")
    issue = store[Issue, "K"]
    issue.title = "b"
    store.update(issue)
    github.between = lambda: None
    assert (store[Issue, "K"].title, store[Issue, "K"].status) == ("b", "closed")
    assert [c.data for c in captured(store)] == [{"status": "closed"}]


@pytest.mark.parametrize("failure", [("lose",), ("drop",), ("status", 502, {}, b"")])
@pytest.mark.parametrize(
    "record",
    [Issue(id="K", title="t", status="closed"), Milestone(id="M", title="m")],
)
@pytest.mark.parametrize("skip", [0, 1])
def test_created_once(github, tmp_path, failure, record, skip):
    """Whatever becomes of an answer, an issue or a milestone is created once."""
    created_once(github, lambda: store_in(github, tmp_path), record, failure, skip=skip)
    assert len(github.issues) + len(github.milestones) == 1


def test_what_comes_too_early(store, github):
    """An issue waits for its milestone and a comment for its issue; in one batch they need not."""
    clock = Clock()
    comment = put(clock, Comment(id="C", issue="K", body="x"))
    issue = put(clock, Issue(id="K", title="t", milestone="M"))
    outcomes = [item.outcome for item in apply(store, [comment, issue], clock=clock)]
    assert outcomes == [Outcome.HELD] * 2
    milestone = put(clock, Milestone(id="M", title="m"))
    settled = apply(store, [comment, issue, milestone], clock=clock)
    assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 3


def test_what_github_refuses(store, github):
    """Refusals of one record are rejections with GitHub's reason."""
    with pytest.raises(RejectedError, match="Validation Failed"):
        store.add(Issue(id="K", title=""))
    with pytest.raises(RejectedError, match="no status 'blocked'"):
        store.add(Issue(id="K", title="t", status="blocked"))
    store.add(Issue(id="K", title="t"))
    store.add(Comment(id="C", issue="K", body="x"))
    store.add(Issue(id="L", title="t"))
    comment = store[Comment, "C"]
    comment["issue"] = "L"
    with pytest.raises(RejectedError, match="cannot move"):
        store.update(comment)
    store.add(Milestone(id="M", title="m", due=dt.date(2026, 1, 1)))
    milestone = store[Milestone, "M"]
    milestone.due = None
    with pytest.raises(RejectedError, match="no date away"):
        store.update(milestone)
    with pytest.raises(ConfigError, match="owner/name"):
        GitHubLabels(Label, GitHubService("x"), "shop")


def test_quota(store, github):
    """A used-up quota is waited out, though GitHub calls it forbidden."""
    quota = {"x-ratelimit-remaining": "0", "x-ratelimit-reset": "99999999999"}
    github.failures.append(("status", 403, quota, {"message": "rate limit exceeded"}))
    with pytest.raises(StoreUnavailableError) as caught:
        store.get(Issue, "github:1") or list(store.find(Issue))
    assert caught.value.retry_after == 3600


def test_token(github, tmp_path):
    """A token that is not taken stops the store with a hint at its rights, and is not shown."""
    with store_in(github, tmp_path, token="ghp_hush") as store:
        with pytest.raises(StoreUnavailableError, match="right to write issues") as caught:
            store.accessor(Issue).ping()
        assert "ghp_hush" not in str(caught.value)


def test_markers():
    """A marker is the last thing in a text and of its type; nothing in a key can end it early."""
    for text in ("", "a", "a\n\n", "<!-- x -->", "<!-- eventsync:Comment:K -->"):
        for key in ("K", "a/b", "-->", "é --> <!--", "a--b", "%2D"):
            assert unmarked(marked(text, "Issue", key), "Issue") == (text, key, False)
            gone = marked(text, "Issue", key, deleted=True)
            assert unmarked(gone, "Issue") == (text, key, True)
            assert "--" not in gone[len(text) :].strip().removeprefix("<!--").removesuffix("-->")
    assert unmarked("<!-- eventsync:Issue:K --> and more", "Issue")[1] is None
