"""Existing tables in PostgreSQL, with column types that eventsync would never create."""

from __future__ import annotations

import datetime as dt
import json
from decimal import Decimal
from uuid import UUID

import pytest
import sqlalchemy as sa
from servers.postgres import PostgresServer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor, derive

SCHEMA = """
CREATE SCHEMA "Sales Dept";
CREATE TYPE "Sales Dept".mood AS ENUM ('happy', 'sad');
CREATE TABLE "Sales Dept"."Order Line" (
    "Order" integer, "line no" integer, serial bigint GENERATED ALWAYS AS IDENTITY,
    price numeric(10, 2) NOT NULL, count integer NOT NULL,
    total numeric GENERATED ALWAYS AS (price * count) STORED,
    tags text[], extra jsonb, feeling "Sales Dept".mood, token uuid, raw bytea,
    at timestamptz, local timestamp, PRIMARY KEY ("Order", "line no"));
"""


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    price: Decimal
    count: int
    tags: list[str] | None = None
    extra: dict | None = None
    feeling: str | None = None
    token: UUID | None = None
    content: bytes | None = None
    at: dt.datetime | None = Field(default=None, zoned=True)
    local: dt.datetime | None = Field(default=None, zoned=False)


LINE = {
    "order": 1,
    "number": 2,
    "price": Decimal("1.5"),
    "count": 3,
    "tags": ["a", 'quote " and , comma', "łódź"],
    "extra": {"nested": {"list": [1, 2.5, None, "x"]}},
    "feeling": "sad",
    "token": UUID(int=7),
    "content": b"\x00\xff",
    "at": dt.datetime(2026, 11, 25, 12, 30, 0, 123456, tzinfo=dt.UTC),
    "local": dt.datetime(2026, 11, 25, 12, 30),
}


@pytest.fixture(scope="module")
def engine():
    """A database with that schema, on a PostgreSQL of the module's own."""
    with PostgresServer() as server:
        engine = sa.create_engine(server.url)
        with engine.begin() as connection:
            connection.exec_driver_sql(SCHEMA)
        yield engine
        engine.dispose()


@pytest.fixture
def store(engine):
    view = View(rename={"order": "Order", "number": "line no", "content": "raw"})
    accessor = SqlAccessor(Line, engine, table="Order Line", schema="Sales Dept", view=view)
    with Store("sales", accessor) as store:
        yield store
    with engine.begin() as connection:
        connection.exec_driver_sql('DELETE FROM "Sales Dept"."Order Line"')
        connection.exec_driver_sql("DELETE FROM eventsync_version")


def put(data, clock):
    return Change(type="Line", key="1/2", op="put", version=clock.tick(), data=data)


@pytest.mark.parametrize("rows", [1, 200])
def test_every_type_goes_there_and_back(store, engine, rows):
    """Values read back as written, to the digit, alone and in a batch that is copied."""
    clock = Clock()
    changes = [
        Change(
            type="Line",
            key=f"1/{number}",
            op="put",
            version=clock.tick(),
            data=LINE | {"number": number},
        )
        for number in range(2, 2 + rows)
    ]
    assert {str(item.outcome) for item in apply(store, changes, clock=clock)} == {"applied"}
    found = store.get(Line, (1, 2)).raw()
    assert found == LINE
    assert str(found["price"]) == "1.50"  # as the column has it
    with engine.connect() as connection:
        total, serial = connection.exec_driver_sql(
            'SELECT total, serial FROM "Sales Dept"."Order Line" WHERE "line no" = 2'
        ).one()
    assert total == Decimal("4.50")
    assert serial > 0


def test_what_the_column_gives_back_is_no_edit(store):
    """A decimal or JSON value that reads back in another form is not taken for an edit."""
    clock = Clock()
    apply(store, [put(LINE, clock)], clock=clock)
    assert [change for changes in store.capture() for change in changes] == []


def test_an_edit_behind_the_back_is_seen(store, engine):
    """A foreign write to the table is captured, and nothing else is."""
    clock = Clock()
    apply(store, [put(LINE, clock)], clock=clock)
    with engine.begin() as connection:
        connection.exec_driver_sql("""UPDATE "Sales Dept"."Order Line" SET tags = '{b}'""")
    (change,) = [change for changes in store.capture() for change in changes]
    assert (change.key, change.data["tags"]) == ("1/2", ["b"])


def test_the_table_describes_itself(engine):
    """A derived record type has the table's columns and its key."""
    derived = derive(engine, "Order Line", schema="Sales Dept", name="Derived")
    fields = derived.__record__.fields
    assert derived.__record__.keys == ("Order", "line no")
    assert (fields["price"].type, fields["token"].type, fields["at"].type) == (
        Decimal,
        UUID,
        dt.datetime,
    )
    accessor = SqlAccessor(derived, engine, table="Order Line", schema="Sales Dept")
    with Store("derived", accessor) as store:
        clock = Clock()
        data = {"Order": 9, "line no": 1, "price": Decimal(2), "count": 2, "feeling": "happy"}
        change = Change(type="Derived", key="9/1", op="put", version=clock.tick(), data=data)
        (settled,) = apply(store, [change], clock=clock)
        assert str(settled.outcome) == "applied", settled.error
        found = store.get(derived, (9, 1)).raw()
    assert (found["feeling"], found["extra"]) == ("happy", None)
    json.dumps(found, default=str)
