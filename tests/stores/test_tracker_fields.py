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
from eventsync.stores.trackers import Account, Issue, Project
from eventsync.stores.trackers.github import (
    GitHubAccounts,
    GitHubIssues,
    GitHubProjects,
    GitHubService,
)
from eventsync.stores.trackers.gitlab import GitLabIssues, GitLabService
from eventsync.stores.trackers.jira import JiraIssues, JiraService
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


def test_fields_of_projects(tmp_path):
    """A project has its address, visibility, tags and owner."""
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
            store.add(Project(id="acme/site", description="x", public=False))
            server.organization.repositories["site"]["topics"] = ["web", "api"]
            captured(store)
            site = store[Project, "acme/site"]
            assert (site.public, site.archived, site.tags) == (True, False, ["api", "web"])
            assert (site["owner"], site.url) == ("acme", "https://github.com/acme/site")
            assert store[Account, "ann"].avatar == "https://api.github.com/users/ann"


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
