"""Signals: a worker process that is stopped or killed."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import pytest
from support.waiting import eventually
from support.worker_harness import Product, publish, put

from eventsync.broker.bus import Bus, store_queue
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker


class Slow(SqlAccessor):
    """Is slow, and creates a file when it begins to write."""

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
    """A worker that gets SIGTERM while it applies finishes, acknowledges and ends with 0."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=0.5)
    eventually((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(15)
    assert worker.exitcode == 0
    with _store(tmp_path) as store:
        assert store.count(Product) == 1
    state = bus.state(store_queue("crm"))
    assert (state.ready, state.leased) == (0, 0)


def test_second_sigterm_leaves_at_once(bus, tmp_path, start):
    """A second signal ends a busy process at once; its message is redelivered."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=60.0)
    eventually((tmp_path / "busy").exists)
    deadline = time.monotonic() + 5
    while worker.is_alive():
        # Two signals at the same time arrive as one, so they are repeated.
        os.kill(worker.pid, signal.SIGTERM)
        worker.join(0.05)
        assert time.monotonic() < deadline
    assert worker.exitcode == 70
    subscription = bus.subscribe("crm", ["Product"], prefetch=1)
    assert len(subscription.fetch(timeout=5.0, limit=1)) == 1
    subscription.close()


def test_grace_period_is_kept(bus, tmp_path, start):
    """A worker that does not finish within its grace period is ended."""
    publish(bus, put(Clock(), 1))
    worker = start(pause=60.0, grace=0.3)
    eventually((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(5)
    assert worker.exitcode == 70


def test_killed_worker_loses_nothing(bus, tmp_path, start):
    """The messages that a killed worker had in hand are applied by the next one at once."""
    publish(bus, *(put(Clock(), n) for n in range(5)))
    worker = start(pause=60.0)
    eventually((tmp_path / "busy").exists)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    start()
    with _store(tmp_path) as store:
        eventually(lambda: store.count(Product) == 5)
