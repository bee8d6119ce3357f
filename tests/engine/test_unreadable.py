"""Unreadable records: noted, reported once, read again, and never overwritten or deleted."""

from __future__ import annotations

import pytest

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine import unreadable as module
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import RecordError
from eventsync.index import FileIndex, MemoryIndex
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor
from eventsync.verify import compare


class Product(Record):
    id: int = Field(key=True)
    name: str
    price: int = 0


class Part(Record, rule="field"):
    id: int = Field(key=True)
    name: str
    price: int = 0


class Notices(list):
    """The notices of a capture, as (name, whether it is unreadable now)."""

    def __call__(self, record, unreadable):
        self.append((record.name, unreadable))


@pytest.fixture
def store():
    store = Store("shop", MemoryAccessor(Product), index=MemoryIndex())
    data = store.accessors["Product"].data
    for id in range(1, 5):
        data[str(id)] = {"id": id, "name": "x", "price": 1}
    list(store.capture())
    return store


def data(store, type="Product"):
    return store.accessors[type].data


def capture(store, **options):
    """Capture with a callback for errors. Return the notices."""
    notices = Notices()
    list(store.capture(unreadable=lambda error: None, notice=notices, **options))
    return notices


def put(id, clock, type="Product", **values):
    row = {"id": id, "name": "theirs", "price": 2, **values}
    return Change(type=type, key=str(id), op="put", version=clock.tick(), data=row)


def test_each_record_is_reported_once(store):
    """When it turns unreadable, when its error changes, and when it is readable again."""
    data(store)["2"]["name"] = None
    assert capture(store) == [("2", True)]
    assert capture(store) == []
    (note,) = store.unreadable_records.of("Product").values()
    assert (note.type, note.name, note.keyed, note.reason) == ("Product", "2", True, "field")
    assert "Product '2'" in note.error
    since = note.since
    data(store)["2"]["price"] = "many"
    data(store)["2"]["name"] = "y"
    assert capture(store) == [("2", True)]
    (note,) = store.unreadable_records.of("Product").values()
    assert "price" in note.error
    assert note.since == since
    data(store)["2"]["price"] = 5
    assert capture(store) == [("2", False)]
    assert store.unreadable_records.count("Product") == 0
    assert capture(store) == []


def test_a_removed_record_is_reported_once(store):
    """The note goes with the record, whose delete is captured."""
    data(store)["2"]["name"] = None
    capture(store)
    del data(store)["2"]
    notices = Notices()
    captured = [
        (change.key, change.op)
        for changes in store.capture(unreadable=lambda error: None, notice=notices)
        for change in changes
    ]
    assert captured == [("2", "delete")]
    assert notices == [("2", False)]


def test_notes_survive_a_restart(tmp_path):
    """A new process does not report again what the index has noted."""

    def opened():
        accessor = MemoryAccessor(Product)
        accessor.data["1"] = {"id": 1, "name": None}
        return Store("shop", accessor, index=FileIndex(tmp_path / "v.db"))

    with opened() as first:
        assert capture(first) == [("1", True)]
    with opened() as second:
        assert capture(second) == []
        assert list(second.unreadable_records.of("Product")) == ["1"]


def test_a_read_without_notice_leaves_it_to_the_next(store):
    """A synchronization notes a record; the worker logs it nevertheless."""
    data(store)["2"]["name"] = None
    list(store.capture(unreadable=lambda error: None))
    assert store.unreadable_records.count("Product") == 1
    assert capture(store) == [("2", True)]
    assert capture(store) == []


class Hiding(MemoryAccessor):
    """Shows the record 2 in no list, and refuses to show it alone while ``refuses`` is set.

    ``nameless``: instead, the list has an item for it whose key cannot be read.
    """

    refuses = False
    nameless = False

    def find(self, query):
        for record in super().find(query):
            if record.id != 2:
                yield record
            elif self.nameless:
                self.pass_over(RecordError("an item of the list is odd"), query)

    def get(self, key):
        if key == "2" and self.refuses:
            raise RecordError("301 Moved Permanently")
        return super().get(key)


@pytest.mark.parametrize("nameless", [False, True])
def test_a_record_that_is_in_no_list_and_cannot_be_read_alone(nameless):
    """It is neither deleted nor counted twice, and every read of all records keeps its note."""
    accessor = Hiding(Product)
    store = Store("shop", accessor)
    for id in (1, 2, 3):
        accessor.data[str(id)] = {"id": id, "name": "x", "price": 1}
    list(store.capture())
    with store.index.transaction() as transaction:
        entry = transaction.read("Product", ["1"])["1"]
        transaction.write("Product", {"2": entry})
    accessor.refuses, accessor.nameless = True, nameless
    assert capture(store) == [("2", True)]
    assert capture(store) == []
    store.note_unreadable("Product")
    counts = compare(StoreRegistry(store)).stores["shop"]["Product"]
    assert counts.unreadable == 1
    assert capture(store) == []
    assert list(store.unreadable_records.of("Product")) == ["2"]
    accessor.refuses = accessor.nameless = False
    assert capture(store) == [("2", False)]


def test_a_noted_record_without_an_entry_is_read_again():
    """A record that no list shows and no index knows keeps its note until it can be read."""
    accessor = Hiding(Product)
    accessor.data["2"] = {"id": 2, "name": "x", "price": 1}
    accessor.refuses = True
    store = Store("shop", accessor)
    reading = store.unreadable_records.reading("Product")
    assert reading.holds(accessor, "2")
    reading.save()
    assert capture(store) == [("2", True)]
    assert capture(store) == []
    accessor.refuses = False
    assert capture(store) == [("2", False)]


def test_types_and_names_are_apart():
    """Types whose names begin alike, long keys, and records without a name each have a note."""
    notes = module.UnreadableNotes(MemoryIndex())
    errors = [RecordError("odd"), RecordError("odd"), RecordError("far"), RecordError("x")]
    errors[2].key, errors[3].key = "k" * 600, "k" * 600 + "2"
    reading = notes.reading("Product")
    for error in errors:
        reading(error)
    reading.save(whole=True)
    assert notes.count("Product") == 4
    assert notes.count("Pro") == notes.count("ProductLine") == 0
    assert sorted(len(name) for name in notes.of("Product"))[-1] <= 512
    assert [note.keyed for note in notes.of("Product").values()] == [False] * 4


def test_many_unreadable_records_are_noted_up_to_a_limit(store, monkeypatch):
    """More are counted as unreadable at the time, but not noted one by one."""
    monkeypatch.setattr(module, "MOST_NOTED", 2)
    for row in data(store).values():
        row["name"] = None
    assert len(capture(store)) == 2
    assert capture(store) == []
    assert store.unreadable_records.count("Product") == 2


@pytest.mark.parametrize("type", [Product, Part])
@pytest.mark.parametrize("op", ["put", "delete"])
def test_a_change_to_an_unreadable_record_is_held(type, op, bus_of):
    """It neither overwrites nor deletes what has no version; other changes are applied."""
    name = type.__record__.name
    store = Store("shop", MemoryAccessor(type), publisher=bus_of)
    for id in (1, 2):
        data(store, name)[str(id)] = {"id": id, "name": "x", "price": 1}
    list(store.capture())
    data(store, name)["1"] |= {"name": None, "price": 7}
    clock = store.clock
    changes = [put(id, clock, name) for id in (1, 2, 3)]
    if op == "delete":
        changes[0] = Change(type=name, key="1", op="delete", version=clock.tick(), data=None)
    unreadable = store.capture_before(changes, bus_of)
    assert list(unreadable) == [(name, "1")]
    first, *others = apply(store, changes, clock=clock, unreadable=unreadable)
    assert [item.outcome for item in others] == [Outcome.APPLIED] * 2
    assert (first.outcome, first.error.reason) == (Outcome.HELD, "unreadable")
    assert f"{name} '1'" in str(first.error)
    assert data(store, name)["1"] == {"id": 1, "name": None, "price": 7}
    # As soon as the record is readable, its capture and the change are ordered by version. Under
    # the per-field rule, an edit does not bring a record back that was deleted before.
    data(store, name)["1"]["name"] = "ours"
    assert store.capture_before(changes, bus_of) == {}
    apply(store, changes, clock=clock)
    kept = {"id": 1, "name": "ours", "price": 7}
    assert data(store, name).get("1") == (None if (type, op) == (Part, "delete") else kept)


def test_what_was_applied_before_is_not_held(store, bus_of):
    """A delivery that comes twice is a duplicate, although the record cannot be read since."""
    clock = store.clock
    change = put(1, clock)
    older = put(2, clock)
    apply(store, [change, put(2, clock)], clock=clock)
    data(store)["1"]["name"] = data(store)["2"]["name"] = None
    unreadable = store.capture_before([change, older], bus_of)
    outcomes = apply(store, [change, older], clock=clock, unreadable=unreadable)
    assert [item.outcome for item in outcomes] == [Outcome.DUPLICATE, Outcome.STALE]


@pytest.fixture
def bus_of():
    class Silent:
        def encode(self, change):
            return b"envelope"

        def publish(self, type, envelopes):
            pass

    return Silent()


@pytest.mark.parametrize("type", [Product, Part])
def test_sync_goes_on_beside_unreadable_records(type):
    """In the source and in the target: named, counted, and never overwritten."""
    name = type.__record__.name
    one, two = Store("one", MemoryAccessor(type)), Store("two", MemoryAccessor(type))
    for id in range(1, 6):
        data(one, name)[str(id)] = {"id": id, "name": "x", "price": id}
    registry = StoreRegistry(one, two)
    registry.synchronize(sources=["one"], targets=["two"])
    data(one, name)["1"]["name"] = None
    data(two, name)["2"] |= {"name": None, "price": 7}
    for id in (2, 3):
        data(one, name)[str(id)]["name"] = "new"
    report = registry.synchronize(sources=["one"], targets=["two"])
    assert sorted((store, error.key) for store, error in report.unreadable) == [
        ("one", "1"),
        ("two", "2"),
    ]
    assert report.outcomes["two"][Outcome.HELD] == 1
    assert report.outcomes["two"][Outcome.APPLIED] == 1
    assert data(two, name)["1"]["name"] == "x"
    assert data(two, name)["2"] == {"id": 2, "name": None, "price": 7}
    assert data(two, name)["3"]["name"] == "new"


def test_completion_goes_on_beside_unreadable_records():
    """A record stays pending while a peer that may hold its fields cannot read it."""
    part = View(omit=("price",))
    whole, some = (
        Store("whole", MemoryAccessor(Part)),
        Store("some", MemoryAccessor(Part, view=part)),
    )
    third = Store("third", MemoryAccessor(Part))
    for id in (1, 2):
        data(whole, "Part")[str(id)] = {"id": id, "name": "x", "price": 9}
        data(some, "Part")[str(id)] = {"id": id, "name": "y"}
    list(whole.capture())
    changes = [change for chunk in some.capture() for change in chunk]
    data(whole, "Part")["1"]["price"] = "many"
    apply(third, changes, clock=Clock())
    StoreRegistry(whole, some, third).synchronize(sources=["some"], targets=["third"])
    assert "1" not in data(third, "Part")
    assert data(third, "Part")["2"]["price"] == 9


def test_republish_goes_on_beside_unreadable_records(store, bus_of):
    """The others are published again."""
    data(store)["2"]["name"] = None
    errors = []
    assert store.republish(bus_of, since=0.0, unreadable=errors.append) == 3
    assert [error.key for error in errors] == ["2"]


def test_find_and_count_go_on_beside_unreadable_records(store):
    """With a callback they leave out what cannot be read; without, they raise its error."""
    data(store)["2"]["name"] = None
    errors = []
    assert [record.id for record in store.find(Product, unreadable=errors.append)] == [1, 3, 4]
    assert store.count(Product, {"price": 1}, unreadable=errors.append) == 3
    assert [error.key for error in errors] == ["2", "2"]
    with pytest.raises(RecordError):
        list(store.find(Product))
