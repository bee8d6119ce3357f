"""Bus and worker over Redis, with a server that is killed and started again."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
from servers.redis import RedisServer
from support.publishing import publish_patiently, put
from support.records import Product
from support.waiting import eventually

from eventsync.broker.bus import Bus, dead_queue, store_queue
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.errors import RejectedError
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
    """Return a Redis server that syncs each write to the disk."""
    with RedisServer(fsync="always") as server:
        yield server


def test_a_store_is_kept_in_sync_over_redis(server: RedisServer) -> None:
    """Published changes are applied and leave the queue; a refused one becomes a dead letter."""
    store = Store("crm", Fussy(Product)).open()
    with Bus(server.url) as bus:
        bus.declare("crm", ["Product"])
        clock = Clock()
        publish_patiently(
            bus,
            put(1, "a", clock=clock),
            put(2, "poison", clock=clock),
            put(1, "b", clock=clock),
        )
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
    """A worker continues without loss after its Redis server was killed and started again."""
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
                publish_patiently(bus, put(number, f"name {number}", clock=clock))
            eventually(lambda: store.count(Product) == 600, what="everything is applied")
            # The worker still consumes new messages.
            publish_patiently(bus, put(600, "last", clock=clock))
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
