"""The fields that a tracker alone decides: read if the view names them, and never written."""

from __future__ import annotations

import datetime as dt

import pytest
from servers.github import GitHubSimulator
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator

from eventsync.changes.change import Change
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import RejectedError
from eventsync.index import FileIndex
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import Account, Comment, Issue, Project
from eventsync.stores.trackers.github import (
    GitHubAccounts,
    GitHubComments,
    GitHubIssues,
    GitHubProjects,
    GitHubService,
)
from eventsync.stores.trackers.gitlab import (
    GitLabComments,
    GitLabIssues,
    GitLabProjects,
    GitLabService,
)
from eventsync.stores.trackers.jira import JiraComments, JiraIssues, JiraProjects, JiraService
from eventsync.testing.harness import put
from eventsync.testing.tracker import captured

TOLD = ["project", "author", "url", "created", "updated"]


def tracker_of(name, server, folder, view):
    identity = IdentityMap(folder / "ids.db", name=name)
    local = {"allow": ["127.0.0.1"]}
    if name == "github":
        service = GitHubService("good-token", url=server.url, **local)
        accessor = GitHubIssues(Issue, service, "ann/shop", identity=identity, view=view)
    elif name == "gitlab":
        service = GitLabService("good-token", url=server.url, **local)
        accessor = GitLabIssues(Issue, service, "acme/shop", identity=identity, view=view)
    else:
        service = JiraService(server.url, "eventsync@example.org", "good-token", **local)
        accessor = JiraIssues(Issue, service, "SHOP", identity=identity, view=view, settle=0.0)
    return Store(name, accessor, index=FileIndex(folder / "v.db"))


SERVERS = {"github": GitHubSimulator, "gitlab": GitLabSimulator, "jira": JiraSimulator}
PROJECTS = {"github": "ann/shop", "gitlab": "acme/shop", "jira": "SHOP"}


@pytest.fixture(params=SERVERS)
def tracker(request, tmp_path):
    name = request.param
    told = [field for field in TOLD if (name, field) != ("jira", "url")]
    view = View(only=["id", "title", "status", *told])
    with SERVERS[name]() as server, tracker_of(name, server, tmp_path, view) as store:
        server.told = told
        yield server, store


def patch(store, key, **data):
    return Change(
        type="Issue", key=key, op="patch", version=store.clock.tick(), data=data, source="t"
    )


def test_fields_that_the_tracker_decides(tracker):
    """They are captured with the issue, and a change of them by others sends no request."""
    server, store = tracker
    store.add(Issue(id="A", title="t"))
    issue = store[Issue, "A"]
    assert issue["project"] == PROJECTS[store.name]
    assert isinstance(issue.created, dt.datetime)
    assert issue.created.tzinfo is not None
    assert ("url" not in server.told) or issue.url.startswith("https://")
    captured(store)
    before = len(server.writes())
    change = patch(store, "A", updated=dt.datetime(2020, 1, 1, tzinfo=dt.UTC), author="zoe")
    assert apply(store, [change], clock=store.clock)[0].outcome == "applied"
    assert len(server.writes()) == before
    assert captured(store) == []
    assert store[Issue, "A"].created == issue.created


def test_issue_of_another_project(tracker):
    """It is rejected before anything is written, and one of this project is taken."""
    server, store = tracker
    with pytest.raises(RejectedError, match="holds those of"):
        store.add(Issue(id="A", title="t", project="other/project"))
    assert server.writes() == []
    store.add(Issue(id="B", title="t", project=PROJECTS[store.name]))
    issue = store[Issue, "B"]
    issue["project"] = "other"
    with pytest.raises(RejectedError, match="where="):
        store.update(issue)


@pytest.mark.parametrize("view", [None, View(omit=["priority"])])
@pytest.mark.parametrize("name", SERVERS)
def test_views_that_do_not_name_them(tmp_path, name, view):
    """Nothing changes for stores that exist."""
    with SERVERS[name]() as server, tracker_of(name, server, tmp_path, view) as store:
        names = set(store.accessor(Issue).view.names)
        assert names.isdisjoint({*TOLD, "archived", "tags"})


class ProjectsOf:
    """A store of the projects of a tracker; every field of them that it holds is in the view."""

    def __init__(self, name, server, folder, *extra):
        self.server, self.name = server, name
        self.key = {"github": "acme/site", "gitlab": "acme/site", "jira": "SITE"}[name]
        view = View(only=["id", "description", *extra])
        if name == "github":
            service = GitHubService("good-token", url=server.url, allow=["127.0.0.1"])
            accessor = GitHubProjects(Project, service, "acme", view=view)
        elif name == "gitlab":
            service = GitLabService("good-token", url=server.url, allow=["127.0.0.1"])
            accessor = GitLabProjects(Project, service, "acme", view=view)
        else:
            service = JiraService(
                server.url, "eventsync@example.org", "good-token", allow=["127.0.0.1"]
            )
            accessor = JiraProjects(Project, service, view=view)
        self.store = Store(name, accessor, index=FileIndex(folder / "p.db"))

    @property
    def held(self):
        if self.name == "github":
            return self.server.organization.repositories["site"]
        if self.name == "gitlab":
            return next(iter(self.server.around.projects.values()))
        return self.server.site.projects["SITE"]


WRITABLE = {
    "github": {"public": (False, True), "tags": (["api", "web"], [], ["x"])},
    "gitlab": {"public": (True, False), "tags": (["API", "web"], [], ["x y"])},
    "jira": {"owner": ("5b-bob", "5b-ann"), "url": ("https://a.example", None, "https://b")},
}
TRACKERS = [(name, field) for name, fields in WRITABLE.items() for field in fields]


@pytest.mark.parametrize(("name", "field"), TRACKERS)
def test_writable_fields_of_projects(tmp_path, name, field):
    """They are written at creation and at each change, and no write is captured."""
    first, *others = WRITABLE[name][field]
    with SERVERS[name]() as server:
        projects = ProjectsOf(name, server, tmp_path, field)
        with projects.store as store:
            captured(store)
            store.add(Project(**{"id": projects.key, "description": "d", field: first}))
            assert store[Project, projects.key][field] == first
            assert captured(store) == []
            for value in others:
                project = store[Project, projects.key]
                project[field] = value
                store.update(project)
                assert store[Project, projects.key][field] == value
                assert captured(store) == []
            assert store[Project, projects.key].description == "d"


@pytest.mark.parametrize(
    ("name", "field"), [("github", "public"), ("github", "tags"), ("gitlab", "public")]
)
def test_fields_of_projects_that_cannot_be_removed(tmp_path, name, field):
    """A value that the service always has is not removed, and the record says so."""
    with SERVERS[name]() as server:
        projects = ProjectsOf(name, server, tmp_path, field)
        with projects.store as store:
            store.add(Project(**{"id": projects.key, field: WRITABLE[name][field][0]}))
            held = dict(projects.held)
            project = store[Project, projects.key]
            project[field] = None
            with pytest.raises(RejectedError, match=r"set public|topics"):
                store.update(project)
            assert projects.held == held


@pytest.mark.parametrize("tag", ["Web", "a b", "-a", "", "ä", "x" * 51])
def test_topics_that_github_refuses(tmp_path, tag):
    """GitHub would refuse or alter them, so the record is rejected before a request."""
    with SERVERS["github"]() as server:
        projects = ProjectsOf("github", server, tmp_path, "tags")
        with projects.store as store, pytest.raises(RejectedError, match="no topic"):
            store.add(Project(id="acme/site", tags=["web", tag]))
        assert server.writes() == []


@pytest.mark.parametrize("name", ["github", "gitlab"])
def test_archived_projects(tmp_path, name):
    """If the view has the field, archiving is an edit, and an archived project is read-only."""
    with SERVERS[name]() as server:
        projects = ProjectsOf(name, server, tmp_path, "archived")
        with projects.store as store:
            store.add(Project(id=projects.key, description="d", archived=True))
            assert projects.held["archived"]
            assert store[Project, projects.key].archived
            assert captured(store) == []
            project = store[Project, projects.key]
            project.description = "e"
            with pytest.raises(RejectedError, match="nothing else of it can change"):
                store.update(project)
            project.archived = False
            store.update(project)
            assert (projects.held["archived"], projects.held["description"]) == (False, "e")
            project = store[Project, projects.key]
            project.archived, project.description = True, "f"
            store.update(project)
            assert (projects.held["archived"], projects.held["description"]) == (True, "f")
            with pytest.raises(RejectedError, match="instead of deleting"):
                store.remove(project)
            assert captured(store) == []
            projects.held["archived"] = False  # by somebody
            assert [(c.op, c.data) for c in captured(store)] == [("patch", {"archived": False})]


def test_fields_of_projects_that_others_decide(tmp_path):
    """A project has its address, picture and owner, and an account its picture."""
    with GitHubSimulator() as server:
        service = GitHubService("good-token", url=server.url, allow=["127.0.0.1"])
        only = ["id", "description", "public", "url", "archived", "tags", "owner"]
        accounts = View(only=["id", "avatar"])
        with Store(
            "github",
            GitHubProjects(Project, service, "acme", view=View(only=only)),
            GitHubAccounts(Account, service, "acme", view=accounts),
            index=FileIndex(tmp_path / "v.db"),
        ) as store:
            store.add(Project(id="acme/site", description="x", public=True, url="u", owner="zoe"))
            captured(store)
            site = store[Project, "acme/site"]
            assert (site.public, site.archived, site.tags) == (True, False, [])
            assert (site["owner"], site.url) == ("acme", "https://github.com/acme/site")
            assert store[Account, "ann"].avatar == "https://api.github.com/users/ann"
    with JiraSimulator() as server:
        projects = ProjectsOf("jira", server, tmp_path, "avatar", "public", "owner")
        with projects.store as store:
            captured(store)
            shop = store[Project, "SHOP"]
            assert (shop.public, shop["owner"]) == (True, "5b-ann")
            assert shop.avatar.endswith("/avatar")


@pytest.mark.parametrize("name", SERVERS)
def test_fields_of_comments(tmp_path, name):
    """Author and times of a comment are read if the view names them, and never written."""
    with SERVERS[name]() as server:
        issues = tracker_of(name, server, tmp_path, None).accessor(Issue)
        classes = {"github": GitHubComments, "gitlab": GitLabComments, "jira": JiraComments}
        comments = classes[name](
            Comment,
            issues.service,
            PROJECTS[name],
            identity=issues.identity,
            view=View(only=["id", "issue", "body", "author", "created", "updated"]),
        )
        with Store("told", issues, comments, index=FileIndex(tmp_path / "told.db")) as store:
            store.add(Issue(id="A", title="t"))
            store.add(Comment(id="C", issue="A", body="b", author="zoe"))
            comment = store[Comment, "C"]
            assert comment["author"] == {"jira": "5b-ann"}.get(name, "ann")
            assert comment.created.tzinfo is not None
            assert comment.updated >= comment.created
            captured(store)
            before = len(server.writes())
            comment.created = dt.datetime(2020, 1, 1, tzinfo=dt.UTC)
            store.update(comment)
            assert len(server.writes()) == before


def test_parents_at_jira(tmp_path):
    """An issue with a parent is created under it, whatever the order in which they arrive."""
    view = View(only=["id", "title", "parent"])
    with JiraSimulator() as server, tracker_of("jira", server, tmp_path, view) as store:
        child = put(Issue(id="B", title="b", parent="A"), store.clock.tick())
        assert [s.outcome for s in apply(store, [child], clock=store.clock)] == ["held"]
        assert server.writes() == []
        parent = put(Issue(id="A", title="a"), store.clock.tick())
        apply(store, [parent], clock=store.clock)
        assert [s.outcome for s in apply(store, [child], clock=store.clock)] == ["applied"]
        assert store[Issue, "B"]["parent"] == "A"
        assert store[Issue, "A"]["parent"] is None
        assert captured(store) == []
        store.add(Issue(id="C", title="c"))
        issue = store[Issue, "C"]
        issue["parent"] = "A"
        store.update(issue)
        (a, _, c) = server.issues
        assert server.issues[c]["parent"]["id"] == a
        issue = store[Issue, "C"]
        issue["parent"] = None
        with pytest.raises(RejectedError, match="removes a parent only"):
            store.update(issue)
        server.issues[c].pop("parent")
        assert [(f.key, f.data) for f in captured(store)] == [("C", {"parent": None})]


def test_parents_at_github(tmp_path):
    """An issue becomes a sub-issue of its parent, gets another one, and loses it."""
    view = View(only=["id", "title", "parent"])
    with GitHubSimulator() as server, tracker_of("github", server, tmp_path, view) as store:
        child = put(Issue(id="C", title="c", parent="A"), store.clock.tick())
        assert [s.outcome for s in apply(store, [child], clock=store.clock)] == ["held"]
        assert server.writes() == []
        store.add([Issue(id="A", title="a"), Issue(id="B", title="b")])
        assert [s.outcome for s in apply(store, [child], clock=store.clock)] == ["applied"]
        assert store[Issue, "C"]["parent"] == "A"
        assert captured(store) == []
        for parent, url in (("B", f"{server.root}/issues/2"), (None, None)):
            issue = store[Issue, "C"]
            issue["parent"], issue.title = parent, f"under {parent}"
            store.update(issue)
            assert server.issues[3].get("parent_issue_url") == url
            assert (store[Issue, "C"]["parent"], store[Issue, "C"].title) == (parent, issue.title)
            assert captured(store) == []
        server.edits(3, parent_issue_url=f"{server.root}/issues/1")
        assert [(c.key, c.data) for c in captured(store)] == [("C", {"parent": "A"})]
        server.edits(3, parent_issue_url="https://api.github.com/repos/acme/else/issues/7")
        assert [c.data for c in captured(store)] == [{"parent": "github:acme/else:7"}]


@pytest.mark.parametrize("name", ["github", "jira"])
def test_parent_in_the_same_batch(tmp_path, name):
    """Parent and child in one batch are applied, in one attempt or two."""
    view = View(only=["id", "title", "parent"])
    with SERVERS[name]() as server, tracker_of(name, server, tmp_path, view) as store:
        batch = [
            put(Issue(id="A", title="c", parent="B"), store.clock.tick()),
            put(Issue(id="B", title="p"), store.clock.tick()),
        ]
        for _ in range(2):
            outcomes = [s.outcome for s in apply(store, batch, clock=store.clock)]
        assert set(outcomes) <= {"applied", "duplicate"}
        assert store[Issue, "A"]["parent"] == "B"
        assert captured(store) == []


@pytest.mark.parametrize(
    "id", ["1/../../labels", "1?x=1", "..", "1#", "abc", "1:2", "", "-1", "\u0661"]
)
@pytest.mark.parametrize("name", SERVERS)
def test_ids_that_would_change_a_request(tmp_path, name, id):
    """A reference to a key that others could have made up leads to no other path of the service."""
    with SERVERS[name]() as server, tracker_of(name, server, tmp_path, None) as first:
        issues = first.accessor(Issue)
        kinds = {"github": GitHubComments, "gitlab": GitLabComments, "jira": JiraComments}
        comments = kinds[name](Comment, issues.service, PROJECTS[name], identity=issues.identity)
        with Store("told", issues, comments, index=FileIndex(tmp_path / "told.db")) as store:
            changes = [put(Comment(id="C", issue=f"{name}:{id}", body="b"), store.clock.tick())]
            milestone = Issue(id="A", title="t", milestone=f"{name}:{id}")
            changes.append(put(milestone, store.clock.tick()))
            settled = apply(store, changes, clock=store.clock)
            assert [item.outcome for item in settled] == ["held", "held"]
            assert server.writes() == []


def test_filter_by_project(tmp_path):
    """A view with the project in its filter leaves out issues of other projects."""
    with GitHubSimulator() as server:
        view = View(omit=["priority"], where={"project": "ann/shop"})
        with tracker_of("github", server, tmp_path, view) as store:
            changes = [
                Change(
                    type="Issue",
                    key=key,
                    op="put",
                    version=store.clock.tick(),
                    data={"id": key, "title": "t", "project": project},
                    source="t",
                )
                for key, project in (("A", "ann/shop"), ("B", "acme/other"))
            ]
            apply(store, changes, clock=store.clock)
            assert [issue["title"] for issue in server.issues.values()] == ["t"]
            assert store[Issue, "A"]["project"] == "ann/shop"
            assert captured(store) == []
