"""Columns that somebody adds, drops or renames while eventsync knows the table's records.

A table is altered by plain SQL. Then the application and eventsync start again with a record type
that has the new field, as after a deployment.
"""

from __future__ import annotations

import pytest
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.testing import FakeBus


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def foreign(request, servers, tmp_path):
    """A database with a table of points, of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    database.run("CREATE TABLE point (id INTEGER PRIMARY KEY, x INTEGER NOT NULL)")
    yield database
    database.engine.dispose()


def types(rule, **field):
    """A record type before and after it got the field ``y``."""

    class Before(Record, name="Point", rule=rule):
        id: int = Field(key=True)
        x: int = 0

    class After(Record, name="Point", rule=rule):
        id: int = Field(key=True)
        x: int = 0
        y: int | None = Field(**field)

    return Before, After


both_rules = pytest.mark.parametrize("rule", ["record", "field"])


class Pair:
    """The table and a store in memory, which hold the same points."""

    def __init__(self, foreign, bus=None):
        self.foreign, self.bus = foreign, bus or FakeBus()
        self.rows, self.versions = {}, None

    def open(self, type, **view):
        """Return the registry of both stores, as a process that starts makes it."""
        table = SqlAccessor(type, self.foreign.url, table="point", view=View(**view))
        copy = MemoryAccessor(type)
        copy.data = self.rows
        copied = Store("copy", copy, index=self.versions, publisher=self.bus)
        self.versions = copied.index
        return StoreRegistry(Store("table", table, publisher=self.bus), copied)

    def points(self):
        return sorted(self.foreign.rows("SELECT id, x, y FROM point"))


@pytest.fixture
def pair(foreign):
    return Pair(foreign)


def start(pair, before):
    """Put two points into both stores."""
    with pair.open(before) as stores:
        stores["table"].add([before(id=1, x=10), before(id=2, x=20)])
        stores.synchronize(sources=["table"], targets=["copy"])


@both_rules
@pytest.mark.parametrize("default", [None, 5])
@pytest.mark.parametrize("first", ["table", "copy"])
def test_values_of_a_new_column_are_published(pair, rule, default, first):
    """The next sync, in any direction, keeps what others wrote and brings it to the other store."""
    before, after = types(rule, default=default)
    start(pair, before)
    pair.foreign.run(
        "ALTER TABLE point ADD COLUMN y INTEGER", "UPDATE point SET y = 9 WHERE id = 1"
    )
    with pair.open(after) as stores:
        names = ["table", "copy"] if first == "table" else ["copy", "table"]
        stores.synchronize(sources=names[:1], targets=names[1:])
        assert pair.points()[0] == (1, 10, 9)
        stores.synchronize(sources=["table"], targets=["copy"])
        assert pair.rows["1"]["y"] == 9
        assert pair.points() == [(1, 10, 9), (2, 20, None)]
        assert not any(stores["table"].capture())
        assert not any(stores["copy"].capture())


@both_rules
def test_an_update_of_only_the_new_column(pair, rule):
    """It is captured, also if it sets the default or removes the value, and reaches the others."""
    before, after = types(rule, default=5)
    start(pair, before)
    pair.foreign.run("ALTER TABLE point ADD COLUMN y INTEGER")
    values = [("7", 7), ("5", 5), ("NULL", None), ("8", 8)]
    if rule == "field":
        values.insert(0, ("5", 5))  # under the per-record rule this only fills the column in
    for value, held in values:
        with pair.open(after) as stores:
            stores.synchronize(sources=["table"], targets=["copy"])
            pair.foreign.run(f"UPDATE point SET y = {value} WHERE id = 2")
            stores.synchronize(sources=["copy"], targets=["table"])
            stores.synchronize(sources=["table"], targets=["copy"])
        assert pair.points() == [(1, 10, None), (2, 20, held)]
        assert (pair.rows["2"]["y"], pair.rows["2"]["x"]) == (held, 20)


@both_rules
def test_an_edit_from_another_store(pair, rule):
    """It changes the fields it names, and the new column keeps what others wrote."""
    before, after = types(rule)
    start(pair, before)
    pair.foreign.run("ALTER TABLE point ADD COLUMN y INTEGER", "UPDATE point SET y = 9")
    with pair.open(after) as stores:
        copy, table = stores["copy"], stores["table"]
        point = copy[after, 1]
        point.x = 11
        copy.update(point)
        edits = [change for change in pair.bus.changes() if change.data.get("x") == 11]
        assert len(edits) == 1
        apply(table, edits, clock=table.clock)
        assert pair.points() == [(1, 11, 9), (2, 20, 9)]
        stores.synchronize(sources=["table"], targets=["copy"])
        assert {key: (row["x"], row["y"]) for key, row in pair.rows.items()} == {
            "1": (11, 9),
            "2": (20, 9),
        }
        assert not any(table.capture())


@both_rules
def test_an_edit_of_a_process_that_still_has_the_old_type(pair, rule):
    """Its record lacks the field, which is no default."""
    before, after = types(rule)
    start(pair, before)
    pair.foreign.run("ALTER TABLE point ADD COLUMN y INTEGER", "UPDATE point SET y = 9")
    with pair.open(before) as stores:
        point = stores["copy"][before, 1]
        point.x = 11
        stores["copy"].update(point)
    edits = [change for change in pair.bus.changes() if change.data.get("x") == 11]
    with pair.open(after) as stores:
        table = stores["table"]
        apply(table, edits, clock=table.clock)
        assert pair.points() == [(1, 11, 9), (2, 20, 9)]
        stores.synchronize(sources=["table"], targets=["copy"])
        assert pair.rows["1"] == {"id": 1, "x": 11, "y": 9}


@both_rules
@pytest.mark.parametrize(
    ("kind", "default"), [("INTEGER NOT NULL", "7"), ("INTEGER", "'7'"), ("VARCHAR(8)", "'7'")]
)
def test_the_default_of_a_new_column_is_no_value(pair, rule, kind, default):
    """It replaces no value elsewhere, and no default replaces it."""
    before, after = types(rule)
    start(pair, before)
    if rule == "field":  # the copy had the field before
        pair.rows["1"]["y"] = 3
        with pair.open(after, omit=["y"]) as stores:
            assert len([*stores["copy"].capture()]) == 1
    pair.foreign.run(f"ALTER TABLE point ADD COLUMN y {kind} DEFAULT {default}")
    with pair.open(after) as stores:
        assert not any(stores["table"].capture())
        stores.synchronize(sources=["table"], targets=["copy"])
        stores.synchronize(sources=["copy"], targets=["table"])
        one, two = pair.points()
        assert int(one[2]) == (3 if rule == "field" else 7)
        assert int(two[2]) == 7
        assert pair.rows["1"].get("y") == (3 if rule == "field" else None)


@both_rules
@pytest.mark.parametrize("change", ["drop", "rename"])
def test_a_column_that_is_gone_blanks_nothing(pair, rule, change):
    """The store refuses to work without the column, and publishes and writes nothing."""
    _, after = types(rule)
    pair.foreign.run("ALTER TABLE point ADD COLUMN y INTEGER")
    with pair.open(after) as stores:
        stores["table"].add([after(id=1, x=10, y=9)])
        stores.synchronize(sources=["table"], targets=["copy"])
        sent = len(pair.bus.changes())
        assert stores["table"][after, 1].y == 9
        pair.foreign.run(
            "ALTER TABLE point DROP COLUMN y"
            if change == "drop"
            else "ALTER TABLE point RENAME COLUMN y TO z"
        )
        with pytest.raises(ConfigError, match="column"):
            stores.synchronize(sources=["table"], targets=["copy"])
        with pytest.raises(ConfigError, match="column"):
            stores["table"].update(after(id=1, x=11, y=8))
        assert pair.rows["1"]["y"] == 9
        assert pair.foreign.rows("SELECT id, x FROM point") == [(1, 10)]
        assert len(pair.bus.changes()) == sent
    if change == "rename":
        with pair.open(after, rename={"y": "z"}) as stores:
            assert not any(stores["table"].capture())
    elif rule == "field":
        with pair.open(after, omit=["y"]) as stores:
            assert not any(stores["table"].capture())
            assert pair.rows["1"]["y"] == 9


@both_rules
def test_records_outside_the_filter_of_a_field_that_is_not_held(pair, rule):
    """Rows of others stay: nobody knows whether they match. ``check`` tells of such a view."""
    _, after = types(rule)
    pair.foreign.run(*(f"INSERT INTO point VALUES ({n}, {n})" for n in range(40)))
    accessor = SqlAccessor(
        after, pair.foreign.url, table="point", view=View(omit=["y"], where={"y": 1})
    )
    with Store("table", accessor, publisher=pair.bus) as store:
        assert len([change for changes in store.capture() for change in changes]) == 40
        assert not any(store.capture())
        assert len(pair.foreign.rows("SELECT * FROM point")) == 40
        assert {change.op for change in pair.bus.changes()} == {
            "patch" if rule == "field" else "put"
        }
        change = change_of("Point", "7", 5000, {"x": 1}, "patch" if rule == "field" else "put")
        apply(store, [change], clock=store.clock)
        assert len(pair.foreign.rows("SELECT * FROM point")) == 40
