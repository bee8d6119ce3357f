"""What more workers bring to a store that takes 20 ms a call, beside one worker in the same run.

Run it from the project's root: ``python tests/benchmarks/scaling.py``. It starts
a Redis of its own, which is broker and store; the store waits 20 ms at each call besides. Such a
store keeps its workers waiting, so many more of them than cores are of use. Three kinds of it:

- a call a record, as a REST service takes them: the usual reason for 20 ms a call;
- a call a batch, with batches of 10 records: the least favourable, for the queue's own work counts;
- a call a batch, with the default batches: what one worker then does alone.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from servers.redis import RedisServer

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.monitoring.log import configure
from eventsync.records.record import Field, Record
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.redis.replica import NewestWinsReplica
from eventsync.worker.worker import Options, Worker

CALL = 0.02


class Item(Record):
    id: int = Field(key=True)
    name: str
    amount: int


@dataclass(frozen=True)
class Kind:
    """One kind of store: how it is called, and how the work is cut."""

    name: str
    a_record: bool
    message: int
    options: Options
    records: int
    """How many one worker is expected to apply in a second, or so."""


KINDS = (
    Kind("a call a record", True, 5, Options(batch=1, prefetch=2), 50),
    Kind("a call a batch of 10", False, 10, Options(batch=1, prefetch=4), 400),
    Kind("a call a batch, default batches", False, 500, Options(), 3000),
)


class SlowReplica(NewestWinsReplica):
    """A replica whose calls take 20 ms longer. Its accessor notes when they began and ended."""

    def apply(self, batch):
        slow = self.accessor
        slow.began = slow.began or time.monotonic()
        calls = len(batch) if slow.a_record else 1
        for _ in range(calls):
            time.sleep(CALL)
        verdicts = super().apply(batch)
        slow.calls += calls
        slow.ended = time.monotonic()
        return verdicts


class Slow(RedisAccessor):
    """An accessor whose replica is slow."""

    def __init__(self, url: str, *, a_record: bool) -> None:
        super().__init__(Item, url)
        self.replica_class = SlowReplica
        self.a_record = a_record
        self.began = self.ended = 0.0
        self.calls = 0


def work(name: str, broker: str, store: str, kind: Kind, start: Barrier, told: Connection) -> None:
    """One worker, until the queue is empty; says when it began, when it ended, and its CPU."""
    accessor = Slow(store, a_record=kind.a_record)
    with Bus(broker) as bus, Store(name, accessor) as opened:
        worker = Worker(opened, bus, options=kind.options)
        start.wait()
        before = time.process_time()
        worker.drain(timeout=1.0)
        told.send((accessor.began, accessor.ended, time.process_time() - before, accessor.calls))


def measure(server: RedisServer, kind: Kind, workers: int, seconds: float) -> tuple[float, float]:
    """Records applied a second by so many workers, and how many cores they used."""
    count = round(seconds * workers * kind.records / kind.message) * kind.message
    name = f"slow{time.monotonic_ns()}"
    client = server.client()
    client.flushall()
    client.close()
    with Bus(server.url, message_envelopes=kind.message) as bus:
        bus.declare(name, ["Item"])
        clock = Clock()
        changes = (
            Change(
                type="Item",
                key=str(number),
                op="put",
                version=clock.tick(),
                data={"id": number, "name": f"item {number}", "amount": number * 7},
                source="bench",
            )
            for number in range(count)
        )
        bus.publish("Item", [bus.encode(change) for change in changes])
    store = server.url.replace("/0", "/1")
    context = multiprocessing.get_context("fork")
    start = context.Barrier(workers)
    told, processes = [], []
    for _ in range(workers):
        ours, theirs = context.Pipe(duplex=False)
        arguments = (name, server.url, store, kind, start, theirs)
        processes.append(context.Process(target=work, args=arguments))
        processes[-1].start()
        told.append(ours)
    results = [one.recv() for one in told]
    for process in processes:
        process.join()
    began = min(began for began, _, _, calls in results if calls)
    elapsed = max(ended for _, ended, _, _ in results) - began
    return count / elapsed, sum(cpu for _, _, cpu, _ in results) / elapsed


def main() -> None:
    configure("error", sys.stderr)
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workers", type=int, nargs="*", default=[4, 16])
    parser.add_argument("--seconds", type=float, default=10.0, help="of work for each worker")
    options = parser.parse_args()
    with RedisServer() as server:
        client = server.client()
        # What is measured is the workers, not the disk that this machine happens to have.
        client.config_set("appendonly", "no")
        client.close()
        for kind in KINDS:
            alone, cores = measure(server, kind, 1, options.seconds)
            print(f"{kind.name}: 1 worker {alone:,.0f} records/s, {cores:.2f} cores", flush=True)
            for workers in options.workers:
                rate, cores = measure(server, kind, workers, options.seconds)
                print(
                    f"{kind.name}: {workers} workers {rate:,.0f} records/s, "
                    f"{rate / alone:.1f} times, {cores:.2f} cores",
                    flush=True,
                )


if __name__ == "__main__":
    main()
