"""The worker over the embedded broker: settling, dead letters, holding, stopping, being killed."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import threading
import time
from decimal import Decimal

import pytest

from eventsync.broker.bus import Bus, dead_queue, store_queue
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.engine.apply import Limits
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.envelope import batch
from eventsync.errors import (
    BusUnavailableError,
    RejectedError,
    StoreUnavailableError,
    UnroutableError,
)
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker


class Product(Record):
    id: int = Field(key=True)
    name: str
    price: Decimal = Decimal(0)


class Fussy(MemoryAccessor):
    """Refuses some names, and is away while told so."""

    away = False
    writes = 0

    def write_rows(self, writes, removals, transaction):
        type(self).writes += 1
        if self.away:
            raise StoreUnavailableError("away for the test")
        if any(write.values.get("name") == "poison" for write in writes):
            raise RejectedError("poison is refused")
        super().write_rows(writes, removals, transaction)


def put(clock, key, name="x", **more):
    data = {"id": key, "name": name, "price": Decimal("1.5")}
    return Change(
        type="Product", key=str(key), op="put", version=clock.tick(), data=data, source="t", **more
    )


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("crm", ["Product"])
        yield bus


@pytest.fixture
def store():
    return Store("crm", Fussy(Product)).open()


def publish(bus, *changes):
    bus.publish("Product", [bus.encode(change) for change in changes])


def letters(bus, store="crm"):
    with bus.letters(store) as found:
        return [letter for letter, _ in found.read()]


def test_applies_what_comes(bus, store):
    """What is published is in the store after a drain, and the queue is empty."""
    clock = Clock()
    publish(bus, put(clock, 1, "a"), put(clock, 2, "b"), put(clock, 1, "c"))
    worker = Worker(store, bus)
    assert worker.drain(timeout=0.05) == 1
    assert {r.key: r.name for r in store.find(Product)} == {"1": "c", "2": "b"}
    assert worker.outcomes == {Outcome.APPLIED: 2, Outcome.SUPERSEDED: 1}
    state = bus.state(store_queue("crm"))
    assert (state.ready, state.leased) == (0, 0)


def test_poison_is_alone(bus, store):
    """Of a batch with one record that the store refuses, that one becomes a dead letter."""
    clock = Clock()
    publish(bus, *(put(clock, n, "poison" if n == 37 else "fine") for n in range(100)))
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    assert store.count(Product) == 99
    (letter,) = letters(bus)
    assert (letter.key, letter.reason, letter.attempts) == ("37", "rejected", 1)
    assert letter.change().data["name"] == "poison"
    assert letter.queue == store_queue("crm")


def test_rejected_winner_does_not_take_what_it_superseded_along(bus, store):
    """If the latest of several changes of a record is refused, the one before it is applied."""
    clock = Clock()
    publish(bus, put(clock, 1, "good"), put(clock, 1, "poison"))
    Worker(store, bus).drain(timeout=0.05)
    assert store[Product, 1].name == "good"
    assert [letter.reason for letter in letters(bus)] == ["rejected"]


def test_a_body_that_is_none_is_a_dead_letter_and_supersedes_nothing(bus, store):
    """Values are read late; what cannot be read leaves the change before it to be applied."""
    clock = Clock()
    good, bad = put(clock, 1, "good"), put(clock, 1, "bad")
    # In the place of the text a byte that begins none.
    broken = bus.encode(bad).replace(b"\xa3bad", b"\xa3\xffad")
    bus.publish("Product", [bus.encode(good), broken])
    worker = Worker(store, bus)
    worker.drain()
    assert store.get(Product, 1).name == "good"
    (letter,) = letters(bus)
    assert letter.reason == "value"
    assert letter.raw == broken
    assert worker.outcomes == {Outcome.APPLIED: 1, Outcome.REJECTED: 1}


def test_a_superseded_body_is_not_read(bus, store):
    """A change that a later one of the same batch supersedes costs no look at its values."""
    clock = Clock()
    bad, good = put(clock, 1, "bad"), put(clock, 1, "good")
    broken = bus.encode(bad).replace(b"\xa3bad", b"\xa3\xffad")
    bus.publish("Product", [broken, bus.encode(good)])
    worker = Worker(store, bus)
    worker.drain()
    assert worker.outcomes == {Outcome.APPLIED: 1, Outcome.SUPERSEDED: 1}
    assert letters(bus) == []


def test_replayed_letter_passes_the_gate(bus, store):
    """A letter that is replayed is applied if it still is the latest, and else is stale."""
    clock = Clock()
    first = put(clock, 1, "poison")
    publish(bus, first)
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    publish(bus, put(clock, 1, "later"))
    with bus.letters("crm") as found:
        ((letter, delivery),) = found.read()
        bus.send_to("crm", [letter.raw])
        found.settle([delivery])
    worker.drain(timeout=0.05)
    assert store[Product, 1].name == "later"
    assert letters(bus) == []


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/x-eventsync"),
        (b"\xff\x00 no message", "application/x-eventsync"),
        (b"{}", "application/json"),
        (batch.join_batch([b"no envelope"]), "application/x-eventsync"),
    ],
)
def test_foreign_bytes_end_as_dead_letters(bus, store, body, content_type):
    """Bytes that are no message of ours become dead letters as they came, and stop nothing."""
    clock = Clock()
    bus._send([body], key=store_queue("crm"), content_type=content_type)
    publish(bus, put(clock, 1, "fine"))
    Worker(store, bus).drain(timeout=0.05)
    assert store[Product, 1].name == "fine"
    (letter,) = letters(bus)
    assert letter.raw in (body, b"no envelope")
    assert letter.message


def test_unknown_type_and_old_change_are_refused(bus, store):
    """A type that the store does not hold, and a change older than tombstones live, are refused."""
    clock = Clock()
    old = put(clock, 1)
    old.version = Version.of(int((time.time() - 11 * 86_400) * 1000))
    foreign = put(clock, 2)
    foreign.type = "Unknown"
    bus.send_to("crm", [bus.encode(old), bus.encode(foreign)])
    Worker(store, bus).drain(timeout=0.05)
    assert sorted(letter.reason for letter in letters(bus)) == ["too-old", "unknown-type"]
    assert store.count(Product) == 0


def test_change_from_the_future_is_held_then_applied(bus, store):
    """A version too far ahead is held, and applied once its time has come."""
    ahead = Clock(now=lambda: time.time() + 3.0)
    publish(bus, put(ahead, 1, "early"))
    worker = Worker(store, bus, options=Options(limits=Limits(drift=1.0)))
    worker.drain(timeout=0.02)
    assert store.count(Product) == 0
    assert worker.outcomes[Outcome.HELD] >= 1
    deadline = time.monotonic() + 10
    while not store.count(Product):
        assert time.monotonic() < deadline
        worker.drain(timeout=0.02)
    assert letters(bus) == []


def test_change_from_the_far_future_becomes_a_dead_letter(bus, store):
    """A version that stays in the future is dead-lettered, and moves no clock."""
    ahead = Clock(now=lambda: time.time() + 3600)
    publish(bus, put(ahead, 1))
    worker = Worker(store, bus, options=Options(hold_for=0.0))
    worker.drain(timeout=0.02)
    assert [letter.reason for letter in letters(bus)] == ["clock-drift"]
    assert store.clock.tick().millis < (time.time() + 60) * 1000


def test_store_away_dead_letters_nothing(bus, store):
    """While the store is away its work waits in the broker; then all of it is applied."""
    clock = Clock()
    publish(bus, *(put(clock, n) for n in range(10)))
    Fussy.away = True
    worker = Worker(store, bus, options=Options(retry_for=0.1))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        before = Fussy.writes
        _await(lambda: Fussy.writes > before + 3)
        assert letters(bus) == []
        Fussy.away = False
        _await(lambda: store.count(Product) == 10)
    finally:
        Fussy.away = False
        worker.stop()
        thread.join(10)
    assert letters(bus) == []
    assert not thread.is_alive()


def test_what_is_settled_is_let_go_of(bus, store):
    """No cycle keeps a batch once it is settled: memory does not wait for the collector."""

    def alive():
        return sum(isinstance(held, Change) for held in gc.get_objects())

    publish(bus, *(put(store.clock, n) for n in range(10)))
    worker = Worker(store, bus)
    gc.collect()
    before = alive()  # what other tests have left
    gc.disable()
    try:
        worker.drain(timeout=0.05)
        assert worker.outcomes == {Outcome.APPLIED: 10}
        assert alive() == before
    finally:
        gc.enable()


def test_unroutable_change_is_an_error(tmp_path):
    """Publishing a type that no store takes is an error, not a silence."""
    with (
        Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus,
        pytest.raises(UnroutableError, match="Product"),
    ):
        publish(bus, put(Clock(), 1))


def test_message_that_kills_workers_is_put_aside(bus, store):
    """A message that was taken too often by workers that then died becomes a dead letter."""
    publish(bus, put(Clock(), 1))
    worker = Worker(store, bus, options=Options(max_deliveries=1))
    subscription = bus.subscribe("crm", ["Product"], prefetch=1)
    (delivery,) = subscription.fetch(timeout=1.0, limit=1)
    delivery.attempts = 1
    worker._handle([delivery], subscription)
    subscription.close()
    assert [letter.reason for letter in letters(bus)] == ["crashes"]
    assert bus.state(dead_queue("crm")).ready == 1


def test_what_comes_waits_for_one_task_of_the_upkeep(bus, store, monkeypatch):
    """Each task has its own place in the second, also after something that took long."""
    now = 1000.0
    monkeypatch.setattr("eventsync.worker.maintenance.time.monotonic", lambda: now)
    worker = Worker(store, bus)
    done = []
    monkeypatch.setattr(worker.progress, "beat", lambda doing=None: done.append(doing))

    def seconds(count):
        """What each look found due, a hundred looks a second."""
        nonlocal now
        looks = []
        for _ in range(round(count * 100)):
            done.clear()
            worker._upkeep.run()
            looks.append(list(done))
            now += 0.01
        return looks

    looks = [*seconds(4)]
    now += 5.0
    late, *after = seconds(4)
    assert len(late) >= 4
    assert max(map(len, [*looks, *after])) == 1
    for task in ("broker", "held", "outbox"):
        assert 3 <= sum(look.count(task) for look in looks) <= 4
        assert 3 <= sum(look.count(task) for look in after) <= 4


def test_outbox_is_relayed(bus, tmp_path):
    """What a producer could not publish waits in its store's outbox, and the worker sends it."""
    bus.declare("other", ["Product"])
    store = Store("crm", SqlAccessor(Product, f"sqlite:///{tmp_path / 'crm.db'}", create=True))

    class Away:
        encode = staticmethod(bus.encode)

        def publish(self, type, envelopes):
            raise BusUnavailableError("away for the test")

    store.open(publisher=Away())
    store.add(Product(id=1, name="kept"))
    assert store.publish_error is not None
    assert len(store.index.outgoing()) == 1
    Worker(store, bus).drain(timeout=0.02)
    assert store.index.outgoing() == []
    other = Store("other", MemoryAccessor(Product)).open()
    Worker(other, bus).drain(timeout=0.02)
    assert other[Product, 1].name == "kept"


# -- processes --------------------------------------------------


class Slow(SqlAccessor):
    """Takes its time, and says when it is at it."""

    def write_rows(self, writes, removals, transaction):
        (_folder / "busy").touch()
        time.sleep(_pause)
        super().write_rows(writes, removals, transaction)


_folder = None
_pause = 0.0


def _store(folder):
    return Store("crm", Slow(Product, f"sqlite:///{folder / 'crm.db'}", create=True))


def _work(folder, pause, grace):
    global _folder, _pause
    _folder, _pause = folder, pause
    bus = Bus(f"sqlite:///{folder / 'broker.db'}")
    run(Worker(_store(folder), bus), grace=grace)


def _await(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.005)


@pytest.fixture
def start(tmp_path):
    context = multiprocessing.get_context("fork")
    started = []

    def start(pause=0.0, grace=20.0):
        process = context.Process(target=_work, args=(tmp_path, pause, grace))
        process.start()
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.join()


def test_sigterm_finishes_what_is_in_hand(bus, tmp_path, start):
    """A worker that is told to stop while it applies finishes that, acknowledges and leaves."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=0.5)
    _await((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(15)
    assert worker.exitcode == 0
    with _store(tmp_path) as store:
        assert store.count(Product) == 1
    state = bus.state(store_queue("crm"))
    assert (state.ready, state.leased) == (0, 0)


def test_second_sigterm_leaves_at_once(bus, tmp_path, start):
    """A second signal ends the process while it is busy; its message is there for others."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=60.0)
    _await((tmp_path / "busy").exists)
    deadline = time.monotonic() + 5
    while worker.is_alive():
        # Two that come at once are one, so it is told until it has heard twice.
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(0.05)
        assert time.monotonic() < deadline
    assert worker.exitcode == 70
    subscription = bus.subscribe("crm", ["Product"], prefetch=1)
    assert len(subscription.fetch(timeout=5.0, limit=1)) == 1
    subscription.close()


def test_grace_period_is_kept(bus, tmp_path, start):
    """A worker that does not finish within its grace period leaves all the same."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=60.0, grace=0.3)
    _await((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(5)
    assert worker.exitcode == 70


def test_killed_worker_loses_nothing(bus, tmp_path, start):
    """What a killed worker had in hand is taken over by the next one at once."""
    publish(bus, *(put(Clock(), n) for n in range(5)))
    worker = start(pause=60.0)
    _await((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    start()
    with _store(tmp_path) as store:
        _await(lambda: store.count(Product) == 5)


@pytest.mark.parametrize("rule", ["record", "field"])
def test_edit_behind_the_back_is_not_overwritten(tmp_path, rule):
    """An edit of a file by hand survives a change that comes before the next capture."""
    note = Record.derive(
        "Note",
        {"id": Field(type=int, key=True), "a": Field(type=str), "b": Field(type=str)},
        rule=rule,
    )
    accessor = MemoryAccessor(note)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("files", ["Note"])
        bus.declare("other", ["Note"])
        other = Store("other", MemoryAccessor(note), publisher=bus).open()
        files = Store("files", accessor, capture_every=3600.0).open()
        other.add(note(id=1, a="old", b="old"))
        worker = Worker(files, bus)
        worker.drain(timeout=0.02)
        accessor.data["1"]["b"] = "by hand"
        record = other[note, 1]
        record["a"] = "new"
        other.update(record)
        worker._upkeep._due["capture"] = float("inf")
        for store in (files, other, files):
            Worker(store, bus).drain(timeout=0.02) if store is other else worker.drain(timeout=0.02)
        expected = {"record": "old", "field": "new"}[rule]
        for store in (files, other):
            assert store[note, 1].raw() == {"id": 1, "a": expected, "b": "by hand"}
