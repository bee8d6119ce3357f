"""Altered answers of trackers: whatever an answer holds, only errors of eventsync are raised.

Each call is recorded once against the simulator, then repeated with one answer altered. By default
a seeded part of the alterations is tried; ``EVENTSYNC_ALTERATIONS=all`` tries all of them.
"""

from __future__ import annotations

import contextlib
import copy
import json
import os
import random
import traceback
from collections import Counter
from dataclasses import replace
from typing import ClassVar

import pytest
from servers.github import GitHubSimulator
from servers.gitlab import GitLabSimulator
from servers.jira import JiraSimulator
from servers.objects import ObjectServer
from servers.roundup import RoundupServer
from stores import test_attachments as attachments
from stores import test_tracker_projects as projects
from stores.test_github import TestGitHub as GitHub
from stores.test_gitlab import TestGitLab as GitLab
from stores.test_jira import TestJira as Jira
from stores.test_roundup import TestRoundup as Roundup

from eventsync.engine.store import Store
from eventsync.errors import EventSyncError
from eventsync.index import FileIndex
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Links, Resource, RestAccessor, Service, Since
from eventsync.stores.rest.answer import Answer
from eventsync.stores.rest.pace import Throttle
from eventsync.stores.trackers import Attachment, Comment, Issue, Milestone
from eventsync.stores.trackers.projects import InProjects

TRACKERS = {
    "github": (GitHub, GitHubSimulator),
    "gitlab": (GitLab, GitLabSimulator),
    "jira": (Jira, JiraSimulator),
    "roundup": (Roundup, RoundupServer),
}
WHOLE = os.environ.get("EVENTSYNC_ALTERATIONS") == "all"
FEW = 12
PLAIN = """
null true 0 -1 1.5 1e999999 NaN [] {} [null] [[]] [0] [{}] {"a":1} {"a":1,"a":2}
"" "x" "0" ":" "a:b" "/" "\\ud800" "\\u0000" "2026-13-45T99:99:99Z" "%s"
"2026-01-01T00:00:00+99:99" "9999-12-31T23:59:59-23:59"
"""
VALUES = [
    *PLAIN.split(),
    '"<!-- eventsync: -->"',
    "1" * 5000,
    "1e9999999999999999999",
    '"' + "x" * 70_000 + '"',
    "[" * 300 + "]" * 300,
]
BODIES = [b"", b"null", b"[]", b"{}", b"0", b'"x"', b"\xff", b"[" * 5000, b"[[]]", b"[null]"]
STATUSES = [204, 301, 400, 401, 403, 404, 409, 412, 422, 429, 500, 503]
HEADERS = [
    {},
    {"link": '<http://[>; rel="next"', "etag": '"\xff"'},
    {"link": '<http://127.0.0.1:99999/>; rel="next"'},
    {"location": "http://[", "retry-after": "9" * 500},
]


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""
    score: int | None = None


def places(document, path=()):
    """Yield the paths of all values in a document; of a list, those of the first two items."""
    yield path
    if isinstance(document, dict):
        for name, value in document.items():
            yield from places(value, (*path, name))
    elif isinstance(document, list):
        for number, value in enumerate(document[:2]):
            yield from places(value, (*path, number))


def altered(document, path, text):
    """Return the JSON of a document with the JSON text at a path; ``None`` removes the member."""
    if not path:
        return b"" if text is None else text.encode()
    document = copy.deepcopy(document)
    inner = document
    for name in path[:-1]:
        inner = inner[name]
    if text is None:
        del inner[path[-1]]
        return json.dumps(document).encode()
    inner[path[-1]] = "@@"
    return json.dumps(document).replace('"@@"', text, 1).encode()


def alterations(answer):
    """Yield functions that return the alterations of one answer."""
    for body in BODIES:
        yield lambda body=body: replace(answer, content=body)
    for status in STATUSES:
        yield lambda status=status: replace(answer, status=status)
    for headers in HEADERS:
        yield lambda headers=headers: replace(answer, headers=headers)
    with contextlib.suppress(ValueError):
        document = json.loads(answer.content)
        for path in places(document):
            for text in (None, *VALUES):
                yield lambda path=path, text=text: replace(
                    answer, content=altered(document, path, text)
                )


class Tape:
    """Records the answers of a service, and plays them in the same order."""

    def __init__(self, service):
        self.service, self.send = service, service._send
        self.answers, self.playing = [], None
        service._send = self

    def __call__(self, method, url, *args, **kwargs):
        if self.playing is None:
            self.answers.append(self.send(method, url, *args, **kwargs))
            return self.answers[-1]
        following = next(self.playing, None)
        return following or Answer(404, {}, b"{}", url)

    def play(self, answers):
        self.service.pace = Throttle(None, 1)  # a pause that an answer asked for
        self.playing = iter(answers)


def attempt(call, key, found):
    """Call, and count a foreign error by its type and place."""
    try:
        call()
    except EventSyncError as error:
        if len(str(error)) > 2000:
            found[f"{key}: an error of {len(str(error))} characters"] += 1
    except Exception as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{place.filename.rpartition('eventsync/')[2]}:{place.lineno}"
        found[f"{key}: {type(error).__name__} at {where}"] += 1


class Plain:
    """The objects of a REST service that is no tracker, with ids of its own in pages of five."""

    creates = (Note,)
    refuses: ClassVar = {}

    def __init__(self, server):
        self.server = server
        server.ids = True
        server.objects["notes"] = {
            f"x{n}": {"id": f"x{n}", "content": {"name": "n"}, "updated": "2026-01-01T00:00:00Z"}
            for n in range(7)
        }

    def store(self, folder):
        described = Resource(
            items="/notes",
            item="/notes/{id}",
            marker="meta.ref",
            pages=Links(size=5),
            paths={"name": "content.name"},
            since=Since(updated="updated", query={"since": "{since}"}),
        )
        accessor = RestAccessor(
            Note,
            Service(self.server.url, allow=["127.0.0.1"]),
            described,
            identity=IdentityMap(folder / "ids.db", name="rest"),
        )
        return Store("rest", accessor, index=FileIndex(folder / "v.db"))

    def made(self, store, kind):
        return Note(id="K", name="a", score=1), [{"name": "b"}, {"score": None}]

    def prepare(self, store, kind):
        """Nothing is needed."""


class SeveralProjects:
    """Milestones, issues and comments of two projects of a tracker in one store."""

    creates = (Milestone, Issue, Comment)
    refuses: ClassVar = {}

    def __init__(self, tracker, folder):
        self.tracker, self.several = tracker, projects.Several(tracker, folder)

    def store(self, folder):
        self.several.folder = folder
        return self.several.store()

    def made(self, store, kind):
        two = self.tracker.projects[1]
        if kind is Comment:
            return Comment(id="C", issue="I", body="a"), [{"body": "b"}]
        return kind(id=kind.__name__[0], title="a", project=two), [{"title": "b"}]

    def prepare(self, store, kind):
        if kind is Comment:
            store.add(Issue(id="I", title="t", project=self.tracker.projects[1]))


class Files:
    """Attachments, and the issues that they are in."""

    creates = (Attachment,)

    def __init__(self, tracker):
        self.tracker = tracker
        unchanged = {"modify": "files are not changed"}
        self.refuses = {} if tracker.changes else {Attachment: unchanged}

    def store(self, folder):
        return attachments.opened(self.tracker, folder)

    def made(self, store, kind):
        issue = None if self.tracker.name == "gitlab" else "A"
        return attachments.file(issue), [{"name": "other.png"}]

    def prepare(self, store, kind):
        attachments.issue_of(self.tracker, store)


def calls_of(contract, store, kind):
    """Yield the calls of an accessor by name, each to be made once before the next."""
    accessor = store.accessor(kind)
    errors = []
    query = Query.parse(accessor.type, unreadable=errors.append)
    mark = "2026-01-01T00:00:00+00:00"
    if isinstance(accessor, InProjects):
        mark = json.dumps(dict.fromkeys(accessor.parts, mark))
    yield "find", lambda: list(accessor.find(query))
    yield "changed", lambda: accessor.changed_since(mark, errors.append)
    yield "ping", accessor.ping
    if kind not in contract.creates:
        for key in [record.key for record in accessor.find(query)][:1]:
            yield "get", lambda: accessor.get(key)  # noqa: B023 - called before the next
        return
    record, steps = contract.made(store, kind)
    identity = accessor.identity
    refused = contract.refuses.get(kind, {})

    made = []  # the id of the object, first of all the real one

    def bind():
        if identity is None:
            return
        # An altered answer may have bound the key to another id, or the id to another key.
        name = accessor.type.name
        for key in (record.key, identity.key_of(name, made[0])):
            if key is not None:
                identity.forget(name, key)
        assert identity.bind(name, record.key, made[0])

    def bound(call):
        return lambda: (bind(), call())

    def add():
        if identity is not None:
            identity.forget(accessor.type.name, record.key)
        accessor.add(record)
        if identity is not None:
            made.append(identity.id_of(accessor.type.name, record.key))

    yield "add", add
    yield "get", bound(lambda: accessor.get(record.key))
    yield "find one", bound(lambda: list(accessor.find(query)))
    for step in steps if "modify" not in refused else ():
        bind()
        held = accessor.get(record.key)
        assert held is not None, f"{record!r} was added, and is not found again"
        for name, value in step.items():
            held[name] = value
        yield "update", bound(lambda held=held: accessor.update(held))
    if "destroy" not in refused:
        yield "remove", bound(lambda: accessor.remove(record.key))


def tried(contract, folder):
    """Return how many calls were made with altered answers, and the foreign errors among them."""
    count, found, chosen = 0, Counter(), random.Random(15)
    (first := folder / "first").mkdir()
    with contract.store(first) as store:
        kinds = [accessor.type.cls for accessor in store.accessors.values()]
    for kind in kinds:
        # A store of its own: altered answers may have left odd ids in the identity map.
        (home := folder / kind.__name__).mkdir()
        with contract.store(home) as store:
            tape = Tape(store.accessor(kind).service)
            if kind in contract.creates:
                contract.prepare(store, kind)
            for call, made in calls_of(contract, store, kind):
                tape.playing, tape.answers = None, []
                made()
                answers = list(tape.answers)
                for number, answer in enumerate(answers):
                    ways = list(alterations(answer))
                    for way in ways if WHOLE else chosen.sample(ways, min(FEW, len(ways))):
                        tape.play([*answers[:number], way(), *answers[number + 1 :]])
                        attempt(made, f"{kind.__name__}.{call}", found)
                        count += 1
                tape.playing = None
    return count, found


@pytest.mark.parametrize("name", TRACKERS)
def test_altered_answers(name, tmp_path):
    """A call that gets an altered answer returns or raises an error of eventsync."""
    made, simulator = TRACKERS[name]
    contract = made()
    contract.setup_method()
    with simulator() as running:
        setattr(contract, "server" if name == "roundup" else name, running)
        checked(contract, tmp_path)


@pytest.mark.parametrize("several", [projects.GitHub, projects.GitLab, projects.Jira])
def test_altered_answers_of_several_projects(several, tmp_path):
    """A store of several projects returns or raises an error of eventsync."""
    with several.simulator() as server:
        checked(SeveralProjects(several(server), tmp_path), tmp_path)


@pytest.mark.parametrize(
    ("kind", "simulator"),
    [
        (attachments.Roundup, RoundupServer),
        (attachments.Jira, JiraSimulator),
        (attachments.GitLab, GitLabSimulator),
    ],
)
def test_altered_answers_about_attachments(kind, simulator, tmp_path):
    """A store of attachments returns or raises an error of eventsync."""
    with simulator() as server:
        checked(Files(kind(server)), tmp_path)


@pytest.mark.parametrize("etags", [True, False])
def test_altered_answers_of_a_plain_service(etags, tmp_path):
    """A store of described objects returns or raises an error of eventsync."""
    with ObjectServer(etags=etags) as server:
        checked(Plain(server), tmp_path)


def checked(contract, folder):
    count, found = tried(contract, folder)
    print(f"{type(contract).__name__}: {count} calls, {found.total()} foreign errors")
    assert count > 100
    assert not found, "\n".join(f"{n} {where}" for where, n in found.most_common(40))
