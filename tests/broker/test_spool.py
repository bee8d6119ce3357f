"""The spool: durable without a broker, in order, republished after the broker was lost."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
import threading
from itertools import pairwise

import pytest
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.envelope import codec
from eventsync.envelope.batch import split_batch
from eventsync.envelope.signing import Keyring
from eventsync.errors import BusUnavailableError, ConfigError, UnroutableError


class Broker:
    """A broker that records envelopes, can be unreachable, and has no queue for ``Odd``."""

    def __init__(self):
        self.got = []
        self.away = False
        self.lives = 1

    def life(self):
        return str(self.lives)

    def encode(self, change):
        return codec.encode(change)

    def publish(self, type, envelopes):
        if self.away:
            raise BusUnavailableError("away for the test")
        if type == "Odd":
            raise UnroutableError("nobody takes Odd")
        self.got += envelopes


class Now:
    def __init__(self):
        self.now = 1e9

    def __call__(self):
        return self.now


@pytest.fixture
def now():
    return Now()


def relay_once(spool, broker):
    with spool.relay(broker) as relay:
        return relay.run_once()


@pytest.fixture
def spool(tmp_path, now):
    with Spool(tmp_path / "spool.db", now=now) as spool:
        yield spool


def test_kept_over_a_restart_and_published_in_order(spool, tmp_path, now):
    """Envelopes stored while the broker is unreachable survive a restart, in order."""
    bodies = [b"%d" % number for number in range(2500)]
    for start in range(0, 2500, 100):
        spool.publish("Product", bodies[start : start + 100])
    broker = Broker()
    broker.away = True
    with pytest.raises(BusUnavailableError):
        relay_once(spool, broker)
    broker.away = False
    with Spool(tmp_path / "spool.db", now=now) as again:
        assert again.state().waiting == 2500
        assert relay_once(again, broker) == 2500
    assert broker.got == bodies


def test_published_again_after_the_broker_was_lost(spool, now):
    """Only envelopes confirmed in the window before the loss are published again."""
    broker = Broker()
    relay = spool.relay(broker)
    spool.publish("Product", [b"old"])
    relay.run_once()
    now.now += 11.0
    relay.run_once()
    spool.publish("Product", [b"late", b"later"])
    relay.run_once()
    broker.away = True
    spool.publish("Product", [b"new"])
    with pytest.raises(BusUnavailableError):
        relay.run_once()
    broker.away, broker.got = False, []
    now.now += 3600.0
    relay.run_once()
    assert broker.got == [b"late", b"later", b"new"]


def test_published_again_to_a_broker_that_was_restarted(spool, now):
    """A restarted broker gets the latest envelopes again, even if nobody saw it unreachable."""
    broker = Broker()
    relay = spool.relay(broker)
    spool.publish("Product", [b"one"])
    relay.run_once()
    broker.lives, broker.got = 2, []
    spool.publish("Product", [b"two"])
    relay.run_once()
    assert broker.got == [b"one", b"two"]


def test_kept_until_the_broker_has_answered_later(spool, now):
    """A confirmed envelope is kept until a later publish shows that the broker still has it."""
    broker = Broker()
    relay = spool.relay(broker)
    spool.publish("Product", [b"one"])
    relay.run_once()
    assert spool.state().kept == 1
    now.now += 3600.0
    broker.away = True
    with pytest.raises(BusUnavailableError):
        relay.run_once()
    assert spool.state().kept == 1
    broker.away, broker.got = False, []
    relay.run_once()
    assert broker.got == [b"one"]
    now.now += 11.0
    relay.run_once()
    assert spool.state().kept == 0


def test_broker_is_asked_once_a_second_for_what_is_kept(spool, now):
    """Checking the broker to drop kept envelopes happens at most once a second."""
    broker = Broker()
    relay = spool.relay(broker)
    for number in range(150):
        spool.publish("Product", [b"%d" % number])
        relay.run_once()
        now.now += 0.1
    assert len(set(broker.got)) == 150
    assert len(broker.got) <= 150 + 6  # in the five seconds in which there was something to drop
    assert 100 <= spool.state().kept <= 111


def test_new_relay_publishes_again_what_is_kept(spool):
    """A new relay publishes the kept envelopes again."""
    broker = Broker()
    spool.publish("Product", [b"one"])
    relay_once(spool, broker)
    relay_once(spool, broker)
    assert broker.got == [b"one", b"one"]


def test_a_type_that_nobody_takes_stops_no_other(spool):
    """Envelopes of an unroutable type wait and raise; other types are published."""
    broker = Broker()
    spool.publish("Odd", [b"odd"])
    spool.publish("Product", [b"one"])
    with pytest.raises(UnroutableError):
        relay_once(spool, broker)
    assert broker.got == [b"one"]
    assert spool.state().waiting == 1


def test_full_spool_says_so(tmp_path, now):
    """A full spool refuses a whole call, until its envelopes are published."""
    broker = Broker()
    with Spool(tmp_path / "spool.db", max_bytes=200_000, now=now) as spool:
        relay = spool.relay(broker)
        relay.run_once()
        bodies = [b"x" * 500] * 10
        for _ in range(20):
            spool.publish("Product", bodies)
        with pytest.raises(BusUnavailableError, match="is full"):
            spool.publish("Product", bodies * 50)
        assert spool.state().waiting == 200
        assert 100_000 < spool.state().bytes <= 200_000
        relay.run_once()
        now.now += 11.0
        relay.run_once()
        assert spool.state().kept == 0
        spool.publish("Product", bodies * 20)


def test_state_shows_size_and_age(spool, now):
    """``state`` has the number and age of waiting envelopes, and the bytes in use."""
    assert spool.state().oldest is None
    spool.publish("Product", [b"one", b"two"])
    now.now += 90.0
    state = spool.state()
    assert (state.waiting, state.oldest, state.kept) == (2, 90.0, 0)
    assert state.bytes > 0


def test_one_relay_at_a_time(spool, tmp_path):
    """While one relay publishes, another relay of the same file does nothing."""
    entered, go_on = threading.Event(), threading.Event()

    class Slow(Broker):
        def publish(self, type, envelopes):
            entered.set()
            assert go_on.wait(20)
            super().publish(type, envelopes)

    slow, idle = Slow(), Broker()
    spool.publish("Product", [b"one"])
    thread = threading.Thread(target=relay_once, args=(spool, slow))
    thread.start()
    try:
        assert entered.wait(20)
        with Spool(tmp_path / "spool.db") as other:
            assert relay_once(other, idle) == 0
    finally:
        go_on.set()
        thread.join()
    assert (slow.got, idle.got) == ([b"one"], [])


def test_signed(tmp_path):
    """A spool with keys signs envelopes."""
    keys = Keyring.parse("a:MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE=")
    change = Change(
        type="Product", key="1", op="delete", version=Clock().tick(), data=None, source="t"
    )
    spool = Spool(tmp_path / "spool.db", keys=keys)
    body = spool.encode(change)
    assert codec.decode(body, keys=keys).key == "1"
    assert spool.encode_all([change, change]) == [body, body]


def test_wrong_files_are_told(tmp_path):
    """A foreign database, a text file and a missing folder are refused and not changed."""
    sqlite3.connect(tmp_path / "other.db").executescript("CREATE TABLE t (a)")
    (tmp_path / "text").write_text("no database at all, only some text" * 50)
    for name in ("other.db", "text", "nowhere/spool.db"):
        with pytest.raises(ConfigError):
            Spool(tmp_path / name).publish("Product", [b"one"])


PRODUCER = """
import sys
from eventsync.broker.spool import Spool
spool = Spool(sys.argv[1])
for number in range(int(sys.argv[2]), 10**9):
    spool.publish("Product", [b"%d" % number])
    print(number, flush=True)
"""
RELAY = """
import sys, threading
from eventsync.broker.bus import Bus
from eventsync.broker.relay import serve
from eventsync.broker.spool import Spool
bus = Bus(sys.argv[2])
serve(Spool(sys.argv[1]).relay(bus), threading.Event(), poll=0.01)
"""


@pytest.mark.slow
def test_killed_producers_and_relays(tmp_path):
    """Killed producers and relays lose nothing that ``publish`` stored, and keep the order."""
    path, url = str(tmp_path / "spool.db"), f"sqlite:///{tmp_path / 'broker.db'}"
    bus = Bus(url)
    bus.declare("all", ["Product"])
    relays = [subprocess.Popen([sys.executable, "-c", RELAY, path, url]) for _ in range(2)]
    taken, first = set(), 0
    try:
        for kill in range(4):
            producer = subprocess.Popen(
                [sys.executable, "-c", PRODUCER, path, str(first)], stdout=subprocess.PIPE
            )
            lines = [producer.stdout.readline() for _ in range(100)]
            relays[kill % 2].send_signal(signal.SIGKILL)
            relays[kill % 2].wait()
            lines += [producer.stdout.readline() for _ in range(50)]
            producer.kill()
            lines += producer.communicate()[0].splitlines(keepends=True)
            # The kill may cut off the last line, which then does not count.
            taken |= {int(line) for line in lines if line.endswith(b"\n")}
            first += 100_000
            relays[kill % 2] = subprocess.Popen([sys.executable, "-c", RELAY, path, url])
        with Spool(path) as spool:
            eventually(lambda: spool.state().waiting == 0)
    finally:
        for relay in relays:
            relay.kill()
            relay.wait()
    got = []
    subscription = bus.subscribe("all", ["Product"], prefetch=1000)
    while deliveries := subscription.fetch(timeout=0.2, limit=1000):
        got += [int(raw) for delivery in deliveries for raw in split_batch(delivery.body)]
        subscription.acknowledge(deliveries)
    subscription.close()
    bus.close()
    assert taken <= set(got)
    # Each killed producer may have stored one number that it had not printed.
    assert len(set(got) - taken) <= 4
    assert all(a < b for a, b in pairwise(dict.fromkeys(got)))
