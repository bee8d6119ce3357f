"""The fence around REST accessors: no path from an answer to a record raises a foreign error."""

from __future__ import annotations

import pytest
from servers.github import GitHubSimulator
from servers.objects import ObjectServer

from eventsync.engine.accessor import Write
from eventsync.errors import EventSyncError, RecordError
from eventsync.index import MemoryIndex
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Links, Resource, RestAccessor, Service, Since
from eventsync.stores.trackers import Issue
from eventsync.stores.trackers.github import GitHubIssues, GitHubService
from eventsync.stores.trackers.projects import InProjects


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""


class Odd(RestAccessor):
    """An accessor whose author did not expect what the service answers."""

    def objects(self, query):
        yield from ()
        raise KeyError("in a list")

    def fetch(self, key):
        raise IndexError("alone")


class OddIssues(GitHubIssues):
    """The same, of a tracker."""

    objects, fetch = Odd.objects, Odd.fetch


CALLS = {
    "get": lambda accessor, note, index: accessor.get(note.key),
    "find": lambda accessor, note, index: list(accessor.find(Query.parse(accessor.type))),
    "add": lambda accessor, note, index: accessor.add(note),
    "update": lambda accessor, note, index: accessor.update(note),
    "remove": lambda accessor, note, index: accessor.remove(note.key),
    "changed": lambda accessor, note, index: accessor.changed_since("", None),
    "data": lambda accessor, note, index: accessor.data_to_record(["odd"]),
    "rows": lambda accessor, note, index: accessor.read_rows([note.key], index),
    "many rows": lambda accessor, note, index: accessor.read_rows([note.key] * 20, index),
    "writes": lambda accessor, note, index: accessor.write_rows(
        [Write(note.key, note.raw(), whole=True)], [], index
    ),
    "removals": lambda accessor, note, index: accessor.write_rows([], [note.key], index),
    "back": lambda accessor, note, index: accessor.read_back({note.key: note.raw()}, index),
}


def plain(folder):
    server = ObjectServer()
    described = Resource(
        items="/notes",
        item="/notes/{id}",
        pages=Links(),
        since=Since(updated="updated", query={"since": "{since}"}),
    )
    return server, lambda: Odd(Note, Service(server.url, allow=["127.0.0.1"]), described), Note


def tracker(folder):
    server = GitHubSimulator()
    identity = IdentityMap(folder / "ids.db", name="github")
    identity.bind("Issue", "K", "1")

    def made():
        service = GitHubService("good-token", url=server.url, allow=["127.0.0.1"])
        return OddIssues(Issue, service, "ann/shop", identity=identity)

    return server, made, Issue


def several(folder):
    server = GitHubSimulator()
    identity = IdentityMap(folder / "ids.db", name="github")
    identity.bind("Issue", "K", "ann/shop:1")

    def made():
        service = GitHubService("good-token", url=server.url, allow=["127.0.0.1"])
        return InProjects(OddIssues, Issue, service, ["ann/shop", "ann/site"], identity=identity)

    return server, made, Issue


@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("kind", [plain, tracker, several])
def test_foreign_errors_stay_inside(kind, name, tmp_path):
    """Whatever the steps from an answer to a record raise, callers get an error of eventsync."""
    server, made, record_type = kind(tmp_path)
    with server:
        accessor, index = made(), MemoryIndex()
        record = record_type(id="K", **({"project": "ann/shop"} if kind is several else {}))
        with pytest.raises(RecordError), index.transaction() as one:
            CALLS[name](accessor, record, one)
        accessor.close()


def test_records_themselves(tmp_path):
    """The iterator over all records is fenced at each step, not only where it is made."""
    server, made, _ = plain(tmp_path)
    with server:
        accessor = made()
        records = accessor.records(Query.parse(accessor.type))
        with pytest.raises(EventSyncError, match="in a list"):
            next(records)
        accessor.close()
