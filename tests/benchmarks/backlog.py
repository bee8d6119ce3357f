"""How long one worker takes for what waits in its queue, and its memory, by how much waits.

Customers, half of them new, through Redis into PostgreSQL. They are published first, by a process
of their own that keeps none of them; then ``eventsync worker`` begins. Time counts from when it has
taken the first message until the queue is empty. The peak of its memory is the kernel's own figure.
The plain driver writes as many rows to the same tables, which take longer as they grow.
"""

from __future__ import annotations

import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import limit, process
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, each_row, rows
from benchmarks.database import emptied, running_store
from benchmarks.deployment import made
from benchmarks.load import Customers
from benchmarks.passage import publish
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

from eventsync.broker.bus import Bus, store_queue

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("waiting", "events waiting"),
    Column("seconds", "seconds", 1),
    Column("times_events", "times the events", 1),
    Column("times_seconds", "times the seconds", 2),
    Column("applied_per_s", "applied/s"),
    Column("raw_per_s", "raw, same tables"),
    Column("raw_times_seconds", "times the seconds", 2),
    Column("ratio", "ratio", 2),
    Column("peak_mib", "peak memory, MiB", 1),
)
_MIB = 1 << 20
_LOOK = 0.05
_LONGEST = 3600.0


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much waits; by how many rows the plain driver's fastest way is found."""

    sizes: Sequence[int] = (100_000, 1_000_000)
    raw: int = 100_000
    broker: str = "redis-always"


QUICK = Scale(sizes=(10_000, 100_000), raw=10_000)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each size; tells each when it is known."""
    found: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as name, running_store("postgres", Path(name)) as url:
        with limit.opened("postgres", url, Customer) as raw:
            best = limit.fastest(raw, rows(scale.raw, 1), way=limit.Way.TABLES)
        for size in scale.sizes:
            with limit.opened("postgres", emptied(url), Customer) as raw:
                made = each_row(size, 1)
                raw_rate = limit.rate(raw, made, way=best.way, how=best.how, batch=best.batch)
            with running_broker(scale.broker) as broker:
                seconds, peak = _drained(size, broker, emptied(url))
            first = found[0] if found else None
            raw_seconds = size / raw_rate
            row = {
                "waiting": size,
                "seconds": round(seconds, 2),
                "applied_per_s": round(size / seconds),
                "times_events": round(size / first["waiting"], 1) if first else 1.0,
                "times_seconds": round(seconds / first["seconds"], 2) if first else 1.0,
                "raw_per_s": round(raw_rate),
                "raw_seconds": round(raw_seconds, 2),
                "raw_times_seconds": round(raw_seconds / first["raw_seconds"], 2) if first else 1.0,
                "ratio": round(size / seconds / raw_rate, 3),
                "peak_mib": round(peak / _MIB, 1),
            }
            found.append(row)
            tell(row)
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    sizes = {f"{row['waiting']:,}": row for row in rows}
    return [
        Bars(
            "microseconds an event, by how many waited",
            {size: {"": row["seconds"] / row["waiting"] * 1e6} for size, row in sizes.items()},
            digits=1,
        ),
        Bars(
            "peak memory of the worker, MiB",
            {size: {"": row["peak_mib"]} for size, row in sizes.items()},
        ),
    ]


def _drained(size: int, broker: str, url: str) -> tuple[float, int]:
    """Seconds until all was applied, and the peak of the worker's memory in bytes."""
    made(url, Customer).open().close()
    with Bus(broker) as bus:
        bus.declare("crm", ["Customer"])
        context = multiprocessing.get_context("spawn")
        publisher = context.Process(target=publish, args=(Customers(events=size), broker))
        publisher.start()
        publisher.join()
        assert publisher.exitcode == 0
        with process.workers(1, broker=broker, store=url) as worker:
            deadline = time.monotonic() + _LONGEST
            began = 0.0
            while True:
                queue = bus.state(store_queue("crm"))
                now = time.monotonic()
                began = began or (now if queue.leased else 0.0)
                if not queue.ready and not queue.leased:
                    break
                if now > deadline:
                    raise RuntimeError(f"{queue.ready} messages still wait after {_LONGEST:g} s")
                time.sleep(_LOOK)
            peak = worker.use()[0].peak
        assert not bus.states("crm")["dead"].ready
    return now - began, peak
