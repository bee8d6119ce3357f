"""Processor time of publisher and worker for 1,000 events, beside the store's plain driver.

Run it from the project's root: ``python tests/benchmarks/cost.py``. All of it happens in this one
process, one thing after the other: what else the machine does then disturbs it little, as it would
the seconds of ``throughput.py``. What a database or broker server spends is not in it; SQLite, and
the embedded broker, are no servers, so of them it is the whole. The least of several runs counts.
"""

from __future__ import annotations

import argparse
import logging
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import structlog
from benchmarks import limit
from benchmarks.broker import BROKERS, running_broker
from benchmarks.customer import Customer, rows
from benchmarks.database import STORES, running_store
from benchmarks.deployment import made
from benchmarks.load import Customers

from eventsync.broker.bus import Bus
from eventsync.worker.worker import Worker


def spent(work: Callable[[], object]) -> float:
    """Seconds of this process's processor time that it takes."""
    began = time.process_time()
    work()
    return time.process_time() - began


def through_eventsync(options: argparse.Namespace) -> tuple[float, float]:
    """What publisher and worker spend."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_broker(options.broker) as broker,
        running_store(options.store, Path(name)) as url,
        Bus(broker) as bus,
    ):
        bus.declare("crm", ["Customer"])
        chunks = list(Customers(events=options.events).chunks())

        def publish() -> None:
            for chunk in chunks:
                bus.publish("Customer", bus.encode_all(chunk))

        published = spent(publish)
        with made(url, Customer) as store:
            worker = Worker(store, bus)
            applied = spent(lambda: worker.drain(timeout=0.05))
            assert worker.outcomes.total() == options.events
    return published, applied


def by_driver(options: argparse.Namespace, way: limit.Way) -> float:
    """What the plain driver spends on the same rows, by the first of its ways."""
    held = rows(options.events, 1)
    with (
        tempfile.TemporaryDirectory() as name,
        running_store(options.store, Path(name)) as url,
        limit.opened(options.store, url, Customer) as raw,
    ):
        how, clock = raw.ways[way][0], time.process_time
        rate = limit.rate(raw, held, way=way, how=how, batch=options.batch, clock=clock)
        return options.events / rate


def main() -> int:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--broker", choices=BROKERS, default="embedded")
    parser.add_argument("--store", choices=STORES, default="sqlite")
    parser.add_argument("--events", type=int, default=20_000)
    parser.add_argument("--repeat", type=int, default=5)
    options = parser.parse_args()
    options.batch = 5000
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    found: list[tuple[float, ...]] = [
        (
            *(by_driver(options, way) for way in limit.Way),
            *through_eventsync(options),
        )
        for _ in range(options.repeat)
    ]
    plain, in_row, tables, published, applied = (
        min(column) / options.events * 1e6 for column in zip(*found, strict=True)
    )
    print(f"milliseconds of processor time for 1,000 events ({options.broker}, {options.store})")
    print(f"plain driver{plain:>10.1f}    with a version in the row  {in_row:>10.1f}")
    print(f"                          with the same tables       {tables:>10.1f}")
    print(f"publisher   {published:>10.1f}    worker                     {applied:>10.1f}")
    print(f"driver with the same tables, of the worker's time: {tables / applied:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
