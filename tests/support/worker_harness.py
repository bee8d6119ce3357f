"""Scaffolding of worker tests: a record type, a store that fails on demand, changes."""

from __future__ import annotations

import os
import threading
import time
from decimal import Decimal

import structlog

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.errors import RejectedError, StoreUnavailableError
from eventsync.monitoring.counters import Counters
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.worker.applier import Applier
from eventsync.worker.context import WorkerContext
from eventsync.worker.options import DEFAULT_OPTIONS
from eventsync.worker.settlement import Settlement


class Product(Record):
    id: int = Field(key=True)
    name: str
    price: Decimal = Decimal(0)


class Fussy(MemoryAccessor):
    """Refuses the name "poison", is busy for the name "busy", and unreachable while ``away``.

    ``answers``: while away it answers a ping all the same.
    """

    away = False
    answers = False
    accepts_all = False
    writes = 0

    def ping(self):
        if self.away and not self.answers:
            raise StoreUnavailableError("away for the test")

    def write_rows(self, writes, removals, transaction):
        self.writes += 1
        if self.away:
            raise StoreUnavailableError("away for the test")
        names = [write.values.get("name") for write in writes]
        if "busy" in names and not self.accepts_all:
            raise StoreUnavailableError("busy for the test")
        if "poison" in names and not self.accepts_all:
            raise RejectedError("poison is refused")
        super().write_rows(writes, removals, transaction)


def put(clock, key, name="x", **more):
    """Return a put of a product at the clock's next version."""
    data = {"id": key, "name": name, "price": Decimal("1.5")}
    return Change(
        type="Product", key=str(key), op="put", version=clock.tick(), data=data, source="t", **more
    )


def publish(bus, *changes):
    """Publish changes of products in one message."""
    bus.publish("Product", [bus.encode(change) for change in changes])


def publish_rows(bus, *rows, type="Product", age=0.0):
    """Publish puts of rows, each in a message of its own, made so many seconds ago."""
    clock = Clock(now=lambda: time.time() - age)
    for row in rows:
        version = clock.tick()
        id = version[:6] + b"\x70" + os.urandom(9)
        change = Change(type=type, key=str(row["id"]), op="put", version=version, data=row, id=id)
        bus.publish("Product", [bus.encode(change)])


def letters(bus, store="crm", *, held=False):
    """Return the dead letters of a store, or its held changes."""
    with bus.letters(store, held=held) as found:
        return [letter for letter, _ in found.read()]


def worker_parts(store, bus, options=DEFAULT_OPTIONS):
    """Return the context, applier and settlement that a worker of ``store`` would have."""
    log = structlog.get_logger()
    context = WorkerContext(store, bus, options=options, counters=Counters(), log=log)
    applier = Applier(context)
    return context, applier, Settlement(context, applier)


def running(worker):
    """Run a worker in a thread."""
    thread = threading.Thread(target=worker.run)
    thread.start()
    return thread
