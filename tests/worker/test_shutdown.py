"""Workers that are stopped, killed or frozen, on each broker: what is redelivered, and when."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

pytestmark = pytest.mark.slow

COUNT = 30
AT_ONCE = 5.0  # seconds, on a machine that is busy with other things
# How long a worker may be silent, by broker: the setting, and what it is set to here.
SILENCE = {"embedded": "lease=1", "redis": "dead_after=1", "rabbitmq": "heartbeat=1"}


class Product(Record):
    id: int = Field(key=True)
    text: str


class SlowReplica(Replica):
    """Writes the keys that it is given to a journal, and is slow."""

    def apply(self, batch):
        with self.accessor.journal.open("a") as journal:
            journal.write("".join(f"{key}\n" for key in batch))
        time.sleep(self.accessor.pause)  # before its transaction, which would lock others out
        return super().apply(batch)


class Slow(SqlAccessor):
    """An accessor whose replica is slow."""

    replica_class = SlowReplica

    def __init__(self, folder: Path, pause: float) -> None:
        super().__init__(Product, f"sqlite:///{folder / 'crm.db'}", create=True)
        self.journal, self.pause = folder / "journal", pause


def work(name: str, folder: Path, url: str, pause: float) -> None:
    """Run a worker that applies message by message, until it is stopped."""
    worker = Worker(Store(name, Slow(folder, pause)), Bus(url), options=Options(batch=1))
    run(worker, grace=10.0)


@contextmanager
def broker(kind: str, folder: Path) -> Iterator[str]:
    """The URL of a broker with the settings of ``SILENCE``."""
    if kind == "embedded":
        yield f"sqlite:///{folder / 'broker.db'}?{SILENCE[kind]}"
        return
    with RedisServer() if kind == "redis" else RabbitServer() as server:
        rest = "" if kind == "redis" else "&settle=0.1"
        yield f"{server.url}?{SILENCE[kind]}{rest}"


class Scene:
    """A queue with ``COUNT`` messages of one change each, and workers on it."""

    def __init__(self, name: str, folder: Path, url: str) -> None:
        self.name, self.folder, self.url = name, folder, url
        self.bus = Bus(url, message_envelopes=1)
        self.bus.declare(name, ["Product"])
        self.started: list[multiprocessing.Process] = []
        clock = Clock()
        changes = (
            Change(
                type="Product",
                key=str(number),
                op="put",
                version=clock.tick(),
                data={"id": number, "text": "x" * 300},
                source="test",
            )
            for number in range(COUNT)
        )
        self.bus.publish("Product", [self.bus.encode(change) for change in changes])

    def worker(self, pause: float) -> multiprocessing.Process:
        context = multiprocessing.get_context("fork")
        process = context.Process(target=work, args=(self.name, self.folder, self.url, pause))
        process.start()
        self.started.append(process)
        return process

    def applied(self) -> Counter[str]:
        """How often each record was given to the store."""
        journal = self.folder / "journal"
        return Counter(journal.read_text().split() if journal.exists() else [])

    def missing(self) -> int:
        with Store(self.name, Slow(self.folder, 0.0)) as store:
            return COUNT - store.count(Product)

    def close(self) -> None:
        for process in self.started:
            process.kill()
            process.join()
        self.bus.close()


@pytest.fixture(scope="module", params=SILENCE)
def url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """Return each broker in turn."""
    with broker(request.param, tmp_path_factory.mktemp("broker")) as url:
        yield url


@pytest.fixture
def scene(url: str, request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Scene]:
    """Return a queue with work."""
    scene = Scene(f"crm-{request.node.originalname[-20:]}", tmp_path, url)
    yield scene
    scene.close()


def test_a_worker_that_is_stopped_has_nothing_come_again(scene: Scene) -> None:
    """A worker that gets SIGTERM settles its batch, returns the rest unread, and ends with 0.

    No record is written twice, and no message counts as one that ended a worker. RabbitMQ counts
    one delivery of each message that was returned.
    """
    worker = scene.worker(pause=0.1)
    eventually(lambda: len(scene.applied()) >= 5)
    os.kill(worker.pid, signal.SIGTERM)
    worker.join(10)
    assert worker.exitcode == 0
    done = scene.applied()
    assert 5 <= len(done) < COUNT
    subscription = scene.bus.subscribe(scene.name, ["Product"], prefetch=COUNT)
    rest = fetch(subscription.fetch, COUNT - len(done))
    once = 1 if scene.url.startswith("amqp") else 0
    assert {delivery.attempts for delivery in rest} == {once}
    subscription.close()
    scene.worker(pause=0.0)
    eventually(lambda: not scene.missing())
    assert set(scene.applied().values()) == {1}


def test_a_killed_worker_is_succeeded_at_once(scene: Scene) -> None:
    """The messages of a killed worker are applied by another worker at once."""
    victim = scene.worker(pause=0.1)
    eventually(lambda: len(scene.applied()) >= 5)
    scene.worker(pause=0.0)
    os.kill(victim.pid, signal.SIGKILL)
    killed = time.monotonic()
    eventually(lambda: not scene.missing(), timeout=AT_ONCE)
    assert time.monotonic() - killed < AT_ONCE


def test_a_frozen_worker_is_succeeded_in_time(scene: Scene) -> None:
    """The messages of a frozen worker are applied by another worker after the configured time."""
    victim = scene.worker(pause=0.1)
    eventually(lambda: len(scene.applied()) >= 5)
    os.kill(victim.pid, signal.SIGSTOP)
    scene.worker(pause=0.0)
    eventually(lambda: not scene.missing(), timeout=1.0 * 3 + AT_ONCE)


def fetch(more: Callable[..., list], count: int) -> list:
    """Return ``count`` messages, fetched in as many calls as it takes."""
    found: list = []
    eventually(lambda: found.extend(more(timeout=1.0, limit=COUNT)) or len(found) >= count)
    return found
