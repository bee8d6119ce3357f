"""Counters: what a worker counts, and that it adds up."""

from __future__ import annotations

import json

import pytest
from support.scraping import polled, scrape
from support.worker_harness import Product, publish_rows

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT
from eventsync.errors import StoreUnavailableError
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_group import WorkerGroup
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


def test_counts_are_carried_and_add_up():
    """Counts that are taken from one object and merged into another are there once."""
    ours, theirs = Counters(), Counters()
    for counters in (ours, theirs):
        counters.add(catalogue.MESSAGES, 2, "crm")
        counters.observe(catalogue.BATCH, 10, "crm")
        counters.observe(catalogue.BATCH, 11, "crm")
    ours.merge(json.loads(json.dumps(theirs.take())))
    ours.merge(theirs.take())
    assert list(ours.totals()) == [(catalogue.MESSAGES, ("crm",), 4)]
    ((_, _, spread),) = ours.spreads()
    assert (spread.counts[:4], spread.sum) == ([0, 2, 2, 0], 42)


def test_worker_counts(bus, store):
    """A worker's counts by type and outcome, its batches and its lag are exported."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    workers = WorkerGroup(worker.counters)
    workers.expect("crm", store.accessors)
    workers.join("crm", worker.progress)
    publish_rows(
        bus, {"id": 1, "name": "a"}, {"id": 1, "name": "b"}, {"id": 2, "name": "c"}, age=7.0
    )
    publish_rows(bus, {"id": 3, "name": 3}, {"id": 4, "name": "d"}, type="Product")
    publish_rows(bus, {"id": 5, "name": "e"}, type="Stranger" * 9)
    worker.drain()
    found = scrape(workers, polled(bus, [store]))
    changes = "eventsync_changes_total"
    assert found[changes, "applied", "crm", "Product"] == 3
    assert found[changes, "superseded", "crm", "Product"] == 1
    assert found[changes, "rejected", "crm", "Product"] == 1
    assert found[changes, "rejected", "crm", "other"] == 1
    assert found[changes, "held", "crm", "Product"] == 0
    assert found["eventsync_dead_letters_total", "field", "crm", "Product"] == 1
    assert found["eventsync_dead_letters_total", "unknown-type", "crm", "other"] == 1
    assert found["eventsync_messages_total", "crm"] == 6
    assert found["eventsync_batch_changes_count", "crm"] == 1
    assert found["eventsync_batch_changes_sum", "crm"] == 6
    assert found["eventsync_lag_seconds_count", "crm", "Product"] == 3
    # Two were made seven seconds before.
    assert found["eventsync_lag_seconds_bucket", "5", "crm", "Product"] == 1
    assert found["eventsync_lag_seconds_bucket", "10", "crm", "Product"] == 3
    assert 7.0 < found["eventsync_current_lag_seconds", "crm"] < 10.0
    assert found["eventsync_queue_messages", "dead", "crm"] == 2
    assert found["eventsync_queue_messages", "work", "crm"] == 0


def test_counting_is_done_by_batches(bus, store, monkeypatch):
    """To count a thousand changes takes as few calls as to count ten."""
    calls = []
    for name in ("add", "spread"):
        real = getattr(Counters, name)
        monkeypatch.setattr(
            Counters, name, lambda *arguments, real=real: (calls.append(1), real(*arguments))
        )
    worker = Worker(store, bus)
    costs = []
    for count in (10, 1000):
        clock = Clock()
        changes = [
            Change(
                type="Product",
                key=str(n),
                op=PUT,
                version=clock.tick(),
                data={"id": n, "name": "a"},
            )
            for n in range(count)
        ]
        calls.clear()
        bus._message_envelopes = count
        bus.publish("Product", [bus.encode(change) for change in changes])
        worker.drain()
        costs.append(len(calls))
    assert worker.outcomes.total() == 1010
    assert costs[0] == costs[1] < 10


def test_retries_are_counted(bus, store):
    """Each retry counts the changes of its batch, by reason."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    publish_rows(bus, {"id": 1, "name": "a"}, {"id": 2, "name": "b"})
    store.accessors["Product"].away = True
    with pytest.raises(StoreUnavailableError):
        worker.drain()
    ((labels, count),) = [
        (labels, count)
        for one, labels, count in worker.counters.totals()
        if one is catalogue.RETRIED
    ]
    assert labels == ("crm", "Product", "unavailable")
    assert count >= 2
    assert count % 2 == 0


def test_what_is_published_is_counted(bus, store):
    """Changes that a worker or a relay publishes are counted."""
    store.publisher = Bus("redis://127.0.0.1:1/0")
    store.add([Product(id=1, name="a"), Product(id=2, name="b")])
    worker = Worker(store, bus)
    worker.drain()
    workers = WorkerGroup(worker.counters)
    store.add(Product(id=3, name="c"))
    store.flush(workers.counted("crm", bus))
    found = scrape(workers, polled(bus, [store]))
    assert found["eventsync_published_total", "crm", "Product"] == 3


def test_counted_before_the_broker_forgets(bus, store):
    """When a worker dies between counting and acknowledging, its messages come again."""
    worker = Worker(store, bus)
    publish_rows(bus, {"id": 1, "name": "a"})

    def die():
        assert bus.states("crm")["queue"].leased == 1
        raise KeyboardInterrupt

    worker.before_acknowledge = die
    with pytest.raises(KeyboardInterrupt):
        worker.drain()
    assert (catalogue.MESSAGES, ("crm",), 1) in list(worker.counters.totals())
    again = Worker(store, bus)
    assert again.drain() == 1
    assert again.outcomes == {"duplicate": 1}
