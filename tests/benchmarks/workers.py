"""What more workers on one store bring, beside one worker in the same run.

Customers that all wait in Redis when the workers begin, into PostgreSQL; each worker is a process.
Here the store answers at once, and the cores are the limit; ``scaling.py`` has stores that keep
their workers waiting.
"""

from __future__ import annotations

import os
import statistics
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import limit
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, rows
from benchmarks.database import emptied, running_store
from benchmarks.load import Customers
from benchmarks.passage import passed
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("workers", "workers"),
    Column("cores", "cores"),
    Column("applied_per_s", "applied/s"),
    Column("times", "times one worker", 2),
    Column("cpu_us", "workers, µs an event"),
    Column("raw_per_s", "raw, same tables, one process"),
    Column("ratio", "ratio", 2),
)


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done, and by how many."""

    events: int = 60_000
    rounds: int = 2
    workers: Sequence[int] = (1, 2, 4, 8)


QUICK = Scale(events=4_000, rounds=1)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each number of workers; tells each when it is known."""
    load = Customers(events=scale.events)
    passages = defaultdict(list)
    with tempfile.TemporaryDirectory() as name, running_store("postgres", Path(name)) as url:
        with limit.opened("postgres", url, Customer) as raw:
            fastest = limit.fastest(raw, rows(scale.events, 1), way=limit.Way.TABLES)
        for _ in range(scale.rounds):
            for workers in scale.workers:
                with running_broker("redis-always") as broker:
                    target = emptied(url)
                    passages[workers].append(
                        passed(load, broker, target, workers=workers, waiting=True)
                    )
    found: list[dict[str, Any]] = []
    for workers, made in passages.items():
        rate = statistics.median(one.rate for one in made)
        found.append(
            {
                "workers": workers,
                "cores": os.cpu_count(),
                "applied_per_s": round(rate),
                "times": round(rate / found[0]["applied_per_s"], 2) if found else 1.0,
                "cpu_us": round(statistics.median(one.cpu for one in made) * 1e6, 1),
                "raw_per_s": round(fastest.rate),
                "ratio": round(rate / fastest.rate, 3),
            }
        )
        tell(found[-1])
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    groups = {f"{row['workers']} workers": {"": row["applied_per_s"]} for row in rows}
    return [Bars(f"events applied a second, on {rows[0]['cores']} cores", groups)]
