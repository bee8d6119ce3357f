"""Values in SQL columns arrive as they were, whoever wrote them."""

from __future__ import annotations

import contextlib
import datetime as dt
import uuid
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.engine.store import Store
from eventsync.errors import RejectedError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor

LONG = Decimal("12345678901234567.12345")
SECOND = dt.datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))
"""The second 02:30 of the night in which the clock is set back."""


class Doc(Record):
    id: int = Field(key=True)
    body: Any = None
    name: str = ""


class Tree(Record):
    id: int = Field(key=True)
    body: dict | None = None
    name: str = ""


class Event(Record):
    id: int = Field(key=True)
    at: dt.datetime | None = Field(default=None, zoned=True)
    times: dict[str, dt.datetime] | None = None
    all: list[dt.datetime] | None = None


class Person(Record):
    id: int = Field(key=True)
    moods: list[str] | None = None


class Row(Record):
    id: int = Field(key=True)
    name: str = ""


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as mariadb:
        yield {"postgres": postgres.url, "mariadb": mariadb.url}


@pytest.fixture
def database(request, servers, tmp_path):
    """An engine of an empty database of the kind that the test names."""
    kind, name = request.param, f"t{uuid.uuid4().hex}"
    if kind == "sqlite":
        engine = sa.create_engine(f"sqlite:///{tmp_path}/data.db")
    else:
        with contextlib.closing(sa.create_engine(servers[kind]).raw_connection()) as connection:
            connection.cursor().execute(f"CREATE SCHEMA {name}")
            connection.commit()
            connection.detach()
        url = f"{servers[kind]}?options=-csearch_path%3D{name}"
        if kind == "mariadb":
            url = sa.make_url(servers[kind]).set(database=name)
        engine = sa.create_engine(url)
    yield engine
    engine.dispose()


every = pytest.mark.parametrize("database", ["sqlite", "postgres", "mariadb"], indirect=True)
postgres = pytest.mark.parametrize("database", ["postgres"], indirect=True)


def run(engine, *statements):
    """Run statements as another program does; return the rows of the last."""
    with engine.begin() as connection:
        for statement in statements:
            found = connection.exec_driver_sql(statement)
        return [tuple(row) for row in found] if found.returns_rows else []


def put(type, data, clock):
    return Change(type=type, key=str(data["id"]), op="put", version=clock.tick(), data=data)


def captured(store):
    return {change.key: change.data for changes in store.capture() for change in changes}


ANY = [
    {"a": 1, "b": [True, None, "x"]},
    [1, 2.5, "three"],
    "plain text",
    "5",
    "true",
    '{"looks": "like JSON"}',
    '"quoted"',
    "",
    5,
    True,
    2.5,
    10**30,
    None,
    {"deep": {"number": LONG}},
    LONG,
]


@every
@pytest.mark.parametrize("value", ANY, ids=repr)
def test_undeclared_value_reads_back_as_written(database, value):
    """A field of any type keeps dicts, numbers and text that looks like them apart."""
    clock = Clock()
    with Store("s", SqlAccessor(Doc, database, create=True)) as store:
        (item,) = apply(
            store, [put("Doc", {"id": 1, "body": value, "name": "x"}, clock)], clock=clock
        )
        assert str(item.outcome) == "applied"
        found = store.get(Doc, 1).body
        assert (type(found), found) == (type(value), value)
        assert captured(store) == {}


@every
@pytest.mark.parametrize("value", [Decimal("1.5"), {"d": Decimal("0.5")}, [dt.date(2024, 1, 1)]])
def test_undeclared_value_that_json_cannot_keep_is_refused(database, value):
    """Nothing is written instead of a value that would read back as another one."""
    with Store("s", SqlAccessor(Doc, database, create=True)) as store:
        with pytest.raises(RejectedError, match=r"Doc\.body .*JSON text cannot keep"):
            store.add(Doc(id=1, body=value))
        assert store.get(Doc, 1) is None


@every
def test_text_of_others_is_published_as_what_it_is(database):
    """A dict that another program writes is captured as a dict, plain text as text."""
    with Store("s", SqlAccessor(Doc, database, create=True)) as store:
        kind = "json" if database.dialect.name == "postgresql" else "text"
        written = '"plain"' if kind == "json" else "plain"
        run(
            database,
            """INSERT INTO "Doc" VALUES (1, '{"a": [1, 2]}', 'x'), (2, '%s', 'x')""".replace(
                '"Doc"', database.dialect.identifier_preparer.quote("Doc")
            )
            % written,
        )
        assert {key: data["body"] for key, data in captured(store).items()} == {
            "1": {"a": [1, 2]},
            "2": "plain",
        }


JSON_COLUMNS = [
    ("sqlite", "TEXT"),
    ("sqlite", "JSON"),
    ("postgres", "json"),
    ("postgres", "jsonb"),
    ("postgres", "text"),
    ("mariadb", "LONGTEXT"),
    ("mariadb", "JSON"),
]
json_columns = pytest.mark.parametrize(("database", "column"), JSON_COLUMNS, indirect=["database"])


@json_columns
def test_numbers_in_json_keep_their_digits(database, column):
    """A number beyond a float is a decimal; an edit of another field leaves its digits alone."""
    run(
        database,
        f"CREATE TABLE tree (id BIGINT PRIMARY KEY, body {column}, name VARCHAR(50) NOT NULL)",
        f"""INSERT INTO tree VALUES (1, '{{"n": {LONG}, "f": 0.1, "i": 7,
        "deep": [{{"m": -{LONG}}}], "small": 1.00000000000000000001}}', '')""",
    )
    body = {
        "n": LONG,
        "f": 0.1,
        "i": 7,
        "deep": [{"m": -LONG}],
        "small": Decimal("1.00000000000000000001"),
    }
    clock = Clock()
    with Store("s", SqlAccessor(Tree, database, table="tree")) as store:
        assert captured(store)["1"]["body"] == body
        apply(store, [put("Tree", {"id": 1, "body": body, "name": "y"}, clock)], clock=clock)
        many = [put("Tree", {"id": n, "body": body, "name": "y"}, clock) for n in range(2, 60)]
        assert {str(i.outcome) for i in apply(store, many, clock=clock)} == {"applied"}
        assert store.get(Tree, 1).raw() == {"id": 1, "body": body, "name": "y"}
        assert captured(store) == {}
        cast = "body::text" if database.dialect.name == "postgresql" else "body"
        texts = {text for (text,) in run(database, f"SELECT {cast} FROM tree")}
    assert all(str(LONG) in text and "1.00000000000000000001" in text for text in texts)


@json_columns
def test_json_null_and_sql_null_are_both_none(database, column):
    """Both are read and found as ``None``."""
    run(
        database,
        f"CREATE TABLE tree (id BIGINT PRIMARY KEY, body {column}, name VARCHAR(50) NOT NULL)",
        "INSERT INTO tree VALUES (1, 'null', ''), (2, NULL, ''), (3, '{}', '')",
    )
    with Store("s", SqlAccessor(Tree, database, table="tree")) as store:
        assert sorted(record.id for record in store.find(Tree, {"body": None})) == [1, 2]
        assert [store.get(Tree, n).body for n in (1, 2, 3)] == [None, None, {}]


@postgres
@pytest.mark.parametrize("column", ["json", "jsonb"])
def test_none_is_json_null_where_sql_null_is_not_allowed(database, column):
    """A record with ``None`` fits a JSON column that is NOT NULL, and reads back."""
    run(
        database,
        f"CREATE TABLE tree (id bigint PRIMARY KEY, body {column} NOT NULL, name text NOT NULL)",
        "INSERT INTO tree VALUES (1, 'null', '')",
    )
    clock = Clock()
    with Store("s", SqlAccessor(Tree, database, table="tree")) as store:
        puts = [put("Tree", {"id": n, "body": None, "name": "y"}, clock) for n in (1, 2)]
        assert {str(item.outcome) for item in apply(store, puts, clock=clock)} == {"applied"}
        assert store.get(Tree, 2).body is None
        assert captured(store) == {}
    assert run(database, "SELECT DISTINCT body::text FROM tree") == [("null",)]


@every
def test_repeated_hour_is_kept(database):
    """The second 02:30 of a night is stored as its moment, alone, in a dict and in a list."""
    utc = dt.datetime(2024, 10, 27, 1, 30, tzinfo=dt.UTC)
    with Store("s", SqlAccessor(Event, database, create=True)) as store:
        store.add(Event(id=1, at=SECOND, times={"x": SECOND}, all=[SECOND.replace(fold=0), SECOND]))
        found = store.get(Event, 1)
        assert found.at == utc
        assert found.times == {"x": utc}
        assert found.all == [utc - dt.timedelta(hours=1), utc]
        assert [record.id for record in store.find(Event, {"at": utc})] == [1]
        assert captured(store) == {}


ARRAYS = [
    ("mood[]", ["happy", "sad"], ["sad"]),
    ("citext[]", ["a,b", 'quo"te'], ["back\\slash", "", "NULL"]),
    ("macaddr[]", ["08:00:2b:01:02:03"], ["08:00:2b:01:02:04"]),
    ("label[]", ["x"], ["y", "z"]),
    ("text[]", ["a"], ["b", 'quo"te']),
]


@postgres
@pytest.mark.parametrize(("column", "theirs", "ours"), ARRAYS)
@pytest.mark.parametrize("rows", [1, 50])
def test_arrays_of_any_type_are_lists(database, column, theirs, ours, rows):
    """Arrays of enumerations, domains and types without a Python class, alone and in a batch."""
    run(
        database,
        "CREATE EXTENSION IF NOT EXISTS citext SCHEMA pg_catalog",
        "CREATE TYPE mood AS ENUM ('happy', 'sad')",
        "CREATE DOMAIN label AS varchar(5)",
        f"CREATE TABLE person (id int PRIMARY KEY, moods {column})",
    )
    with database.begin() as connection:
        connection.execute(
            sa.text(f"INSERT INTO person VALUES (0, CAST(CAST(:a AS text[]) AS {column}))"),
            {"a": theirs},
        )
    clock = Clock()
    with Store("s", SqlAccessor(Person, database, table="person")) as store:
        assert captured(store)["0"]["moods"] == theirs
        puts = [put("Person", {"id": n, "moods": ours}, clock) for n in range(1, rows + 1)]
        assert {str(item.outcome) for item in apply(store, puts, clock=clock)} == {"applied"}
        assert store.get(Person, rows).moods == ours
        store.update(Person(id=1, moods=None))
        assert store.get(Person, 1).moods is None
        assert captured(store) == {}


SERIALS = [
    "id serial PRIMARY KEY",
    "id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY",
    "id int DEFAULT nextval('\"odd %% {name}\"') PRIMARY KEY",
]


@postgres
@pytest.mark.parametrize("column", SERIALS)
@pytest.mark.parametrize("rows", [1, 60])
def test_numbers_of_the_database_go_on_after_ours(database, column, rows):
    """After records with keys of their own, the application's INSERT gets a free number."""
    run(
        database,
        'CREATE SEQUENCE "odd %% {name}"',
        f"CREATE TABLE item ({column}, name text NOT NULL)",
        "INSERT INTO item (name) VALUES ('theirs')",
    )
    clock = Clock()
    insert = "INSERT INTO item (name) VALUES ('theirs') RETURNING id"
    with Store("s", SqlAccessor(Row, database, table="item")) as store:
        puts = [put("Row", {"id": n, "name": "x"}, clock) for n in range(2, 2 + rows)]
        assert {str(item.outcome) for item in apply(store, puts, clock=clock)} == {"applied"}
        assert run(database, insert) == [(2 + rows,)]
        store.update(Row(id=1, name="edited"))
        apply(store, [put("Row", {"id": 1, "name": "y"}, clock)], clock=clock)
        assert run(database, insert) == [(3 + rows,)]


@postgres
def test_sequence_without_the_right_is_left_alone(database):
    """A user who may not advance the sequence can write all the same."""
    with contextlib.suppress(sa.exc.DBAPIError):
        run(database, "CREATE ROLE clerk LOGIN")
    name = database.url.query["options"].rpartition("=")[2]
    run(
        database,
        "CREATE TABLE item (id serial PRIMARY KEY, name text NOT NULL)",
        f"GRANT USAGE, CREATE ON SCHEMA {name} TO clerk",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON item TO clerk",
    )
    engine = sa.create_engine(database.url.set(username="clerk"))
    with Store("s", SqlAccessor(Row, engine, table="item")) as store:
        store.add(Row(id=1, name="x"))
    engine.dispose()
    assert run(database, "SELECT last_value, is_called FROM item_id_seq") == [(1, False)]


@every
def test_numbers_go_on_after_ours_by_themselves(database):
    """The same holds for SQLite and MariaDB, which advance their numbers on their own."""
    column = {
        "sqlite": "id INTEGER PRIMARY KEY AUTOINCREMENT",
        "postgresql": "id serial PRIMARY KEY",
        "mysql": "id INT AUTO_INCREMENT PRIMARY KEY",
        "mariadb": "id INT AUTO_INCREMENT PRIMARY KEY",
    }[database.dialect.name]
    run(database, f"CREATE TABLE item ({column}, name VARCHAR(20) NOT NULL)")
    with Store("s", SqlAccessor(Row, database, table="item")) as store:
        store.add(Row(id=1, name="x"))
        store.add(Row(id=7, name="x"))
    run(database, "INSERT INTO item (name) VALUES ('theirs')")
    assert run(database, "SELECT id FROM item ORDER BY id") == [(1,), (7,), (8,)]


# -- records that cannot be read -------------------------------------------------------------------


class Odd(Record):
    code: str = Field(key=True)
    name: str
    born: dt.date | None = None
    at: dt.datetime | None = Field(default=None, zoned=True)
    tags: list[str] | None = None


ODD = [
    ("postgres", "born", "'infinity'"),
    ("postgres", "born", "'0044-03-15 BC'"),
    ("postgres", "born", "'15000-01-01'"),
    ("postgres", "at", "'-infinity'"),
    ("postgres", "at", "'0001-01-01 00:00 BC'"),
    ("postgres", "tags", "''"),
    ("postgres", "tags", "'[broken'"),
    ("postgres", "name", "NULL"),
    ("postgres", "code", "repeat('k', 513)"),
    ("mariadb", "born", "'0000-00-00'"),
    ("mariadb", "tags", "''"),
    ("mariadb", "tags", "'[broken'"),
    ("mariadb", "tags", "concat(repeat('[', 900), repeat(']', 900))"),
    ("mariadb", "name", "NULL"),
    ("mariadb", "code", "repeat('k', 513)"),
    ("sqlite", "born", "'infinity'"),
    ("sqlite", "tags", "''"),
    ("sqlite", "tags", "'[broken'"),
    ("sqlite", "tags", "'[1e9999999999999999999]'"),
    ("sqlite", "name", "CAST(x'ff' AS TEXT)"),
    ("sqlite", "name", "NULL"),
    ("sqlite", "code", "replace(hex(zeroblob(257)), '0', 'k')"),
]


@pytest.mark.parametrize(("database", "column", "value"), ODD, indirect=["database"])
def test_odd_record_is_passed_over_alone(database, column, value):
    """The others of its page are found and captured; the odd one is named and not deleted."""
    quote = database.dialect.identifier_preparer.quote
    kind = "varchar(600)" if database.dialect.name != "sqlite" else "TEXT"
    zoned = {"postgresql": "timestamptz"}.get(database.dialect.name, "DATETIME NULL")
    if database.dialect.name != "sqlite" and column == "tags":
        kind = "varchar(2000)"
    run(
        database,
        f"CREATE TABLE odd (code {kind.replace('2000', '600')} PRIMARY KEY,"
        f" name {kind}, born date, at {zoned}, tags {kind})",
        "INSERT INTO odd (code, name, tags) VALUES ('a', 'x', '[\"t\"]'),"
        " ('b', 'x', NULL), ('z', 'x', '[]')",
    )
    with Store("s", SqlAccessor(Odd, database, table="odd")) as store:
        assert sorted(captured(store)) == ["a", "b", "z"]
        modes = ["SET sql_mode = ''"] if database.dialect.name in ("mysql", "mariadb") else []
        run(
            database,
            *modes,
            f"UPDATE odd SET {quote(column)} = {value} WHERE code = 'b'",
            "UPDATE odd SET name = 'y' WHERE code = 'z'",
        )
        unreadable = []
        query = Query.parse(Odd.__record__, unreadable=unreadable.append)
        found = list(store.accessors["Odd"].find(query))
        assert [record.code for record in found] == ["a", "z"]
        (error,) = unreadable
        named = "Odd 'b'" if column != "code" else "Odd 'k"
        assert str(error).startswith(named)
        assert f"Odd.{column}" in str(error)
        unreadable.clear()
        changes = [
            change for changes in store.capture(unreadable=unreadable.append) for change in changes
        ]
        # A row that has another key by now is another record.
        gone = {("b", "delete")} if column == "code" else set()
        assert {(change.key, change.op) for change in changes} == {("z", "put")} | gone
        assert unreadable
        # A change to another record is applied; one to the odd record does not stop it.
        clock = Clock()
        puts = [put_odd(key, clock) for key in ("a", "b", "c")]
        outcomes = {i.change.key: str(i.outcome) for i in apply(store, puts, clock=clock)}
        assert (outcomes["a"], outcomes["c"]) == ("applied", "applied")


def put_odd(key, clock):
    data = {"code": key, "name": "n", "born": None, "at": None, "tags": ["x"]}
    return Change(type="Odd", key=key, op="put", version=clock.tick(), data=data)
