"""An existing SQLite database copied into a server with its foreign keys in place, in random order.

Run it from the project's root: ``python tests/chaos/foreign.py --database some.sqlite --url
postgresql+psycopg://user@host/empty``. Changes are published over the embedded broker and drained
by a worker; it exits with 1 if any field differs in the end.
"""

from __future__ import annotations

import argparse
import random
import shutil
import sys
import tempfile
from pathlib import Path

import sqlalchemy as sa
import structlog

from eventsync.bus import Bus
from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.worker import Worker


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--database", type=Path, required=True)
    parser.add_argument("--url", required=True)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(options.database, f"{folder}/source.db")
        source = sa.create_engine(f"sqlite:///{folder}/source.db")
        target = sa.create_engine(options.url)
        metadata = sa.MetaData()
        metadata.reflect(source)
        for table in metadata.tables.values():
            for column in table.columns:
                column.type = column.type.as_generic()
        metadata.create_all(target)
        types = {name: derive(source, name) for name in metadata.tables}
        names = list(types)
        random.Random(options.seed).shuffle(names)
        bus = Bus(f"sqlite:///{folder}/broker.db")
        old = Store("old", *(SqlAccessor(types[n], source, table=n) for n in names))
        new = Store("new", *(SqlAccessor(types[n], target, table=n) for n in names))
        with bus, old, new:
            bus.declare("new", new.accessors)
            changes = [change for chunk in old.capture() for change in chunk]
            random.Random(options.seed).shuffle(changes)
            for change in changes:
                bus.publish(change.type, [bus.encode(change)])
            worker = Worker(new, bus)
            worker.drain()
            while bus.states("new")["held"].ready:
                worker.drain(timeout=0.05)
            differing = sum(
                {r.key: r.raw() for r in old.find(t)} != {r.key: r.raw() for r in new.find(t)}
                for t in types.values()
            )
            print(f"{len(changes)} records, {differing} of {len(types)} tables differ")
            print({str(outcome): count for outcome, count in worker.outcomes.items()})
    return 1 if differing else 0


if __name__ == "__main__":
    sys.exit(main())
