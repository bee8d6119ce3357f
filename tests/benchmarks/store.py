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
import pymysql
import sqlalchemy as sa

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import limit
from benchmarks.customer import COLUMNS, Customer, rows
from servers import Server
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.slapd import SlapdServer

from eventsync.apply import apply
from eventsync.change import PUT, Change
from eventsync.clock import Clock
from eventsync.index import FileIndex
from eventsync.interchange import to_json
from eventsync.store import Store
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.view import View

Batches = Sequence[Sequence[Change]]
ALL = [*COLUMNS, "version"]
SETS = [column for column in ALL if column != "id"]


def row_of(change: Change) -> tuple[Any, ...]:
    assert change.data is not None
    return (*(change.data[name] for name in COLUMNS), bytes(change.version))


def values(batches: Batches) -> list[dict[str, Any]]:
    return [dict(change.data or {}) for batch in batches for change in batch]


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

    def server(self, server: Server) -> Any:
        return self.stack.enter_context(server)

    @abstractmethod
    def raw(self, batches: Batches) -> float:
        """The seconds it takes by the driver alone, into a place that is empty."""

    @abstractmethod
    def store(self) -> Store:
        """A store that is empty."""


class Sqlite(Kind):
    name = "SQLite"
    raw_way = "executemany: INSERT .. ON CONFLICT DO UPDATE .. WHERE excluded.version > version"

    def file(self) -> Path:
        return self.folder / f"{next(self.numbers)}.db"

    def raw(self, batches: Batches) -> float:
        made = values(batches)
        rate = limit.sqlite(self.file(), made, version=True, batch=len(batches[0]))
        return len(made) / rate

    def store(self) -> Store:
        path = self.file()
        limit.create_sqlite(path)
        return Store("crm", SqlAccessor(Customer, f"sqlite:///{path}", table="customer"))


class Sql(Kind):
    url: str

    def emptied(self) -> sa.Engine:
        engine = sa.create_engine(self.url)
        with engine.begin() as connection:
            for name in ("Customer", "raw", "eventsync_version"):
                sa.Table(name, sa.MetaData()).drop(connection, checkfirst=True)
        return engine

    def store(self) -> Store:
        return Store("crm", SqlAccessor(Customer, self.emptied(), create=True))


class Postgres(Sql):
    name = "PostgreSQL"
    raw_way = "COPY into a temporary table, INSERT .. SELECT ON CONFLICT DO UPDATE .. WHERE"

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.url = self.server(PostgresServer(durable=True)).url

    def raw(self, batches: Batches) -> float:
        self.emptied().dispose()
        made, url = values(batches), self.url.replace("+psycopg", "")
        return len(made) / limit.postgres(url, made, version=True, batch=len(batches[0]))


class Maria(Sql):
    name = "MariaDB"
    raw_way = "INSERT of many rows .. ON DUPLICATE KEY UPDATE .. IF(VALUES(version) > version, ..)"

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.url = self.server(MariaServer(durable=True)).url

    def raw(self, batches: Batches) -> float:
        self.emptied().dispose()
        sets = [f"{c} = IF(VALUES(version) > version, VALUES({c}), {c})" for c in SETS]
        statement = (
            f"INSERT INTO raw ({', '.join(ALL)}) VALUES ({', '.join(['%s'] * len(ALL))})"
            f" ON DUPLICATE KEY UPDATE {', '.join(sets)}"
        )
        found = sa.make_url(self.url)
        with pymysql.connect(
            host=found.host, port=found.port, user="root", database="test", ssl_disabled=True
        ) as connection:
            cursor = connection.cursor()
            cursor.execute(
                "CREATE TABLE raw (id BIGINT PRIMARY KEY, name LONGTEXT, email LONGTEXT,"
                " street LONGTEXT, city LONGTEXT, country LONGTEXT, balance DECIMAL(65,30),"
                " visits BIGINT, score DOUBLE, active TINYINT(1), born DATE, token VARCHAR(36),"
                " version VARBINARY(16))"
            )
            started = time.perf_counter()
            for batch in batches:
                cursor.executemany(statement, [self.text(row_of(change)) for change in last(batch)])
                connection.commit()
            return time.perf_counter() - started

    @staticmethod
    def text(row: tuple[Any, ...]) -> list[Any]:
        return [str(held) if type(held).__name__ == "UUID" else held for held in row]


class Redis(Kind):
    name = "Redis"
    raw_way = "one Lua script a batch, which compares versions and sets hashes"
    script = """
    local step = tonumber(ARGV[1])
    for i = 1, #KEYS do
      local at = 2 + (i - 1) * step
      local held = redis.call('HGET', 'version', KEYS[i])
      if not held or held < ARGV[at] then
        redis.call('HSET', 'version', KEYS[i], ARGV[at])
        redis.call('HSET', KEYS[i], unpack(ARGV, at + 1, at + step - 1))
      end
    end
    """

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.running = self.server(RedisServer())

    def raw(self, batches: Batches) -> float:
        with self.running.client() as client:
            client.flushdb()
            guarded = client.register_script(self.script)
            started = time.perf_counter()
            for batch in map(last, batches):
                arguments: list[Any] = [1 + 2 * len(COLUMNS)]
                for change in batch:
                    assert change.data is not None
                    arguments.append(change.version.hex())
                    for name, held in change.data.items():
                        arguments += [name, str(held)]
                guarded(keys=[f"Customer:{change.key}" for change in batch], args=arguments)
            return time.perf_counter() - started

    def store(self) -> Store:
        with self.running.client() as client:
            client.flushdb()
        return Store("crm", RedisAccessor(Customer, self.running.url))


class Ldap(Kind):
    name = "LDAP"
    raw_way = "ldap3: add, or modify; no version"
    slow = True

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        super().__init__(stack, folder)
        self.running = self.server(SlapdServer(attributes=[f"x-{name}" for name in COLUMNS]))

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
    limit, rate = statistics.median(raw), statistics.median(ours)
    return {
        "store": kind.name,
        "rows": count,
        "raw": round(limit),
        "apply": round(rate),
        "ratio": round(rate / limit, 2),
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
