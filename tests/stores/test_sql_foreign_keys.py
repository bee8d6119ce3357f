"""Keys that a column of an existing table takes for one, and keys that no constraint protects."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RejectedError
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.sql import SqlAccessor, derive


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture
def foreign(request, servers, tmp_path):
    """A database of the kind that the test's parameter names."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    yield database
    database.engine.dispose()


class Person(Record):
    name: str = Field(key=True)
    note: str = ""


class Member(Record, rule="field"):
    name: str = Field(key=True)
    note: str = ""


CI = "CREATE COLLATION ci (provider = icu, locale = 'und-u-ks-level2', deterministic = false)"
ALIKE = {
    "nocase": ("sqlite", "TEXT COLLATE NOCASE PRIMARY KEY", "Ann", "ann"),
    "rtrim": ("sqlite", "TEXT COLLATE RTRIM PRIMARY KEY", "Ann", "Ann "),
    "integer": ("sqlite", "INTEGER PRIMARY KEY", "1", "01"),
    "char": ("postgresql", "char(8) PRIMARY KEY", "Ann", "Ann "),
    "citext": ("postgresql", "citext PRIMARY KEY", "Ann", "ann"),
    "nondeterministic": ("postgresql", "text COLLATE ci PRIMARY KEY", "Ann", "ann"),
    "domain": ("postgresql", "folded PRIMARY KEY", "Ann", "ann"),
    "number": ("postgresql", "integer PRIMARY KEY", "1", "01"),
    "case": ("mariadb", "VARCHAR(40) COLLATE utf8mb4_general_ci PRIMARY KEY", "Ann", "ann"),
    "accent": ("mariadb", "VARCHAR(40) COLLATE utf8mb4_unicode_ci PRIMARY KEY", "Zoe", "Zoë"),
    "padding": ("mariadb", "VARCHAR(40) COLLATE utf8mb4_bin PRIMARY KEY", "Ann", "Ann "),
    "chars": ("mariadb", "CHAR(8) COLLATE utf8mb4_nopad_bin PRIMARY KEY", "Ann", "Ann "),
    "int": ("mariadb", "INT PRIMARY KEY", "1", "01"),
}


@pytest.fixture(params=[Person, Member], ids=["record", "field"])
def alike(request, servers, tmp_path):
    """A function that returns a database whose key column takes two texts for one."""

    def make(name):
        kind, column, one, other = ALIKE[name]
        url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
        database = ForeignDatabase(url)
        if kind == "postgresql":
            database.run("CREATE EXTENSION IF NOT EXISTS citext SCHEMA public", CI)
            database.run("CREATE DOMAIN folded AS text COLLATE ci")
        database.run(f"CREATE TABLE person (name {column}, note VARCHAR(40) NOT NULL)")
        # A key with a conversion of its own that is not exact: "01" and "1" are one number.
        convert = {"name": Convert(int, str)} if one == "1" else {}
        accessor = SqlAccessor(
            request.param, database.engine, table="person", view=View(convert=convert)
        )
        return database, accessor, one, other

    return make


@pytest.mark.parametrize("name", ALIKE)
@pytest.mark.parametrize("many", [1, 300])
def test_no_record_takes_the_row_of_another(alike, name, many):
    """A key that the column takes for another one is held; neither row nor entry changes."""
    database, accessor, one, other = alike(name)
    type = accessor.record_class
    database.run(f"INSERT INTO person VALUES ('{one}', 'the first')")
    kind = type.__record__.name
    with Store("people", accessor) as store:
        assert [c.key for part in store.capture() for c in part] == [one]
        extra = [
            change_of(kind, str(n), n, {"name": str(n), "note": "x"}) for n in range(5, 4 + many)
        ]
        put = change_of(kind, other, 4000, {"name": other, "note": "the second"})
        settled = apply(store, [*extra, put], clock=store.clock)
        assert {s.outcome for s in settled[:-1]} <= {Outcome.APPLIED}
        assert settled[-1].outcome is Outcome.HELD, settled[-1]
        assert settled[-1].error.reason == "unique"
        apply(store, [change_of(kind, other, 4001, None)], clock=store.clock)
        with pytest.raises(RejectedError):
            store.add(type(name=other, note="by hand"))
        with pytest.raises(RejectedError):
            store.accessor(type).add(type(name=other, note="directly"))
        assert store.get(type, other) is None
        assert not any(store.capture())
        found = {str(row[0]).rstrip(): row[1] for row in database.rows("SELECT * FROM person")}
        assert found[one] == "the first"
        assert len(found) == many
        applied = [change_of(kind, one, 5000, {"name": one, "note": "new"})]
        assert apply(store, applied, clock=store.clock)[0].outcome is Outcome.APPLIED
        assert store[type, one]["note"] == "new"
        assert not any(store.capture())


@pytest.mark.parametrize("name", ["rtrim", "integer", "char", "number", "padding", "chars", "int"])
def test_a_key_that_reads_back_as_another_is_rejected(alike, name):
    """Without a row in the way, a key is written only if the column gives it back."""
    database, accessor, _, other = alike(name)
    type = accessor.record_class
    kept = name in ("rtrim", "padding")
    with Store("people", accessor) as store:
        put = change_of(type.__record__.name, other, 1, {"name": other, "note": "x"})
        (settled,) = apply(store, [put], clock=store.clock)
        assert settled.outcome is (Outcome.APPLIED if kept else Outcome.REJECTED)
        assert len(database.rows("SELECT * FROM person")) == kept
        assert not any(store.capture())


@pytest.mark.parametrize("name", ["nocase", "citext", "nondeterministic", "case", "accent"])
def test_two_keys_of_one_batch(alike, name):
    """Of two new records that the column takes for one, one is written and the other held."""
    database, accessor, one, other = alike(name)
    type = accessor.record_class
    with Store("people", accessor) as store:
        kind = type.__record__.name
        puts = [change_of(kind, k, n, {"name": k, "note": k}) for n, k in enumerate((one, other))]
        settled = apply(store, puts, clock=store.clock)
        assert sorted(str(s.outcome) for s in settled) == ["applied", "held"]
        (row,) = database.rows("SELECT * FROM person")
        assert row[0] == row[1]
        assert not any(store.capture())


UNPROTECTED = {
    "none": "CREATE TABLE person (name VARCHAR(40), note VARCHAR(40) NOT NULL)",
    "index": "CREATE TABLE person (name VARCHAR(40), note VARCHAR(40) NOT NULL);"
    "CREATE INDEX by_name ON person (name)",
    "wider": "CREATE TABLE person"
    " (name VARCHAR(40), note VARCHAR(40) NOT NULL, PRIMARY KEY (name, note))",
    "partial": "CREATE TABLE person (name VARCHAR(40), note VARCHAR(40) NOT NULL);"
    "CREATE UNIQUE INDEX by_name ON person (name) WHERE note > 'b'",
    "expression": "CREATE TABLE person (name VARCHAR(40), note VARCHAR(40) NOT NULL);"
    "CREATE UNIQUE INDEX by_name ON person (name, (lower(note)))",
    "view": "CREATE TABLE held (name VARCHAR(40), note VARCHAR(40) NOT NULL);"
    "CREATE VIEW person AS SELECT * FROM held",
}


@pytest.mark.parametrize(
    ("foreign", "name"),
    [
        (kind, name)
        for kind in ("sqlite", "postgresql", "mariadb")
        for name in UNPROTECTED
        if kind != "mariadb" or name not in ("partial", "expression")
    ],
    indirect=["foreign"],
)
def test_a_key_without_a_unique_constraint_is_refused(foreign, name):
    """A table in which two rows can have one key is refused before anything is written."""
    foreign.run(*UNPROTECTED[name].split(";"))
    place = "held" if name == "view" else "person"
    foreign.run(f"INSERT INTO {place} VALUES ('a', 'b'), ('a', 'c')")
    for type in (Person, Member):
        with (
            pytest.raises(ConfigError, match="unique"),
            Store("people", SqlAccessor(type, foreign.engine, table="person")) as store,
        ):
            store.update(type(name="a", note="z"))
    assert sorted(foreign.rows("SELECT * FROM person")) == [("a", "b"), ("a", "c")]
    assert not sa.inspect(foreign.engine).has_table("eventsync_version")
    if name != "wider":
        with pytest.raises(ConfigError) as refused:
            derive(foreign.engine, "person")
        assert "unique" in str(refused.value.hint)


@pytest.mark.parametrize("foreign", ["sqlite", "postgresql", "mariadb"], indirect=True)
def test_a_unique_index_is_as_good_as_a_primary_key(foreign):
    """A unique index of exactly the key's columns protects the key, in any order of columns."""
    foreign.run(
        "CREATE TABLE person (id INTEGER NOT NULL, a VARCHAR(9) NOT NULL, b VARCHAR(9) NOT NULL)",
        "CREATE UNIQUE INDEX by_both ON person (b, a)",
    )

    class Pair(Record):
        a: str = Field(key=True)
        b: str = Field(key=True)
        id: int = 0

    with Store("people", SqlAccessor(Pair, foreign.engine, table="person")) as store:
        store.add(Pair(a="x", b="y", id=1))
        put = change_of("Pair", "x/y", 2000, {"a": "x", "b": "y", "id": 2})
        assert apply(store, [put], clock=store.clock)[0].outcome is Outcome.APPLIED
        assert foreign.rows("SELECT id, a, b FROM person") == [(2, "x", "y")]
