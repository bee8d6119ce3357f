"""Rows per second that each kind of store takes, beside the most that its driver takes.

Run it from the project's root: ``python tests/benchmarks/store.py``. Both sides get the same rows
of twelve fields, half of them new and half changing one that came before, in the same batches, and
by turns in the same run; of several rounds the median counts. Both write only the last of several
changes of a record in a batch. The raw side keeps a version in each row and lets only greater ones
in, as the gate does, by the quickest bulk way of the driver; a directory and files have none, and
are just written. What eventsync does beside: it keeps versions in a table of their own, with the
digests and tombstones that the rules need, and judges each change. Servers are the run's own, and
wait for the disk as by default (but for slapd). Use the ratios.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import ldap3

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import deployment, limit
from benchmarks.customer import COLUMNS, Customer, rows
from benchmarks.database import emptied, running_store
from servers.slapd import SlapdServer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.index import FileIndex
from eventsync.records.view import View
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.ldap import LdapAccessor
from eventsync.values.tagged_json import to_json

Batches = Sequence[Sequence[Change]]


def last(batch: Sequence[Change]) -> list[Change]:
    """The last change of each record, as the worker coalesces them."""
    return list({change.key: change for change in batch}.values())


class Kind(ABC):
    """One kind of store, and how its driver is used at its best."""

    name: str
    raw_way: str
    slow = False
    """Whether it writes one record at a time, so that fewer of them will do."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        self.stack, self.folder = stack, folder
        self.numbers = itertools.count()

    @abstractmethod
    def raw(self, batches: Batches) -> float:
        """The seconds it takes by the driver alone, into a place that is empty."""

    @abstractmethod
    def store(self) -> Store:
        """A store that is empty."""


class Database(Kind):
    """One of those whose fastest ways ``limit`` knows."""

    store_name: str
    how: str

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.url = stack.enter_context(running_store(self.store_name, folder))

    def raw(self, batches: Batches) -> float:
        made = [dict(change.data or {}) for batch in batches for change in batch]
        way, size = limit.Way.IN_ROW, len(batches[0])
        with limit.opened(self.store_name, emptied(self.url), Customer) as raw:
            return len(made) / limit.rate(raw, made, way=way, how=self.how, batch=size)

    def store(self) -> Store:
        return deployment.made(emptied(self.url), Customer)


class Sqlite(Database):
    name, store_name, how = "SQLite", "sqlite", "executemany"
    raw_way = "executemany: INSERT .. ON CONFLICT DO UPDATE .. WHERE excluded.version > version"


class Postgres(Database):
    name, store_name, how = "PostgreSQL", "postgres", "copy"
    raw_way = "COPY into a temporary table, INSERT .. SELECT ON CONFLICT DO UPDATE .. WHERE"


class Maria(Database):
    name, store_name, how = "MariaDB", "mariadb", "many_rows"
    raw_way = "INSERT of many rows .. ON DUPLICATE KEY UPDATE .. IF(VALUES(version) > version, ..)"


class Redis(Database):
    name, store_name, how = "Redis", "redis", "script"
    raw_way = "one Lua script a batch, which compares versions and sets hashes"


class Ldap(Kind):
    name = "LDAP"
    raw_way = "ldap3: add, or modify; no version"
    slow = True

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        attributes = [f"x-{name}" for name in COLUMNS]
        self.running = stack.enter_context(SlapdServer(attributes=attributes))

    def unit(self) -> str:
        unit = f"ou=u{next(self.numbers)},dc=example,dc=org"
        with self.running.client() as client:
            client.add(unit, "organizationalUnit")
        return unit

    def raw(self, batches: Batches) -> float:
        unit, there = self.unit(), set()
        with self.running.client() as client:
            started = time.perf_counter()
            for change in itertools.chain(*map(last, batches)):
                assert change.data is not None
                dn = f"x-id={change.key},{unit}"
                held = {f"x-{name}": str(value) for name, value in change.data.items()}
                if change.key in there:
                    del held["x-id"]
                    client.modify(dn, {n: [(ldap3.MODIFY_REPLACE, [v])] for n, v in held.items()})
                else:
                    client.add(dn, "testRecord", held)
                    there.add(change.key)
            return time.perf_counter() - started

    def store(self) -> Store:
        accessor = LdapAccessor(
            Customer,
            self.running.url,
            dn=f"x-id={{id}},{self.unit()}",
            object_classes=["testRecord"],
            user=self.running.user_dn,
            password=self.running.password,
            view=View(rename={name: f"x-{name}" for name in COLUMNS}),
        )
        return Store("crm", accessor, index=FileIndex(self.folder / f"{next(self.numbers)}.db"))


class JsonFiles(Kind):
    name = "JSON files"
    raw_way = "json.dumps into a new file, fsync, rename; no version"
    slow = True

    def raw(self, batches: Batches) -> float:
        folder = self.folder / f"raw{next(self.numbers)}"
        folder.mkdir()
        started = time.perf_counter()
        for change in itertools.chain(*map(last, batches)):
            partial = folder / f"{change.key}.tmp"
            with partial.open("w", encoding="utf-8") as out:
                json.dump(to_json(change.data), out, ensure_ascii=False)
                out.flush()
                os.fsync(out.fileno())
            partial.replace(folder / f"{change.key}.json")
        return time.perf_counter() - started

    def store(self) -> Store:
        folder = self.folder / f"documents{next(self.numbers)}"
        return Store("crm", JsonFolderAccessor(Customer, folder))


KINDS = {kind.name: kind for kind in (Sqlite, Postgres, Maria, Redis, Ldap, JsonFiles)}


def changes(count: int, size: int) -> list[list[Change]]:
    """Puts in batches, each at a version of its own, with what decoding them would have made."""
    clock = Clock()
    made = []
    for row in rows(count, seed=7):
        data = Customer(**row).raw()
        made.append(
            Change(type="Customer", key=str(row["id"]), op=PUT, version=clock.tick(), data=data)
        )
        made[-1].digest  # noqa: B018  # decoding has its own benchmark
    return [made[start : start + size] for start in range(0, count, size)]


def applied(store: Store, batches: Batches) -> float:
    with store:
        started = time.perf_counter()
        for batch in batches:
            apply(store, batch, clock=store.clock)
        return time.perf_counter() - started


def measure(kind: Kind, options: argparse.Namespace) -> dict[str, Any]:
    """The medians of some rounds, both sides by turns."""
    count = options.rows // 10 if kind.slow else options.rows
    batches = changes(count, options.batch)
    raw, ours = [], []
    for _ in range(options.rounds):
        raw.append(count / kind.raw(batches))
        ours.append(count / applied(kind.store(), batches))
    most, rate = statistics.median(raw), statistics.median(ours)
    return {
        "store": kind.name,
        "rows": count,
        "raw": round(most),
        "apply": round(rate),
        "ratio": round(rate / most, 2),
        "raw_way": kind.raw_way,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000, help="a tenth where they go one by one")
    parser.add_argument("--batch", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--store", action="append", choices=list(KINDS), help="repeatable")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for name in options.store or KINDS:
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
            found.append(measure(KINDS[name](stack, folder), options))
        if not options.json:
            one = found[-1]
            print(
                f"{one['store']:12} raw {one['raw']:9,}/s   apply {one['apply']:9,}/s"
                f"   ratio {one['ratio']:.2f}   {one['raw_way']}",
                flush=True,
            )
    if options.json:
        print(json.dumps({"batch": options.batch, "rounds": options.rounds, "stores": found}))


if __name__ == "__main__":
    main()
