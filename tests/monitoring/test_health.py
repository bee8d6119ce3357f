"""Health: when a group of workers is ready, and when it makes progress."""

from __future__ import annotations

import time
from dataclasses import replace

from support.worker_harness import Product, publish_rows

from eventsync.broker.bus import Bus
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError
from eventsync.monitoring.backlog import BacklogMonitor
from eventsync.monitoring.health import Health
from eventsync.monitoring.worker_group import WorkerGroup
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.stores.memory import MemoryAccessor


def test_progress_is_judged_by_what_is_settled(bus, store, monkeypatch):
    """Messages that wait while none is settled are unhealthy; an empty queue never is."""
    now = [time.time()]
    backlog = BacklogMonitor(bus, [store], now=lambda: now[0])
    status = WorkerStatus("crm", now=lambda: now[0], monotonic=lambda: now[0])
    workers = WorkerGroup()
    workers.join("crm", status)
    health = Health(workers, backlog, stores=["crm"], stall_after=300.0, now=lambda: now[0])

    def look(after=0.0):
        now[0] += after
        for one in (backlog.broker, *backlog.outboxes.values()):
            one.poll()
        return health.progress()

    assert look(after=3600.0) == []
    assert health.ready() == ["crm: no worker is ready yet"]
    status.beat("applying")
    assert health.ready() == []
    publish_rows(bus, {"id": 1, "name": "a"})
    assert look(after=200.0) == []
    (reason,) = look(after=301.0)
    assert reason == (
        "crm: 1 messages wait or are in hand, and none was settled for 301 s; "
        "state of the workers: applying"
    )
    status.settled(1)
    assert look(after=200.0) == []
    # Not every broker tells how many messages are in hand; the workers that hold them do.
    real = bus.states

    def states(store):
        found = real(store)
        return {**found, "queue": replace(found["queue"], ready=0, leased=None, oldest=None)}

    monkeypatch.setattr(bus, "states", states)
    assert look() == []
    status.in_hand = 3
    status.beat()
    now[0] += 301.0
    assert health.progress()[0].startswith("crm: 3 messages wait or are in hand")
    status.settled(3)
    monkeypatch.undo()
    status.circuit.open(StoreUnavailableError("away for the test"))
    assert look() == ["crm: circuit open: away for the test"]
    assert health.ready() == look()
    assert health.live() == []


def test_an_outbox_that_is_not_relayed_is_unwell(bus):
    """An outbox whose oldest change waits too long is unhealthy."""
    store = Store("crm", MemoryAccessor(Product), publisher=Bus("redis://127.0.0.1:1/0")).open()
    store.add(Product(id=1, name="a"))
    now = [time.time()]
    backlog = BacklogMonitor(bus, [store], now=lambda: now[0])
    health = Health(WorkerGroup(), backlog, stall_after=300.0, now=lambda: now[0])
    backlog.broker.poll()
    backlog.stores["crm"].poll()
    assert health.progress() == []
    now[0] += 301.0
    real = store.clock.now
    store.clock.now = lambda: real() + 301.0
    backlog.stores["crm"].poll()
    (reason,) = health.progress()
    assert reason == "crm: 1 changes wait to be published, and none was published for 301 s"
