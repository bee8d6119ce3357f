"""The batching publisher: batches, back-pressure, slow and unreachable brokers."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.waiting import eventually

from eventsync.broker.batch_publisher import BatchPublisher
from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.errors import BusError, BusUnavailableError, UnroutableError
from eventsync.testing.fake import FakeBus

CLOCK = Clock()


def change(key=1, type="Item"):
    return Change(type=type, key=str(key), op="delete", version=CLOCK.tick(), data=None, source="t")


class Gated(FakeBus):
    """A broker that blocks until its gate is open, and records its batches."""

    def __init__(self):
        super().__init__()
        self.gate = threading.Event()
        self.batches = []

    def publish(self, type, envelopes):
        assert self.gate.wait(20)
        super().publish(type, envelopes)
        self.batches.append((type, len(envelopes)))


@pytest.fixture
def bus():
    return Gated()


def test_many_become_few(bus):
    """Changes sent while the broker is busy are published in few batches, in order."""
    with BatchPublisher(bus) as publisher:
        futures = [publisher.send(change(n)) for n in range(200)]
        assert not any(future.done() for future in futures)
        bus.gate.set()
        for future in futures:
            assert future.result(10) is None
    assert len(bus.batches) <= 3
    assert [c.key for c in bus.changes()] == [str(n) for n in range(200)]


def test_batches_are_bounded(bus):
    """No batch has more than ``max_count`` envelopes or two record types."""
    bus.gate.set()
    with BatchPublisher(bus, max_count=10, linger=0.05) as publisher:
        for number in range(25):
            publisher.send(change(number, "Item" if number < 15 else "Other"))
    assert sum(count for _, count in bus.batches) == 25
    assert max(count for _, count in bus.batches) <= 10


def test_what_one_call_gave_goes_together(bus):
    """The envelopes of one publish are one batch of their own, even if they exceed its limit."""
    bus.gate.set()
    with BatchPublisher(bus, max_count=10, linger=1.0) as publisher:
        publisher.send(change(0))
        publisher.publish("Item", [publisher.encode(change(number)) for number in range(1, 26)])
        publisher.publish("Item", [])
    assert [count for _, count in bus.batches] == [1, 25]


def test_full_buffer_holds_producers_back(bus):
    """When the broker blocks, the buffer stays bounded and ``send`` fails after the timeout."""
    with BatchPublisher(bus, buffer_bytes=2000, timeout=0.2) as publisher:
        with pytest.raises(BusUnavailableError, match="buffer stayed full"):
            list(map(publisher.send, map(change, range(1000))))
        assert publisher._size <= 2000
        bus.gate.set()


def test_broker_that_comes_back(bus):
    """Changes sent while the broker is unreachable are published when it is back."""
    bus.gate.set()
    bus.away = True
    with BatchPublisher(bus) as publisher:
        future = publisher.send(change())
        bus.away = False
        future.result(10)
    assert len(bus.envelopes) == 1


def test_broker_that_stays_away(bus):
    """A publish fails when the broker stays unreachable for the timeout."""
    bus.gate.set()
    bus.away = True
    with BatchPublisher(bus, timeout=0.1) as publisher:
        with pytest.raises(BusUnavailableError):
            publisher.publish("Item", [publisher.encode(change())])
        with pytest.raises(BusUnavailableError):
            publisher.send(change()).result(10)


def test_a_refused_change_fails_alone(bus):
    """A change that the broker refuses fails its own future only, though others share its batch."""
    refused = bus.encode(change(7))

    class Refusing(Gated):
        def publish(self, type, envelopes):
            if refused in envelopes:
                raise BusError("too large for the test")
            super().publish(type, envelopes)

    refusing = Refusing()
    refusing.gate.set()
    with BatchPublisher(refusing, linger=0.05) as publisher:
        good = [publisher.send(change(number)) for number in range(5)]
        with pytest.raises(BusError, match="too large"):
            publisher.publish("Item", [refused])
        good += [publisher.send(change(number)) for number in range(5, 10)]
        assert [future.result(10) for future in good] == [None] * 10
    assert len(refusing.envelopes) == 10


def test_loop_is_not_blocked(bus):
    """Waiting for the broker or for the buffer does not block the event loop."""

    async def main(publisher):
        tasks = [asyncio.create_task(publisher.apublish(change(n))) for n in range(50)]
        await asyncio.sleep(0.02)
        assert not any(task.done() for task in tasks)
        bus.gate.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 10)

    with BatchPublisher(bus, buffer_bytes=1000) as publisher:
        asyncio.run(main(publisher))
    assert len(bus.envelopes) == 50


def test_cancelled_before_its_turn_is_not_sent(bus):
    """A change whose future is cancelled before its batch is published is not sent."""
    with BatchPublisher(bus, linger=0.0) as publisher:
        first = publisher.send(change(1))
        eventually(lambda: first.running())
        assert publisher.send(change(2)).cancel()
        bus.gate.set()
    assert [c.key for c in bus.changes()] == ["1"]


def test_on_a_broker(tmp_path):
    """With a real broker, an unroutable change fails only its own future."""
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as broker:
        broker.declare("crm", ["Item"])
        with BatchPublisher(broker) as publisher:
            with pytest.raises(UnroutableError):
                publisher.send(change(1, "Unknown")).result(10)
            publisher.send(change(2)).result(10)
        assert broker.states("crm")["queue"].ready == 1


def test_end_of_the_process_loses_nothing(tmp_path):
    """Changes that were sent but not awaited are published before the process ends."""
    script = f"""
import sys
sys.path[:0] = {[str(Path(__file__).parents[1]), str(Path(__file__).parent)]!r}
from test_batch_publisher import *
bus = Bus("sqlite:///{tmp_path / "broker.db"}")
bus.declare("crm", ["Item"])
publisher = BatchPublisher(bus, linger=5.0)
publisher.send(change())
"""
    subprocess.run([sys.executable, "-c", script], check=True, timeout=30)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as broker:
        assert broker.states("crm")["queue"].ready == 1
