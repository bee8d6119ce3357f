"""The worker: its loop, its circuit, its rate, and how it stops."""

from __future__ import annotations

import gc
import threading
import time

import pytest
from support.waiting import eventually
from support.worker_harness import Fussy, Product, letters, publish, put, running

from eventsync.broker.bus import Bus, store_queue
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError, UnroutableError
from eventsync.monitoring.circuit_breaker import CircuitState
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


def test_applies_what_comes(bus, store):
    """Published changes are in the store after a drain, and the queue is empty."""
    clock = Clock()
    publish(bus, put(clock, 1, "a"), put(clock, 2, "b"), put(clock, 1, "c"))
    worker = Worker(store, bus)
    assert worker.drain(timeout=0.05) == 1
    assert {r.key: r.name for r in store.find(Product)} == {"1": "c", "2": "b"}
    assert worker.outcomes == {Outcome.APPLIED: 2, Outcome.SUPERSEDED: 1}
    state = bus.state(store_queue("crm"))
    assert (state.ready, state.leased) == (0, 0)


def test_store_away_dead_letters_nothing(bus, store):
    """While the store is unreachable its messages wait in the broker; then all are applied."""
    clock = Clock()
    publish(bus, *(put(clock, n) for n in range(10)))
    accessor = store.accessors["Product"]
    accessor.away = accessor.answers = True
    worker = Worker(store, bus, options=Options(retry_for=0.1))
    thread = threading.Thread(target=worker.run)
    thread.start()
    try:
        before = accessor.writes
        eventually(lambda: accessor.writes > before + 3)
        assert letters(bus) == []
        accessor.away = False
        eventually(lambda: store.count(Product) == 10)
    finally:
        accessor.away = False
        worker.stop()
        thread.join(10)
    assert letters(bus) == []
    assert not thread.is_alive()


def test_what_is_settled_is_let_go_of(bus, store):
    """A settled batch is freed at once, without the cyclic garbage collector."""

    def alive():
        return sum(type(held) is Change for held in gc.get_objects())

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
    """To publish a type that no store takes is an error."""
    with (
        Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus,
        pytest.raises(UnroutableError, match="Product"),
    ):
        publish(bus, put(Clock(), 1))


def test_circuit_is_visible(bus, store):
    """While a store is unreachable its circuit is open; then it is closed again."""
    accessor = store.accessors["Product"]
    publish(bus, put(store.clock, 1, "a"), put(store.clock, 2, "b"))
    worker = Worker(store, bus, options=Options(retry_for=0.05))
    circuit = worker.progress.circuit
    accessor.away = True
    thread = running(worker)
    try:
        eventually(lambda: circuit.state is not CircuitState.CLOSED)
        assert "for the test" in circuit.to_json()["error"]
        accessor.away = False
        eventually(lambda: store.count(Product) == 2)
        assert circuit.state is CircuitState.CLOSED
        assert circuit.to_json()["opened"] == 1
    finally:
        accessor.away = False
        worker.stop()
        thread.join(10)


def test_worker_stops_while_its_store_is_unreachable(bus, store):
    """A worker that is stopped while it waits for its store returns without an error."""
    accessor = store.accessors["Product"]
    accessor.away = True
    publish(bus, put(store.clock, 1))
    worker = Worker(store, bus, options=Options(retry_for=0.05))
    stopping = threading.Timer(1.0, worker.stop)
    stopping.start()
    worker.run()
    assert worker.progress.circuit.state is not CircuitState.CLOSED
    assert bus.states("crm")["queue"].ready == 1


def test_circuit_opens_for_an_error_of_the_system(bus, store):
    """A store that fails with an ``OSError`` opens its circuit, and its worker goes on."""
    accessor = store.accessors["Product"]
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    publish(bus, put(store.clock, 1))
    real = accessor.write_rows

    def reset(*arguments):
        raise ConnectionResetError("reset for the test")

    accessor.write_rows = reset
    thread = running(worker)
    try:
        eventually(lambda: worker.progress.circuit.opened)
        accessor.write_rows = real
        eventually(lambda: worker.outcomes == {Outcome.APPLIED: 1})
    finally:
        worker.stop()
        thread.join(10)


def test_circuit_opens_before_the_store_was_ever_there(bus, store):
    """A store that is unreachable when its worker starts opens its circuit too."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    accessor, real = store.accessors["Product"], store.open

    def locked():
        if accessor.away:
            raise StoreUnavailableError("locked for the test")
        return real()

    accessor.away, store.open = True, locked
    publish(bus, put(store.clock, 1))
    thread = running(worker)
    try:
        eventually(lambda: worker.progress.circuit.state is not CircuitState.CLOSED)
        accessor.away = False
        eventually(lambda: worker.outcomes == {Outcome.APPLIED: 1})
        assert worker.progress.circuit.state is CircuitState.CLOSED
    finally:
        accessor.away = False
        worker.stop()
        thread.join(10)


def test_worker_recycles(bus, store):
    """After ``recycle_messages`` messages a worker stops; all that it took is settled."""
    for number in range(3):
        publish(bus, put(store.clock, number))
    worker = Worker(store, bus, options=Options(prefetch=1, recycle_messages=2))
    thread = running(worker)
    thread.join(10)
    assert not thread.is_alive()
    assert worker.progress.messages == 2
    assert bus.states("crm")["queue"].ready == 1


def test_store_with_a_rate_is_written_slowly(bus):
    """A worker keeps to its store's rate."""
    store = Store("crm", Fussy(Product), rate=10.0).open()
    for number in range(16):
        publish(bus, put(store.clock, number))
    worker = Worker(store, bus)
    begun = time.monotonic()
    thread = running(worker)
    try:
        eventually(lambda: store.count(Product) == 16)
    finally:
        worker.stop()
        thread.join(10)
    assert time.monotonic() - begun > 0.4
