"""What keeps a worker going for months: circuit, watchdog, rate, recycling, what is held."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time

import pytest
from servers import eventually
from support.records import Product

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.config import load, location
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.monitoring.circuit_breaker import CircuitBreaker, CircuitState
from eventsync.monitoring.worker_status import StateFile, WorkerStatus, read_states
from eventsync.stores.memory import MemoryAccessor
from eventsync.worker.options import Options
from eventsync.worker.rate_limit import RateLimit
from eventsync.worker.worker import Worker


class Moody(MemoryAccessor):
    """Is busy for one record, for ever, or for all while told so."""

    away = False

    def ping(self):
        if self.away:
            raise StoreUnavailableError("away for the test")

    def write_rows(self, writes, removals, transaction):
        if self.away or any(write.values.get("name") == "busy" for write in writes):
            raise StoreUnavailableError("busy for the test")
        super().write_rows(writes, removals, transaction)


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("crm", ["Product"])
        yield bus


@pytest.fixture
def store():
    return Store("crm", Moody(Product)).open()


def publish(bus, *names, first=1):
    clock = Clock()
    bus.publish(
        "Product",
        [
            bus.encode(
                Change(
                    type="Product",
                    key=str(number),
                    op="put",
                    version=clock.tick(),
                    data={"id": number, "name": name},
                    source="t",
                )
            )
            for number, name in enumerate(names, first)
        ],
    )


def running(worker):
    thread = threading.Thread(target=worker.run)
    thread.start()
    return thread


def test_circuit_is_visible(bus, store):
    """While a store is away its circuit is open, and closed again when it is back."""
    accessor = store.accessors["Product"]
    publish(bus, "a", "b")
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


def test_circuit_opens_for_an_error_of_the_system(bus, store):
    """A store that fails with an ``OSError`` is away like any other, and its worker lives on."""
    accessor = store.accessors["Product"]
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    publish(bus, "a")
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
    """A store that is away when its worker starts is told as one that went away later."""
    worker = Worker(store, bus, options=Options(retry_for=0.2))
    accessor, real = store.accessors["Product"], store.open

    def locked():
        if accessor.away:
            raise StoreUnavailableError("locked for the test")
        return real()

    accessor.away, store.open = True, locked
    publish(bus, "a")
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


def test_circuit_states():
    """Half open is between open and closed only, and the time is that of the first failure."""
    now = [1.0]
    circuit = CircuitBreaker(now=lambda: now[0])
    circuit.probe()
    assert circuit.state is CircuitState.CLOSED
    now[0] = 2.0
    circuit.open(OSError("x"))
    now[0] = 3.0
    circuit.probe()
    assert circuit.state is CircuitState.HALF_OPEN
    circuit.open(OSError("y"))
    assert (circuit.state, circuit.since, circuit.opened) == (CircuitState.OPEN, 2.0, 1)
    circuit.close()
    assert (circuit.since, circuit.error) == (3.0, "")


def test_one_busy_record_stops_no_other(bus, store):
    """A change that fails retryably by itself is held with its attempts, and ends as a letter."""
    publish(bus, "a", "busy", "c", "d")
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
        publish(bus, "e", first=5)
        eventually(lambda: store.count(Product) == 4)
        eventually(lambda: bus.states("crm")["dead"].ready == 1)
    finally:
        successor.stop()
        thread.join(10)
    with bus.letters("crm") as dead:
        ((letter, _),) = dead.read()
    assert (letter.reason, letter.key, letter.first_time) == ("unavailable", "2", first)
    assert letter.attempts > attempts


def test_worker_recycles(bus, store):
    """After so many messages a worker stops by itself, with all it took settled."""
    for number in range(3):
        publish(bus, "a", first=number)
    worker = Worker(store, bus, options=Options(prefetch=1, recycle_messages=2))
    thread = running(worker)
    thread.join(10)
    assert not thread.is_alive()
    assert worker.progress.messages == 2
    assert bus.states("crm")["queue"].ready == 1


def test_rate_limit():
    """What was done is paid for by waiting, and idle time is kept for a second only."""
    now = [100.0]
    limit = RateLimit(10.0, now=lambda: now[0])
    assert limit.pause(5) == pytest.approx(0.5)
    now[0] += 60.0
    assert limit.pause(10) == 0.0
    assert limit.pause(20) == pytest.approx(2.0)
    with pytest.raises(ConfigError):
        RateLimit(0.0)


def test_store_with_a_rate_is_written_slowly(bus):
    """A worker keeps to its store's rate."""
    store = Store("crm", Moody(Product), rate=10.0).open()
    for number in range(16):
        publish(bus, "a", first=number)
    worker = Worker(store, bus)
    begun = time.monotonic()
    thread = running(worker)
    try:
        eventually(lambda: store.count(Product) == 16)
    finally:
        worker.stop()
        thread.join(10)
    assert time.monotonic() - begun > 0.4


def test_old_letters_are_dropped(bus, store):
    """Dead letters older than they are kept are dropped, and no others."""
    bus.send_to("crm", [b"no envelope"])
    worker = Worker(store, bus, options=Options(letter_retention=3600.0))
    worker.drain(timeout=0.02)
    assert bus.states("crm")["dead"].ready == 1
    assert Worker(store, bus, options=Options(letter_retention=1e-6)).drain(timeout=0.02) == 0
    assert bus.states("crm")["dead"].ready == 0


def test_letters_are_kept_for_less_than_tombstones():
    """A retention of letters beyond that of tombstones is refused, with the reason."""
    with pytest.raises(ConfigError, match="could not be replayed"):
        load(letter_retention=11 * 86_400.0)


def test_state_file(tmp_path):
    """A state file tells what a worker does, and goes with it."""
    progress = WorkerStatus("crm")
    progress.settled(3)
    file = StateFile(tmp_path / "state", progress)
    file.write()
    (state,) = read_states(tmp_path / "state")
    assert (state["store"], state["messages"], state["circuit"]["state"]) == ("crm", 3, "closed")
    dead = subprocess.Popen(["true"])
    dead.wait()
    (tmp_path / "state" / f"worker-crm-{dead.pid}.json").write_text(json.dumps({"pid": dead.pid}))
    assert len(list(read_states(tmp_path / "state"))) == 1
    file.remove()
    assert list((tmp_path / "state").iterdir()) == []


WATCHED = """
import sys, time, threading
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.watchdog import Watchdog

progress = WorkerStatus("crm")
if sys.argv[1] == "open":
    progress.circuit.open(OSError("away"))
if sys.argv[1] == "pause":
    progress.beat(pause=60)
Watchdog(progress, stall_after=0.4).start()
end = time.monotonic() + 1.6
def call():
    time.sleep(0.05)
if sys.argv[1] == "hung":
    threading.Event().wait(30)
elif sys.argv[1] == "slow":
    while time.monotonic() < end:
        call()
elif sys.argv[1] == "stuck":
    while True:
        call()
else:
    time.sleep(1.6)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("how", "code"), [("hung", 71), ("stuck", 71), ("open", 0), ("pause", 0), ("slow", 0)]
)
def test_watchdog(how, code):
    """A call that hangs ends the process with its stacks; a slow or missing store does not."""
    done = subprocess.run(
        [sys.executable, "-c", WATCHED, how], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == code, done.stderr
    if code:
        assert "most recent call first" in done.stderr


def test_settings_from_files(tmp_path, monkeypatch):
    """A secret may lie in a file; the environment stands over it, an argument over both."""
    (tmp_path / "eventsync_broker").write_text("redis://:hunter22@files/0\n", encoding="utf-8")
    (tmp_path / "eventsync_store_crm_2").write_text("sqlite:///files.db\n", encoding="utf-8")
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(tmp_path))
    assert load().broker.get_secret_value() == "redis://:hunter22@files/0"
    assert load().secrets() == ["hunter22", "hunter22"]
    assert location("crm-2", "sqlite:///default.db") == "sqlite:///files.db"
    monkeypatch.setenv("EVENTSYNC_BROKER", "redis://environment/0")
    monkeypatch.setenv("EVENTSYNC_STORE_CRM_2", "sqlite:///environment.db")
    assert load().broker.get_secret_value() == "redis://environment/0"
    assert load(broker="redis://given/0").broker.get_secret_value() == "redis://given/0"
    assert location("crm-2") == "sqlite:///environment.db"


def test_locations_that_are_said_nowhere(tmp_path, monkeypatch):
    """The default counts; without one the error says what to set, also for a missing folder."""
    assert location("crm", "sqlite:///default.db") == "sqlite:///default.db"
    with pytest.raises(ConfigError, match="EVENTSYNC_STORE_CRM"):
        location("crm")
    monkeypatch.setenv("EVENTSYNC_SECRETS_DIR", str(tmp_path / "none"))
    with pytest.raises(ConfigError, match="EVENTSYNC_SECRETS_DIR"):
        location("crm", "sqlite:///default.db")


def test_only_prefixed_variables_count(monkeypatch):
    """A variable of somebody else's that is called ``BROKER`` is not taken for the broker."""
    monkeypatch.setenv("BROKER", "amqp://somebody.else/")
    assert load().broker.get_secret_value().startswith("sqlite:")
