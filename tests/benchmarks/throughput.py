"""Publish-to-applied events per second on the embedded default, beside the raw limit of SQLite.

Run it from the project's root: ``python tests/benchmarks/throughput.py``. One publisher process and
one worker process; the raw limit is the same rows, in the same order, in bulk upserts with the
plain ``sqlite3`` module, measured in the same run. Use the ratio: the rest depends on the machine.
With ``--metrics`` the worker reports each batch, as a supervised one does, and is scraped each
second. The worker's processor time an event says more than the rates, on a machine that others use.
"""

from __future__ import annotations

import argparse
import datetime as dt
import json
import logging
import multiprocessing
import random
import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import structlog

from eventsync.bus import Bus
from eventsync.change import PUT, Change
from eventsync.clock import Clock
from eventsync.crew import Crew, Report
from eventsync.exporters.prometheus import Exporter
from eventsync.record import Field, Record
from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor
from eventsync.survey import Survey
from eventsync.worker import Worker


class Customer(Record):
    """Twelve fields of mixed types, about 300 bytes as JSON."""

    id: int = Field(key=True)
    name: str
    email: str
    street: str
    city: str
    country: str
    balance: Decimal
    visits: int
    score: float
    active: bool
    born: dt.date
    token: UUID


COLUMNS = list(Customer.__record__.fields)


def rows(count: int, seed: int) -> list[dict[str, object]]:
    """Half of the rows are new records, half change one that came before."""
    rng = random.Random(seed)
    made = []
    for number in range(count):
        key = number // 2 if number % 2 == 0 else rng.randrange(number // 2 + 1)
        made.append(
            {
                "id": key,
                "name": f"Customer Number {key} of the {rng.randrange(10**6)} Street Band",
                "email": f"customer.{key}@example.org",
                "street": f"{rng.randrange(1, 300)} Long Straight Avenue, Building {key % 40}",
                "city": rng.choice(["Łódź", "Zürich", "Reykjavík", "Paris", "São Paulo"]),
                "country": rng.choice(["PL", "CH", "IS", "FR", "BR"]),
                "balance": Decimal(rng.randrange(-(10**7), 10**7)) / 100,
                "visits": rng.randrange(10**6),
                "score": rng.random(),
                "active": rng.random() < 0.5,
                "born": dt.date(1950, 1, 1) + dt.timedelta(days=rng.randrange(20000)),
                "token": UUID(int=rng.getrandbits(128)),
            }
        )
    return made


def create(path: Path, *, version: bool) -> None:
    """The table that both the raw run and eventsync write to."""
    extra = ", version BLOB" if version else ""
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(
            "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, email TEXT, street TEXT,"
            " city TEXT, country TEXT, balance TEXT, visits INTEGER, score REAL, active INTEGER,"
            f" born TEXT, token TEXT{extra})"
        )
    connection.close()


def raw(path: Path, made: list[dict[str, object]], *, version: bool, batch: int) -> float:
    """Rows per second of plain bulk upserts, the conversion of values included."""
    create(path, version=version)
    names = [*COLUMNS, *(["version"] if version else [])]
    sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    where = " WHERE excluded.version > version" if version else ""
    sql = (
        f"INSERT INTO customer ({', '.join(names)}) VALUES ({', '.join('?' * len(names))})"
        f" ON CONFLICT (id) DO UPDATE SET {sets}{where}"
    )
    connection = sqlite3.connect(path, isolation_level=None)
    started = time.perf_counter()
    for start in range(0, len(made), batch):
        values = []
        for number, row in enumerate(made[start : start + batch], start=start):
            converted = list(row.values())
            converted[6] = str(converted[6])
            converted[10] = converted[10].isoformat()  # type: ignore[attr-defined]
            converted[11] = str(converted[11])
            if version:
                converted.append(number.to_bytes(16, "big"))
            values.append(converted)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(sql, values)
        connection.execute("COMMIT")
    taken = time.perf_counter() - started
    connection.close()
    return len(made) / taken


def store(folder: Path) -> Store:
    return Store("crm", SqlAccessor(Customer, f"sqlite:///{folder / 'crm.db'}", table="customer"))


def produce(folder: Path, count: int, seed: int, chunk: int, started: object) -> None:
    """Publish every row as a put."""
    made = rows(count, seed)
    clock = Clock()
    with Bus(f"sqlite:///{folder / 'broker.db'}") as bus:
        bus.declare("crm", ["Customer"])
        started.wait()  # type: ignore[attr-defined]
        for start in range(0, count, chunk):
            bus.publish(
                "Customer",
                [
                    bus.encode(
                        Change(
                            type="Customer",
                            key=str(row["id"]),
                            op=PUT,
                            version=clock.tick(),
                            data=row,
                            source="benchmark",
                        )
                    )
                    for row in made[start : start + chunk]
                ],
            )


@contextmanager
def watched(worker: Worker, folder: Path) -> Iterator[None]:
    """Have the worker report, and be scraped, while the block runs."""
    crew = Crew()

    def heard(line: bytes) -> bool:
        crew.heard("crm-1", line)
        return True

    worker.counted = Report(worker.tally, worker.progress, heard)
    stopping = threading.Event()
    with Survey(Bus(f"sqlite:///{folder / 'broker.db'}"), [worker.store]) as survey:
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


def consume(folder: Path, count: int, metrics: bool, started: object, finished: object) -> None:
    """Apply what comes until all of it is settled."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING))
    with store(folder) as crm, Bus(f"sqlite:///{folder / 'broker.db'}") as bus:
        bus.declare("crm", ["Customer"])
        worker = Worker(crm, bus)
        started.wait()  # type: ignore[attr-defined]
        begun = time.process_time()
        with watched(worker, folder) if metrics else nullcontext():
            while sum(worker.outcomes.values()) < count:
                worker.drain(timeout=0.05)
        taken = time.process_time() - begun
        outcomes = {str(k): n for k, n in worker.outcomes.items()}
        finished.put((outcomes, taken))  # type: ignore[attr-defined]


def eventsync(
    folder: Path, count: int, seed: int, chunk: int, metrics: bool
) -> tuple[float, float, dict[str, int]]:
    """Events a second from the first publish to the last applied; processor time an event."""
    create(folder / "crm.db", version=False)
    context = multiprocessing.get_context("spawn")
    started, finished = context.Barrier(3), context.Queue()
    producer = context.Process(target=produce, args=(folder, count, seed, chunk, started))
    consumer = context.Process(target=consume, args=(folder, count, metrics, started, finished))
    producer.start()
    consumer.start()
    started.wait()
    begun = time.perf_counter()
    outcomes, busy = finished.get(timeout=600)
    taken = time.perf_counter() - begun
    producer.join()
    consumer.join()
    return count / taken, busy / count, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--batch", type=int, default=5000, help="rows a transaction, in the raw run"
    )
    parser.add_argument("--chunk", type=int, default=2000, help="envelopes a publish")
    parser.add_argument("--metrics", action="store_true", help="report batches, and be scraped")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    made = rows(options.events, options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        limit = raw(folder / "raw.db", made, version=False, batch=options.batch)
        gated = raw(folder / "gated.db", made, version=True, batch=options.batch)
        rate, busy, outcomes = eventsync(
            folder, options.events, options.seed, options.chunk, options.metrics
        )
    result = {
        "events": options.events,
        "raw_upserts_per_s": round(limit),
        "raw_upserts_with_version_per_s": round(gated),
        "published_to_applied_per_s": round(rate),
        "ratio": round(rate / limit, 3),
        "ratio_with_version": round(rate / gated, 3),
        "worker_cpu_us_per_event": round(busy * 1e6, 1),
        "outcomes": outcomes,
    }
    if options.json:
        print(json.dumps(result))
    else:
        print(f"plain sqlite3, bulk upserts              {limit:>10,.0f} rows/s")
        print(f"plain sqlite3, with an in-row version    {gated:>10,.0f} rows/s")
        print(f"eventsync, published to applied          {rate:>10,.0f} events/s")
        print(f"ratio                                    {rate / limit:>10.2f}")
        print(f"ratio, both with a version check         {rate / gated:>10.2f}")
        print(f"processor time of the worker             {busy * 1e6:>10.1f} µs/event")
        print(f"outcomes: {outcomes}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
