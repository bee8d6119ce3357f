"""Rows per second of ``Store`` apply, beside the driver's own bulk upsert of the same rows.

Run it from the project's root: ``python tests/benchmarks/store.py --url postgresql+psycopg://...``.
The raw run is plain upserts by the driver's ``executemany``, which compare no versions and keep
none: the ratio is against less work than ``apply`` does. Each side runs once, the raw one first.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import sqlalchemy as sa
from throughput import Customer, rows

from eventsync.apply import apply
from eventsync.change import Change
from eventsync.clock import Clock
from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--url", required=True)
    parser.add_argument("--events", type=int, default=20_000)
    options = parser.parse_args()
    engine = sa.create_engine(options.url)
    made = rows(options.events, 1)
    clock = Clock()
    for batch in (500, 5000):
        with engine.begin() as connection:
            for name in ("Customer", "eventsync_version"):
                sa.Table(name, sa.MetaData()).drop(connection, checkfirst=True)
        with Store("crm", SqlAccessor(Customer, engine, create=True)) as store:
            accessor = store.accessor(Customer)
            target, table, dialect = accessor._table.target, accessor._table, accessor.dialect
            started = time.perf_counter()
            for start in range(0, len(made), batch):
                with dialect.connected(engine) as connection:
                    dialect.begin(connection)
                    values = table.rows(made[start : start + batch])
                    connection.exec_driver_sql(dialect.upsert_sql(target), values)
                    connection.commit()
            raw = len(made) / (time.perf_counter() - started)
            with engine.begin() as connection:
                connection.execute(sa.delete(table.found))
            changes = [
                Change(type="Customer", key=str(r["id"]), op="put", version=clock.tick(), data=r)
                for r in made
            ]
            started = time.perf_counter()
            for start in range(0, len(made), batch):
                apply(store, changes[start : start + batch], clock=clock)
            rate = len(made) / (time.perf_counter() - started)
        print(f"{engine.dialect.name} batch {batch}: raw {raw:,.0f}/s, apply {rate:,.0f}/s", end="")
        print(f", ratio {rate / raw:.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
