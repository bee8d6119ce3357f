"""An existing SQLite database, as it stands, kept in sync with two other stores under kills.

Run it from the project's root on any database whose tables have primary keys::

    python tests/chaos/existing.py --database some.sqlite --edits 2000 --deletes 200

The database is copied. All its tables are declared from its schema and synchronized into a second
database with other column names and into folders of JSON documents. Then records are edited and
deleted on all three sides, by processes of their own, while the stores' workers run and are killed.
In the end all three are compared field by field. It prints what it did, and exits with 1 if
anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime as dt
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from decimal import Decimal
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import structlog

from eventsync.broker.bus import Bus
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import NotFoundError
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

_context = multiprocessing.get_context("forkserver")


def tables(database: Path) -> list[str]:
    """The names of the tables in a database, those of eventsync left out."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        found = connection.execute(
            "SELECT name FROM sqlite_master WHERE type = 'table'"
            " AND name NOT LIKE 'sqlite_%' AND name NOT LIKE 'eventsync_%' ORDER BY name"
        )
        return [name for (name,) in found]


def stores(folder: Path) -> StoreRegistry:
    """The three stores below ``folder``; record types are declared from the original's schema."""
    original = f"sqlite:///{folder / 'original.db'}"
    second = f"sqlite:///{folder / 'second.db'}"
    types = {name: derive(original, name) for name in tables(folder / "original.db")}
    return StoreRegistry(
        Store("original", *(SqlAccessor(t, original, table=n) for n, t in types.items())),
        Store(
            "second",
            *(
                SqlAccessor(
                    record_type,
                    second,
                    table=f"{name} copy",
                    create=True,
                    view=View(rename={n: f"the {n}" for n in record_type.__record__.fields}),
                )
                for name, record_type in types.items()
            ),
        ),
        Store(
            "documents",
            *(JsonFolderAccessor(t, folder / "documents" / n) for n, t in types.items()),
            index=folder / "documents" / "versions.db",
        ),
    )


def bus(folder: Path) -> Bus:
    """The embedded broker of this run."""
    return Bus(f"sqlite:///{folder / 'broker.db'}", lease=5.0)


def work(folder: Path, name: str) -> None:
    """A worker process."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    registry = stores(folder)
    run(Worker(registry[name], bus(folder), options=Options(retry_for=60.0)), grace=20.0)


def edit(folder: Path, name: str, seed: int, edits: int, deletes: int) -> None:
    """A process that edits and deletes records of one store, chosen at random."""
    rng = random.Random(seed)
    with bus(folder) as broker, stores(folder).open(publisher=broker) as registry:
        store = registry[name]
        keys = [
            (accessor, record.key)
            for accessor in store.accessors.values()
            for record in store.find(accessor.record_class)
        ]
        work_list = ["edit"] * edits + ["delete"] * deletes
        rng.shuffle(work_list)
        for task in work_list:
            done = False
            while not done:
                accessor, key = rng.choice(keys)
                record = accessor.get(key)
                # Somebody else may delete it in between: then another one.
                with contextlib.suppress(NotFoundError):
                    if record is not None:
                        record.stores.add(store)
                        done = True
                        if task == "delete":
                            store.remove(record)
                        else:
                            done = change(rng, record)
                            store.update(record)


def change(rng: random.Random, record: Record) -> bool:
    """Give one field that is not part of the key another value of its type."""
    type = record.__record__
    names = [name for name in type.fields if name not in type.keys]
    if not names:
        return False
    name = rng.choice(names)
    field = type.fields[name]
    if field.optional and rng.random() < 0.1:
        record[name] = None
        return True
    made: dict[Any, Any] = {
        str: f"Žluťoučký 東京 ß {rng.randrange(10**6)}",
        int: rng.randrange(10**6),
        float: rng.random(),
        Decimal: Decimal(rng.randrange(10**5)) / 100,
        dt.datetime: dt.datetime(2001, 2, 3) + dt.timedelta(seconds=rng.randrange(10**8)),
        dt.date: dt.date(2001, 2, 3) + dt.timedelta(days=rng.randrange(5000)),
        bytes: rng.randbytes(8),
        bool: rng.random() < 0.5,
    }
    if field.type not in made:
        return False
    record[name] = made[field.type]
    return True


def compare(registry: StoreRegistry) -> tuple[int, list[str]]:
    """How many records there are, and what differs between the stores, field by field."""
    count, differing = 0, []
    for name, record_type in registry.record_types.items():
        sides = {s.name: {r.key: r.raw() for r in s.find(record_type)} for s in registry}
        keys = set().union(*sides.values())
        count += len(keys)
        for key in sorted(keys):
            found = {side: rows.get(key) for side, rows in sides.items()}
            if any(row != found["original"] for row in found.values()):
                differing.append(f"{name} {key}: {found}")
    return count, differing


def settle(broker: Bus, registry: StoreRegistry, seconds: float) -> None:
    """Wait until no queue and no outbox holds anything."""
    deadline = time.monotonic() + seconds
    while True:
        waiting: Counter[str] = Counter()
        for store in registry:
            states = broker.states(store.name)
            waiting[f"queue of {store.name}"] = states["queue"].ready + (
                states["queue"].leased or 0
            )
            waiting[f"outbox of {store.name}"] = len(store.index.outgoing(1))
        if not waiting.total():
            return
        if time.monotonic() > deadline:
            raise TimeoutError(f"not settled in time: {+waiting}")
        time.sleep(0.1)


def run_all(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; what it did and found."""
    begun = time.monotonic()
    rng = random.Random(options.seed)
    shutil.copy(options.database, folder / "original.db")
    (folder / "documents").mkdir()
    registry = stores(folder).open()
    report = registry.synchronize(sources=["original"])
    synchronized = time.monotonic() - begun
    records, differing = compare(registry)
    result: dict[str, Any] = {
        "seed": options.seed,
        "tables": len(registry.record_types),
        "records": records,
        "rejected": [str(settled.error) for _, settled in report.rejected],
        "differing_after_sync": len(differing),
        "sync_seconds": round(synchronized, 1),
    }
    broker = bus(folder).open()
    for store in registry:
        broker.declare(store.name, store.accessors)
    names = list(registry.stores)
    workers = {name: _start(work, folder, name) for name in names}
    editors = [
        _start(
            edit,
            folder,
            name,
            options.seed + n,
            options.edits // 3 + (n < options.edits % 3),
            options.deletes // 3 + (n < options.deletes % 3),
        )
        for n, name in enumerate(names)
    ]
    kills = 0
    while any(editor.is_alive() for editor in editors) or kills < options.kills:
        time.sleep(rng.uniform(0.05, 0.5))
        name = rng.choice(names)
        os.kill(workers[name].pid, signal.SIGKILL)
        workers[name].join()
        kills += 1
        workers[name] = _start(work, folder, name)
    for editor in editors:
        editor.join()
        if editor.exitcode:
            raise RuntimeError(f"an editor failed with {editor.exitcode}")
    settle(broker, registry, 300.0)
    for worker in workers.values():
        os.kill(worker.pid, signal.SIGTERM)
        worker.join()
    records, differing = compare(registry)
    letters = {name: broker.states(name)["dead"].ready for name in names}
    registry.close()
    broker.close()
    return result | {
        "edits": options.edits,
        "deletes": options.deletes,
        "kills": kills,
        "records_in_the_end": records,
        "dead_letters": letters,
        "differing": len(differing),
        "examples": differing[:5],
        "seconds": round(time.monotonic() - begun, 1),
    }


def _start(target: Any, *arguments: Any) -> Any:
    process = _context.Process(target=target, args=arguments, daemon=True)
    process.start()
    return process


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """One run; prints its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--edits", type=int, default=2000)
    parser.add_argument("--deletes", type=int, default=200)
    parser.add_argument("--kills", type=int, default=20, help="at least")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="work here, and leave it")
    options = parser.parse_args(arguments)
    _context.set_forkserver_preload(["existing"])
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        result = run_all(folder, options)
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    found = main()
    sys.exit(1 if found["differing"] or found["differing_after_sync"] else 0)
