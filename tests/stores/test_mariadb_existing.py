"""Existing tables in MariaDB, with column types that eventsync would never create."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from uuid import UUID

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import FieldError, RejectedError
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor, derive

SCHEMA = """
CREATE DATABASE `Sales Dept` CHARACTER SET utf8mb4;
CREATE TABLE `Sales Dept`.`Order Line` (
    `Order` INT UNSIGNED, `line no` SMALLINT UNSIGNED,
    serial BIGINT UNSIGNED NOT NULL AUTO_INCREMENT UNIQUE,
    price DECIMAL(10, 2) NOT NULL, count MEDIUMINT UNSIGNED NOT NULL,
    total DECIMAL(20, 2) AS (price * count) PERSISTENT,
    twice DECIMAL(20, 2) AS (price * 2) VIRTUAL,
    extra JSON, feeling ENUM('happy', 'sad'), tags SET('a', 'b', 'c'), token UUID, raw BLOB,
    at TIMESTAMP(6) NULL, local DATETIME(6), rough DATETIME, day DATE, clock TIME(3),
    big BIGINT UNSIGNED, flag TINYINT(1), mask BIT(12), year YEAR, ratio DOUBLE, code CHAR(8),
    note VARCHAR(200) CHARACTER SET latin1,
    PRIMARY KEY (`Order`, `line no`));
CREATE TABLE `Sales Dept`.counter (id INT AUTO_INCREMENT PRIMARY KEY, name VARCHAR(20) NOT NULL)
"""


class Line(Record):
    order: int = Field(key=True)
    number: int = Field(key=True)
    price: Decimal
    count: int
    extra: dict | None = None
    feeling: str | None = None
    tags: str | None = None
    token: UUID | None = None
    content: bytes | None = None
    at: dt.datetime | None = Field(default=None, zoned=True)
    local: dt.datetime | None = Field(default=None, zoned=False)
    rough: dt.datetime | None = Field(default=None, zoned=False)
    day: dt.date | None = None
    clock: dt.time | None = Field(default=None, zoned=False)
    big: int | None = None
    flag: bool | None = None
    mask: int | None = None
    year: int | None = None
    ratio: float | None = None
    code: str | None = None
    note: str | None = None


LINE = {
    "order": 4_000_000_000,
    "number": 65_535,
    "price": Decimal("1.5"),
    "count": 3,
    "extra": {"nested": {"list": [1, 2.5, None, "łódź"]}},
    "feeling": "sad",
    "tags": "a,c",
    "token": UUID(int=7),
    "content": b"\x00\xff",
    "at": dt.datetime(2026, 11, 25, 12, 30, 0, 123456, tzinfo=dt.UTC),
    "local": dt.datetime(2026, 11, 25, 12, 30, 0, 123456),
    "rough": dt.datetime(2026, 11, 25, 12, 30),
    "day": dt.date(2026, 2, 28),
    "clock": dt.time(23, 59, 59, 123000),
    "big": 2**64 - 1,
    "flag": True,
    "mask": 0xABC,
    "year": 2026,
    "ratio": 0.1,
    "code": "AB",
    "note": "Größe",
}
KEY = "4000000000/65535"


@pytest.fixture(scope="module")
def engine():
    """A database beside that schema, on a MariaDB of the module's own."""
    with MariaServer() as server:
        engine = sa.create_engine(server.url)
        with engine.begin() as connection:
            for statement in SCHEMA.split(";"):
                connection.exec_driver_sql(statement)
        yield engine
        engine.dispose()


@pytest.fixture
def store(engine):
    view = View(rename={"order": "Order", "number": "line no", "content": "raw"})
    accessor = SqlAccessor(Line, engine, table="Order Line", schema="Sales Dept", view=view)
    with Store("sales", accessor) as store:
        yield store
    with engine.begin() as connection:
        connection.exec_driver_sql("DELETE FROM `Sales Dept`.`Order Line`")
        connection.exec_driver_sql("DELETE FROM eventsync_version")


def put(data, clock, type="Line", key=KEY):
    return Change(type=type, key=key, op="put", version=clock.tick(), data=data)


@pytest.mark.parametrize("rows", [1, 200])
def test_every_type_goes_there_and_back(store, engine, rows):
    """Values read back as written, to the digit, alone and in a batch."""
    clock = Clock()
    numbers = range(65_536 - rows, 65_536)
    changes = [put(LINE | {"number": n}, clock, key=f"4000000000/{n}") for n in numbers]
    assert {str(s.outcome): str(s.error) for s in apply(store, changes, clock=clock)} == {
        "applied": "None"
    }
    found = store.get(Line, (4_000_000_000, 65_535)).raw()
    assert found == LINE
    assert str(found["price"]) == "1.50"  # as the column has it
    with engine.connect() as connection:
        total, twice, serial = connection.exec_driver_sql(
            "SELECT total, twice, serial FROM `Sales Dept`.`Order Line` WHERE `line no` = 65535"
        ).one()
    assert (total, twice) == (Decimal("4.50"), Decimal("3.00"))
    assert serial > 0


def test_what_the_columns_give_back_is_no_edit(store):
    """A decimal or JSON value that reads back in another form is not taken for an edit."""
    clock = Clock()
    apply(store, [put(LINE, clock)], clock=clock)
    assert [change for changes in store.capture() for change in changes] == []


def test_an_edit_behind_the_back_is_seen(store, engine):
    """A foreign write to the table is captured, and nothing else is."""
    clock = Clock()
    apply(store, [put(LINE, clock)], clock=clock)
    with engine.begin() as connection:
        connection.exec_driver_sql("UPDATE `Sales Dept`.`Order Line` SET tags = 'b', mask = 3")
    (change,) = [change for changes in store.capture() for change in changes]
    assert (change.key, change.data["tags"], change.data["mask"]) == (KEY, "b", 3)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": -1},
        {"big": 2**64},
        {"feeling": "bored"},
        {"tags": "a,z"},
        {"number": 65_536},
        {"year": 3000},
        {"mask": 4096},
        {"note": "東京"},
        {"code": "more than eight"},
        {"rough": dt.datetime(2026, 11, 25, 12, 30, 0, 5)},
        {"clock": dt.time(1, 2, 3, 4)},
        {"at": dt.datetime(1900, 1, 1, tzinfo=dt.UTC)},
    ],
    ids=lambda wrong: next(iter(wrong)),
)
def test_what_does_not_fit_is_rejected(store, wrong):
    """A value that would be truncated or rounded is rejected, and the rest is written."""
    clock = Clock()
    data = LINE | wrong
    good = put(LINE | {"number": 1}, clock, key="4000000000/1")
    bad = put(data, clock, key=f"4000000000/{data['number']}")
    settled = apply(store, [good, bad], clock=clock)
    assert [str(s.outcome) for s in settled] == ["applied", "rejected"]
    assert isinstance(settled[1].error, RejectedError | FieldError)
    assert store.count(Line) == 1


def test_the_table_describes_itself(engine):
    """A derived record type has the table's columns, except those that the database fills."""
    derived = derive(engine, "Order Line", schema="Sales Dept", name="Derived")
    fields = derived.__record__.fields
    assert derived.__record__.keys == ("Order", "line no")
    assert fields.keys().isdisjoint({"serial", "total", "twice"})
    names = ("price", "token", "flag", "mask", "year", "feeling", "big")
    kinds = [Decimal, UUID, bool, int, int, str, int]
    assert [fields[name].type for name in names] == kinds
    assert (fields["at"].zoned, fields["local"].zoned) == (True, False)
    accessor = SqlAccessor(derived, engine, table="Order Line", schema="Sales Dept")
    with Store("derived", accessor) as store:
        clock = Clock()
        data = {"Order": 9, "line no": 1, "price": Decimal(2), "count": 2, "feeling": "happy"}
        (settled,) = apply(store, [put(data, clock, "Derived", "9/1")], clock=clock)
        assert str(settled.outcome) == "applied", settled.error
        found = store.get(derived, (9, 1)).raw()
        del store[derived, (9, 1)]
    assert (found["feeling"], found["extra"]) == ("happy", None)


def test_numbers_that_the_database_would_give(engine):
    """In a table that numbers its rows, the record's own key is used, also 0."""
    counter = derive(engine, "counter", schema="Sales Dept")
    with Store("count", SqlAccessor(counter, engine, schema="Sales Dept")) as store:
        for number in (7, 0):
            store.add(counter(id=number, name=f"n{number}"))
        assert sorted(record["id"] for record in store.find(counter)) == [0, 7]
        del store[counter, 0]
