"""The REST store: concurrent changes, lost answers, ids of the service, recent changes."""

from __future__ import annotations

import threading
import time

import pytest
from servers.objects import ObjectServer

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import (
    ConfigError,
    FieldError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.identity import IdentityMap
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.rest import (
    Links,
    OvertakenError,
    Place,
    Resource,
    RestAccessor,
    Service,
    Since,
    Within,
)
from eventsync.stores.rest.status import AccessRefusedError
from eventsync.testing import FakeBus
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


class Note(Record, rule="field"):
    id: str = Field(key=True)
    name: str = ""
    score: int = 0


class Memo(Record):
    id: str = Field(key=True)
    name: str = ""


@pytest.fixture
def server():
    with ObjectServer() as running:
        yield running


def resource(**more):
    return Resource(items="/notes", item="/notes/{key}", create="PUT", pages=Links(size=10), **more)


def store_of(server, folder, record_type=Note, *, bus=None, described=None):
    service = Service(server.url, allow=["127.0.0.1"])
    accessor = RestAccessor(record_type, service, described or resource())
    return Store("rest", accessor, index=FileIndex(folder / "v.db"), publisher=bus)


def with_ids(server, folder, *, bus=None, **more):
    server.ids = True
    described = Resource(
        items="/notes",
        item="/notes/{id}",
        marker="meta.ref",
        pages=Links(size=10),
        paths={"name": "content.name"},
        **more,
    )
    accessor = RestAccessor(
        Note,
        Service(server.url, allow=["127.0.0.1"]),
        described,
        identity=IdentityMap(folder / "ids.db", name="rest"),
    )
    return Store("rest", accessor, index=FileIndex(folder / "v.db"), publisher=bus)


def put(clock, key, op="put", type="Note", **data):
    body = data if op == "patch" else {"id": key, **data}
    return Change(type=type, key=key, op=op, version=clock.tick(), data=body, source="t")


def applied(store, *changes):
    """Apply changes as a worker does: retry if the store is unavailable."""
    for _ in range(9):
        try:
            settled = apply(store, changes, clock=store.clock)
        except StoreUnavailableError:
            continue
        assert [item.outcome for item in settled if item.error] == []
        return [item.outcome for item in settled]
    raise AssertionError("it never succeeded")


class Line(Record, rule="field"):
    id: str = Field(key=True)
    note: str | None = None
    text: str = ""


@pytest.mark.parametrize("update", ["PUT", "PATCH"])
def test_lists_within_objects(server, tmp_path, update):
    """Inner objects are created in the list of their outer object, found, and cannot move."""
    server.ids = True
    server.objects = {"notes": {"7": {"id": "7"}, "8": {"id": "8"}}}
    described = Resource(
        items="/lines-{in}",
        item="/lines-{in}/{id}",
        within=Within(items="/notes"),
        paths={"note": "@in.id"},
        marker="ref",
        pages=Links(size=10),
        update=update,
    )
    service = Service(server.url, allow=["127.0.0.1"])
    identity = IdentityMap(tmp_path / "ids.db", name="rest")
    accessor = RestAccessor(Line, service, described, identity=identity)
    with Store("rest", accessor, index=FileIndex(tmp_path / "v.db")) as store:
        store.add(Line(id="a", note="8", text="first"))
        assert server.objects["lines-8"] == {"1": {"id": "1", "ref": "a", "text": "first"}}
        line = store[Line, "a"]
        line.text = "second"
        store.update(line)
        assert server.objects["lines-8"]["1"] == {"id": "1", "ref": "a", "text": "second"}
        server.objects["lines-7"] = {"5": {"id": "5", "text": "theirs"}}
        found = {line.key: (line.note, line.text) for line in store.find(Line)}
        assert found == {"a": ("8", "second"), "rest:7:5": ("7", "theirs")}
        line.note = "7"
        with pytest.raises(RejectedError, match="cannot move"):
            store.update(line)
        with pytest.raises(RejectedError, match=r"has no value at @in\.id"):
            store.add(Line(id="b"))
        server.failures.append(("lose",))
        server.only = lambda method, path: method == "POST"
        store.add(Line(id="c", note="7"))
        assert len(server.objects["lines-7"]) == 2
        store.remove(store[Line, "a"])
        assert server.objects["lines-8"] == {}


# -- concurrent writes -----------------------------------------------------------------------------


@pytest.mark.parametrize("update", ["PUT", "PATCH"])
def test_overtaken_change_is_merged_again(server, tmp_path, update):
    """A field that another client changes between read and write is kept, and captured later."""
    bus, clock = FakeBus(), Clock()
    with store_of(server, tmp_path, bus=bus, described=resource(update=update)) as store:
        applied(store, put(clock, "1", name="Ada", score=1))
        server.objects["notes"]["1"]["theirs"] = [1]
        times = iter([lambda: server.objects["notes"]["1"].update(score=7)])
        server.between = lambda: next(times, lambda: None)()
        change = put(clock, "1", "patch", name="Ada L.")
        with pytest.raises(OvertakenError):
            apply(store, [change], clock=clock)
        assert applied(store, change) == [Outcome.APPLIED]
        assert server.objects["notes"]["1"] == {
            "id": "1",
            "name": "Ada L.",
            "score": 7,
            "theirs": [1],
        }
        (captured,) = [change for found in store.capture() for change in found]
        assert captured.data == {"score": 7}


def test_overtaken_edit_is_made_again(server, tmp_path):
    """An edit that another client overtakes is retried at once, and published once."""
    bus = FakeBus()
    with store_of(server, tmp_path, bus=bus) as store:
        store.add(Note(id="1", name="Ada"))
        times = iter([lambda: server.objects["notes"]["1"].update(score=7)])
        server.between = lambda: next(times, lambda: None)()
        note = store[Note, "1"]
        note.name = "Ada L."
        store.update(note)
        assert server.objects["notes"]["1"] == {"id": "1", "name": "Ada L.", "score": 7}
        assert [change.op for change in bus.changes()] == ["put", "patch"]


def test_overtaken_creation_and_removal(server, tmp_path):
    """Neither a creation nor a removal overwrites a change made at the same moment."""
    clock = Clock()
    with store_of(server, tmp_path) as store:
        server.objects["notes"] = {}
        times = iter([lambda: server.objects["notes"].update({"1": {"id": "1", "extra": 1}})])
        server.between = lambda: next(times, lambda: None)()
        assert applied(store, put(clock, "1", name="Ada")) == [Outcome.APPLIED]
        assert server.objects["notes"]["1"] == {"id": "1", "name": "Ada", "score": 0, "extra": 1}
        times = iter([lambda: server.objects["notes"]["1"].update(extra=2)])
        delete = Change(
            type="Note", key="1", op="delete", version=clock.tick(), data=None, source="t"
        )
        with pytest.raises(OvertakenError):
            apply(store, [delete], clock=clock)
        assert applied(store, delete) == [Outcome.APPLIED]
        assert server.objects["notes"] == {}


@pytest.mark.parametrize("when", ["before", "between"])
@pytest.mark.parametrize("update", ["PUT", "PATCH"])
@pytest.mark.parametrize("many", [False, True])
def test_patch_keeps_fields_that_others_edited(server, tmp_path, when, update, many):
    """A patch of one field does not write back another that somebody edited, also after a 412.

    The patch comes from a store that says what it held in the other fields. The store here has not
    captured the edit; it does so later.
    """
    bus = FakeBus()
    keys = [f"{n:02}" for n in range(12 if many else 1)]
    with (
        store_of(server, tmp_path, described=resource(update=update)) as store,
        Store("memory", MemoryAccessor(Note), publisher=bus) as other,
    ):
        other.add([Note(id=key, name="Ada", score=1) for key in keys])
        applied(store, *bus.changes())

        def edit():
            server.objects["notes"]["00"]["score"] = 7

        times = iter([edit])
        if when == "before":
            edit()
        else:
            server.between = lambda: next(times, lambda: None)()
        for key in keys:
            note = other[Note, key]
            note.name = "Ada L."
            other.update(note)
        applied(store, *bus.changes()[-len(keys) :])
        assert server.objects["notes"]["00"] == {"id": "00", "name": "Ada L.", "score": 7}
        captured = [(c.key, c.data) for found in store.capture() for c in found]
        assert captured == [("00", {"score": 7})]


def test_list_that_is_older_than_a_write(server, tmp_path):
    """A record that was read from a list is compared with its object before it is written."""
    clock = Clock()
    with store_of(server, tmp_path) as store:
        applied(store, *(put(clock, f"{n:02}", name="x") for n in range(12)))
        accessor = store.accessor(Note)
        listed = accessor.objects

        def stale(query):
            found = list(listed(query))
            server.objects["notes"]["05"]["score"] = 9
            return iter(found)

        vars(accessor)["objects"] = stale
        changes = [put(clock, f"{n:02}", "patch", name="y") for n in range(12)]
        with pytest.raises(OvertakenError):
            apply(store, changes, clock=clock)
        applied(store, *changes)
        assert server.objects["notes"]["05"] == {"id": "05", "name": "y", "score": 9}


def test_nothing_to_write_is_not_written(server, tmp_path):
    """A change to values that the service already holds sends no write."""
    clock = Clock()
    with store_of(server, tmp_path, Memo) as store:
        applied(store, put(clock, "1", type="Memo", name="a"))
        before = len(server.writes())
        applied(store, put(clock, "1", type="Memo", name="a"))
        assert len(server.writes()) == before


# -- lost answers ----------------------------------------------------------------------------------


@pytest.mark.parametrize("failure", [("lose",), ("drop",), ("status", 502, {}, b"")])
def test_uncertain_edit_is_finished(server, tmp_path, failure):
    """An edit whose answer is lost is made and published, or neither."""
    bus = FakeBus()
    with store_of(server, tmp_path, bus=bus) as store:
        server.only = lambda method, path: method == "PUT"
        server.failures.append(failure)
        if failure != ("lose",):
            with pytest.raises(StoreUnavailableError):
                store.add(Note(id="1", name="Ada"))
            assert (store.flush(), server.objects["notes"]) == (0, {})
        store.add(Note(id="1", name="Ada"))
        (change,) = bus.changes()
        assert applied(store, change) == [Outcome.DUPLICATE]
        assert server.objects["notes"] == {"1": {"id": "1", "name": "Ada", "score": 0}}
        assert [c for found in store.capture() for c in found] == []


@pytest.mark.parametrize("failure", [("lose",), ("drop",), ("status", 500, {}, b"")])
@pytest.mark.parametrize("restart", [False, True])
def test_created_once(server, tmp_path, failure, restart):
    """An object is created once, even if the answer is lost and the process restarts."""
    clock = Clock()
    change = put(clock, "K1", name="Ada")
    store = with_ids(server, tmp_path)
    server.only = lambda method, path: method == "POST"
    server.failures.append(failure)
    with pytest.raises(StoreUnavailableError):
        apply(store, [change], clock=clock)
    if restart:
        store.close()
        store = with_ids(server, tmp_path)
    assert applied(store, change) in ([Outcome.APPLIED], [Outcome.DUPLICATE])
    (data,) = server.objects["notes"].values()
    assert data == {"id": "1", "meta": {"ref": "K1"}, "content": {"name": "Ada"}, "score": 0}
    assert [c for found in store.capture() for c in found] == []
    store.close()


def test_refused_creation_leaves_nothing_open(server, tmp_path):
    """A refused creation is closed in the identity map, so no search follows."""
    clock = Clock()
    with with_ids(server, tmp_path) as store:
        server.only = lambda method, path: method == "POST"
        server.failures.append(("status", 422, {}, {"message": "no such name"}))
        (settled,) = apply(store, [put(clock, "K1", name="x")], clock=clock)
        assert (settled.outcome, type(settled.error)) == (Outcome.REJECTED, RejectedError)
        assert "no such name" in str(settled.error)
        assert not store.accessor(Note).identity.is_open("Note", "K1")


def test_two_workers_create_once(server, tmp_path):
    """Workers that apply the same change at the same time create one object."""
    clock = Clock()
    changes = [put(clock, f"K{n}", name="x") for n in range(8)]
    with_ids(server, tmp_path).open().close()

    def work():
        with with_ids(server, tmp_path) as store:
            for change in changes:
                applied(store, change)

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    refs = [data["meta"]["ref"] for data in server.objects["notes"].values()]
    assert sorted(refs) == [f"K{n}" for n in range(8)]


# -- identity --------------------------------------------------------------------------------------


def test_created_by_others(server, tmp_path):
    """An object that others created has a key made from its id, and can be changed and removed."""
    bus = FakeBus()
    with with_ids(server, tmp_path, bus=bus) as store:
        server.objects["notes"] = {"41": {"id": "41", "content": {"name": "Theirs"}, "score": 3}}
        (change,) = [change for found in store.capture() for change in found]
        assert (change.key, change.data) == ("rest:41", {"name": "Theirs", "score": 3})
        note = store[Note, "rest:41"]
        note.score = 4
        store.update(note)
        assert server.objects["notes"]["41"]["score"] == 4
        assert "meta" not in server.objects["notes"]["41"]
        store.remove(note)
        assert server.objects["notes"] == {}
        assert [change.op for change in bus.changes()] == ["patch", "patch", "delete"]


def test_lost_map(server, tmp_path):
    """A lost identity map is rebuilt from the markers before anything is created twice."""
    clock = Clock()
    with with_ids(server, tmp_path) as store:
        applied(store, put(clock, "K1", name="a"), put(clock, "K2", name="b"))
    for file in tmp_path.glob("*.db*"):
        file.unlink()
    with with_ids(server, tmp_path) as store:
        applied(store, put(clock, "K1", name="c"), put(clock, "K3", name="d"))
        held = {d["meta"]["ref"]: d["content"]["name"] for d in server.objects["notes"].values()}
        assert held == {"K1": "c", "K2": "b", "K3": "d"}


def test_copied_marker(server, tmp_path):
    """A copy of an object, marker included, is a record of its own."""
    clock = Clock()
    with with_ids(server, tmp_path) as store:
        applied(store, put(clock, "K1", name="a"))
        copy = {**server.objects["notes"]["1"], "id": "2"}
        server.objects["notes"]["2"] = copy
        assert {record.key for record in store.find(Note)} == {"K1", "rest:2"}


def test_removed_and_created_again(server, tmp_path):
    """A record that is added again after its removal gets a new object."""
    clock = Clock()
    with with_ids(server, tmp_path) as store:
        applied(store, put(clock, "K1", name="a"))
        store.remove(store[Note, "K1"])
        applied(store, put(store.clock, "K1", name="b"))
        assert [d["id"] for d in server.objects["notes"].values()] == ["2"]


def test_keys_that_cannot_be_made(server, tmp_path):
    """An object of others is unreadable if the record type cannot have the key made from its id."""

    class Numbered(Record):
        id: int = Field(key=True)
        name: str = ""

    server.ids = True
    server.objects["notes"] = {"1": {"id": "1", "name": "x"}}
    accessor = RestAccessor(
        Numbered,
        Service(server.url, allow=["127.0.0.1"]),
        Resource(items="/notes", item="/notes/{id}"),
        identity=IdentityMap(tmp_path / "ids.db", name="rest"),
    )
    with Store("rest", accessor, index=FileIndex(tmp_path / "v.db")) as store:
        with pytest.raises(FieldError, match="rest:1"):
            list(store.find(Numbered))
        unreadable = []
        assert list(store.capture(unreadable=unreadable.append)) == []
        assert len(unreadable) == 1


def test_identity_map(tmp_path):
    """A key and an id are bound once, both ways, and a file of another kind is refused."""
    with pytest.raises(ConfigError, match="does not exist"):
        IdentityMap(tmp_path / "no" / "ids.db", name="x").id_of("A", "k")
    ids = IdentityMap(tmp_path / "ids.db", name="x")
    assert ids.bind("A", "k", "1")
    assert ids.bind("A", "k", "1")
    assert not ids.bind("A", "k", "2")
    assert not ids.bind("A", "other", "1")
    assert ids.bind("B", "k", "1")
    assert not ids.begin("A", "n")
    assert ids.begin("A", "n")
    again = IdentityMap(tmp_path / "ids.db", name="x")
    assert (again.id_of("A", "k"), again.key_of("A", "1")) == ("1", "k")
    assert again.is_open("A", "n")
    again.bind("A", "n", "9")
    assert not ids.is_open("A", "n")
    ids.forget("A", "k")
    assert again.key_of("A", "1") is None
    ids.close()
    again.close()
    index = FileIndex(tmp_path / "index.db")
    index.save_mark("a", "b")
    index.close()
    with pytest.raises(ConfigError, match="another application"):
        IdentityMap(tmp_path / "index.db", name="x").id_of("A", "k")


# -- the description -------------------------------------------------------------------------------


def test_places(server, tmp_path):
    """A field can be at any path in an object, or be read and written by functions."""
    tags = Place(
        lambda data: ",".join(tag["name"] for tag in data.get("tags", [])),
        lambda body, held: body.update(tags=[{"name": n} for n in held.split(",") if n]),
    )
    described = Resource(
        items="/notes",
        item="/notes/{id}",
        create="PUT",
        update="PUT",
        paths={"name": tags, "score": "stats.deep.score"},
    )
    with store_of(server, tmp_path, described=described) as store:
        store.add(Note(id="1", name="a,b", score=5))
        assert server.objects["notes"]["1"] == {
            "id": "1",
            "tags": [{"name": "a"}, {"name": "b"}],
            "stats": {"deep": {"score": 5}},
        }
        server.objects["notes"]["1"]["stats"]["other"] = 1
        note = store[Note, "1"]
        note.score = 6
        store.update(note)
        assert server.objects["notes"]["1"]["stats"] == {"deep": {"score": 6}, "other": 1}
        server.objects["notes"]["1"]["stats"] = "gone"
        with pytest.raises(RejectedError, match="no object at 'stats'"):
            store.update(Note(id="1", score=7))


@pytest.mark.parametrize("item", ["/notes", "/notes/{name}", "/notes/{id", "/notes/{}"])
def test_wrong_templates(server, item):
    """An ``item`` path that does not name the object by its key is refused."""
    with pytest.raises(ConfigError, match="item="):
        RestAccessor(Note, Service(server.url), Resource(items="/notes", item=item))


# -- recent changes --------------------------------------------------------------------------------


def since():
    return Since(updated="updated", query={"since": "{since}"}, overlap=5.0)


def at(second):
    return f"2026-01-01T00:00:{second:02}"


def test_only_what_changed_is_read(server, tmp_path):
    """Between full reads only recent changes are requested, and the mark advances."""
    with store_of(server, tmp_path, described=resource(since=since())) as store:
        server.objects["notes"] = {
            f"{n:02}": {"id": f"{n:02}", "name": "x", "score": 0, "updated": at(n)}
            for n in range(40)
        }

        def recent():
            return [c.key for found in store.capture(whole=False) for c in found]

        assert len(recent()) == 40  # the first is whole
        assert recent() == []
        server.objects["notes"]["07"] |= {"name": "y", "updated": at(50)}
        server.requests.clear()
        assert recent() == ["07"]
        assert len(server.requests) < 12
        assert "since=2026-01-01T00%3A00%3A34" in server.requests[0][1]
        server.requests.clear()
        assert recent() == []
        assert "since=2026-01-01T00%3A00%3A45" in server.requests[0][1]
        assert len(server.requests) == 2
        del server.objects["notes"]["03"]
        assert recent() == []
        store.capture_whole_every = 0.0
        assert recent() == ["03"]


def test_mark_stays_behind_a_failure(server, tmp_path):
    """If the service does not answer, the mark stays. An unreadable object does not stop it."""
    with store_of(server, tmp_path, described=resource(since=since())) as store:
        server.objects["notes"] = {"1": {"id": "1", "name": "x", "updated": at(1)}}
        list(store.capture(whole=False))
        list(store.capture(whole=False))
        mark = store.index.load_mark("capture/Note")
        server.objects["notes"]["1"] = {"id": "1", "name": "z", "updated": at(30)}
        server.objects["notes"]["2"] = {"id": "2", "score": "many", "updated": at(40)}
        errors: list[RecordError] = []
        found = [c.key for f in store.capture(whole=False, unreadable=errors.append) for c in f]
        assert found == ["1"]
        assert len(errors) == 1
        assert store.index.load_mark("capture/Note") > mark
        mark = store.index.load_mark("capture/Note")
        server.objects["notes"]["1"] = {"id": "1", "name": "y", "updated": at(50)}
        server.only = lambda method, path: "/notes/2" in path
        server.failures.append(("status", 503, {}, b""))
        server.objects["notes"]["2"]["score"] = 5
        with pytest.raises(StoreUnavailableError):
            list(store.capture(whole=False))
        assert store.index.load_mark("capture/Note") == mark
        found = [c.key for f in store.capture(whole=False) for c in f]
        assert sorted(found) == ["1", "2"]
        assert store.index.load_mark("capture/Note") > mark
        assert store.unreadable_records.of("Note") == {}


@pytest.mark.parametrize("updated", [None, "soon", 7])
def test_an_object_without_a_time_stops_no_other(server, tmp_path, updated):
    """An object without a time of its last change is reported, and others are captured."""
    with store_of(server, tmp_path, described=resource(since=since())) as store:
        server.objects["notes"] = {
            "1": {"id": "1", "name": "x", "updated": updated},
            "2": {"id": "2", "name": "x", "updated": at(2)},
        }
        list(store.capture(whole=True))
        server.objects["notes"]["2"]["name"] = "y"
        errors: list[RecordError] = []
        found = [c.key for f in store.capture(whole=False, unreadable=errors.append) for c in f]
        assert found == ["2"]
        assert "no time at 'updated'" in str(errors[0])
        assert len(errors) == 1


# -- unreadable objects ----------------------------------------------------------------------------


def test_an_object_without_an_id_blocks_no_creation(server, tmp_path):
    """An object whose key cannot be read does not stop others from being created."""
    clock = Clock()
    with with_ids(server, tmp_path) as store:
        server.objects["notes"] = {"41": {"content": {"name": "Theirs"}}}
        assert applied(store, put(clock, "K1", name="a")) == [Outcome.APPLIED]
        assert store[Note, "K1"].name == "a"


def test_a_conversion_that_fails_for_one_object_affects_no_other(server, tmp_path):
    """Many records are written although the key of another object in the list is unreadable."""

    def read(stored):
        if stored == "bad":
            raise KeyError(stored)
        return stored

    clock = Clock()
    view = View(convert={"id": Convert(lambda key: key, read)})
    service = Service(server.url, allow=["127.0.0.1"])
    accessor = RestAccessor(Note, service, resource(), view=view)
    with Store("rest", accessor, index=FileIndex(tmp_path / "v.db")) as store:
        server.objects["notes"] = {"bad": {"id": "bad"}}
        changes = [put(clock, f"{n:02}", name="x") for n in range(12)]
        assert applied(store, *changes) == [Outcome.APPLIED] * 12


# -- with a worker ---------------------------------------------------------------------------------


@pytest.mark.parametrize("allowed", ["nothing", "reading"])
def test_wrong_credentials_dead_letter_nothing(server, tmp_path, allowed):
    """Work waits in the broker while credentials are refused, and is done when they are valid."""
    if allowed == "nothing":
        server.token = "right"
    else:
        server.read_only = True
    clock = Clock()
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus, store_of(server, tmp_path) as store:
        bus.declare("rest", ["Note"])
        changes = [put(clock, f"{n}", name="x") for n in range(5)]
        bus.publish("Note", [bus.encode(change) for change in changes])
        worker = Worker(store, bus, options=Options(retry_for=0.1))
        with pytest.raises(AccessRefusedError, match=r"correct the credentials \(auth=\)"):
            worker.drain(timeout=0.05)
        assert bus.states("rest")["dead"].ready == 0
        server.token, server.read_only = None, False
        worker.drain(timeout=0.05)
        assert len(server.objects["notes"]) == 5
        assert bus.states("rest")["dead"].ready == 0


def test_worker_survives_a_service_that_comes_and_goes(server, tmp_path):
    """All changes are applied once despite many failures, and then no more writes are sent."""
    clock = Clock()
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus, with_ids(server, tmp_path) as store:
        bus.declare("rest", ["Note"])
        changes = [put(clock, f"K{n}", name=f"n{n}") for n in range(12)]
        bus.publish("Note", [bus.encode(change) for change in changes])
        kinds = [("lose",), ("drop",), ("status", 503, {"Retry-After": "0"}, b""), None]
        server.failures.extend(kinds * 4)
        worker = Worker(store, bus, options=Options(retry_for=60))
        vars(worker)["_wait"] = lambda seconds: None
        worker.drain(timeout=0.05)
        held = {d["meta"]["ref"]: d["content"]["name"] for d in server.objects["notes"].values()}
        assert held == {f"K{n}": f"n{n}" for n in range(12)}
        assert len(server.objects["notes"]) == 12
        server.requests.clear()
        store.capture_every = 0.001
        worker = Worker(store, bus)
        for _ in range(3):
            worker.drain(timeout=0.01)
            time.sleep(0.002)
        assert server.writes() == []
        assert server.requests != []
