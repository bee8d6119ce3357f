"""The store: CRUD, the outbox, the search for foreign writes, and tombstones."""

from __future__ import annotations

import pytest

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import DELETE, PUT
from eventsync.engine.store import Store
from eventsync.errors import (
    AlreadyExistsError,
    BusUnavailableError,
    ConfigError,
    FieldError,
    NotFoundError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
    SuspiciousReadError,
)
from eventsync.index import FileIndex, MemoryIndex, Presence
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing.fake import FakeBus, FakeTime


class Product(Record):
    id: int = Field(key=True)
    name: str
    price: int = 0


class Note(Record, rule="field"):
    id: int = Field(key=True)
    text: str


class Shop(MemoryAccessor):
    """Products, some of which cannot be read, and a list of those that changed."""

    def __init__(self, record_type=Product, **options):
        super().__init__(record_type, **options)
        self.unreadable = {}
        self.changed = None
        self.reads = 0

    def data_to_record(self, data):
        if data["id"] in self.unreadable:
            raise self.unreadable[data["id"]]
        return super().data_to_record(data)

    def find(self, query):
        self.reads += 1
        return super().find(query)

    def changed_since(self, mark, unreadable):
        return self.changed


@pytest.fixture
def bus():
    return FakeBus()


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def store(bus, time):
    """Return a store of products and notes."""
    with Store("shop", Shop(), Shop(Note), publisher=bus, clock=Clock(now=time)) as store:
        yield store


def data(store, record_type=Product):
    """Return the data of the store, which a foreign writer may alter."""
    return store.accessor(record_type).data


def captured(store, **options):
    """Return the keys of the foreign writes that are found."""
    return [change.key for changes in store.capture(**options) for change in changes]


def fill(store, count=20):
    store.add([Product(id=number, name=f"n{number}") for number in range(count)])


# -- construction ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a.b"])
def test_a_name_is_also_the_name_of_a_queue(name):
    """Letters, digits, hyphen and underscore are allowed."""
    with pytest.raises(ConfigError, match="cannot be the name of a store"):
        Store(name, MemoryAccessor(Product))
    assert Store("a-B_1", MemoryAccessor(Product)).name == "a-B_1"


def test_a_store_has_one_accessor_of_each_type():
    """None at all and two of the same type are errors."""
    with pytest.raises(ConfigError, match="no accessor"):
        Store("shop")
    with pytest.raises(ConfigError, match="two accessors for records of type Product"):
        Store("shop", MemoryAccessor(Product), MemoryAccessor(Product))


def test_the_index_is_that_of_the_first_accessor_or_the_one_given(tmp_path):
    """A path makes an index in a file."""
    assert isinstance(Store("a", MemoryAccessor(Product)).index, MemoryIndex)
    index = MemoryIndex()
    accessor = MemoryAccessor(Product)
    with pytest.raises(ConfigError, match="does not belong to a store yet"):
        accessor.index  # noqa: B018
    assert Store("a", accessor, index=index).index is accessor.index is index
    with Store("a", MemoryAccessor(Product), index=tmp_path / "versions.db") as store:
        assert isinstance(store.index, FileIndex)
        store.add(Product(id=1, name="Lamp"))
    with Store("a", MemoryAccessor(Product), index=str(tmp_path / "versions.db")) as store:
        assert store.index.counts("Product")[Presence.PRESENT] == 1


def test_a_type_that_the_store_does_not_hold_is_an_error(store):
    """The error says which types it holds."""

    class Other(Record):
        id: int = Field(key=True)

    for call in (store.accessor, store.count, lambda kind: store.get(kind, 1)):
        with pytest.raises(ConfigError, match=r"no records of type 'Other'.*Product, Note"):
            call(Other)


# -- CRUD ------------------------------------------------------------------------------------------


def test_records_of_several_types_are_edited_in_one_call(store, bus):
    """Each is written by the accessor of its type and published."""
    store.add([Product(id=1, name="Lamp"), Note(id=1, text="hello"), Product(id=2, name="Desk")])
    assert (store.count(Product), store.count(Note), store.count()) == (2, 1, 3)
    assert sorted((c.type, c.key) for c in bus.changes()) == [
        ("Note", "1"),
        ("Product", "1"),
        ("Product", "2"),
    ]


def test_a_record_knows_its_stores_and_what_changed_since(store):
    """An update writes the fields set since the record was read, and no others."""
    store.add(Product(id=1, name="Lamp", price=5))
    record = store[Product, 1]
    assert store in record.stores
    store.update(Product(id=1, name="Lamp", price=6))
    record.name = "Lantern"
    store.update(record)
    assert not record.is_dirty
    assert data(store)["1"] == {"id": 1, "name": "Lantern", "price": 6}
    store.remove(record)
    assert store not in record.stores


def test_a_failed_edit_leaves_the_record_as_it_was(store):
    """It still counts as changed, and as held by no store."""
    store.add(Product(id=1, name="Lamp"))
    record = Product(id=1, name="again")
    with pytest.raises(AlreadyExistsError):
        store.add(record)
    assert record.is_dirty
    assert store not in record.stores
    with pytest.raises(NotFoundError):
        store.update(Product(id=2, name="none"))
    store.update(Product(id=2, name="new"), upsert=True)
    assert store[Product, 2].name == "new"


def test_records_are_found_and_removed_by_filter(store):
    """Sorted and sliced; a remove returns how many."""
    fill(store, 5)
    found = store.find(Product, {"id": {"$gt": 1}}, sort=["-id"], limit=2, skip=1)
    assert [record.id for record in found] == [3, 2]
    assert store.count(Product, {"id": {"$gt": 1}}) == 3
    assert store.remove(record_type=Product, where={"id": {"$gt": 1}}) == 3
    assert sorted(data(store)) == ["0", "1"]
    with pytest.raises(ConfigError):
        store.remove()


def test_operators(store):
    """A store reads like a collection."""
    store += Product(id=1, name="Lamp")
    store |= [Product(id=1, name="Lantern"), Product(id=2, name="Desk")]
    assert store[Product, 1].name == "Lantern"
    assert Product(id=2, name="") in store
    del store[Product, 2]
    assert Product(id=2, name="") not in store
    with pytest.raises(KeyError):
        store[Product, 2]
    store -= Product(id=1, name="")
    assert store.count() == 0


# -- the outbox ------------------------------------------------------------------------------------


def test_while_the_broker_is_away_edits_wait_in_the_outbox(store, bus, time):
    """The next edit publishes them too, in their order."""
    bus.away = True
    store.add(Product(id=1, name="Lamp"))
    time.advance(60)
    store.add(Product(id=2, name="Desk"))
    assert isinstance(store.publish_error, BusUnavailableError)
    assert store.backlog().waiting == 2
    assert store.backlog().oldest == pytest.approx(60, abs=1)
    with pytest.raises(BusUnavailableError):
        store.flush()
    bus.away = False
    store.add(Product(id=3, name="Chair"))
    assert [change.key for change in bus.changes()] == ["1", "2", "3"]
    assert store.publish_error is None
    assert (store.backlog().waiting, store.backlog().oldest) == (0, None)


def test_a_flush_publishes_up_to_a_limit(time):
    """It returns how many, through any publisher."""
    bus = FakeBus(away=True)
    with Store("shop", Shop(), publisher=bus, clock=Clock(now=time)) as store:
        fill(store, 5)
        other = FakeBus()
        assert [store.flush(other, limit=2) for _ in range(4)] == [2, 2, 1, 0]
        assert [change.key for change in other.changes()] == list("01234")
        assert bus.envelopes == []


def test_a_store_without_a_publisher_publishes_nothing():
    """Its edits have versions all the same. ``open`` may give it a publisher."""
    bus = FakeBus()
    store = Store("shop", Shop())
    store.add(Product(id=1, name="Lamp"))
    assert (store.flush(), store.index.outgoing()) == (0, [])
    store.open(publisher=bus)
    store.add(Product(id=2, name="Desk"))
    assert [change.key for change in bus.changes()] == ["2"]


def test_republish_sends_what_changed_since_a_time(store, bus, time):
    """Whole records and deletes at their own versions, and nothing older."""
    store.add(Product(id=1, name="old"))
    time.advance(10)
    store.add([Product(id=2, name="new"), Product(id=3, name="gone"), Note(id=4, text="note")])
    store.remove(Product(id=3, name="gone"))
    sent = {(c.type, c.key, c.op): c.version for c in bus.changes()}
    bus.envelopes.clear()
    assert store.republish(bus, since=time.now) == 3
    for change in bus.changes():
        op = PUT if change.type == "Note" else change.op
        assert sent[change.type, change.key, op] == change.version
    assert {change.key for change in bus.changes()} == {"2", "3", "4"}


# -- foreign writes --------------------------------------------------------------------------------


def test_foreign_writes_are_captured_and_published(store, bus):
    """Those to any type; each is found once, in chunks."""
    fill(store)
    store.add(Note(id=1, text="ours"))
    bus.envelopes.clear()
    data(store)["3"]["name"] = "theirs"
    data(store)["99"] = {"id": 99, "name": "added", "price": 0}
    data(store, Note)["1"]["text"] = "theirs"
    del data(store)["4"]
    assert sorted(captured(store)) == ["1", "3", "4", "99"]
    assert sorted((c.key, c.op) for c in bus.changes()) == [
        ("1", "patch"),
        ("3", PUT),
        ("4", DELETE),
        ("99", PUT),
    ]
    assert captured(store) == []
    data(store)["5"]["name"] = "theirs"
    data(store, Note)["1"]["text"] = "again"
    assert captured(store, record_type=Note) == ["1"]


def test_captured_changes_wait_while_the_broker_is_away(store, bus):
    """They are in the outbox, with the reason."""
    fill(store)
    bus.away = True
    data(store)["3"]["name"] = "theirs"
    assert captured(store) == ["3"]
    assert store.backlog().waiting == 1
    assert store.publish_error is not None


@pytest.mark.parametrize(
    "error",
    [
        RecordError("bad"),
        FieldError("Product", "price", "x", "a number"),
        RejectedError("the conversion failed", hint="mend it"),
        ZeroDivisionError("a bug"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_unreadable_record_stops_no_other(store, error):
    """Whatever is raised for it, it is reported and neither captured nor deleted."""
    fill(store)
    store.accessor(Product).unreadable = {3: error}
    data(store)["2"]["name"] = data(store)["4"]["name"] = "theirs"
    del data(store)["5"]
    errors = []
    assert sorted(captured(store, unreadable=errors.append)) == ["2", "4", "5"]
    [reported] = errors
    assert isinstance(reported, RecordError)
    assert getattr(error, "message", str(error)) in str(reported)
    assert reported is error or reported.__cause__ is error
    assert store.index.counts("Product")[Presence.PRESENT] == 19
    with pytest.raises(type(error)):
        captured(store)


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), OSError(), ConfigError("wrong")])
def test_an_error_of_the_whole_store_is_raised(store, error):
    """It says nothing about the record at which it was met."""
    fill(store)
    store.accessor(Product).unreadable = {3: error}
    with pytest.raises(type(error)):
        captured(store, unreadable=pytest.fail)
    with pytest.raises(type(error)):
        store.capture_before([change_of("3")], store.publisher)


def test_a_record_that_became_unreadable_since_it_was_listed(store):
    """It is found among many with few reads, and the others are captured."""
    fill(store, 200)
    accessor = store.accessor(Product)
    reads = []

    def read_rows(keys, transaction):
        reads.append(len(keys))
        if "7" in keys:
            raise RejectedError("broken")
        return type(accessor).read_rows(accessor, keys, transaction)

    vars(accessor)["read_rows"] = read_rows
    data(store)["2"]["name"] = data(store)["150"]["name"] = "theirs"
    errors = []
    assert sorted(captured(store, unreadable=errors.append)) == ["150", "2"]
    assert [str(error) for error in errors] == ["Product '7' cannot be read: broken"]
    assert len(reads) < 20


def test_many_missing_records_are_no_deletes(store):
    """More than half of the records and more than ten: the read has probably failed."""
    fill(store, 30)
    for number in range(16):
        del data(store)[str(number)]
    with pytest.raises(SuspiciousReadError, match="16 of 30"):
        captured(store)
    assert store.index.counts("Product")[Presence.PRESENT] == 30
    assert len(captured(store, deletes=0.6)) == 16


def test_a_few_missing_records_are_deletes(store):
    """Up to ten are, however few records are known."""
    fill(store, 10)
    data(store).clear()
    assert len(captured(store)) == 10


def test_records_that_expire_are_not_deleted(store):
    """A store says by ``forgets`` that its records may expire."""
    fill(store)
    store.accessor(Product).forgets = True
    data(store).clear()
    assert captured(store) == []


def test_a_store_that_tells_what_changed_is_seldom_read_whole(store):
    """In between only the changed records are compared, so deletes are not found."""
    fill(store)
    accessor = store.accessor(Product)
    accessor.changed = (["3"], "mark")
    data(store)["3"]["name"] = data(store)["4"]["name"] = "theirs"
    assert sorted(captured(store, record_type=Product, whole=False)) == ["3", "4"]  # the first time
    data(store)["3"]["name"] = data(store)["4"]["name"] = "again"
    del data(store)["5"]
    assert captured(store, record_type=Product, whole=False) == ["3"]
    assert store.index.load_mark("capture/Product") == "mark"
    assert accessor.reads == 1
    assert sorted(captured(store, record_type=Product)) == ["4", "5"]
    data(store)["6"]["name"] = "theirs"
    store.capture_whole_every = 0.0
    assert captured(store, record_type=Product, whole=False) == ["6"]
    assert accessor.reads == 3


def test_an_unreadable_record_is_read_again_although_the_mark_moves_on(store):
    """It is noted, and captured as soon as it can be read, whether or not it changed since."""
    fill(store)
    captured(store)
    accessor = store.accessor(Product)
    accessor.changed = (["2", "3"], "mark")
    accessor.unreadable = {3: RecordError("bad")}
    data(store)["2"]["name"] = "theirs"
    errors = []
    assert captured(store, whole=False, unreadable=errors.append) == ["2"]
    assert len(errors) == 1
    assert store.index.load_mark("capture/Product") == "mark"
    assert list(store.unreadable_records.of("Product")) == ["3"]
    accessor.changed = ([], "later")
    with pytest.raises(RecordError):
        captured(store, whole=False)
    accessor.unreadable = {}
    data(store)["3"]["name"] = "theirs"
    assert captured(store, whole=False) == ["3"]
    assert store.index.load_mark("capture/Product") == "later"
    assert store.unreadable_records.of("Product") == {}


def change_of(key, type="Product"):
    return Change(type=type, key=key, op=DELETE, version=Version.of(1), data=None)


def test_foreign_writes_are_captured_before_changes_are_applied(store, bus):
    """Only those to the records of the changes, and unreadable records are left out."""
    fill(store)
    store.accessor(Product).unreadable = {5: ZeroDivisionError()}
    for key in "345":
        data(store)[key]["name"] = "theirs"
    other = FakeBus()
    changes = [change_of("3"), change_of("3"), change_of("5"), change_of("1", "Unknown")]
    store.capture_before(changes, other)
    assert [change.key for change in other.changes()] == ["3"]
    store.accessor(Product).unreadable = {}
    assert sorted(captured(store)) == ["4", "5"]


def test_a_filtered_record_leaves_its_store(bus, time):
    """A foreign writer made it fail the filter: the change is published, the record removed."""
    view = View(where={"price": 0})
    with Store("shop", Shop(view=view), publisher=bus, clock=Clock(now=time)) as store:
        fill(store, 3)
        data(store)["1"]["price"] = 7
        assert captured(store) == ["1"]
        assert sorted(data(store)) == ["0", "2"]
        assert bus.changes()[-1].data["price"] == 7


# -- tombstones ------------------------------------------------------------------------------------


def test_old_tombstones_are_dropped(store, time):
    """Those of deletes before the time, and no other entries."""
    fill(store, 3)
    store.remove(Product(id=0, name=""))
    time.advance(100)
    store.remove(Product(id=1, name=""))
    assert store.collect(time.now - 200) == 0
    assert store.collect(time.now - 50) == 1
    assert [key for key, _ in store.index.scan("Product")] == ["1", "2"]
    assert store.collect(time.now + 1) == 1
    assert [key for key, _ in store.index.scan("Product")] == ["2"]
