"""Whether workers that go on for long grow: memory, open files and threads at a steady pace.

Customers through Redis into PostgreSQL, 20,000 records changing again and again, published by a
schedule that waits for nobody. Growth is the slope of a line through the samples of the second
half, by least squares.
"""

from __future__ import annotations

import random
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import process
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, row
from benchmarks.database import running_store
from benchmarks.deployment import made
from benchmarks.load import change
from benchmarks.plot import Lines, Panel
from benchmarks.table import Column, Tell

from eventsync.broker.bus import Bus
from eventsync.changes.clock import Clock

__all__ = ["COLUMNS", "QUICK", "Scale", "growth", "measure", "panels"]

COLUMNS = (
    Column("worker", "worker"),
    Column("minutes", "minutes", 1),
    Column("events", "events"),
    Column("memory_mib", "memory at half-time, MiB", 1),
    Column("memory_end_mib", "at the end", 1),
    Column("growth_mib_per_h", "growth, MiB/h", 2),
    Column("files", "open files"),
    Column("files_per_h", "growth/h", 1),
    Column("threads", "threads"),
    Column("threads_per_h", "growth/h", 1),
    Column("left", "messages left"),
)
_MIB = 1 << 20
_KEYS = 20_000
_SHOWN = 200
"""How many samples are kept for the picture."""


@dataclass(frozen=True, kw_only=True)
class Scale:
    """For how long, at which pace in events a second, and how often is looked, in seconds."""

    minutes: float = 20.0
    pace: int = 500
    workers: int = 2
    every: float = 5.0


QUICK = Scale(minutes=0.25, every=0.5)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each worker; tells each when it is known."""
    with (
        tempfile.TemporaryDirectory() as name,
        running_store("postgres", Path(name)) as url,
        running_broker("redis-always") as broker,
        Bus(broker) as bus,
    ):
        made(url, Customer).open().close()
        bus.declare("crm", ["Customer"])
        with process.workers(scale.workers, broker=broker, store=url) as workers:
            sent, samples = _kept_busy(bus, workers, scale)
            left = _left(bus)
    found = []
    for number in range(scale.workers):
        own = [(at, uses[number]) for at, uses in samples]
        found.append(_row(number + 1, own, sent, left, scale))
        tell(found[-1])
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    lines = {
        f"worker {row['worker']}": [(at / 60, mib) for at, mib in row["samples"]] for row in rows
    }
    return [Lines("memory of each worker, MiB", lines, "minutes")]


def _left(bus: Bus) -> int:
    """How many messages wait that workers do not get done within a minute."""
    deadline = time.monotonic() + 60.0
    while (queue := bus.states("crm")["queue"]).ready or queue.leased:
        if time.monotonic() > deadline:
            break
        time.sleep(0.1)
    return queue.ready + (queue.leased or 0)


def _kept_busy(
    bus: Bus, workers: process.Commands, scale: Scale
) -> tuple[int, list[tuple[float, list[process.Use]]]]:
    """How many events were sent, and what the workers used at each look."""
    rng, clock = random.Random(5), Clock()
    samples: list[tuple[float, list[process.Use]]] = []
    began = time.monotonic()
    sent = 0
    while (elapsed := time.monotonic() - began) < scale.minutes * 60:
        due = int(elapsed * scale.pace) - sent
        rows = [row(rng, rng.randrange(_KEYS)) for _ in range(due)]
        changes = [change(clock, Customer, one["id"], one) for one in rows]
        bus.publish("Customer", bus.encode_all(changes))
        sent += due
        if elapsed >= len(samples) * scale.every:
            samples.append((elapsed, workers.use()))
        time.sleep(0.05)
    return sent, samples


def _row(
    number: int, samples: Sequence[tuple[float, process.Use]], sent: int, left: int, scale: Scale
) -> dict[str, Any]:
    second = samples[len(samples) // 2 :]
    last = second[-1][1]
    step = -(-len(samples) // _SHOWN)
    return {
        "worker": number,
        "minutes": scale.minutes,
        "events": sent,
        "memory_mib": round(second[0][1].memory / _MIB, 1),
        "memory_end_mib": round(last.memory / _MIB, 1),
        "growth_mib_per_h": round(growth([(at, one.memory / _MIB) for at, one in second]), 2),
        "files": last.files,
        "files_per_h": round(growth([(at, one.files) for at, one in second]), 2),
        "threads": last.threads,
        "threads_per_h": round(growth([(at, one.threads) for at, one in second]), 2),
        "left": left,
        "samples": [[round(at, 1), round(one.memory / _MIB, 1)] for at, one in samples[::step]],
    }


def growth(points: Sequence[tuple[float, float]]) -> float:
    """The slope of a line through points in time, an hour."""
    seconds, values = zip(*points, strict=True)
    return statistics.linear_regression(seconds, values).slope * 3600
