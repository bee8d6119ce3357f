"""Several projects of a tracker in one store."""

from __future__ import annotations

import pytest
from servers.github import GitHubSimulator
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import FileIndex
from eventsync.records.key import join as join_key
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import Comment, Issue, Label, Milestone
from eventsync.stores.trackers.github import (
    GitHubComments,
    GitHubIssues,
    GitHubLabels,
    GitHubMilestones,
    GitHubService,
)
from eventsync.stores.trackers.gitlab import (
    GitLabComments,
    GitLabIssues,
    GitLabMilestones,
    GitLabService,
)
from eventsync.stores.trackers.jira import JiraComments, JiraIssues, JiraMilestones, JiraService
from eventsync.stores.trackers.projects import InProjects
from eventsync.testing.harness import put
from eventsync.testing.tracker import captured

LOCAL = {"allow": ["127.0.0.1"]}


class GitHub:
    name, projects = "github", ["ann/shop", "ann/site"]
    simulator = GitHubSimulator
    kinds = (GitHubMilestones, GitHubIssues, GitHubComments)

    def __init__(self, server):
        self.server, self.places = server, {"ann/shop": server, "ann/site": server.more("site")}

    def service(self):
        return GitHubService("good-token", url=self.server.url, **LOCAL)

    def opens(self, project, title):
        return f"{project}:{self.places[project].opens(title=title)}"

    def edits(self, id, title):
        project, _, number = id.rpartition(":")
        self.places[project].edits(int(number), title=title)

    def says(self, id, body):
        project, _, number = id.rpartition(":")
        return f"{project}:{self.places[project].says(int(number), body)}"

    def titles(self, project):
        return [issue["title"] for issue in self.places[project].issues.values()]


class GitLab(GitHub):
    name, projects = "gitlab", ["acme/shop", "acme/site"]
    simulator = GitLabSimulator
    kinds = (GitLabMilestones, GitLabIssues, GitLabComments)

    def __init__(self, server):
        self.server = server
        self.places = {"acme/shop": server, "acme/site": server.more("acme/site")}

    def service(self):
        return GitLabService("good-token", url=self.server.url, **LOCAL)

    def says(self, id, body):
        return f"{id}:{super().says(id, body).rpartition(':')[2]}"


class Jira:
    name, projects = "jira", ["SHOP", "SITE"]
    simulator = JiraSimulator
    kinds = (JiraMilestones, JiraIssues, JiraComments)

    def __init__(self, server):
        self.server = server
        server.site.more("SITE")

    def service(self):
        return JiraService(self.server.url, "eventsync@example.org", "good-token", **LOCAL)

    def opens(self, project, title):
        return self.server.opens(summary=title, project=self.server.site.projects[project])

    def edits(self, id, title):
        self.server.edits(id, summary=title)

    def says(self, id, body):
        return f"{id}:{self.server.says(id, body)}"

    def titles(self, project):
        return [
            issue["summary"]
            for issue in self.server.issues.values()
            if issue["project"]["key"] == project
        ]


class Several:
    """A tracker with two projects, and stores of it in a folder."""

    def __init__(self, tracker, folder):
        self.tracker, self.folder = tracker, folder
        self.one, self.two = tracker.projects
        self.clock = Clock()

    def __getattr__(self, name):
        return getattr(self.tracker, name)

    def store(self, projects=None, kinds=None, **options):
        identity = IdentityMap(self.folder / "ids.db", name=self.tracker.name)
        service = self.tracker.service()
        kinds = kinds or dict(zip((Milestone, Issue, Comment), self.tracker.kinds, strict=True))
        return Store(
            "several",
            *(
                InProjects(
                    accessor,
                    kind,
                    service,
                    projects or self.tracker.projects,
                    identity=identity,
                    **({"settle": 0.01} if accessor is JiraIssues else {}),
                    **(options if kind is Issue else {}),
                )
                for kind, accessor in kinds.items()
            ),
            index=FileIndex(self.folder / "v.db"),
        )


@pytest.fixture(params=[GitHub, GitLab, Jira], ids=lambda kind: kind.name)
def several(request, tmp_path):
    with request.param.simulator() as server:
        yield Several(request.param(server), tmp_path)


def test_created_in_their_projects(several):
    """Records are created, read, changed and removed in the project that they name."""
    with several.store() as store:
        for name, project in (("A", several.one), ("B", several.two)):
            store.add(Milestone(id=f"M{name}", title="Spring", project=project))
            store.add(
                Issue(
                    id=name, title=f"t{name}", project=project, milestone=f"M{name}", labels=["x"]
                )
            )
            store.add(Comment(id=f"C{name}", issue=name, body=f"b{name}"))
        assert several.titles(several.one) == ["tA"]
        assert several.titles(several.two) == ["tB"]
        assert captured(store) == []
        for name, project in (("A", several.one), ("B", several.two)):
            issue = store[Issue, name]
            assert (issue["project"], issue["milestone"]) == (project, f"M{name}")
            assert store[Milestone, f"M{name}"]["project"] == project
            assert store[Comment, f"C{name}"]["issue"] == name
            issue.title = f"u{name}"
            store.update(issue)
            assert several.titles(project) == [f"u{name}"]
        assert captured(store) == []
        assert {issue.key for issue in store.find(Issue)} == {"A", "B"}
        assert [i.key for i in store.find(Issue, {"project": several.two})] == ["B"]
        assert [i.key for i in store.find(Issue, sort=["-title"], limit=1)] == ["B"]
        store.remove(store[Comment, "CB"])
        store.remove(store[Milestone, "MB"])
        store.remove(store[Issue, "A"])
        assert {issue.key for issue in store.find(Issue)} == {"B"}
        assert {milestone.key for milestone in store.find(Milestone)} == {"MA"}


def test_made_there(several):
    """Issues and comments of all projects are captured once, with their project."""
    with several.store() as store:
        captured(store)
        ids = {project: several.opens(project, "t") for project in several.projects}
        records = {project: f"{several.name}:{id}" for project, id in ids.items()}
        keys = {project: join_key([record]) for project, record in records.items()}
        said = several.says(ids[several.two], "Me too")
        made = {(c.type, c.key): c.data for c in captured(store, whole=False)}
        assert {k for t, k in made if t == "Issue"} == set(keys.values())
        for project, key in keys.items():
            assert made["Issue", key]["project"] == project
        comment = made["Comment", join_key([f"{several.name}:{said}"])]
        assert comment["issue"] == records[several.two]
        for whole in (True, False):
            assert captured(store, whole=whole) == []
        for project, id in ids.items():
            several.edits(id, title=f"in {project}")
            (change,) = captured(store, Issue, whole=False)
            assert (change.key, change.data) == (keys[project], {"title": f"in {project}"})
        store.add(Comment(id="C", issue=records[several.two], body="b"))
        assert store[Comment, "C"]["issue"] == records[several.two]


def test_a_batch_over_projects(several):
    """One batch of changes reaches all projects; each record has an outcome of its own."""
    with several.store() as store:
        changes = []
        for n in range(24):
            issue = Issue(id=f"K{n}", title=f"t{n}", project=several.projects[n % 2])
            changes.append(put(issue, several.clock.tick()))
        changes.append(put(Issue(id="X", title="t", project="none/such"), several.clock.tick()))
        changes.append(put(Issue(id="Y", title="t"), several.clock.tick()))
        settled = {item.change.key: item for item in apply(store, changes, clock=several.clock)}
        assert [settled.pop(key).outcome for key in "XY"] == ["rejected", "rejected"]
        assert {item.outcome for item in settled.values()} == {"applied"}
        assert len(several.titles(several.one)) == len(several.titles(several.two)) == 12
        edits = [
            Change(
                type="Issue",
                key=f"K{n}",
                op="patch",
                version=several.clock.tick(),
                data={"title": f"u{n}"},
                source="t",
            )
            for n in range(24)
        ]
        assert {i.outcome for i in apply(store, edits, clock=several.clock)} == {"applied"}
        assert sorted(several.titles(several.two)) == sorted(f"u{n}" for n in range(1, 24, 2))
        assert captured(store) == []


def test_a_move_is_refused(several):
    """A change of the project is rejected before anything is written, and says where to move it."""
    with several.store() as store:
        store.add(Issue(id="A", title="t", project=several.one))
        issue = store[Issue, "A"]
        issue["project"], issue.title = several.two, "u"
        with pytest.raises(RejectedError, match="does not move it to") as caught:
            store.update(issue)
        assert "move it in" in caught.value.hint
        assert (several.titles(several.one), several.titles(several.two)) == (["t"], [])


@pytest.mark.parametrize("project", [None, "", "none/such", "SHOP ", "ann/shop/x"])
def test_unknown_projects_are_refused(several, project):
    """An issue without a project of the store is rejected, and no project is guessed."""
    with several.store() as store:
        with pytest.raises(RejectedError, match="names the project"):
            store.add(Issue(id="A", title="t", project=project))
        assert several.server.writes() == []


def test_milestone_of_another_project(several):
    """An issue cannot have a milestone of another project, and says so."""
    with several.store() as store:
        store.add(Milestone(id="M", title="m", project=several.one))
        issue = Issue(id="B", title="t", project=several.two, milestone="M")
        with pytest.raises(RejectedError):
            store.add(issue)
        assert several.titles(several.two) == []


@pytest.mark.parametrize("failure", [("lose",), ("drop",)])
def test_lost_answers(several, failure):
    """An issue whose creation has lost its answer is created once."""
    change = put(Issue(id="K", title="t", project=several.two), several.clock.tick())
    with several.store() as store:
        captured(store)
        several.server.only = lambda method, path: method == "POST"
        several.server.failures.append(failure)
        for _ in range(3):
            try:
                (settled,) = apply(store, [change], clock=several.clock)
            except Exception:
                continue
            break
        assert settled.outcome in ("applied", "duplicate")
        assert several.titles(several.two) == ["t"]
        # Jira gives a new issue a priority. If its answer was lost, this is a value of others.
        assert {name for change in captured(store) for name in change.data} <= {"priority"}


def test_lost_identity_map(several):
    """A new identity map finds the records of all projects again."""
    with several.store() as store:
        store.add(Issue(id="A", title="a", project=several.one))
        store.add(Issue(id="B", title="b", project=several.two))
    (several.folder / "ids.db").unlink()
    for name in ("ids.db-wal", "ids.db-shm"):
        (several.folder / name).unlink(missing_ok=True)
    with several.store() as store:
        store.add(Issue(id="C", title="c", project=several.one))
        assert captured(store) == []
        assert store[Issue, "B"].title == "b"
        assert (several.titles(several.one), several.titles(several.two)) == (["a", "c"], ["b"])


def test_project_that_is_not_held_any_more(several):
    """The records of a project that is taken from the list are neither read nor deleted."""
    with several.store() as store:
        store.add(Issue(id="A", title="a", project=several.one))
        store.add(Issue(id="B", title="b", project=several.two))
    with several.store(projects=[several.one]) as store:
        assert captured(store) == []
        with pytest.raises(RecordError, match="Issue 'B'"):
            store.get(Issue, "B")
        change = put(Issue(id="B", title="c", project=several.two), several.clock.tick())
        (settled,) = apply(store, [change], clock=several.clock)
        assert settled.outcome != "applied"
        assert [issue.key for issue in store.find(Issue)] == ["A"]
    assert several.titles(several.two) == ["b"]


def test_moved_by_somebody_at_jira(tmp_path):
    """A move within the store is an edit of the field project; Jira keeps the id."""
    with JiraSimulator() as server:
        several = Several(Jira(server), tmp_path)
        with several.store() as store:
            store.add(Issue(id="A", title="t", project="SHOP"))
            store.add(Comment(id="C", issue="A", body="b"))
            (id,) = server.issues
            server.edits(id, project=server.site.projects["SITE"])
            assert [(c.key, c.data) for c in captured(store)] == [("A", {"project": "SITE"})]
            issue = store[Issue, "A"]
            issue.title = "u"
            store.update(issue)
            assert several.titles("SITE") == ["u"]
            assert captured(store) == []


@pytest.mark.parametrize("tracker", [GitHub, GitLab])
@pytest.mark.parametrize("kind", [Issue, Comment])
def test_map_of_more_or_fewer_projects(tmp_path, tracker, kind):
    """An identity map of one project serves no store of several, nor the reverse."""
    with tracker.simulator() as server:
        several = Several(tracker(server), tmp_path)
        accessor = dict(zip((Milestone, Issue, Comment), tracker.kinds, strict=True))[kind]

        def one():
            identity = IdentityMap(tmp_path / "ids.db", name=several.name)
            one = accessor(kind, several.service(), several.one, identity=identity)
            return Store("several", one, index=FileIndex(tmp_path / "v.db"))

        id = several.opens(several.one, "t")
        several.says(id, "b")
        with one() as store:
            captured(store)
        with pytest.raises(ConfigError, match="does not say in which project"), several.store():
            pass
        for file in tmp_path.glob("*"):
            file.unlink()
        with several.store() as store:
            captured(store)
        with pytest.raises(ConfigError, match="names a project"), one():
            pass


@pytest.mark.parametrize("tracker", [GitHub, GitLab])
@pytest.mark.parametrize("kind", [Milestone, Issue, Comment])
def test_map_of_another_project(tmp_path, tracker, kind):
    """Numbers of one project are not taken for those of another, or its objects would change."""
    with tracker.simulator() as server:
        several = Several(tracker(server), tmp_path)
        accessor = dict(zip((Milestone, Issue, Comment), tracker.kinds, strict=True))[kind]

        def store(project):
            identity = IdentityMap(tmp_path / "ids.db", name=several.name)
            one = accessor(kind, several.service(), project, identity=identity)
            return Store("several", one, index=FileIndex(tmp_path / "v.db"))

        for project in several.projects:
            several.says(several.opens(project, "t"), "b")
        with store(several.one) as one:
            captured(one)
        before = len(several.server.requests)
        with pytest.raises(ConfigError, match="those of other objects"):
            store(several.two).open()
        assert len(several.server.requests) == before
        with store(several.one.upper()):
            pass  # the same project at these services
        identity = IdentityMap(tmp_path / "ids.db", name=several.name)
        identity.set_place(kind.__record__.name, several.two)
        with store(several.two):
            pass


def test_what_cannot_be_in_several_projects(tmp_path):
    """Labels, empty lists, doubled projects, and views without a project are refused."""
    identity = IdentityMap(tmp_path / "ids.db", name="github")
    service = GitHubService("x")
    for kind, accessor, projects, options, reason in (
        (Label, GitHubLabels, ["a/b"], {}, "store of its own"),
        (Issue, GitHubIssues, [], {}, "list of different projects"),
        (Issue, GitHubIssues, "a/b", {}, "list of different projects"),
        (Issue, GitHubIssues, ["a/b", "a/b"], {}, "list of different projects"),
        (Issue, GitHubIssues, ["a/b"], {"view": View(only=["id", "title"])}, "no field project"),
    ):
        with pytest.raises(ConfigError) as caught:
            InProjects(accessor, kind, service, projects, identity=identity, **options)
        assert reason in f"{caught.value} {caught.value.hint}"
