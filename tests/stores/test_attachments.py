"""Attachments of Roundup, Jira and GitLab."""

from __future__ import annotations

import base64
import uuid

import httpx2 as httpx
import pytest
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator
from servers.roundup import RoundupServer

from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError, RejectedError
from eventsync.index import FileIndex
from eventsync.records.query import Query
from eventsync.records.view import View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.trackers import Attachment, Issue
from eventsync.stores.trackers.gitlab import GitLabAttachments, GitLabService
from eventsync.stores.trackers.jira import JiraAttachments, JiraIssues, JiraService
from eventsync.stores.trackers.projects import InProjects
from eventsync.stores.trackers.roundup import (
    RoundupAttachments,
    RoundupIssues,
    RoundupService,
)
from eventsync.testing.harness import put
from eventsync.testing.tracker import captured
from eventsync.testing.tracker.line import FAILURES, Line

ODD = bytes(range(256)) + "é\r\n--x".encode()


class Roundup:
    name, changes = "roundup", {"name": "other.png", "type": "image/gif"}

    def __init__(self, server):
        self.server = server

    def accessors(self, identity, **options):
        service = RoundupService(self.server.url, "admin", "secret", allow=["127.0.0.1"])
        yield RoundupIssues(Issue, service, identity=identity)
        yield RoundupAttachments(Attachment, service, identity=identity, **options)

    def attaches(self, issue, name, content):
        answer = httpx.post(
            f"{self.server.url}/rest/data/file",
            headers={
                "Authorization": "Basic " + base64.b64encode(b"admin:secret").decode(),
                "Origin": self.server.url,
                "Referer": f"{self.server.url}/",
                "X-Requested-With": "test",
            },
            data={"name": name, "type": "text/plain"},
            files={"content": ("x", content, "text/plain")},
            trust_env=False,
        )
        id = answer.json()["data"]["id"]
        held = self.server.ask("GET", f"/data/issue/{issue}")["attributes"]["files"]
        self.server.change(f"issue/{issue}", files=[*(file["id"] for file in held), id])
        return id

    def deletes(self, issue, id):
        held = self.server.ask("GET", f"/data/issue/{issue}")["attributes"]["files"]
        kept = [file["id"] for file in held if file["id"] != id]
        self.server.change(f"issue/{issue}", files=kept)

    def count(self):
        issues = self.server.ask("GET", "/data/issue?@fields=files&@verbose=2")["collection"]
        return sum(len(issue["files"]) for issue in issues)


class Jira:
    name, changes = "jira", {}

    def __init__(self, server):
        self.server = server

    def accessors(self, identity, **options):
        service = JiraService(
            self.server.url, "eventsync@example.org", "good-token", allow=["127.0.0.1"]
        )
        yield JiraIssues(Issue, service, "SHOP", identity=identity, settle=0.01)
        yield JiraAttachments(Attachment, service, "SHOP", identity=identity, **options)

    def attaches(self, issue, name, content):
        return f"{issue}:{self.server.attaches(issue, name, 'text/plain', content)['id']}"

    def deletes(self, issue, id):
        self.server.edits(issue, attachment=[])
        del self.server.files[id.rpartition(":")[2]]

    def count(self):
        return len(self.server.files)


class GitLab:
    name, changes = "gitlab", {}

    def __init__(self, server):
        self.server = server

    def accessors(self, identity, **options):
        service = GitLabService("good-token", url=self.server.url, allow=["127.0.0.1"])
        yield GitLabAttachments(Attachment, service, "acme/shop", identity=identity, **options)

    def attaches(self, issue, name, content):
        return str(self.server.uploads_file(name, "text/plain", content)["id"])

    def deletes(self, issue, id):
        del self.server.uploads[int(id)]

    def count(self):
        return len(self.server.uploads)


@pytest.fixture(scope="module")
def roundup():
    with RoundupServer() as running:
        yield running


@pytest.fixture(params=[Roundup, Jira, GitLab], ids=lambda kind: kind.name)
def tracker(request):
    if request.param is Roundup:
        running = request.getfixturevalue("roundup")
        yield Roundup(running)
        for kind in ("issue", "file", "msg"):
            for item in running.ask("GET", f"/data/{kind}")["collection"]:
                running.change(f"{kind}/{item['id']}", "DELETE")
        return
    with {Jira: JiraSimulator, GitLab: GitLabSimulator}[request.param]() as server:
        yield request.param(server)


def opened(tracker, folder, **options):
    identity = IdentityMap(folder / "ids.db", name=tracker.name)
    accessors = tracker.accessors(identity, **options)
    return Store(tracker.name, *accessors, index=FileIndex(folder / "v.db"))


def issue_of(tracker, store, key="A"):
    """Add an issue, and return its key and its id; None where files have no issue."""
    if tracker.name == "gitlab":
        return None, None
    store.add(Issue(id=key, title="t"))
    return key, store.accessor(Issue).identity.id_of("Issue", key)


def file(issue, key="F", **values):
    record = Attachment(id=key, name="a.png", type="image/png", content=ODD, **values)
    record["issue"] = issue
    return record


@pytest.mark.parametrize("content", [ODD, b"\0", b"text\r\n", b"x" * 100_000])
def test_contents(tracker, tmp_path, content):
    """A file keeps each byte, and is not captured as an edit."""
    with opened(tracker, tmp_path) as store:
        issue, _ = issue_of(tracker, store)
        record = file(issue)
        record.content = content
        store.add(record)
        held = store[Attachment, "F"]
        assert (held.content, held.name) == (content, "a.png")
        assert tracker.name == "gitlab" or (held["issue"], held.type) == (issue, "image/png")
        assert [found.content for found in store.find(Attachment)] == [content]
        assert captured(store) == []
        assert tracker.count() == 1
        store.remove(held)
        assert (tracker.count(), list(store.find(Attachment)), captured(store)) == (0, [], [])
        store.add(record)
        assert tracker.count() == 1


def test_changes(tracker, tmp_path):
    """What the tracker can change of a file is changed, and the rest is rejected."""
    with opened(tracker, tmp_path) as store:
        issue, _ = issue_of(tracker, store)
        store.add(file(issue))
        for name, value in (("name", "other.png"), ("type", "image/gif"), ("content", b"new")):
            if tracker.name == "gitlab" and name == "type":
                continue
            held = store[Attachment, "F"]
            held[name] = value
            if name in tracker.changes:
                store.update(held)
                assert store[Attachment, "F"][name] == value
            else:
                with pytest.raises(RejectedError, match="cannot"):
                    store.update(held)
        assert store[Attachment, "F"].content == ODD
        assert captured(store) == []


def test_made_there(tracker, tmp_path):
    """Files of others are captured once with their content, and their deletion too."""
    with opened(tracker, tmp_path) as store:
        issue, id = issue_of(tracker, store)
        captured(store)
        made = tracker.attaches(id, "theirs.txt", b"Hello")
        (change,) = captured(store, Attachment, whole=False)
        assert (change.key, change.data["name"]) == (f"{tracker.name}:{made}", "theirs.txt")
        assert (change.data["content"], change.data.get("issue")) == (b"Hello", issue)
        assert captured(store) == captured(store, whole=False) == []
        tracker.deletes(id, made)
        (change,) = captured(store, Attachment)
        assert (change.key, change.op) == (f"{tracker.name}:{made}", "delete")


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("skip", [0, 1])
def test_uploaded_once(tracker, tmp_path, failure, skip):
    """A file is uploaded once, whatever happens to a request; and nothing is captured between."""
    with opened(tracker, tmp_path) as store:
        issue, id = issue_of(tracker, store)
        captured(store)
    change, line, clock = put(file(issue), Clock().tick()), Line(), Clock()
    line.fail(failure, skip=skip)
    settled = None
    for _ in range(4):
        try:
            with line.over(opened(tracker, tmp_path)) as store:
                unreadable = []
                found = [c for cs in store.capture(unreadable=unreadable.append) for c in cs]
                assert [c.type for c in found] == []
                (settled,) = apply(store, [change], clock=clock)
        except BaseException as error:
            if type(error).__name__ not in ("Crash", "StoreUnavailableError"):
                raise
            continue
        if settled.outcome in ("applied", "duplicate"):
            break
    assert settled is not None
    assert settled.outcome in ("applied", "duplicate"), settled.error
    assert tracker.count() == 1
    with opened(tracker, tmp_path) as store:
        assert store[Attachment, "F"].content == ODD
        assert captured(store) == []
        other = tracker.attaches(id, "b.txt", b"b")
        assert [c.key for c in captured(store, Attachment)] == [f"{tracker.name}:{other}"]


def test_large_files(tracker, tmp_path):
    """A file above the limit is unreadable and not deleted; such a record is rejected."""
    with opened(tracker, tmp_path, max_content=1000) as store:
        issue, id = issue_of(tracker, store)
        small = tracker.attaches(id, "small.bin", b"x" * 1000)
        tracker.attaches(id, "large.bin", b"x" * 1001)
        unreadable = []
        found = [c for cs in store.capture(Attachment, unreadable=unreadable.append) for c in cs]
        assert [c.key for c in found] == [f"{tracker.name}:{small}"]
        assert "more than max_content=1000" in str(unreadable[0])
        record = file(issue)
        record.content = b"x" * 1001
        with pytest.raises(RejectedError, match="1001 bytes"):
            store.add(record)
        assert tracker.count() == 2


def test_without_contents(tracker, tmp_path):
    """A view without the content downloads nothing, takes large files, and uploads nothing."""
    omit = ["content", "author", "created"]
    omit += ["issue", "type"] if tracker.name == "gitlab" else []
    with opened(tracker, tmp_path, view=View(omit=omit), max_content=10) as store:
        issue, id = issue_of(tracker, store)
        tracker.attaches(id, "large.bin", b"x" * 1001)
        (change,) = captured(store, Attachment)
        assert change.data["name"] == "large.bin"
        with pytest.raises(RejectedError, match="no content"):
            store.add(file(issue))


@pytest.mark.parametrize("name", ["", "a/b", "a\\b", 'a"b', "a\nb", "../x"])
def test_odd_names(tracker, tmp_path, name):
    """A name that is a path, or that would break a request, is rejected before an upload."""
    with opened(tracker, tmp_path) as store:
        issue, _ = issue_of(tracker, store)
        record = file(issue)
        record.name = name
        with pytest.raises(RejectedError, match="not the name of a file"):
            store.add(record)
        assert tracker.count() == 0


def test_issue_that_is_not_there_yet(tracker, tmp_path):
    """A file is held until its issue exists, and uploaded then."""
    if tracker.name == "gitlab":
        pytest.skip("files have no issue")
    clock = Clock()
    with opened(tracker, tmp_path) as store:
        change = put(file("A"), clock.tick())
        assert apply(store, [change], clock=clock)[0].outcome == "held"
        batch = [change, put(Issue(id="A", title="t"), clock.tick())]
        assert [s.outcome for s in apply(store, batch, clock=clock)] == ["applied"] * 2
        assert store[Attachment, "F"]["issue"] == "A"
        with pytest.raises(RejectedError, match="no issue"):
            store.add(file(None, key="G"))


def test_lost_identity_map(tracker, tmp_path):
    """A new identity map is refused, because the files would count as deleted and new."""
    with opened(tracker, tmp_path) as store:
        issue, _ = issue_of(tracker, store)
        store.add(file(issue))
    for path in tmp_path.glob("ids.db*"):
        path.rename(tmp_path / f"{uuid.uuid4()}")
    with pytest.raises(ConfigError, match="is new, and the version index knows"):
        opened(tracker, tmp_path).open()


def test_file_that_is_gone_while_it_is_read(tmp_path):
    """A file without content is unreadable, and its siblings are read."""
    with JiraSimulator() as server:
        tracker = Jira(server)
        with opened(tracker, tmp_path) as store:
            _, id = issue_of(tracker, store)
            lost = tracker.attaches(id, "lost.txt", b"a")
            tracker.attaches(id, "kept.txt", b"b")
            del server.files[lost.rpartition(":")[2]]
            server.issues[id]["attachment"].append("odd")
            errors = []
            query = Query.parse(store.accessor(Attachment).type, unreadable=errors.append)
            found = list(store.accessor(Attachment).find(query))
            assert [record.name for record in found] == ["kept.txt"]
            assert len(errors) == 2
            assert all(isinstance(error, RecordError) for error in errors)


def test_several_projects_at_jira(tmp_path):
    """A file is in the project of its issue."""
    with JiraSimulator() as server:
        server.site.more("SITE")
        identity = IdentityMap(tmp_path / "ids.db", name="jira")
        service = JiraService(
            server.url, "eventsync@example.org", "good-token", allow=["127.0.0.1"]
        )
        both = ["SHOP", "SITE"]
        with Store(
            "jira",
            InProjects(JiraIssues, Issue, service, both, identity=identity, settle=0.01),
            InProjects(JiraAttachments, Attachment, service, both, identity=identity),
            index=FileIndex(tmp_path / "v.db"),
        ) as store:
            store.add(Issue(id="B", title="t", project="SITE"))
            store.add(file("B"))
            assert store[Attachment, "F"].content == ODD
            assert captured(store) == []
            assert len(list(store.find(Attachment))) == 1


def test_several_projects_at_gitlab(tmp_path):
    """Files at GitLab do not say their project, so several projects are refused."""
    identity = IdentityMap(tmp_path / "ids.db", name="gitlab")
    with pytest.raises(ConfigError, match="do not say of which project"):
        InProjects(
            GitLabAttachments, Attachment, GitLabService("x"), ["a/b", "a/c"], identity=identity
        )
