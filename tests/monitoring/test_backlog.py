"""The backlog: what is polled, and for how long an answer counts."""

from __future__ import annotations

from support.scraping import polled, scrape
from support.worker_harness import Product, publish_rows

from eventsync.broker.bus import Bus
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT
from eventsync.engine.store import Store
from eventsync.monitoring.backlog import Poller
from eventsync.monitoring.worker_group import WorkerGroup
from eventsync.stores.memory import MemoryAccessor


def test_backlog_sees_what_waits(bus, store, tmp_path):
    """Queues, outboxes and spools are polled, and since when their oldest change has waited."""
    publish_rows(bus, {"id": 1, "name": "a"})
    with Spool(tmp_path / "spool.db") as spool:
        change = Change(type="Product", key="9", op=PUT, version=Clock().tick(), data={"id": 9})
        spool.publish("Product", [spool.encode(change)])
        backlog = polled(bus, [store], spools=[spool])
        found = scrape(WorkerGroup(), backlog)
        first = backlog.spools["spool.db"].answer
        backlog.spools["spool.db"].poll()
        second = backlog.spools["spool.db"].answer
    assert found["eventsync_broker_up",] == 1
    assert found["eventsync_store_up", "crm"] == 1
    assert found["eventsync_queue_messages", "work", "crm"] == 1
    assert 0 <= found["eventsync_queue_oldest_seconds", "crm"] < 60
    assert found["eventsync_outbox_changes", "crm"] == 0
    assert found["eventsync_outbox_changes", "spool.db"] == 1
    assert found["eventsync_spool_bytes", "spool.db"] > 0
    assert first.since == second.since


def test_what_is_not_known_is_not_exported():
    """Of an unreachable broker only ``eventsync_broker_up`` is exported."""
    backlog = polled(Bus("redis://127.0.0.1:1/0"), [Store("crm", MemoryAccessor(Product))])
    found = scrape(WorkerGroup(), backlog)
    assert found["eventsync_broker_up",] == 0
    assert not [name for name, *_ in found if name.startswith("eventsync_queue")]


def test_an_answer_grows_old():
    """When a poll hangs, the last answer soon counts as unknown."""
    now = [0.0]
    look = Poller("it", lambda: 1, every=5.0, monotonic=lambda: now[0])
    assert look.error == "it has not answered yet"
    look.poll()
    assert (look.answer, look.error) == (1, "")
    now[0] = 17.0
    assert (look.answer, look.error) == (None, "it no longer answers")


def test_a_fault_is_no_answer():
    """Whatever a poll raises becomes the error, and the next poll may give an answer."""
    answers = [ZeroDivisionError("a fault"), 1]

    def ask():
        answer = answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    look = Poller("it", ask)
    look.poll()
    assert (look.answer, look.error) == (None, "ZeroDivisionError: a fault")
    look.poll()
    assert (look.answer, look.error) == (1, "")
