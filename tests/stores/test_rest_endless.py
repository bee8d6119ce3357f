"""Lists that do not end: each read of them ends with an error, and nothing is taken for deleted."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
from servers.http_service import HttpService

from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RecordError
from eventsync.index import FileIndex, Presence
from eventsync.records.record import Field, Record
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import (
    Cursor,
    Links,
    NextLink,
    Numbers,
    OnePage,
    Resource,
    RestAccessor,
    Service,
    Within,
)


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""


class Endless(HttpService):
    """A list of notes. ``endless``: how its pages go on; ``None`` for a list that ends.

    ``alone``: whether a note can be read by its key.
    """

    def __init__(self):
        super().__init__()
        self.endless, self.alone, self.names = None, True, [f"n{n:02d}" for n in range(20)]
        self._counter = itertools.count(1)

    def note(self, name):
        views = next(self._counter) if self.endless == "same keys" else 0
        return {"id": name, "name": name.upper(), "views": views}

    def act(self, asked):
        if len(asked.names) > 1:
            found = self.alone and asked.names[-1] in self.names
            return (200, self.note(asked.names[-1])) if found else (404, {})
        number = int(asked.query.get("page", 1))
        items, following = self.page(number)
        link = f"{self.url}/notes?page={following}" if following else None
        headers = {"Link": f'<{link}>; rel="next"'} if link else {}
        return 200, {"items": items, "next": following, "link": link, "total": 1 << 40}, headers

    def page(self, number):
        half = [self.note(name) for name in self.names[:10]]
        match self.endless:
            case None:
                rest = [self.note(name) for name in self.names[10:]]
                return ([], None) if number > 2 else [(half, 2), (rest, None)][number - 1]
            case "same page":
                return half, number
            case "cycle":
                return [self.note(f"n0{number}")], 3 - number
            case "same objects" | "same keys":
                return half, number + 1
            case "two by turns":
                return half[number % 2 :][:1], number + 1
            case "empty":
                return [], number + 1
            case "new keys":
                return [self.note(f"x{number}-{one}") for one in range(10)], number + 1
            case "not objects":
                return [number, self.note("n01")], number + 1


PAGES = {
    "links": Links(items="items", size=10),
    "next link": NextLink(items="items", size=10, at="link"),
    "cursor": Cursor(items="items", size=10, at="next", name="page"),
    "numbers": Numbers(items="items", size=10),
    "numbers with a total": Numbers(items="items", size=10, total="total"),
}
ENDLESS = {
    "same page": 2,
    "cycle": 3,
    "same objects": 3,
    "same keys": 3,
    "two by turns": 4,
    "empty": 25,
    "new keys": 25,
    "not objects": 25,
}
# With numbers, a page that is not full is the last one; with a total, an empty page is.
ENDING = {"numbers": {"not objects"}, "numbers with a total": set()}
CASES = [
    (paging, way)
    for paging in PAGES
    for way in ENDLESS
    if paging not in ENDING
    or way not in {"same page", "cycle", "empty", "two by turns", *ENDING[paging]}
]


@pytest.fixture
def server():
    with Endless() as running:
        yield running


def store_of(server, folder, pages, **more):
    service = Service(server.url, allow=["127.0.0.1"])
    described = Resource(items="/notes", item="/notes/{id}", pages=pages, **more)
    accessor = RestAccessor(Note, service, described)
    return Store("notes", accessor, index=FileIndex(folder / "v.db"))


def captured(store, unreadable=None, **more):
    return [c for part in store.capture(unreadable=unreadable, **more) for c in part]


@pytest.mark.parametrize("alone", [True, False])
@pytest.mark.parametrize(("paging", "way"), CASES)
def test_lists_that_do_not_end(server, tmp_path, paging, way, alone):
    """A capture of an endless list ends with an error that says why, and deletes nothing.

    Not even if the service says of each record, when asked for it alone, that it does not exist.
    """
    pages = replace(PAGES[paging], max_pages=25)
    reported = []
    with store_of(server, tmp_path, replace(pages, max_pages=99)) as store:
        captured(store)
        assert store.index.counts("Note")[Presence.PRESENT] == 20
    with store_of(server, tmp_path, pages) as store:
        server.endless, server.alone = way, alone
        before = len(server.requests)
        with pytest.raises(RecordError) as told:
            assert not [c for c in captured(store, reported.append) if c.op == "delete"]
        listed = [path for _, path in server.requests[before:] if path.startswith("/notes?")]
        first = [path for _, path in server.requests[before:] if "/notes" in path]
        assert len(listed) <= ENDLESS[way] + 1
        assert len(first) <= ENDLESS[way] + 1  # no record is looked for by its key
        text = str(told.value)
        assert text.startswith("store 'notes': GET http://127.0.0.1:")
        assert "/notes: " in text
        assert "nothing was taken for deleted" in text
        if ENDLESS[way] == 25:
            assert "more than 25 pages" in text
            assert "raise max_pages" in text
        assert list(store.index.entries("Note", presence=Presence.DELETED)) == []
        server.endless, server.alone = None, True
        assert [c.op for c in captured(store) if c.key in server.names and c.op == "delete"] == []


def test_a_long_list_is_read_if_max_pages_allows_it(server, tmp_path):
    """The limit is on pages, and the last page is within it."""
    for limit, fits in ((2, True), (1, False)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        with store_of(server, folder, Links(items="items", size=10, max_pages=limit)) as store:
            if fits:
                assert len(captured(store)) == 20
                continue
            with pytest.raises(RecordError, match=r"max_pages=10\)"):
                captured(store)


@pytest.mark.parametrize("setting", [{"max_pages": 0}, {"size": 0}, {"max_pages": -1}])
def test_settings_that_no_list_fits(setting):
    """A limit below one page is refused."""
    for kind in (OnePage, Links, Numbers):
        with pytest.raises(ConfigError, match="expected 1 or more"):
            kind(**setting)


class Inner(Endless):
    """Notes in two books; the list of the first one does not end when ``endless`` is set."""

    def act(self, asked):
        kind, *rest = asked.names
        if kind == "books":
            return 200, [{"id": "1"}, {"id": "2"}], {}
        if rest:
            return 200, {"id": rest[0], "name": "x"}
        book = kind.rpartition("-")[2]
        if book == "1" and self.endless:
            number = int(asked.query.get("page", 1))
            link = f"{self.url}/notes-1?page={number + 1}"
            return 200, [], {"Link": f'<{link}>; rel="next"'}
        return 200, [{"id": f"{book}{n}", "name": "x"} for n in range(3)], {}


def test_an_inner_list_that_does_not_end(tmp_path):
    """An endless list in one object is this list's failure; the other lists are read."""
    described = Resource(
        items="/notes-{in}",
        item="/notes-{in}/{id}",
        pages=Links(max_pages=5),
        within=Within(items="/books"),
    )
    with Inner() as server:
        service = Service(server.url, allow=["127.0.0.1"])
        identity = IdentityMap(tmp_path / "ids.db", name="books")
        accessor = RestAccessor(Note, service, described, identity=identity)
        with Store("notes", accessor, index=FileIndex(tmp_path / "v.db")) as store:
            assert len(captured(store)) == 6
            server.endless = "empty"
            reported = []
            assert captured(store, reported.append, deletes=1.0) == []
            assert "more than 5 pages" in str(reported[0])
            assert store.index.counts("Note")[Presence.PRESENT] == 6
