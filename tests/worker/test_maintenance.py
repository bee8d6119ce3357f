"""Maintenance: held changes, the outbox, capture, old dead letters, and when each is due."""

from __future__ import annotations

import pytest
from structlog.testing import CapturingLogger
from support.waiting import eventually
from support.worker_harness import Product, publish, put, running, worker_parts

from eventsync.broker.bus import Bus
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import (
    BusUnavailableError,
    RecordError,
    StoreUnavailableError,
    SuspiciousReadError,
)
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.capture import CaptureTask
from eventsync.worker.maintenance import Maintenance
from eventsync.worker.options import Options
from eventsync.worker.refill import RefillTask
from eventsync.worker.worker import Worker


def test_one_busy_record_stops_no_other(bus, store):
    """A change that fails retryably by itself is held with its attempts, then dead-lettered."""
    publish(bus, *(put(store.clock, n, name) for n, name in enumerate(["a", "busy", "c", "d"], 1)))
    worker = Worker(store, bus, options=Options(retry_for=0.05, hold_for=2.5))
    thread = running(worker)
    try:
        eventually(lambda: store.count(Product) == 3)
        eventually(lambda: worker.outcomes[Outcome.HELD] >= 1)
    finally:
        worker.stop()
        thread.join(10)
    with bus.letters("crm", held=True) as held:
        ((letter, _),) = held.read()
    attempts, first = letter.attempts, letter.first_time
    # Another process takes over what is known of it.
    successor = Worker(store, bus, options=Options(retry_for=0.05, hold_for=2.5))
    thread = running(successor)
    try:
        publish(bus, put(store.clock, 5, "e"))
        eventually(lambda: store.count(Product) == 4)
        eventually(lambda: bus.states("crm")["dead"].ready == 1)
    finally:
        successor.stop()
        thread.join(10)
    with bus.letters("crm") as dead:
        ((letter, _),) = dead.read()
    assert (letter.reason, letter.key, letter.first_time) == ("unavailable", "2", first)
    assert letter.attempts > attempts


def test_old_letters_are_dropped(bus, store):
    """Dead letters older than the retention are dropped, and no others."""
    bus.send_to("crm", [b"no envelope"])
    worker = Worker(store, bus, options=Options(letter_retention=3600.0))
    worker.drain(timeout=0.02)
    assert bus.states("crm")["dead"].ready == 1
    assert Worker(store, bus, options=Options(letter_retention=1e-6)).drain(timeout=0.02) == 0
    assert bus.states("crm")["dead"].ready == 0


def test_tasks_are_spread_over_the_second(bus, store, monkeypatch):
    """Tasks are due one after the other, also after a batch that took long."""
    now = 1000.0
    context, applier, settlement = worker_parts(store, bus)
    maintenance = Maintenance(context, applier, settlement, monotonic=lambda: now)
    done = []
    monkeypatch.setattr(context.status, "beat", lambda doing=None: done.append(doing))

    def seconds(count):
        """Return which tasks each of a hundred runs a second did."""
        nonlocal now
        runs = []
        for _ in range(round(count * 100)):
            done.clear()
            maintenance.run()
            runs.append(list(done))
            now += 0.01
        return runs

    runs = [*seconds(4)]
    now += 5.0
    late, *after = seconds(4)
    assert len(late) >= 4
    assert max(map(len, [*runs, *after])) == 1
    for task in ("broker", "held", "outbox"):
        assert 3 <= sum(run.count(task) for run in runs) <= 4
        assert 3 <= sum(run.count(task) for run in after) <= 4


def test_a_task_that_fails_stops_no_other(bus, store, monkeypatch):
    """Whatever a task raises is logged with its name, and the tasks after it run."""
    log = CapturingLogger()
    context, applier, settlement = worker_parts(store, bus)
    context.log = log
    maintenance = Maintenance(context, applier, settlement)

    def fail(*arguments, **options):
        raise ZeroDivisionError("a fault of an accessor")

    ran = []
    monkeypatch.setattr(store.index, "scan", fail)
    monkeypatch.setattr(store, "collect", ran.append)
    maintenance.run(at_once=True)
    assert len(ran) == 1
    (call,) = [call for call in log.calls if call.args == ("maintenance task failed",)]
    assert call.method_name == "error"
    assert call.kwargs["task"] == "pending"
    assert call.kwargs["error"] == "unexpected ZeroDivisionError: a fault of an accessor"


TASKS = {
    "broker": "republish_lost",
    "held": "_retry_held",
    "outbox": "_flush_outbox",
    "pending": "_complete_pending",
    "tombstones": "_collect_tombstones",
    "letters": "_drop_old_dead_letters",
    "refill": "check",
    "capture": "begin",
}
OWNERS = {"refill": RefillTask, "capture": CaptureTask}


@pytest.mark.parametrize("failing", TASKS)
@pytest.mark.parametrize(
    "error",
    [
        KeyError("a fault of an accessor"),
        RecordError("one record is odd"),
        SuspiciousReadError("the store is empty"),
        StoreUnavailableError("the store is away"),
        OSError("the disk is full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_each_task_is_fenced(bus, monkeypatch, failing, error):
    """Whichever task fails, for whatever reason, all others run, and only it is logged."""
    store = Store("crm", MemoryAccessor(Product), capture_every=0.01).open()
    context, applier, settlement = worker_parts(store, bus)
    context.log = log = CapturingLogger()
    ran = []

    def task(name):
        def run(self):
            ran.append(name)
            if name == failing:
                raise error

        return run

    for name, method in TASKS.items():
        monkeypatch.setattr(OWNERS.get(name, Maintenance), method, task(name))
    Maintenance(context, applier, settlement).run(at_once=True)
    assert sorted(ran) == sorted(TASKS)
    assert [call.kwargs["task"] for call in log.calls] == [failing]


def test_a_broker_that_is_unreachable_is_not_a_failed_task(bus, store, monkeypatch):
    """An unreachable broker is raised, because the worker has to wait for it."""
    context, applier, settlement = worker_parts(store, bus)

    def fail(*arguments):
        raise BusUnavailableError("away for the test")

    monkeypatch.setattr(bus, "states", fail)
    with pytest.raises(BusUnavailableError):
        Maintenance(context, applier, settlement).run(at_once=True)


def test_outbox_is_relayed(bus, tmp_path):
    """Changes that a producer could not publish are sent from the outbox by the worker."""
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
        for store in (files, other, files):
            Worker(store, bus).drain(timeout=0.02) if store is other else worker.drain(timeout=0.02)
        expected = {"record": "old", "field": "new"}[rule]
        for store in (files, other):
            assert store[note, 1].raw() == {"id": 1, "a": expected, "b": "by hand"}
