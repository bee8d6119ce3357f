"""An existing SQLite database published in random order into stores that mind the order, or do not.

Run it from the project's root on any database whose tables have primary keys::

    python tests/chaos/foreign.py --database some.sqlite

The tables are made in PostgreSQL and MariaDB with their foreign keys in place, so that a record
that comes before the one it refers to has to wait; Redis takes all tables, a directory those whose
key is one column. The servers are the run's own; with ``--url`` databases that are there are used,
which have to be empty. Every record is published once, as a message of its own, and each store's
worker drains its queue. In the end all stores are compared with the source, field by field. It
prints what it found as JSON, and exits with 1 if anything differs or is a dead letter.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import sqlalchemy as sa
import structlog

sys.path.append(str(Path(__file__).parents[1]))

from servers.mariadb import MariaServer  # tests are no package
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from servers.slapd import SlapdServer

from eventsync.broker.bus import Bus
from eventsync.engine.accessor import Accessor
from eventsync.engine.store import Store
from eventsync.index import FileIndex
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.ldap import LdapAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.worker.worker import Worker

KINDS = ("postgres", "mariadb", "redis", "ldap")


def sql_store(name: str, url: str, source: sa.Engine, types: dict[str, type[Record]]) -> Store:
    """The tables of ``source`` with their foreign keys, in another database."""
    target = sa.create_engine(url)
    metadata = sa.MetaData()
    metadata.reflect(source)
    for table in metadata.tables.values():
        for column in table.columns:
            column.type = column.type.as_generic()
    metadata.create_all(target)
    return Store(name, *(SqlAccessor(held, target, table=n) for n, held in types.items()))


def redis_store(url: str, types: dict[str, type[Record]]) -> Store:
    """A hash for each record."""
    return Store("redis", *(RedisAccessor(held, url) for held in types.values()))


def attribute(column: str) -> str:
    """The name of the directory's attribute for a column."""
    return "x-" + re.sub(r"[^A-Za-z0-9]", "-", column)


def suits_directory(held: type[Record]) -> bool:
    return len(held.__record__.keys) == 1


def ldap_store(server: SlapdServer, folder: Path, types: dict[str, type[Record]]) -> Store:
    """A unit for each table, in it an entry for each record."""
    client = server.client()
    accessors: list[Accessor[Any]] = []
    for number, held in enumerate(filter(suits_directory, types.values())):
        unit = f"ou=u{number},dc=example,dc=org"
        assert client.add(unit, "organizationalUnit"), client.result
        (key,) = held.__record__.keys
        accessors.append(
            LdapAccessor(
                held,
                server.url,
                dn=f"{attribute(key)}={{{key}}},{unit}",
                object_classes=["testRecord"],
                user=server.user_dn,
                password=server.password,
                view=View(rename={name: attribute(name) for name in held.__record__.fields}),
            )
        )
    client.unbind()
    return Store("ldap", *accessors, index=FileIndex(folder / "ldap.versions.db"))


def stores(
    stack: ExitStack,
    folder: Path,
    source: sa.Engine,
    types: dict[str, type[Record]],
    options: argparse.Namespace,
) -> Iterator[Store]:
    """The stores that were asked for, on servers that end with ``stack``."""
    for number, url in enumerate(options.url):
        yield sql_store(f"{sa.make_url(url).get_backend_name()}{number}", url, source, types)
    for kind in options.stores:
        if kind == "postgres":
            server = stack.enter_context(PostgresServer())
            yield sql_store(kind, server.url, source, types)
        elif kind == "mariadb":
            yield sql_store(kind, stack.enter_context(MariaServer()).url, source, types)
        elif kind == "redis":
            yield redis_store(stack.enter_context(RedisServer()).url, types)
        else:
            held = filter(suits_directory, types.values())
            columns = {attribute(name) for one in held for name in one.__record__.fields}
            directory = stack.enter_context(SlapdServer(attributes=sorted(columns)))
            yield ldap_store(directory, folder, types)


def contents(store: Store, held: type[Record]) -> dict[str, dict[str, Any]]:
    return {record.key: record.raw() for record in store.find(held)}


def drain(store: Store, bus: Bus) -> dict[str, Any]:
    """Run the store's worker until nothing comes and nothing waits; how that went."""
    begun = time.monotonic()
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    while bus.states(store.name)["held"].unsettled:
        worker.drain(timeout=0.05)
    return {
        "seconds": round(time.monotonic() - begun, 1),
        "outcomes": {str(outcome): count for outcome, count in worker.outcomes.items()},
        "dead_letters": bus.states(store.name)["dead"].ready,
    }


def run_all(folder: Path, options: argparse.Namespace) -> dict[str, Any]:
    """The whole run; what it did and found."""
    rng = random.Random(options.seed)
    shutil.copy(options.database, folder / "source.db")
    source = sa.create_engine(f"sqlite:///{folder / 'source.db'}")
    tables = sa.inspect(source).get_table_names()
    rng.shuffle(tables)
    types = {name: derive(source, name) for name in tables}
    report: dict[str, Any] = {"seed": options.seed, "tables": len(tables), "stores": {}}
    with ExitStack() as stack:
        old = Store("old", *(SqlAccessor(held, source, table=n) for n, held in types.items()))
        stack.enter_context(old)
        bus = stack.enter_context(Bus(f"sqlite:///{folder / 'broker.db'}"))
        news = list(stores(stack, folder, source, types, options))
        for store in news:
            stack.enter_context(store)
            bus.declare(store.name, store.accessors)
        taken = {name for store in news for name in store.accessors}
        changes = [c for chunk in old.capture() for c in chunk if c.type in taken]
        rng.shuffle(changes)
        report["records"] = len(changes)
        for change in changes:
            bus.publish(change.type, [bus.encode(change)])
        for store in news:
            found = drain(store, bus)
            held = {n: contents(store, a.record_class) for n, a in store.accessors.items()}
            found["tables"] = len(held)
            found["records"] = sum(map(len, held.values()))
            found["differing"] = [
                name
                for name, records in held.items()
                if records != contents(old, store.accessors[name].record_class)
            ]
            report["stores"][store.name] = found
    return report


def main(arguments: list[str] | None = None) -> dict[str, Any]:
    """One run; prints its result as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument(
        "--url", action="append", default=[], help="of an empty database; repeatable"
    )
    parser.add_argument("--stores", help=f"by default {','.join(KINDS)}, or none with --url")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    options = parser.parse_args(arguments)
    named = options.stores if options.stores is not None else "" if options.url else ",".join(KINDS)
    options.stores = [kind for kind in named.split(",") if kind]
    unknown = set(options.stores) - set(KINDS)
    if unknown:
        parser.error(f"no such store: {', '.join(unknown)}; there are {', '.join(KINDS)}")
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as folder:
        result = run_all(Path(folder), options)
    print(json.dumps(result))
    return result


if __name__ == "__main__":
    found = main()["stores"].values()
    sys.exit(1 if any(store["differing"] or store["dead_letters"] for store in found) else 0)
