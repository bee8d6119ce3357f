"""The capture of a worker: it yields to messages, tells overruns, and isolates record types."""

from __future__ import annotations

import sqlite3

import pytest
import sqlalchemy as sa
from servers.postgres import PostgresServer
from structlog.testing import CapturingLogger
from support.waiting import eventually
from support.worker_harness import running, worker_parts

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.stamp import PUT
from eventsync.engine.store import Store
from eventsync.monitoring.problem import ProblemKind
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.background import Background
from eventsync.worker.maintenance import Maintenance
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker

ROWS = 12_000


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class Part(Record):
    id: int = Field(key=True)
    name: str = ""


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        yield bus


@pytest.fixture(scope="module")
def postgres():
    with PostgresServer() as server:
        engine = sa.create_engine(server.url)
        with engine.begin() as connection:
            connection.exec_driver_sql("CREATE TABLE item (id integer PRIMARY KEY, name text)")
            connection.exec_driver_sql(
                f"INSERT INTO item SELECT n, 'old' FROM generate_series(1, {ROWS}) n"
            )
        engine.dispose()
        yield server


class Watched(Store):
    """Notes, for each pass of the capture, how many changes were settled before each slice."""

    def watch(self, worker):
        self.worker, self.passes = worker, []

    def capture(self, *arguments, **options):
        settled = []
        self.passes.append(settled)
        for changes in super().capture(*arguments, **options):
            settled.append(self.worker.outcomes.total())
            yield changes


def test_messages_are_applied_between_the_slices_of_one_pass(bus, postgres):
    """While a large table is captured again and again, waiting messages are applied."""
    accessor = SqlAccessor(Item, postgres.url, table="item")
    with Watched("crm", accessor, capture_every=0.01, publisher=bus) as store:
        bus.declare("crm", ["Item"])
        worker = Worker(store, bus, options=Options(prefetch=8))
        store.watch(worker)
        assert sum(map(len, store.capture())) == ROWS
        worker.drain(timeout=0.05)  # its own changes come back
        already = worker.outcomes.total()
        store.passes.clear()
        version = store.clock.tick
        rows = [{"id": 1 + n % ROWS, "name": f"new {n}"} for n in range(1000)]
        for row in rows:
            key = str(row["id"])
            change = Change(type="Item", key=key, op=PUT, version=version(), data=row, source="t")
            bus.publish("Item", [bus.encode(change)])
        # Somebody edits rows behind both ends of the pass, and deletes one.
        with store.accessor(Item).engine.begin() as connection:
            connection.exec_driver_sql("UPDATE item SET name = 'foreign' WHERE id = 11000")
            connection.exec_driver_sql("DELETE FROM item WHERE id = 11500")
        thread = running(worker)
        try:
            eventually(lambda: worker.outcomes.total() >= already + len(rows))
            eventually(lambda: any(len(settled) >= 24 for settled in store.passes))
        finally:
            worker.stop()
            thread.join(30)
        assert not thread.is_alive()
        during = store.passes[0]
        assert during[0] < during[-1], "no message was settled between the slices"
        assert store.get(Item, 11_000).name == "foreign"
        assert store.get(Item, 11_500) is None
        assert store.get(Item, 1000).name == "new 999"
        # No pass has taken what was applied meanwhile for a foreign write.
        left = [change for changes in store.capture() for change in changes]
        assert left == []


def test_a_slice_waits_while_messages_wait():
    """A task that took a second pauses for four while messages wait, and not at all otherwise."""
    now, done = [0.0], []

    def slices():
        while True:
            now[0] += 1.0
            done.append(now[0])
            yield

    background = Background(monotonic=lambda: now[0])
    background.begin(slices())
    background.advance(idle=False)
    background.advance(idle=False)
    assert len(done) == 1
    now[0] += 3.5
    background.advance(idle=False)
    assert len(done) == 1
    now[0] += 0.5
    background.advance(idle=False)
    assert len(done) == 2
    background.advance(idle=True)
    assert len(done) == 3


def test_an_overrun_is_told_once_and_counted(bus):
    """A pass that is still under way when the next is due is an overrun, until one is in time."""
    now = [1000.0]
    store = Store("crm", MemoryAccessor(Item), capture_every=5.0).open()
    store.add([Item(id=n) for n in range(9000)])
    bus.declare("crm", ["Item"])
    context, applier, settlement = worker_parts(store, bus)
    log = context.log = CapturingLogger()
    maintenance = Maintenance(context, applier, settlement, monotonic=lambda: now[0])

    def overruns():
        totals = context.counters.totals()
        return sum(n for metric, _, n in totals if metric.name.endswith("overruns_total"))

    def shown():
        return [one for one in context.status.problems.present() if one.kind == "overrun"]

    for _ in range(4):  # slow: one slice every five seconds
        now[0] += 6.0
        maintenance.run(idle=True)
    assert overruns() >= 2
    (problem,) = shown()
    assert "capture_every=5" in problem.text
    assert context.status.to_json()["problems"][0]["kind"] == "overrun"
    told = [call for call in log.calls if call.args == ("capture takes longer than its period",)]
    assert len(told) == 1
    for _ in range(200):
        now[0] += 0.1
        maintenance.run(idle=True)
    assert shown() == []
    assert context.status.capture_seconds < 5.0


class _Files:
    """Two tables in one database, edited by plain SQL."""

    def __init__(self, folder):
        self.path = folder / "two.db"
        url = f"sqlite:///{self.path}"
        self.accessors = [SqlAccessor(type, url, create=True) for type in (Item, Part)]

    def run(self, statement):
        with sqlite3.connect(self.path) as connection:
            connection.execute(statement)
        connection.close()


@pytest.fixture
def two(bus, tmp_path):
    """A captured store of two record types with 30 records each, its tables, and another store."""
    tables = _Files(tmp_path)
    store = Store("crm", *tables.accessors, publisher=bus, capture_every=0.01)
    other = Store("other", MemoryAccessor(Item), MemoryAccessor(Part), publisher=bus)
    with store, other:
        for each in (store, other):
            bus.declare(each.name, each.accessors)
        store.add([type(id=n, name="old") for type in (Item, Part) for n in range(30)])
        Worker(other, bus).drain(timeout=0.05)
        Worker(store, bus).drain(timeout=0.05)
        yield store, tables, other


def test_a_tripped_guard_holds_up_its_type_only(bus, two):
    """One table is emptied: nothing of it is deleted, and the other table is captured as before."""
    store, tables, other = two
    tables.run("DELETE FROM Item WHERE id >= 5")
    tables.run("UPDATE Part SET name = 'edited' WHERE id = 3")
    tables.run("DELETE FROM Part WHERE id = 4")
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    Worker(other, bus).drain(timeout=0.05)
    assert other.count(Item) == 30
    assert other[Part, 3].name == "edited"
    assert other.get(Part, 4) is None
    (problem,) = worker.progress.problems.present()
    assert (problem.kind, problem.type) == (ProblemKind.GUARD, "Item")
    assert "eventsync sync --to crm --records Item" in problem.text
    assert "eventsync sync --from crm --records Item --allow-deletes" in problem.text
    # The records are restored, and the problem is over.
    for n in range(5, 30):
        tables.run(f"INSERT INTO Item VALUES ({n}, 'old')")
    worker.drain(timeout=0.05)
    assert worker.progress.problems.present() == []


def test_a_capture_that_fails_holds_up_its_type_only(bus, two):
    """One table is gone: that is a problem of its type, and the other type is captured."""
    store, tables, other = two
    tables.run("ALTER TABLE Item RENAME TO elsewhere")
    tables.run("UPDATE Part SET name = 'edited' WHERE id = 3")
    worker = Worker(store, bus)
    worker.drain(timeout=0.05)
    Worker(other, bus).drain(timeout=0.05)
    assert other[Part, 3].name == "edited"
    assert other.count(Item) == 30
    kinds = {(one.kind, one.type) for one in worker.progress.problems.present()}
    assert (ProblemKind.CAPTURE, "Item") in kinds
    assert not any(type == "Part" for _, type in kinds)
    tables.run("ALTER TABLE elsewhere RENAME TO Item")
    worker.drain(timeout=0.05)
    assert worker.progress.problems.present() == []
