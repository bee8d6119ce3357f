"""eventsync doing the same: through a queue, and from a database with an outbox to another."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import structlog
from benchmarks import deployment
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, rows
from benchmarks.load import Customers, change
from benchmarks.peer.queued import BACKLOG
from benchmarks.peer.result import Taken, spent
from benchmarks.peer.target import Target, database
from sqlalchemy import create_engine

from eventsync.broker.batch_publisher import BatchPublisher
from eventsync.broker.bus import Bus
from eventsync.broker.relay import Relay, serve
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.worker import Worker

__all__ = ["from_outbox", "record", "through_queue"]

Row = dict[str, Any]


def _barrier(context: Any, parties: int) -> Any:
    """Where processes meet; broken for all when one does not come."""
    return context.Barrier(parties, timeout=120.0)


def publish(load: Customers, broker: str, started: Any) -> None:
    """Publish every change by itself, as an application has it, through the batching publisher."""
    with Bus(broker) as bus:
        bus.declare("crm", ["Customer"])
        made, clock = rows(load.events, load.seed), Clock()
        with BatchPublisher(bus) as publisher:
            started.wait()
            for values in made:
                publisher.send(change(clock, Customer, values["id"], values))


def consume(events: int, broker: str, url: str, started: Any, finished: Any) -> None:
    """Apply what comes until all of it is settled."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with deployment.made(url, Customer) as store, Bus(broker) as bus:
        bus.declare("crm", ["Customer"])
        worker = Worker(store, bus)
        started.wait()
        while worker.outcomes.total() < events:
            worker.drain(timeout=0.05)
        finished.put(events)


def through_queue(*, broker: str, events: int, mode: str, seed: int = 1) -> Taken:
    """One publisher and one worker process; see ``queued`` for the two modes."""
    load = Customers(events=events, seed=seed)
    context = multiprocessing.get_context("spawn")
    alone = mode == BACKLOG
    with (
        tempfile.TemporaryDirectory() as name,
        running_broker(broker) as broker_url,
        database(Path(name)) as url,
    ):
        started, finished = _barrier(context, 2 if alone else 3), context.Queue()
        publishing = context.Process(target=publish, args=(load, broker_url, started), daemon=True)
        working = context.Process(
            target=consume,
            args=(events, broker_url, url, started, finished),
            daemon=True,
        )
        publishing.start()
        if alone:
            started.wait()
            publishing.join()
        working.start()
        started.wait()
        before, begun = spent(), time.perf_counter()
        _wait(finished, [publishing, working])
        taken = time.perf_counter() - begun
        processor = spent() - before
        working.join()
        publishing.join()
        with Target(url) as target:
            return Taken(events, taken, processor, target.wrong(rows(events, seed)))


def record(made: Sequence[Row], url: str, size: int, started: Any) -> None:
    """Write rows through the source's store, so many a transaction, each with its envelope."""
    engine = create_engine(url)
    with Store("source", SqlAccessor(Customer, engine, table="customer")) as store:
        records = [Customer(**row) for row in made]
        # It is asked to encode, and never to publish: the outbox is what edits go to.
        store.publisher = Bus("sqlite://")
        started.wait()
        for start in range(0, len(records), size):
            with engine.begin() as connection:
                joined = store.using(connection)
                for some in _apart(records[start : start + size]):
                    joined.update(some, upsert=True)
    engine.dispose()


def _apart(records: Sequence[Customer]) -> Iterator[list[Customer]]:
    """The records in order, in lists within which each is there once, as one call takes them."""
    some: dict[str, Customer] = {}
    for one in records:
        if one.key in some:
            yield list(some.values())
            some = {}
        some[one.key] = one
    yield list(some.values())


def _wait(finished: Any, processes: Sequence[Any]) -> None:
    """Block until the worker has done all. Raises ``RuntimeError`` when one of them fails."""
    while True:
        try:
            finished.get(timeout=1.0)
            return
        except queue.Empty:
            if any(process.exitcode for process in processes):
                raise RuntimeError("a process of eventsync's has failed") from None


def relay(broker: str, url: str, started: Any, stopping: Any) -> None:
    """Publish the outbox of the source, as ``eventsync relay`` does."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    with (
        Bus(broker) as bus,
        Store("source", SqlAccessor(Customer, url, table="customer")) as store,
    ):
        bus.declare("crm", ["Customer"])
        told = threading.Event()

        def watch() -> None:
            stopping.wait()
            told.set()

        threading.Thread(target=watch, daemon=True).start()
        started.wait()
        with Relay(store, bus) as publishing:
            serve(publishing, told)


def from_outbox(
    made: Sequence[Row],
    *,
    broker: str,
    size: int,
    mode: str,
    before: Sequence[Row] = (),
) -> Taken:
    """From one durable PostgreSQL into another: outbox, relay, queue, worker; a process each.

    Live, ``made`` are committed ``size`` rows a transaction while relay and worker run; otherwise
    they wait in the outbox when those begin. ``before``: rows that both have already.
    """
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker_url = stack.enter_context(running_broker(broker))
        source = stack.enter_context(database(folder))
        url = stack.enter_context(database(folder))
        finished, stopping = context.Queue(), context.Event()

        def process(target: Any, *args: Any) -> Any:
            one = context.Process(target=target, args=args, daemon=True)
            one.start()
            return one

        def recorded(some: Sequence[Row], step: int, started: Any) -> Any:
            return process(record, some, source, step, started)

        def moving(count: int, started: Any) -> list[Any]:
            stopping.clear()
            return [
                process(relay, broker_url, source, started, stopping),
                process(consume, count, broker_url, url, started, finished),
            ]

        def done(processes: list[Any]) -> None:
            stopping.set()
            for one in processes:
                one.join()

        if before:
            started = _barrier(context, 3)
            processes = [recorded(before, 1000, started), *moving(len(before), started)]
            _wait(finished, processes)
            done(processes)
        processes = []
        if mode == BACKLOG:
            started = _barrier(context, 1)
            recorded(made, size, started).join()
        started = _barrier(context, 3 if mode == BACKLOG else 4)
        if mode != BACKLOG:
            processes.append(recorded(made, size, started))
        processes += moving(len(made), started)
        started.wait()
        began, begun = spent(), time.perf_counter()
        _wait(finished, processes)
        taken = time.perf_counter() - begun
        processor = spent() - began
        done(processes)
        with Target(url) as target:
            return Taken(len(made), taken, processor, target.wrong([*before, *made]))
