"""Records of a Jira project and of the site that it is on, at a simulated Jira."""

from __future__ import annotations

import datetime as dt

import pytest
from servers.jira import JiraSimulator
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


def service_of(jira, token="good-token"):
    return JiraService(jira.url, "eventsync@example.org", token, allow=["127.0.0.1"])


def store_in(jira, folder, token="good-token"):
    service = service_of(jira, token)
    identity = IdentityMap(folder / "ids.db", name="jira")
    return Store(
        "jira",
        JiraMilestones(Milestone, service, "SHOP", identity=identity),
        JiraIssues(Issue, service, "SHOP", identity=identity, settle=0.01),
        JiraComments(Comment, service, "SHOP", identity=identity),
        index=FileIndex(folder / "v.db"),
    )


def site_in(jira, folder):
    service = service_of(jira)
    return Store(
        "site",
        JiraGroups(Group, service),
        JiraAccounts(Account, service),
        JiraMembers(Member, service),
        JiraProjects(Project, service),
        JiraLabels(Label, service),
        index=FileIndex(folder / "site.v.db"),
    )


@pytest.fixture
def jira():
    with JiraSimulator() as running:
        yield running


@pytest.fixture
def store(jira, tmp_path):
    with store_in(jira, tmp_path) as made:
        yield made


@pytest.fixture
def site(jira, tmp_path):
    with site_in(jira, tmp_path) as made:
        yield made


def tour(store):
    """Every operation of a project's records but for their removal."""
    checked(store, Milestone(id="M1", title="1.0", description="soon", due=dt.date(2026, 3, 1)))
    issue = Issue(
        id="K1",
        title="Lamp",
        description="It is\ndark",
        priority="High",
        assignee="5b-bob",
        milestone="M1",
        labels=["a-b", "ui"],
        status="closed",
    )
    held = checked(store, issue)
    checked(store, Comment(id="C1", issue="K1", body="Indeed"))
    held.status, held.title, held.description, held.labels = "open", "Lamp!", "", []
    held["assignee"] = held["milestone"] = None
    held.priority = "Low"
    store.update(held)
    milestone = store[Milestone, "M1"]
    milestone.status, milestone.due, milestone.description = "closed", dt.date(2026, 4, 1), ""
    store.update(milestone)
    comment = store[Comment, "C1"]
    comment.body = "No"
    store.update(comment)
    assert captured(store) == []


def organize(site):
    """Every operation of a site's records but for their removal."""
    checked(site, Group(id="core team"))
    checked(site, Member(group="core team", account="5b-bob"))
    project = checked(site, Project(id="NEW", name="New", description="x"))
    project.name, project.description = "Newer", ""
    site.update(project)
    accounts = {account.key: account for account in site.find(Account)}
    assert accounts["5b-bob"].address == "bob@example.org"
    assert site[Account, "5b-ann"].name == "Ann"
    list(site.find(Label))
    assert captured(site) == []


def test_round_trip(store, jira):
    """Records of every type go in, are found, changed and removed; and none of it is an edit."""
    tour(store)
    ((id, issue),) = jira.issues.items()
    assert jira.properties[id] == {"eventsync": {"type": "Issue", "key": "K1"}}
    assert (issue["summary"], issue["description"]) == ("Lamp!", None)
    assert (issue["status"]["name"], issue["labels"]) == ("To Do", [])
    assert (issue["assignee"], issue["fixVersions"]) == (None, [])
    (version,) = jira.versions.values()
    assert (version["released"], version["releaseDate"]) == (True, "2026-04-01")
    assert version["description"] == "<!-- eventsync:Milestone:M1 -->"
    store.remove(store[Comment, "C1"])
    store.remove(store[Milestone, "M1"])
    store.remove(store[Issue, "K1"])
    assert (jira.comments, jira.versions, jira.issues) == ({}, {}, {})
    assert captured(store) == []


def test_made_at_jira(store, jira):
    """What people do at Jira itself is captured under keys of its ids."""
    captured(store)
    number = jira.opens(summary="Theirs", description="Please", labels=["x"])
    said = jira.says(number, "Me too")
    found = {(c.type, c.key): c.data for c in captured(store, whole=False)}
    assert found.keys() == {("Issue", f"jira:{number}"), ("Comment", f"jira:{number}:{said}")}
    assert found["Issue", f"jira:{number}"]["priority"] == "Medium"
    assert found["Comment", f"jira:{number}:{said}"]["issue"] == f"jira:{number}"
    jira.moves(number, "3")
    jira.requests.clear()
    assert [c.data for c in captured(store, whole=False)] == [{"status": "closed"}]
    jira.moves(number, "2")
    assert [c.data for c in captured(store, whole=False)] == [{"status": "open"}]
    assert captured(store, whole=False) == []
    assert jira.writes() == []
    assert any("updated+%3E%3D+-" in path for _, path in jira.requests)
    jira.issues[number]["project"] = {"key": "OTHER"}
    assert {(c.type, c.op) for c in captured(store)} >= {("Issue", "delete")}


@pytest.mark.parametrize("failure", [("lose",), ("drop",), ("status", 502, {}, b"")])
@pytest.mark.parametrize(
    "record",
    [
        Issue(id="K", title="t", status="closed", priority="Low"),
        Milestone(id="M", title="m", status="closed"),
        Comment(id="C", issue="jira:10001", body="c"),
    ],
)
@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("behind", [0, 6])
def test_created_once(jira, tmp_path, failure, record, skip, behind):
    """Whatever becomes of an answer, a record is created once, also if Jira lists it late."""
    jira.opens(summary="Theirs")
    with store_in(jira, tmp_path) as store:
        captured(store)
    jira.behind = behind
    created_once(jira, lambda: store_in(jira, tmp_path), record, failure, skip=skip)
    assert len(jira.issues) + len(jira.versions) + len(jira.comments) == 2


@pytest.mark.parametrize(("before", "after"), [("open", "closed"), ("closed", "open")])
def test_closed_issues_are_not_edited(store, jira, before, after):
    """What is edited with a status is edited while the issue is open: a workflow may ask for it."""
    store.add(Issue(id="K", title="t", status=before))
    issue = store[Issue, "K"]
    issue.title, issue.status = "T", after
    jira.requests.clear()
    store.update(issue)
    steps = [method for method, _ in jira.writes()]
    assert steps == (["PUT", "POST"] if after == "closed" else ["POST", "PUT"])
    assert (store[Issue, "K"].title, store[Issue, "K"].status) == ("T", after)


def test_listed_late(store, jira):
    """What Jira does not list yet is not taken for deleted."""
    captured(store)
    jira.behind = 3
    store.add(Issue(id="K", title="t", priority="Low"))
    assert captured(store) == []
    assert captured(store, whole=False) == []


def test_what_comes_too_early(store, jira):
    """An issue waits for its milestone and a comment for its issue; in one batch they need not."""
    clock = Clock()
    comment = put(clock, Comment(id="C", issue="K", body="x"))
    issue = put(clock, Issue(id="K", title="t", milestone="M"))
    outcomes = [item.outcome for item in apply(store, [comment, issue], clock=clock)]
    assert outcomes == [Outcome.HELD] * 2
    milestone = put(clock, Milestone(id="M", title="m"))
    settled = apply(store, [comment, issue, milestone], clock=clock)
    assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 3


def test_what_jira_refuses(store, jira):
    """Refusals of one record are rejections with Jira's reason."""
    with pytest.raises(RejectedError, match="specify a summary"):
        store.add(Issue(id="K", title=""))
    with pytest.raises(RejectedError, match="no status 'blocked'"):
        store.add(Issue(id="K", title="t", status="blocked"))
    with pytest.raises(RejectedError, match="label with a blank"):
        store.add(Issue(id="K", title="t", labels=["a b"]))
    with pytest.raises(RejectedError, match="assignee does not exist"):
        store.add(Issue(id="K", title="t", assignee="zoe"))
    assert jira.issues == {}
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
    with pytest.raises(RejectedError, match="take the date away"):
        store.update(milestone)
    jira.workflow = ["1", "2"]
    issue = store[Issue, "K"]
    issue.status, issue.title = "closed", "Closed"
    with pytest.raises(RejectedError, match="leads to no status that is closed"):
        store.update(issue)
    assert "Closed" not in [held["summary"] for held in jira.issues.values()]
    jira.deleter = False
    with pytest.raises(RejectedError, match="does not let eventsync delete"):
        store.remove(issue)
    with pytest.raises(ConfigError, match="no key of a Jira project"):
        JiraMilestones(Milestone, service_of(jira), "shop", identity=store.accessor(Issue).identity)


def test_site(site, jira):
    """Groups, members and projects go in, are changed and removed, and are no edits."""
    captured(site)
    organize(site)
    assert jira.site.groups["core team"] == ["5b-bob"]
    assert jira.site.projects["NEW"]["name"] == "Newer"
    jira.site.groups["core team"].append("5b-eve")
    assert [c.key for c in captured(site)] == ["core team/5b-eve"]
    site.remove(site[Member, ("core team", "5b-bob")])
    assert jira.site.groups["core team"] == ["5b-eve"]
    site.remove(site[Group, "core team"])
    assert "core team" not in jira.site.groups
    assert {(c.type, c.op) for c in captured(site)} == {("Member", "delete")}
    site.remove(site[Project, "NEW"])
    assert jira.site.trash == ["NEW"]
    assert captured(site) == []


def test_what_a_site_refuses(site, jira):
    """What Jira offers no way to do is rejected with the reason, or waits, and nothing is done."""
    jira.opens(labels=["ui"])
    assert [label.key for label in site.find(Label)] == ["ui"]
    with pytest.raises(RejectedError, match="once an issue has it"):
        site.add(Label(id="new"))
    with pytest.raises(RejectedError, match="as long as an issue has it"):
        site.remove(site[Label, "ui"])
    with pytest.raises(RejectedError, match="Jira does not create Account"):
        site.add(Account(id="zoe"))
    ann = site[Account, "5b-ann"]
    ann.name = "Another"
    with pytest.raises(RejectedError, match="describe themselves"):
        site.update(ann)
    assert jira.writes() == []
    clock = Clock()
    early = put(clock, Member(group="later", account="5b-bob"))
    (settled,) = apply(site, [early], clock=clock)
    assert settled.outcome is Outcome.HELD
    site.add(Group(id="later"))
    (settled,) = apply(site, [early], clock=clock)
    assert settled.outcome is Outcome.APPLIED
    site.add(Project(id="NEW"))
    site.remove(site[Project, "NEW"])
    with pytest.raises(RejectedError, match="that key already exists"):
        site.add(Project(id="NEW"))


def test_token(jira, tmp_path):
    """A token that is not taken stops the store with a hint at its rights, and is not shown."""
    with store_in(jira, tmp_path, token="hush-hush") as store:
        with pytest.raises(StoreUnavailableError, match="rights in Jira") as caught:
            store.accessor(Issue).ping()
        assert "hush-hush" not in str(caught.value)
