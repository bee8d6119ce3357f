"""The capture service: one process captures, others stand by, outages are waited for."""

from __future__ import annotations

import threading
import time

import pytest
from structlog.testing import CapturingLogger
from support.records import Product
from support.scripted_source import ScriptedAccessor
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import FileIndex
from eventsync.monitoring.following import caught_up_at
from eventsync.monitoring.problem import ProblemKind
from eventsync.worker.capture_service import CaptureService


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("crm", ["Product"])
        bus.declare("cache", ["Product"])
        yield bus


@pytest.fixture
def store(tmp_path):
    """A store whose index several services share, as processes do."""
    accessor = ScriptedAccessor(Product)
    return Store("crm", accessor, index=FileIndex(tmp_path / "index.db"), capture="auto")


class Running:
    """A service that runs in a thread."""

    def __init__(self, store, bus, **options):
        self.log = CapturingLogger()
        self.service = CaptureService(store, bus, log=self.log, **options)
        self.error = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        try:
            self.service.run()
        except Exception as error:
            self.error = error

    def stop(self):
        self.service.stop()
        self.thread.join(20)
        assert not self.thread.is_alive()

    @property
    def doing(self):
        return self.service.progress.doing

    def events(self):
        return [call.args[0] for call in self.log.calls if call.args]


@pytest.fixture
def run(store, bus):
    running = []

    def start(**options):
        running.append(Running(store, bus, **options))
        return running[-1]

    yield start
    for one in running:
        one.stop()


def write(store, key, name):
    """Write behind eventsync's back, and let the source tell it."""
    accessor = store.accessors["Product"]
    accessor.data[str(key)] = {"id": key, "name": name, "price": None}
    accessor.source.log.append(("Product", str(key), time.time()))


def waiting(bus):
    return bus.states("cache")["queue"].ready


def test_a_foreign_write_reaches_the_queue_of_another_store(store, bus, run):
    running = run()
    eventually(lambda: running.doing == "capturing")
    write(store, 1, "Ann")
    eventually(lambda: waiting(bus) == 1)
    eventually(lambda: caught_up_at(store.index) is not None)
    running.stop()
    assert running.error is None
    assert running.events()[-1] == "capture stopped"


def test_one_captures_and_another_takes_over(store, bus, run):
    """The second stands by while the first lives, and goes on within seconds when it ends."""
    first = run()
    eventually(lambda: first.doing == "capturing")
    second = run()
    eventually(lambda: second.doing == "standing by")
    write(store, 1, "Ann")
    eventually(lambda: waiting(bus) == 1)
    assert second.service.progress.followed_writes == 0
    first.stop()
    write(store, 2, "Bob")
    eventually(lambda: second.service.progress.followed_writes == 1, timeout=20)
    assert waiting(bus) == 2


def test_an_outage_is_waited_for(store, bus, run):
    """The store is asked again with growing pauses; nothing that was told is lost."""
    running = run()
    eventually(lambda: running.doing == "capturing")
    source = store.accessors["Product"].source
    source.failure = StoreUnavailableError("the database is gone")
    write(store, 1, "Ann")
    eventually(lambda: "capture failed, retrying" in running.events())
    assert running.service.progress.error == "the database is gone"
    source.failure = None
    eventually(lambda: waiting(bus) == 1, timeout=20)
    eventually(lambda: running.service.progress.error == "")


def test_a_refusal_at_the_start_ends_the_service(store, bus, run):
    store.accessors["Product"].source.open = refuse
    running = run()
    eventually(lambda: not running.thread.is_alive(), timeout=20)
    assert isinstance(running.error, ConfigError)


def test_a_tripped_guard_is_a_problem_of_the_type(store, bus, run):
    store.open()
    store.add([Product(id=key, name="x") for key in range(30)])
    accessor = store.accessors["Product"]
    running = run()
    eventually(lambda: running.doing == "capturing" and not running.service.follower.copies)
    accessor.data.clear()
    accessor.source.log.append(("Product", None, None))
    eventually(
        lambda: (
            [one.kind for one in running.service.progress.problems.present()] == [ProblemKind.GUARD]
        ),
        timeout=20,
    )
    assert waiting(bus) == 0


def refuse(mark):
    raise ConfigError("permission denied")
