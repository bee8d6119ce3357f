"""The follower: what it captures, when its mark moves, and what happens after failures."""

from __future__ import annotations

import pytest
from support.scripted_source import Scripted

from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.engine.change_source import choose
from eventsync.engine.finding import Finding, Level
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import MemoryIndex
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing.fake import FakeBus, FakeTime


class Product(Record):
    id: int = Field(key=True)
    name: str = ""


class Note(Record, rule="field"):
    id: int = Field(key=True)
    text: str = ""
    stars: int = 0


class Observer:
    def __init__(self):
        self.events = []

    def captured(self, type, count, moment):
        self.events.append(("captured", type, count, moment))

    def whole(self, type, reason):
        self.events.append(("whole", type, reason))

    def blocked(self, type, error):
        self.events.append(("blocked", type, str(error)))

    def cleared(self, type):
        self.events.append(("cleared", type))

    def alive(self):
        pass


class Ordered(MemoryAccessor):
    """Records that can be listed in the order of their keys, from any key on."""

    resumable = True

    def __init__(self, record_type, **options):
        super().__init__(record_type, **options)
        self.listed = []
        self.failure = None

    def find(self, query):
        for record in sorted(super().find(query), key=lambda record: record.key):
            self.listed.append(record.key)
            yield record

    def count(self, query):
        return len(self.data)

    def list_keys(self, query, *, after=""):
        for record in sorted(super().find(query), key=lambda record: record.key):
            if record.key > after:
                self.listed.append(record.key)
                yield record.key

    def read_rows(self, keys, transaction):
        if self.failure is not None:
            raise self.failure
        return super().read_rows(keys, transaction)


@pytest.fixture
def time():
    return FakeTime()


@pytest.fixture
def bus():
    return FakeBus()


@pytest.fixture
def store(bus, time):
    with Store(
        "shop",
        Ordered(Product),
        Ordered(Note),
        publisher=bus,
        index=MemoryIndex(),
        clock=Clock(now=time),
    ) as store:
        yield store


@pytest.fixture
def source():
    return Scripted()


@pytest.fixture
def follower(store, source, bus, time):
    follower = follower_of(store, source, bus, time)
    follower.open()
    rest(follower, time)
    bus.envelopes.clear()
    return follower


def follower_of(store, source, bus, time):
    follower = store.follower(bus, Observer(), source=source)
    follower._monotonic = time
    return follower


def rest(follower, time):
    """Run steps until all records were read and the mark is saved."""
    while follower.copies:
        time.advance(60)
        follower.step(0)
    time.advance(2)
    follower.step(0)


def write(store, record_type, key, **values):
    """Write behind eventsync's back."""
    store.accessors[record_type.__name__].data[str(key)] = {"id": key, **values}


def published(bus):
    return [(c.type, c.key, c.op) for c in bus.changes()]


def test_the_first_start_reads_all_records_after_the_source_is_open(store, source, bus, time):
    """Records that were there are captured; what is written meanwhile is told by the source."""
    for key in range(2500):
        write(store, Product, key, name=f"p{key}")
    follower = follower_of(store, source, bus, time)
    follower.open()
    assert source.opened == [""]
    follower.step(0)
    write(store, Product, 0, name="again")
    source.log.append(("Product", "0", time()))
    rest(follower, time)
    assert len(published(bus)) == 2501
    assert bus.changes()[-1].key != "0" or bus.changes()[-1].data["name"] == "again"
    again = follower_of(store, source, bus, time)
    again.open()
    assert again.copies == {}


def test_a_told_write_has_the_version_of_its_commit(store, source, follower, bus, time):
    """The moment counts, not that of the capture; a delete and a per-field write, too."""
    write(store, Product, 1, name="Ann")
    write(store, Note, 2, text="hi", stars=3)
    moment = time() - 100
    source.log += [("Product", "1", moment), ("Note", "2", moment + 1)]
    follower.step(0)
    assert published(bus) == [("Product", "1", PUT), ("Note", "2", PATCH)]
    assert [c.version.millis for c in bus.changes()] == [
        int(moment * 1000),
        int((moment + 1) * 1000),
    ]
    del store.accessors["Product"].data["1"]
    source.log.append(("Product", "1", moment + 5))
    follower.step(0)
    assert bus.changes()[-1].op == DELETE
    assert bus.changes()[-1].version.millis == int((moment + 5) * 1000)


def test_a_moment_never_makes_a_version_that_loses_to_what_it_replaced(
    store, source, follower, bus, time
):
    """A commit by a clock that is slow still replaces what eventsync wrote before it."""
    store.add(Product(id=1, name="ours"))
    ours = bus.changes()[-1].version
    write(store, Product, 1, name="theirs")
    source.log.append(("Product", "1", time() - 3600))
    follower.step(0)
    assert bus.changes()[-1].data["name"] == "theirs"
    assert bus.changes()[-1].version > ours


def test_a_moment_in_the_future_counts_as_now(store, source, follower, bus, time):
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time() + 3600))
    follower.step(0)
    assert bus.changes()[-1].version.millis <= int(time() * 1000)


def test_own_writes_are_no_foreign_writes(store, source, follower, bus, time):
    """A source that tells what eventsync wrote itself causes no echo."""
    store.add([Product(id=1, name="a"), Note(id=1, text="b")])
    bus.envelopes.clear()
    source.log += [("Product", "1", time()), ("Note", "1", time())]
    assert follower.step(0) == 0
    assert published(bus) == []


def test_a_follower_that_dies_continues_without_loss_or_echo(store, source, follower, bus, time):
    """What was captured, but not settled, is told again and is no change."""
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time()))
    follower.step(0)
    assert source.settled[-1:] != ["1"]  # the mark is saved up to a second later
    bus.envelopes.clear()
    write(store, Product, 2, name="Bob")
    source.log.append(("Product", "2", time()))
    again = follower_of(store, source, bus, time)
    again.open()
    assert again.copies == {}
    again.step(0)
    assert published(bus) == [("Product", "2", PUT)]
    again.finish()
    assert source.settled[-1] == "2"


@pytest.mark.parametrize("error", [StoreUnavailableError("away"), OSError("away")])
def test_the_mark_does_not_move_past_an_outage(store, source, follower, bus, time, error):
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time()))
    store.accessors["Product"].failure = error
    with pytest.raises(type(error)):
        follower.step(0)
    store.accessors["Product"].failure = None
    follower.close()
    follower.open()
    follower.step(0)
    assert published(bus) == [("Product", "1", PUT)]


def test_a_type_that_cannot_be_captured_holds_up_no_other(store, source, follower, bus, time):
    """Its records are all read later, even if the process dies meanwhile."""
    write(store, Product, 1, name="Ann")
    write(store, Note, 1, text="hi")
    source.log += [("Product", "1", time()), ("Note", "1", time())]
    store.accessors["Product"].failure = ConfigError("column name is gone")
    follower.step(0)
    follower.finish()
    assert published(bus) == [("Note", "1", PATCH)]
    assert ("blocked", "Product") in [event[:2] for event in follower._observer.events]
    store.accessors["Product"].failure = None
    again = follower_of(store, source, bus, time)
    again.open()
    assert list(again.copies) == ["Product"]
    rest(again, time)
    assert ("Product", "1", PUT) in published(bus)


def test_an_unreadable_record_stops_no_other_and_is_noted(store, source, follower, bus, time):
    write(store, Product, 1, name=["no text"])
    write(store, Product, 2, name="Bob")
    source.log += [("Product", "1", time()), ("Product", "2", time())]
    follower.step(0)
    assert published(bus) == [("Product", "2", PUT)]
    assert list(store.unreadable_records.of("Product")) == ["1"]
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time()))
    follower.step(0)
    assert published(bus)[-1] == ("Product", "1", PUT)
    assert not store.unreadable_records.of("Product")


def test_a_lost_mark_makes_all_records_be_read(store, source, follower, bus, time):
    write(store, Product, 1, name="unseen")
    source.lost = True
    again = follower_of(store, source, bus, time)
    again.open()
    assert {copy.reason for copy in again.copies.values()} == {"the log was truncated"}
    rest(again, time)
    assert published(bus) == [("Product", "1", PUT)]


def test_a_truncated_type_is_read_whole_and_its_deletes_are_guarded(
    store, source, follower, bus, time
):
    """Up to ten deletes are believed; more make the guard trip, and nothing is deleted."""
    store.add([Product(id=key) for key in range(5)])
    store.accessors["Product"].data.clear()
    bus.envelopes.clear()
    source.log.append(("Product", None, None))
    follower.step(0)
    rest(follower, time)
    assert published(bus) == [("Product", str(key), DELETE) for key in range(5)]
    store.add([Product(id=key) for key in range(50)])
    store.accessors["Product"].data.clear()
    bus.envelopes.clear()
    source.log.append(("Product", None, None))
    follower.step(0)
    rest(follower, time)
    assert published(bus) == []
    assert "50 of 50 known records" in follower._observer.events[-1][2]


def test_many_told_deletes_are_guarded_too(store, source, follower, bus, time):
    store.add([Product(id=key) for key in range(50)])
    store.accessors["Product"].data.clear()
    bus.envelopes.clear()
    source.log += [("Product", str(key), time()) for key in range(50)]
    follower.step(0)
    assert published(bus) == []
    assert follower._observer.events[-1][:2] == ("blocked", "Product")


def test_a_read_of_all_records_continues_after_a_kill(store, source, bus, time):
    """Each record is listed about once, however often the process dies."""
    for key in range(1000, 9500):
        write(store, Product, key, name="x")
    steps = 0
    while True:
        follower = follower_of(store, source, bus, time)
        follower.open()
        if "Product" not in follower.copies:
            break
        assert follower.copies["Product"].done == min(8500, 2000 * steps)
        time.advance(60)
        follower.step(0)
        follower.step(0)
        if steps >= 4:
            rest(follower, time)
        steps += 1
        assert steps < 8
    assert len(store.accessors["Product"].listed) <= 8500 + 1001 * 5
    assert len({c.key for c in bus.changes()}) == 8500


def test_a_read_of_all_records_is_throttled(store, source, bus, time):
    store.copy_rate = 1000.0
    for key in range(3000):
        write(store, Product, key, name="x")
    follower = follower_of(store, source, bus, time)
    follower._rate._now = time
    follower._rate._at = time()
    follower.open()
    follower.step(0)
    assert follower.copies["Product"].done == 1000
    follower.step(0)
    assert follower.copies["Product"].done == 1000
    time.advance(1.0)
    follower.step(0)
    assert follower.copies["Product"].done == 2000


def test_captured_writes_wait_in_the_outbox_while_the_broker_is_away(
    store, source, follower, bus, time
):
    bus.away = True
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time()))
    follower.step(0)
    assert store.index.waiting() == 1


class Lacking(Scripted):
    kind = "lacking"

    def findings(self):
        return [Finding(Level.WRONG, "log", "is off")]


def test_auto_takes_the_first_source_that_nothing_speaks_against():
    lacking, scripted = Lacking(), Scripted()
    assert choose([lacking, scripted], "auto", "shop") is scripted
    assert choose([scripted, lacking], "auto", "shop") is scripted
    assert choose([lacking], "auto", "shop") is lacking
    assert choose([lacking, scripted], "lacking", "shop") is lacking
    with pytest.raises(ConfigError, match="cannot capture by 'other'"):
        choose([lacking, scripted], "other", "shop")
    with pytest.raises(ConfigError, match="cannot capture by 'auto'"):
        choose([], "auto", "shop")


def test_writes_with_old_versions_are_published_again_after_a_loss(
    store, source, follower, bus, time, monkeypatch
):
    """A broker that loses what was published just now loses writes that were committed long ago."""
    monkeypatch.setattr("eventsync.engine.follower.time.time", time)
    write(store, Product, 1, name="Ann")
    source.log.append(("Product", "1", time() - 7200))
    follower.step(0)
    bus.envelopes.clear()
    assert store.republish(bus, since=time() - 10) == 1
    time.advance(3600)
    bus.envelopes.clear()
    assert store.republish(bus, since=time() - 10) == 0
