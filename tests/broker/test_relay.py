"""The relay of outboxes: its lease, killed processes, unreachable and refusing brokers."""

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
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from support.records import Product
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.broker.relay import Relay, serve
from eventsync.engine.store import Store
from eventsync.envelope.batch import split_batch
from eventsync.errors import (
    BusError,
    BusUnavailableError,
    ConfigError,
    StoreUnavailableError,
    UnroutableError,
)
from eventsync.index import FileIndex
from eventsync.index.lease import Lease
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.fake import FakeBus


class Away(FakeBus):
    """A broker that is unreachable."""

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
    """Start each kind of server once, when a test of the module first needs it."""
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
    """Return an index of each kind, in which nobody holds the lease."""
    made = INDEXES[request.param](servers, tmp_path).default_index()
    made.save_mark("relay", "")
    yield made
    made.close()


def lease(index, clock, wait=lambda seconds: None):
    return Lease(index, "relay", lifetime=10.0, monotonic=clock, wait=wait)


def test_lease_has_one_holder(index):
    """While a holder renews the lease nobody else gets it; after its release another does."""
    clock = Clock()
    first, second = lease(index, clock), lease(index, clock)
    assert first.take()
    for _ in range(10):
        clock.now += 4.0
        assert first.keep()
        assert not second.take()
    first.release()
    assert second.take()
    assert not first.keep()


def test_lease_of_a_dead_holder_is_taken(index):
    """A lease that was not renewed for its lifetime is taken by another process."""
    clock = Clock()
    dead, other = lease(index, clock), lease(index, clock)
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
    """Of two processes that take a free lease at once, only the last to write holds it."""
    clock = Clock()
    second = lease(index, clock)
    taken = []
    first = lease(index, clock, wait=lambda seconds: taken.append(late()))

    def late():
        index.save_mark("relay", "")  # as the second saw it before the first wrote
        return second.take()

    assert not first.take()
    assert taken == [True]


def test_backlog_is_published_in_order_and_once():
    """A relay publishes the whole outbox once, in order, and releases the lease."""
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
    """One call publishes at most ten thousand envelopes."""
    store = make(tmp_path, Away())
    with store.index.transaction() as transaction:
        transaction.send("Product", [b"x"] * 10_001)
    with Relay(store, FakeBus()) as relay:
        assert [relay.run_once() for _ in range(3)] == [10_000, 1, 0]


def test_relay_keeps_its_lease():
    """A relay keeps the lease until it is closed; then another continues at once."""
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


def test_idle_relay_renews_its_lease():
    """A relay with an empty outbox renews its lease, but not at every call."""
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
    """A few published envelopes stay in the outbox for a second and are not sent twice."""
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
    """A relay that cannot reach the broker releases the lease to another."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    store.add(Product(id=1, name="x"))
    with Relay(store, Away()) as relay, Relay(store, FakeBus()) as other:
        with pytest.raises(BusUnavailableError):
            relay.run_once()
        assert other.run_once() == 1


def test_relay_without_the_lease_publishes_nothing():
    """A relay publishes nothing without the lease, and stops when it loses the lease."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    store.add([Product(id=n, name="x") for n in range(3000)])
    other = Lease(store.index, "relay")
    assert other.take()
    assert Relay(store, FakeBus()).run_once() == 0
    other.release()

    class Robbed(FakeBus):
        def publish(self, type, envelopes):
            super().publish(type, envelopes)
            store.index.save_mark("relay", "another")

    assert Relay(store, Robbed()).run_once() == 1000
    assert store.index.load_mark("relay") == "another"


class Refusing(FakeBus):
    """A broker that refuses some bodies, and has no queue for ``Odd``."""

    refused = frozenset({b"7", b"8", b"500"})
    calls = 0

    def publish(self, type, envelopes):
        self.calls += 1
        if type == "Odd":
            raise UnroutableError("no queue takes Odd")
        if self.refused.intersection(envelopes):
            raise BusError("too large for the test")
        super().publish(type, envelopes)


def outbox(*rows):
    """Return a store whose outbox has these types and bodies."""
    store = Store("crm", MemoryAccessor(Product), publisher=Away()).open()
    with store.index.transaction() as transaction:
        for type, bodies in rows:
            transaction.send(type, bodies)
    return store


def test_refused_envelopes_do_not_stop_the_others():
    """Envelopes that the broker refuses stay in the outbox and raise; the others are published."""
    bodies = [b"%d" % number for number in range(2500)]
    store = outbox(("Product", bodies))
    bus = Refusing()
    with Relay(store, bus) as relay:
        for _ in range(2):
            with pytest.raises(BusError, match="too large"):
                relay.run_once()
    assert bus.envelopes == [body for body in bodies if body not in bus.refused]
    assert [outgoing.body for outgoing in store.index.outgoing()] == [b"7", b"8", b"500"]
    assert bus.calls < 150


def test_an_unroutable_type_does_not_stop_the_others():
    """Envelopes of a type that no queue takes stay in the outbox; the others are published once."""
    store = outbox(("Odd", [b"odd"] * 900), ("Product", [b"a"]), ("Odd", [b"odd"]))
    bus = Refusing()
    with Relay(store, bus) as relay:
        for _ in range(2):
            with pytest.raises(UnroutableError):
                relay.run_once()
    assert bus.envelopes == [b"a"]
    assert {outgoing.type for outgoing in store.index.outgoing(2000)} == {"Odd"}


def test_a_broker_that_refuses_everything_is_not_tried_for_each():
    """After ten refused envelopes and none published the relay gives up for this call."""
    bus = Refusing()
    bus.refused = frozenset({b"x"})
    relay = Relay(outbox(("Product", [b"x"] * 1000)), bus)
    with relay, pytest.raises(BusError, match="too large"):
        relay.run_once()
    assert bus.calls < 50


def test_serve_waits_for_an_unreachable_broker():
    """``serve`` reconnects after each failure; only a refusal of the first connection ends it."""

    class Outlet:
        name = "crm"
        errors: ClassVar = [
            BusUnavailableError("broker"),
            StoreUnavailableError("store"),
            ConfigError("no longer"),
        ]

        def run_once(self):
            raise self.errors.pop(0)

    class Hasty(threading.Event):
        waits: ClassVar = []

        def wait(self, timeout=None):
            self.waits.append(timeout)
            return False

    connected, stopping = [], Hasty()

    def connect():
        connected.append(1)
        if not Outlet.errors:
            stopping.set()
            raise ConfigError("no longer")

    serve(Outlet(), stopping, connect=connect)
    assert len(connected) == 4
    assert Hasty.waits == [0.5, 1.0, 2.0, 4.0]

    def refused():
        raise ConfigError("from the start")

    with pytest.raises(ConfigError, match="from the start"):
        serve(Outlet(), Hasty(), connect=refused)


def test_pauses_grow_with_the_idle_time():
    """``serve`` pauses for a tenth of the idle time, 0.2 s at most, and logs once a second."""
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


def test_idle_relay_runs_one_statement(tmp_path):
    """Looking at an empty outbox is one statement and writes nothing."""
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
        time.sleep(float(sys.argv[2]))  # it may be killed before it notes the publish

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
    """Return the numbers that arrived, in their order."""
    got = []
    subscription = bus.subscribe("all", ["Product"], prefetch=1000)
    while deliveries := subscription.fetch(timeout=0.2, limit=1000):
        got += [int(raw) for delivery in deliveries for raw in split_batch(delivery.body)]
        subscription.acknowledge(deliveries)
    subscription.close()
    return got


def test_another_takes_over_from_one_that_was_killed(tmp_path):
    """When an idle relay that holds the lease is killed, another continues."""
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
        # The lease expires a second after the other relay has seen its last mark.
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
    """Killed relays lose nothing and publish at most a thousand envelopes twice each."""
    backlog, kills = 20_000, 4
    count = backlog * kills
    store = make(tmp_path, Away())

    def pile_up(start):
        # Directly into the outbox, because edits are not of interest here.
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


def test_file_index_keeps_the_lease(tmp_path):
    """A lease in an index file is seen through another connection."""
    clock = Clock()
    first = lease(FileIndex(tmp_path / "index.db"), clock)
    second = lease(FileIndex(tmp_path / "index.db"), clock)
    assert first.take()
    assert not second.take()
