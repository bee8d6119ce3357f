"""Records of a GitLab project and of the groups and users beside, at a simulated GitLab."""

from __future__ import annotations

import datetime as dt

import pytest
from servers.gitlab import GitLabSimulator
from stores.trackers import captured, checked, created_once, put

from eventsync.apply import apply
from eventsync.clock import Clock
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.gate import Outcome
from eventsync.identity import IdentityMap
from eventsync.index import FileIndex
from eventsync.record import Field, Record
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
from eventsync.view import View


def service_of(gitlab, token="good-token"):
    return GitLabService(token, url=gitlab.url, allow=["127.0.0.1"])


def store_in(gitlab, folder, token="good-token"):
    service = service_of(gitlab, token)
    identity = IdentityMap(folder / "ids.db", name="gitlab")
    return Store(
        "gitlab",
        GitLabLabels(Label, service, "acme/shop"),
        GitLabMilestones(Milestone, service, "acme/shop", identity=identity),
        GitLabIssues(Issue, service, "acme/shop", identity=identity),
        GitLabComments(Comment, service, "acme/shop", identity=identity),
        index=FileIndex(folder / "v.db"),
    )


def instance_in(gitlab, folder):
    service = service_of(gitlab)
    return Store(
        "instance",
        GitLabGroups(Group, service),
        GitLabAccounts(Account, service),
        GitLabMembers(Member, service),
        GitLabProjects(Project, service, "acme"),
        index=FileIndex(folder / "instance.v.db"),
    )


@pytest.fixture
def gitlab():
    with GitLabSimulator() as running:
        yield running


@pytest.fixture
def store(gitlab, tmp_path):
    with store_in(gitlab, tmp_path) as made:
        yield made


@pytest.fixture
def instance(gitlab, tmp_path):
    with instance_in(gitlab, tmp_path) as made:
        yield made


def test_round_trip(store, gitlab):
    """Records of every type go in, are found, changed and removed; and none of it is an edit."""
    checked(store, Label(id="ui", color="ff0000", description="what one sees"))
    checked(store, Label(id="a/b c"))
    checked(store, Milestone(id="M1", title="Spring", description="soon", due=dt.date(2026, 3, 1)))
    issue = Issue(
        id="K1",
        title="Lamp",
        description="It is\ndark",
        assignee="bob",
        milestone="M1",
        labels=["a/b c", "ui"],
        status="closed",
    )
    held = checked(store, issue)
    assert gitlab.issues[1]["state"] == "closed"
    assert gitlab.issues[1]["assignee"]["username"] == "bob"
    checked(store, Comment(id="C1", issue="K1", body="Indeed"))
    held.status, held.title, held.description, held.labels = "open", "Lamp!", "Light", []
    held["assignee"] = held["milestone"] = None
    store.update(held)
    milestone = store[Milestone, "M1"]
    milestone.status, milestone.due, milestone.description = "closed", None, ""
    store.update(milestone)
    label = store[Label, "ui"]
    label.color = ""
    store.update(label)
    label.description = ""
    store.update(label)
    comment = store[Comment, "C1"]
    comment.body = "No"
    store.update(comment)
    assert captured(store) == []
    issue = gitlab.issues[1]
    assert issue["description"] == "Light\n\n<!-- eventsync:Issue:K1 -->"
    assert (issue["title"], issue["state"], issue["labels"]) == ("Lamp!", "opened", [])
    assert (issue["assignee"], issue["milestone"]) == (None, None)
    (milestone,) = gitlab.milestones.values()
    assert (milestone["state"], milestone["due_date"]) == ("closed", "")
    assert store[Milestone, "M1"].due is None
    store.remove(store[Comment, "C1"])
    store.remove(store[Milestone, "M1"])
    store.remove(store[Label, "a/b c"])
    assert (gitlab.notes, gitlab.milestones, list(gitlab.labels)) == ({}, {}, ["ui"])
    store.remove(store[Issue, "K1"])
    assert gitlab.issues == {}
    assert captured(store) == []


def test_made_at_gitlab(store, gitlab):
    """What people do at GitLab itself is captured under keys of its ids; its own notes are not."""
    captured(store)
    number = gitlab.opens(title="Theirs", description="Please", labels=["x"])
    said = gitlab.says(number, "Me too")
    gitlab.says(number, "changed the title", system=True)
    found = {(c.type, c.key): c.data for c in captured(store, whole=False)}
    assert found.keys() == {("Issue", "gitlab:1"), ("Comment", f"gitlab:1:{said}")}
    assert found["Issue", "gitlab:1"]["labels"] == ["x"]
    assert found["Comment", f"gitlab:1:{said}"]["issue"] == "gitlab:1"
    gitlab.edits(number, state="closed")
    gitlab.requests.clear()
    assert [c.data for c in captured(store, whole=False)] == [{"status": "closed"}]
    assert captured(store, whole=False) == []
    assert gitlab.writes() == []
    assert any("updated_after=2025-12-31T23%3A59" in path for _, path in gitlab.requests)
    record = store[Issue, "gitlab:1"]
    record.description = "Thanks"
    store.update(record)
    assert gitlab.issues[1]["description"] == "Thanks"  # no mark in what is not ours


@pytest.mark.parametrize("failure", [("lose",), ("drop",), ("status", 502, {}, b"")])
@pytest.mark.parametrize(
    "record",
    [
        Issue(id="K", title="t", status="closed"),
        Milestone(id="M", title="m", status="closed"),
        Comment(id="C", issue="gitlab:1", body="c"),
    ],
)
@pytest.mark.parametrize("skip", [0, 1])
def test_created_once(gitlab, tmp_path, failure, record, skip):
    """Whatever becomes of an answer, an issue, a milestone or a comment is created once."""
    gitlab.opens(title="Theirs")
    with store_in(gitlab, tmp_path) as store:
        captured(store)
    created_once(gitlab, lambda: store_in(gitlab, tmp_path), record, failure, skip=skip)
    assert len(gitlab.issues) + len(gitlab.milestones) + len(gitlab.notes) == 2


def test_what_comes_too_early(store, gitlab):
    """An issue waits for its milestone and its assignee, a comment for its issue."""
    clock = Clock()
    comment = put(clock, Comment(id="C", issue="K", body="x"))
    issue = put(clock, Issue(id="K", title="t", milestone="M"))
    unassigned = put(clock, Issue(id="L", title="t", assignee="zoe"))
    early = [comment, issue, unassigned]
    assert [item.outcome for item in apply(store, early, clock=clock)] == [Outcome.HELD] * 3
    gitlab.requests.clear()
    assert [item.outcome for item in apply(store, early, clock=clock)] == [Outcome.HELD] * 3
    # Nothing was sent of what waits, so nothing is looked for.
    assert [path for _, path in gitlab.requests if "/users" not in path] == []
    milestone = put(clock, Milestone(id="M", title="m"))
    settled = apply(store, [comment, issue, milestone], clock=clock)
    assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 3


@pytest.mark.parametrize(
    "text",
    ["/close", "a\n  /label ~x y\nb", "\\/close", "/usr/bin/env", "\\\\/close now", "a /close"],
)
def test_commands(store, gitlab, tmp_path, text):
    """What GitLab would take for a command is kept as a text, whatever is in front of it."""
    checked(store, Issue(id="K", title="t", description=text))
    checked(store, Comment(id="C", issue="K", body=text))
    assert captured(store) == []
    assert gitlab.issues[1]["state"] == "opened"
    if "/usr" in text or "a /" in text:
        assert gitlab.issues[1]["description"].startswith(text)


def test_what_gitlab_refuses(store, gitlab):
    """Refusals of one record are rejections with GitLab's reason."""
    with pytest.raises(RejectedError, match="title is missing"):
        store.add(Issue(id="K", title=""))
    with pytest.raises(RejectedError, match="no status 'blocked'"):
        store.add(Issue(id="K", title="t", status="blocked"))
    with pytest.raises(RejectedError, match="comma"):
        store.add(Issue(id="K", title="t", labels=["a,b"]))
    assert gitlab.issues == {}
    store.add(Issue(id="K", title="t"))
    store.add(Issue(id="L", title="t"))
    store.add(Comment(id="C", issue="K", body="x"))
    comment = store[Comment, "C"]
    comment["issue"] = "L"
    with pytest.raises(RejectedError, match="cannot move"):
        store.update(comment)
    gitlab.owner = False
    with pytest.raises(RejectedError, match="does not let eventsync delete"):
        store.remove(store[Issue, "K"])


def test_instance(instance, gitlab):
    """Groups, users, members and projects go in, are changed and removed, and are no edits."""
    captured(instance)
    group = checked(instance, Group(id="acme/core", name="The Core", description="d"))
    group.name = "Core"
    instance.update(group)
    checked(instance, Account(id="zoe", name="Zoe", address="zoe@example.org"))
    zoe = instance[Account, "zoe"]
    zoe.address = "z@example.org"
    instance.update(zoe)
    member = checked(instance, Member(group="acme/core", account="zoe", role="guest"))
    member.role = "developer"
    instance.update(member)
    project = checked(instance, Project(id="acme/core/site", name="Site", description="x"))
    project.description = ""
    instance.update(project)
    assert captured(instance) == []
    core = gitlab.around.group("acme/core")
    assert gitlab.around.groups[core]["name"] == "Core"
    assert gitlab.around.levels[core, 4] == 30
    assert gitlab.around.users[4]["email"] == "z@example.org"
    instance.remove(project)
    assert list(instance.find(Project)) == []
    checked(instance, Project(id="acme/core/site", name="Site again", description="y"))
    instance.remove(member)
    instance.remove(zoe)
    assert gitlab.around.users[4]["state"] == "blocked"
    assert captured(instance) == []
    checked(instance, Account(id="zoe", name="Zoe", address="zoe@example.org"))
    assert (len(gitlab.around.users), gitlab.around.users[4]["state"]) == (4, "active")
    assert captured(instance) == []


def test_what_an_instance_refuses(instance, gitlab, tmp_path):
    """What is not done to groups and users is rejected with the reason, or waits."""
    with pytest.raises(RejectedError, match="all that is in it would go"):
        instance.remove(instance[Group, "acme"])
    with pytest.raises(RejectedError, match="no user without an address"):
        instance.add(Account(id="zoe"))
    with pytest.raises(RejectedError, match="no role ''"):
        instance.add(Member(group="acme", account="bob"))
    with pytest.raises(RejectedError, match="no project of acme"):
        instance.add(Project(id="other/site"))
    clock = Clock()
    early = [
        put(clock, Member(group="later", account="bob", role="guest")),
        put(clock, Member(group="acme", account="zoe", role="guest")),
        put(clock, Group(id="later/in", name="in")),
    ]
    outcomes = [item.outcome for item in apply(instance, early, clock=clock)]
    assert outcomes == [Outcome.HELD] * 3
    group = put(clock, Group(id="later", name="Later"))
    apply(instance, [group], clock=clock)
    settled = apply(instance, [early[0], early[2]], clock=clock)
    assert [item.outcome for item in settled] == [Outcome.APPLIED] * 2
    index = FileIndex(tmp_path / "people.v.db")
    with Store(
        "people", GitLabGroupAccounts(Account, service_of(gitlab), "acme"), index=index
    ) as people:
        assert [(one.key, one.name) for one in people.find(Account)] == [("ann", "Ann")]
        assert people.get(Account, "bob") is None
        ann = people[Account, "ann"]
        ann.name = "Another"
        with pytest.raises(RejectedError, match="GitLab does not modify"):
            people.update(ann)


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
        remark = put(clock, Remark(id="R", ticket="T", text="x"))
        (settled,) = apply(store, [remark], clock=clock)
        assert "refers to Ticket 'T'" in str(settled.error)
        changes = [remark, put(clock, Ticket(number="T", head="h"))]
        settled = apply(store, changes, clock=clock)
        assert [(item.outcome, item.error) for item in settled] == [(Outcome.APPLIED, None)] * 2
        assert store[Remark, "R"]["ticket"] == "T"
        assert captured(store) == []


def test_record_type_of_ones_own(gitlab, tmp_path):
    """A type with other names and more fields will do, with a view that says which are which."""
    service, index = service_of(gitlab), FileIndex(tmp_path / "v.db")
    view = View(omit=["weight"], rename={"colour": "color"})
    with Store("words", GitLabLabels(Word, service, "acme/shop", view=view), index=index) as store:
        checked(store, Word(word="a/b", colour="00ff00"))
        assert gitlab.labels["a/b"]["color"] == "#00ff00"
        store.remove(store[Word, "a/b"])
        assert gitlab.labels == {}
    with pytest.raises(ConfigError, match="holds no 'colour', 'weight' of Word"):
        GitLabLabels(Word, service, "acme/shop")


def test_token(gitlab, tmp_path):
    """A token that is not taken stops the store with a hint at its rights, and is not shown."""
    with store_in(gitlab, tmp_path, token="glpat-hush") as store:
        with pytest.raises(StoreUnavailableError, match="scope api") as caught:
            store.accessor(Issue).ping()
        assert "glpat-hush" not in str(caught.value)
