"""Published-to-applied events per second, beside what the broker and the store take by themselves.

Run it from the project's root, for one broker and store or for several::

    python tests/benchmarks/throughput.py
    python tests/benchmarks/throughput.py --broker embedded redis-always rabbitmq \
        --store sqlite postgres

One publisher process and one worker process; servers of its own. The raw limits are measured in the
same run: the same rows, in the same order, in bulk upserts with the plain driver, without and with
a version check; the same messages with the broker's plain client. Use the ratios: the rest depends
on the machine. With ``--metrics`` the worker reports each batch, as a supervised one does, and is
scraped each second. Where others work too, the worker's processor time an event says the most.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import multiprocessing
import random
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import structlog
from benchmarks import limit
from benchmarks.broker import BROKERS, plain_client, running_broker, seconds
from benchmarks.customer import Customer, rows
from servers.postgres import PostgresServer

from eventsync import framing
from eventsync.bus import Bus
from eventsync.change import PUT, Change
from eventsync.clock import Clock
from eventsync.crew import Crew, Report
from eventsync.exporters.prometheus import Exporter
from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor
from eventsync.survey import Survey
from eventsync.worker import Worker

__all__ = ["STORES", "changes", "database", "rows"]

STORES = ("sqlite", "postgres")


def changes(options: argparse.Namespace) -> Iterator[list[Change]]:
    """The rows as puts, in the chunks in which they are published; some of them poisonous."""
    clock = Clock()
    made = rows(options.events, options.seed)
    spoilt = set(random.Random(options.seed).sample(range(options.events), options.poison))
    for start in range(0, len(made), options.chunk):
        chunk = []
        for number, values in enumerate(made[start : start + options.chunk], start=start):
            if number in spoilt:
                # A record of its own, that no store can take.
                values = values | {"id": 10**9 + number, "balance": "no number"}
            chunk.append(
                Change(
                    type="Customer",
                    key=str(values["id"]),
                    op=PUT,
                    version=clock.tick(),
                    data=values,
                    source="benchmark",
                )
            )
        yield chunk


def produce(options: argparse.Namespace, broker: str, started: Any) -> None:
    """Publish every row as a put."""
    with Bus(broker) as bus:
        bus.declare("crm", ["Customer"])
        chunks = list(changes(options))
        started.wait()
        for chunk in chunks:
            bus.publish("Customer", bus.encode_all(chunk))


@contextlib.contextmanager
def _watched(worker: Worker, broker: str) -> Iterator[None]:
    """Have the worker report, and be scraped, while the block runs."""
    crew = Crew()

    def heard(line: bytes) -> bool:
        crew.heard("crm-1", line)
        return True

    worker.counted = Report(worker.tally, worker.progress, heard)
    stopping = threading.Event()
    with Survey(Bus(broker), [worker.store]) as survey:
        exporter = Exporter(crew, survey)

        def scrape() -> None:
            while not stopping.wait(1.0):
                exporter.answer("")

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            yield
        finally:
            stopping.set()
            thread.join()


def consume(
    options: argparse.Namespace, broker: str, database: str, started: Any, finished: Any
) -> None:
    """Apply what comes until all of it is settled."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = Store("crm", SqlAccessor(Customer, database, table="customer"))
    with store, Bus(broker) as bus:
        bus.declare("crm", ["Customer"])
        worker = Worker(store, bus)
        started.wait()
        begun = time.process_time()
        with _watched(worker, broker) if options.metrics else contextlib.nullcontext():
            while sum(worker.outcomes.values()) < options.events:
                worker.drain(timeout=0.05)
        taken = time.process_time() - begun
        outcomes = {str(k): n for k, n in worker.outcomes.items()}
        finished.put((outcomes, bus.states("crm")["dead"].ready, taken))


def through_eventsync(
    options: argparse.Namespace, broker: str, database: str
) -> tuple[float, float, dict[str, int]]:
    """Events per second from the first publish to the last applied; the worker's seconds of
    processor time an event."""
    context = multiprocessing.get_context("spawn")
    started, finished = context.Barrier(3), context.Queue()
    producer = context.Process(target=produce, args=(options, broker, started))
    consumer = context.Process(target=consume, args=(options, broker, database, started, finished))
    producer.start()
    consumer.start()
    started.wait()
    begun = time.perf_counter()
    outcomes, dead, busy = finished.get(timeout=1200)
    taken = time.perf_counter() - begun
    producer.join()
    consumer.join()
    return options.events / taken, busy / options.events, outcomes | {"dead_letters": dead}


@contextlib.contextmanager
def database(store: str, folder: Path) -> Iterator[str]:
    """The URL of a database with an empty table of customers."""
    if store == "sqlite":
        limit.create_sqlite(folder / "crm.db")
        yield f"sqlite:///{folder / 'crm.db'}"
        return
    with PostgresServer(durable=True) as server:
        limit.create_postgres(server.url.replace("+psycopg", ""))
        yield server.url


def _store_limits(store: str, options: argparse.Namespace, folder: Path) -> tuple[float, float]:
    """Rows per second without a version check, and with one."""
    made = rows(options.events, options.seed)
    if store == "sqlite":
        plain, gated = (
            limit.sqlite(folder / f"raw{version}.db", made, version=version, batch=options.batch)
            for version in (False, True)
        )
        return plain, gated
    with PostgresServer(durable=True) as server:
        url = server.url.replace("+psycopg", "")
        plain, gated = (
            limit.postgres(url, made, version=version, batch=options.batch)
            for version in (False, True)
        )
        return plain, gated


def _broker_limits(broker: str, options: argparse.Namespace) -> tuple[float, float]:
    """Envelopes per second published, and consumed, with the plain client, in our own messages."""
    bus = Bus("sqlite://")
    chunks = [
        list(framing.batches(map(bus.encode, chunk), max_count=500, max_bytes=512 * 1024))
        for chunk in changes(options)
    ]
    with running_broker(broker) as url:
        client = plain_client(broker, url)
        published = seconds(lambda: [client.publish(bodies) for bodies in chunks])
        count = sum(map(len, chunks))
        consumed = seconds(lambda: client.consume(count, len(chunks[0])))
    return options.events / published, options.events / consumed


def measure(broker: str, store: str, options: argparse.Namespace) -> dict[str, Any]:
    """One pair of a broker and a store, all within one run."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain, gated = _store_limits(store, options, folder)
        published, consumed = _broker_limits(broker, options)
        with running_broker(broker) as url, database(store, folder) as target:
            rate, busy, outcomes = through_eventsync(options, url, target)
    return {
        "broker": broker,
        "store": store,
        "events": options.events,
        "store_rows_per_s": round(plain),
        "store_rows_with_version_per_s": round(gated),
        "broker_published_per_s": round(published),
        "broker_consumed_per_s": round(consumed),
        "published_to_applied_per_s": round(rate),
        "ratio": round(rate / plain, 3),
        "ratio_with_version": round(rate / gated, 3),
        "worker_cpu_us_per_event": round(busy * 1e6, 1),
        "outcomes": outcomes,
    }


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", nargs="+", choices=BROKERS, default=["embedded"])
    parser.add_argument("--store", nargs="+", choices=STORES, default=["sqlite"])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--poison", type=int, default=0, help="of them cannot be applied")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--batch", type=int, default=5000, help="rows a transaction, in the raw run"
    )
    parser.add_argument("--chunk", type=int, default=2000, help="envelopes a publish")
    parser.add_argument("--metrics", action="store_true", help="report batches, and be scraped")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for broker in options.broker:
        for store in options.store:
            found.append(measure(broker, store, options))
            if options.json:
                print(json.dumps(found[-1]), flush=True)
    if options.json:
        return 0
    print("events/s       broker alone          store alone   published  ratio to the store    CPU")
    print("            publish  consume     plain  versioned  to applied  plain  versioned     µs")
    for one in found:
        print(f"{one['broker']} into {one['store']}:")
        print(
            f"{one['broker_published_per_s']:>19,}{one['broker_consumed_per_s']:>9,}"
            f"{one['store_rows_per_s']:>10,}{one['store_rows_with_version_per_s']:>11,}"
            f"{one['published_to_applied_per_s']:>12,}{one['ratio']:>7.2f}"
            f"{one['ratio_with_version']:>11.2f}{one['worker_cpu_us_per_event']:>10}"
        )
        print(f"  {one['outcomes']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
