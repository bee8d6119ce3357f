"""Tables, columns, fields and schemas with any name that a database or Python allows."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.records.view import View
from eventsync.stores.sql import SqlAccessor, SqlIndex, derive

APPLIED = Outcome.APPLIED
NAMES = [
    "disc %",
    "100%s",
    "%(id)s %% %",
    'say "so"',
    "back`tick",
    "it's",
    "a.b.c",
    "with  spaces",
    "größe 数量 🙂",
    "select",
    "Order",
    ":bind :1 ?",
    "{braces} {0}",
    "semi;colon -- comment /* */",
    "back\\slash",
    "VALUES (%s)",
    "[brackets](x)",
    "$1 $$",
    "tab\tnew\nline",
    "excluded",
    "i",
]


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def foreign(request, servers, tmp_path):
    """A database of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    yield database
    database.engine.dispose()


def quoted(database, name):
    """Return an identifier as a foreign writer's client writes it."""
    mark = "`" if database.kind == "mariadb" else '"'
    return mark + name.replace(mark, mark * 2) + mark


def allowed(database, name):
    """Skip what the database itself does not allow."""
    if database.kind == "mariadb" and "🙂" in name:
        pytest.skip("MySQL's identifiers are in the basic plane")


def unreadable(database, name):
    """Return whether SQLAlchemy cannot read a table with such columns, which is then refused."""
    return database.kind == "mariadb" and "\n" in name


def use(store, type, names, count):
    """Write, patch, find, capture and delete ``count`` records through every path."""
    key, text, number = names
    kind = type.__record__.name
    rows = [{key: f"k{n}", text: f"t{n}", number: n} for n in range(count)]
    puts = [change_of(kind, f"k{n}", n % 900, row) for n, row in enumerate(rows)]
    assert {s.outcome for s in apply(store, puts, clock=store.clock)} == {APPLIED}
    again = [change_of(kind, f"k{n}", 1000, {**row, text: "u"}) for n, row in enumerate(rows)]
    assert {s.outcome for s in apply(store, again, clock=store.clock)} == {APPLIED}
    if type.__record__.rule == "field":
        patches = [change_of(kind, f"k{n}", 2000, {number: -n}, "patch") for n in range(count)]
        assert {s.outcome for s in apply(store, patches, clock=store.clock)} == {APPLIED}
    sign = -1 if type.__record__.rule == "field" else 1
    last = count - 1
    assert store.get(type, f"k{last}").raw() == {key: f"k{last}", text: "u", number: sign * last}
    assert [r[key] for r in store.find(type, {number: sign * last})] == [f"k{last}"]
    assert [r[key] for r in store.find(type, {key: {"$in": ["k0"]}})] == ["k0"]
    assert store.count(type, {text: "u"}) == count
    assert not any(store.capture())
    gone = [change_of(kind, f"k{n}", 2500, None) for n in range(count)]
    assert {s.outcome for s in apply(store, gone, clock=store.clock)} == {APPLIED}
    assert store.count(type) == 0
    store.add(type.load({key: "x", text: "y", number: 1}))


@pytest.mark.parametrize(
    ("name", "rule"), [*((n, "field") for n in NAMES), *((n, "record") for n in NAMES[:4])]
)
def test_columns_and_fields_of_any_name(foreign, name, rule):
    """Columns of that name, in the key and beside it, work one by one and in large batches."""
    allowed(foreign, name)
    names = (f"{name}k", name, f"{name}2")
    a, b, c = (quoted(foreign, column) for column in names)
    foreign.run(
        f"CREATE TABLE thing ({a} VARCHAR(40) NOT NULL PRIMARY KEY, {b} VARCHAR(40), {c} BIGINT)"
    )
    if unreadable(foreign, name):
        with pytest.raises(ConfigError, match="SQLAlchemy cannot read"):
            derive(foreign.engine, "thing")
        return
    for count in (1, 20, 700):
        thing = derive(foreign.engine, "thing", name=f"thing{count}", rule=rule)
        assert tuple(thing.__record__.fields) == names
        with Store("things", SqlAccessor(thing, foreign.engine, table="thing")) as store:
            use(store, thing, names, count)
            del store[thing, "x"]
    foreign.run(f"INSERT INTO thing ({a}, {c}) VALUES ('f', 7)")
    with Store("things", SqlAccessor(thing, foreign.engine, table="thing")) as store:
        assert [c.data[names[2]] for part in store.capture() for c in part] == [7]


@pytest.mark.parametrize("name", NAMES)
def test_tables_and_schemas_of_any_name(foreign, name):
    """A table of that name, in a schema of that name, is derived, created, written and read."""
    allowed(foreign, name)
    column = "line" if unreadable(foreign, name) else name
    schema = None if foreign.kind == "sqlite" else f"{name} {id(foreign)}"
    if schema:
        foreign.run(f"CREATE SCHEMA {quoted(foreign, schema)}")

    class Thing(Record, rule="field"):
        code: str = Field(key=True)
        text: str = Field(default="", unique=False)
        number: int = 0

    view = View(rename={"text": column, "number": f"{column}!"})
    try:
        for count in (1, 700):
            accessor = SqlAccessor(
                Thing, foreign.engine, table=name, schema=schema, view=view, create=True
            )
            index = SqlIndex(foreign.engine, schema=schema)
            with Store("things", accessor, index=index) as store:
                use(store, Thing, ("code", "text", "number"), count)
                del store[Thing, "x"]
                foreign.run(
                    f"DELETE FROM {quoted(foreign, schema) + '.' if schema else ''}"
                    "eventsync_version"
                )
        again = derive(foreign.engine, name, schema=schema, name="again")
        assert list(again.__record__.fields) == ["code", column, f"{column}!"]
    finally:
        if schema and foreign.kind == "mariadb":
            foreign.run(f"DROP SCHEMA {quoted(foreign, schema)}")


@pytest.mark.parametrize("name", NAMES)
def test_foreign_keys_of_any_name(foreign, name):
    """Parents go before children, orphans are held by themselves, and conflicts are named."""
    allowed(foreign, name)
    if foreign.kind == "sqlite":
        sa.event.listen(
            foreign.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON")
        )
        foreign.engine.dispose()
    if "\n" in name and foreign.kind != "sqlite":
        pytest.skip("a table with such columns in foreign keys is refused")
    parent, child, column = (quoted(foreign, f"{name}{end}") for end in ("p", "c", ""))
    foreign.run(
        f"CREATE TABLE {parent} ({column} INTEGER PRIMARY KEY)",
        f"CREATE TABLE {child} (id INTEGER PRIMARY KEY, {column} INTEGER NOT NULL,"
        f" up INTEGER, mail VARCHAR(20) UNIQUE,"
        f" FOREIGN KEY ({column}) REFERENCES {parent} ({column}),"
        f" FOREIGN KEY (up) REFERENCES {child} (id))",
    )
    above = derive(foreign.engine, f"{name}p", name="above")
    below = derive(foreign.engine, f"{name}c", name="below")
    tables = ((above, f"{name}p"), (below, f"{name}c"))
    accessors = [SqlAccessor(t, foreign.engine, table=table) for t, table in tables]
    with Store("things", *accessors) as store:
        rows = {
            n: {"id": n, name: 9 if n == 5 else 1, "up": n + 1 if n < 4 else None, "mail": f"{n}"}
            for n in range(1, 41)
        }
        changes = [change_of("below", str(n), n, row) for n, row in rows.items()]
        changes.append(change_of("above", "1", 1, {name: 1}))
        settled = apply(store, changes, clock=store.clock)
        held = [s.change.key for s in settled if s.outcome is Outcome.HELD]
        assert held == ["5"]
        (taken,) = apply(
            store,
            [change_of("below", "77", 77, {"id": 77, name: 1, "up": None, "mail": "8"})],
            clock=store.clock,
        )
        assert "below '8' has the same mail" in str(taken.error)
        gone = [change_of("above", "1", 2000, None)]
        assert apply(store, gone, clock=store.clock)[0].outcome is Outcome.HELD
        gone += [change_of("below", str(n), 2000, None) for n in rows if n != 5]
        settled = apply(store, gone, clock=store.clock)
        settled = apply(store, gone, clock=store.clock)
        assert {s.outcome for s in settled} <= {APPLIED, Outcome.DUPLICATE}
        assert store.count() == 0
