"""Bus and worker over Redis: from a publish to a store, while the server dies and comes back."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from servers import eventually
from servers.redis import RedisServer
from support.records import Product

from eventsync.broker.bus import Bus, dead_queue, store_queue
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.errors import BusUnavailableError, RejectedError
from eventsync.stores.memory import MemoryAccessor
from eventsync.worker.worker import Worker


class Fussy(MemoryAccessor):
    """Refuses one name."""

    def write_rows(self, writes, removals, transaction):
        if any(write.values.get("name") == "poison" for write in writes):
            raise RejectedError("poison is refused")
        super().write_rows(writes, removals, transaction)


@pytest.fixture
def server() -> Iterator[RedisServer]:
    """Return a Redis that syncs everything."""
    with RedisServer(fsync="always") as server:
        yield server


def publish(bus: Bus, clock: Clock, *names: tuple[int, str]) -> None:
    """Publish a put of each; tries again while the broker is away, as an outbox does."""
    envelopes = [
        bus.encode(
            Change(
                type="Product",
                key=str(key),
                op="put",
                version=clock.tick(),
                data={"id": key, "name": name},
                source="test",
            )
        )
        for key, name in names
    ]
    deadline = time.monotonic() + 30
    while True:
        try:
            return bus.publish("Product", envelopes)
        except BusUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def test_a_store_is_kept_in_sync_over_redis(server: RedisServer) -> None:
    """What is published is applied and gone from the queue; what is refused is a dead letter."""
    store = Store("crm", Fussy(Product)).open()
    with Bus(server.url) as bus:
        bus.declare("crm", ["Product"])
        publish(bus, Clock(), (1, "a"), (2, "poison"), (1, "b"))
        Worker(store, bus).drain(timeout=0.1)
        assert {r.key: r.name for r in store.find(Product)} == {"1": "b"}
        with bus.letters("crm") as letters:
            ((letter, _),) = letters.read()
            assert (letter.key, letter.reason) == ("2", "rejected")
        state = bus.state(store_queue("crm"))
        assert (state.ready, state.leased, state.oldest) == (0, 0, None)
        assert bus.state(dead_queue("crm")).ready == 1


@pytest.mark.slow
def test_a_worker_outlives_its_server(server: RedisServer) -> None:
    """A worker whose Redis is killed and started again goes on by itself, and loses nothing."""
    store = Store("crm", MemoryAccessor(Product)).open()
    with Bus(server.url) as bus, Bus(f"{server.url}?dead_after=1") as other:
        bus.declare("crm", ["Product"])
        worker = Worker(store, other)
        thread = threading.Thread(target=worker.run)
        thread.start()
        clock = Clock()
        try:
            for number in range(600):
                if number in (200, 400):
                    server.kill()
                    restart = threading.Timer(0.5, server.start)
                    restart.start()
                publish(bus, clock, (number, f"name {number}"))
            eventually(lambda: store.count(Product) == 600, what="everything is applied")
            # And it still is a consumer: the queue does not merely hold what it had taken.
            publish(bus, clock, (600, "last"))
            eventually(lambda: store.count(Product) == 601, what="the last one is applied")

            def settled() -> bool:
                state = bus.state(store_queue("crm"))
                return (state.ready, state.leased) == (0, 0)

            eventually(settled, what="everything is acknowledged")
            assert thread.is_alive()
        finally:
            worker.stop()
            thread.join(20)
        assert not thread.is_alive()
