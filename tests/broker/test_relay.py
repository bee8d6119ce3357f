"""The relay of outboxes: whose turn it is, processes that are killed, a broker that is away."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import ClassVar

import pytest
from servers import eventually
from servers.postgres import PostgresServer
from servers.redis import RedisServer

from eventsync.broker.bus import Bus
from eventsync.broker.relay import Lease, Relay, serve
from eventsync.engine.store import Store
from eventsync.envelope.batch import split_batch
from eventsync.errors import BusUnavailableError, ConfigError, StoreUnavailableError
from eventsync.index import FileIndex
from eventsync.records.record import Field, Record
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.fake import FakeBus


class Product(Record):
    id: int = Field(key=True)
    name: str


class Away(FakeBus):
    """A broker that is away."""

    def publish(self, type, envelopes):
        raise BusUnavailableError("away for the test")


def make(folder, publisher=None):
    accessor = JsonFolderAccessor(Product, folder / "products")
    return Store("crm", accessor, index=folder / "index.db", publisher=publisher).open()


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture(scope="module")
def servers():
    """The servers that a test of the module has asked for, until the last is done."""
    with ExitStack() as stack:
        yield cache(lambda kind: stack.enter_context(kind()))


INDEXES = {
    "memory": lambda servers, folder: MemoryAccessor(Product),
    "file": lambda servers, folder: JsonFolderAccessor(Product, folder),
    "sqlite": lambda servers, folder: SqlAccessor(Product, f"sqlite:///{folder / 'x.db'}"),
    "postgres": lambda servers, folder: SqlAccessor(Product, servers(PostgresServer).url),
    "redis": lambda servers, folder: RedisAccessor(Product, servers(RedisServer).url),
}


@pytest.fixture(params=sorted(INDEXES))
def index(request, servers, tmp_path):
    """An index of each kind, in which it is nobody's turn."""
    made = INDEXES[request.param](servers, tmp_path).default_index()
    made.save_mark("relay", "")
    yield made
    made.close()


def turn(index, clock, wait=lambda seconds: None):
    return Lease(index, lifetime=10.0, monotonic=clock, wait=wait)


def test_turn_is_one_holder_s(index):
    """While one holds the turn and renews it no other gets it; when it lets go, another does."""
    clock = Clock()
    first, second = turn(index, clock), turn(index, clock)
    assert first.take()
    for _ in range(10):
        clock.now += 4.0
        assert first.keep()
        assert not second.take()
    first.release()
    assert second.take()
    assert not first.keep()


def test_turn_of_a_dead_holder_is_taken(index):
    """One that has not renewed its turn for its lifetime, as seen by the other, has lost it."""
    clock = Clock()
    dead, other = turn(index, clock), turn(index, clock)
    assert dead.take()
    assert not other.take()
    clock.now += 9.9
    assert not other.take()
    clock.now += 0.2
    assert other.take()
    assert not dead.keep()
    dead.release()
    assert other.keep()


def test_two_that_take_at_once(index):
    """Of two that find the turn free at the same moment the last to write has it, alone."""
    clock = Clock()
    second = turn(index, clock)
    taken = []
    first = turn(index, clock, wait=lambda seconds: taken.append(late()))

    def late():
        index.save_mark("relay", "")  # as the second saw it, before the first wrote
        return second.take()

    assert not first.take()
    assert taken == [True]


def test_backlog_is_published_in_order_and_once():
    """A relay publishes all that waits in the order it came, and leaves nothing behind."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    for number in range(2500):
        store.add(Product(id=number, name="x"))
    bus = FakeBus()
    with Relay(store, bus) as relay:
        assert relay.run_once() == 2500
        assert [change.key for change in bus.changes()] == [str(n) for n in range(2500)]
        assert store.backlog().waiting == 0
        assert relay.run_once() == 0
    assert store.index.load_mark("relay") == ""


def test_backlog_is_published_in_parts(tmp_path):
    """A long backlog does not keep a relay from leaving: it comes back after ten thousand."""
    store = make(tmp_path, Away())
    with store.index.transaction() as transaction:
        transaction.send("Product", [b"x"] * 10_001)
    with Relay(store, FakeBus()) as relay:
        assert [relay.run_once() for _ in range(3)] == [10_000, 1, 0]


def test_relay_keeps_its_turn():
    """Another waits for as long as the one that published lives, then goes on at once."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    bus = FakeBus()
    with Relay(store, bus) as relay, Relay(store, bus) as other:
        store.add(Product(id=1, name="x"))
        assert relay.run_once() == 1
        store.add(Product(id=2, name="x"))
        assert other.run_once() == 0
        assert relay.run_once() == 1
        store.add(Product(id=3, name="x"))
        relay.close()
        assert other.run_once() == 1
        assert relay.run_once() == 0


def test_relay_that_has_nothing_to_do_is_seen_alive():
    """It renews its turn though nothing comes, and reads no more than the outbox in between."""
    clock = Clock()
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    store.add(Product(id=1, name="x"))
    with Relay(store, FakeBus(), monotonic=clock) as relay:
        relay.run_once()
        marks = []
        for _ in range(10):
            clock.now += 1.0
            relay.run_once()
            marks.append(store.index.load_mark("relay"))
    assert len(set(marks)) == 4  # by its lifetime of ten seconds


def test_what_is_published_leaves_the_outbox_together():
    """Few envelopes stay there for a second, and are published once all the same; many do not."""
    clock = Clock()
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    bus = FakeBus()
    with Relay(store, bus, monotonic=clock) as relay:
        left = []
        for number in range(5):
            store.add(Product(id=number, name="x"))
            assert relay.run_once() == 1
            left.append(store.index.waiting())
            clock.now += 0.4
        assert left == [1, 2, 3, 0, 1]
        clock.now += 1.0
        assert relay.run_once() == 0
        assert store.index.waiting() == 0
        store.add([Product(id=number, name="x") for number in range(5, 205)])
        assert relay.run_once() == 200
        assert store.index.waiting() == 0
        store.add(Product(id=205, name="x"))
        assert relay.run_once() == 1
    assert store.index.waiting() == 0
    assert [change.key for change in bus.changes()] == [str(number) for number in range(206)]


def test_relay_that_loses_the_broker_lets_another_try():
    """Another may reach it."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    store.add(Product(id=1, name="x"))
    with Relay(store, Away()) as relay, Relay(store, FakeBus()) as other:
        with pytest.raises(BusUnavailableError):
            relay.run_once()
        assert other.run_once() == 1


def test_relay_lets_another_do_it():
    """While another holds the turn a relay publishes nothing, and when that is lost it stops."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    store.add([Product(id=n, name="x") for n in range(3000)])
    other = Lease(store.index)
    assert other.take()
    assert Relay(store, FakeBus()).run_once() == 0
    other.release()

    class Robbed(FakeBus):
        def publish(self, type, envelopes):
            super().publish(type, envelopes)
            store.index.save_mark("relay", "another")

    assert Relay(store, Robbed()).run_once() == 1000
    assert store.index.load_mark("relay") == "another"


def test_serve_waits_for_what_is_away():
    """A broker that is away is waited for and connected to again; a wrong setting ends it."""

    class Outlet:
        name = "crm"
        errors: ClassVar = [
            BusUnavailableError("broker"),
            StoreUnavailableError("store"),
            ConfigError("no"),
        ]

        def run_once(self):
            raise self.errors.pop(0)

    class Hasty(threading.Event):
        waits: ClassVar = []

        def wait(self, timeout=None):
            self.waits.append(timeout)
            return False

    connected = []
    with pytest.raises(ConfigError):
        serve(Outlet(), Hasty(), connect=lambda: connected.append(1))
    assert len(connected) == 3
    assert Hasty.waits == [0.5, 1.0]


def test_looks_by_how_often_something_comes():
    """What comes often is looked for soon again, and where nothing comes it is five times a second.

    What was published is told once a second.
    """
    clock, lines = Clock(), []

    class Outlet:
        name = "crm"

        def run_once(self):
            return clock.now < 1.0

    class Told(threading.Event):
        waits: ClassVar = []

        def wait(self, timeout=None):
            self.waits.append(timeout)
            clock.now += timeout
            return False

        def is_set(self):
            return clock.now > 20.0

    class Log:
        def info(self, event, **about):
            lines.append(about["count"])

    serve(Outlet(), Told(), log=Log(), monotonic=clock)
    waits = Told.waits
    assert waits[:100] == [0.01] * 100
    quiet = waits[100:]
    assert quiet == sorted(quiet)
    assert quiet[-1] == 0.2
    assert len(quiet) < 19 * 5 + 50
    assert lines == [1, 99]


def test_idle_relay_reads_once_a_look(tmp_path):
    """A look at an empty outbox is one statement, and no write."""
    accessor = SqlAccessor(Product, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    statements = []
    with Store("crm", accessor, publisher=Away()) as store, Relay(store, FakeBus()) as relay:
        store.add(Product(id=1, name="x"))
        assert relay.run_once() == 1
        relay.run_once()
        with store.index.engine.connect() as connection:
            raw = connection.connection.driver_connection
        raw.set_trace_callback(statements.append)
        relay.run_once()
        raw.set_trace_callback(None)
    (statement,) = statements
    assert statement.startswith("SELECT")


RELAY = """
import sys, threading, time
from pathlib import Path
from eventsync.broker.bus import Bus
from eventsync.broker.relay import Relay, serve
sys.path[:0] = {folders!r}
from test_relay import make

class Slow(Bus):
    def publish(self, type, envelopes):
        super().publish(type, envelopes)
        time.sleep(float(sys.argv[2]))  # it may die between the publish and its note of it

folder = Path(sys.argv[1])
bus = Slow("sqlite:///" + str(folder / "broker.db"))
print("ready", flush=True)
serve(Relay(make(folder), bus, lifetime=1.0), threading.Event(), poll=0.01)
"""


def begin(folder, pause):
    here = Path(__file__)
    script = RELAY.format(folders=[str(here.parents[1]), str(here.parent)])
    command = [sys.executable, "-c", script, str(folder), str(pause)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE)
    assert process.stdout.readline() == b"ready\n"
    return process


def received(bus):
    """The numbers that came, in their order."""
    got = []
    subscription = bus.subscribe("all", ["Product"], prefetch=1000)
    while deliveries := subscription.fetch(timeout=0.2, limit=1000):
        got += [int(raw) for delivery in deliveries for raw in split_batch(delivery.body)]
        subscription.acknowledge(deliveries)
    subscription.close()
    return got


def test_another_takes_over_from_one_that_was_killed(tmp_path):
    """A relay that holds its turn is killed with nothing in hand: another goes on where it was."""
    store = make(tmp_path, Away())
    bus = Bus(f"sqlite:///{tmp_path / 'broker.db'}")
    bus.declare("all", ["Product"])

    def put(*numbers):
        with store.index.transaction() as transaction:
            transaction.send("Product", [b"%d" % number for number in numbers])

    def published():
        eventually(lambda: store.index.waiting() == 0, timeout=5.0)

    def holder():
        pid = int(store.index.load_mark("relay").split()[0])
        return next(relay for relay in relays if relay.pid == pid)

    relays = [begin(tmp_path, 0.0) for _ in range(2)]
    try:
        put(0)
        published()
        first = holder()
        put(1)
        published()
        assert holder() is first
        first.kill()
        first.wait()
        put(2, 3)
        # Its lifetime is a second, from when the other has seen its last mark.
        published()
        assert holder() is not first
        put(4)
        published()
    finally:
        for relay in relays:
            relay.kill()
            relay.communicate()
    assert received(bus) == [0, 1, 2, 3, 4]
    bus.close()


@pytest.mark.slow
def test_relays_that_are_killed(tmp_path):
    """Three relays, one killed after another amid a backlog: all of it goes out, hardly twice."""
    backlog, kills = 20_000, 4
    count = backlog * kills
    store = make(tmp_path, Away())

    def pile_up(start):
        # Straight into the outbox: how it comes there is not of interest here.
        with store.index.transaction() as transaction:
            transaction.send("Product", [b"%d" % n for n in range(start, start + backlog)])

    bus = Bus(f"sqlite:///{tmp_path / 'broker.db'}")
    bus.declare("all", ["Product"])
    relays = [begin(tmp_path, 0.1) for _ in range(3)]
    try:
        for number in range(kills):
            pile_up(number * backlog)
            eventually(lambda: store.index.waiting() < backlog)
            holder = int(store.index.load_mark("relay").split()[0])
            (victim,) = (relay for relay in relays if relay.pid == holder)
            victim.send_signal(signal.SIGKILL)
            victim.communicate()
            relays[relays.index(victim)] = begin(tmp_path, 0.1)
            eventually(lambda: store.index.waiting() == 0, timeout=60)
    finally:
        for relay in relays:
            relay.kill()
            relay.communicate()
    got = received(bus)
    bus.close()
    assert set(got) == set(range(count))
    assert len(got) <= count + 1000 * kills
    seen = list(dict.fromkeys(got))
    assert seen == sorted(seen)


def test_file_index_keeps_the_turn(tmp_path):
    """A turn in an index file is seen by another connection to it."""
    clock = Clock()
    first = turn(FileIndex(tmp_path / "index.db"), clock)
    second = turn(FileIndex(tmp_path / "index.db"), clock)
    assert first.take()
    assert not second.take()
