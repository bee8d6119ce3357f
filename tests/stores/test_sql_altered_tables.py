"""Tables that somebody alters while a store is open."""

from __future__ import annotations

import pytest
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor, accessor

APPLIED, HELD, REJECTED = Outcome.APPLIED, Outcome.HELD, Outcome.REJECTED


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def foreign(request, servers, tmp_path):
    """A database with a table of persons, of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    database.run(
        "CREATE TABLE person (id INTEGER PRIMARY KEY, mail VARCHAR(8), note VARCHAR(40) NOT NULL)"
    )
    yield database
    database.engine.dispose()


class Person(Record):
    id: int = Field(key=True)
    mail: str | None = None
    note: str = ""


class Member(Record, rule="field"):
    id: int = Field(key=True)
    mail: str | None = None
    note: str = ""


@pytest.fixture(params=[Person, Member], ids=["record", "field"])
def store(request, foreign):
    held = SqlAccessor(request.param, foreign.engine, table="person")
    with Store("people", held) as store:
        yield store


def person(store, number, step, **data):
    (type,) = store.record_types
    values = {"id": number, "mail": None, "note": ""} | data
    return change_of(type.__record__.name, str(number), step, values)


def outcomes(store, changes):
    return [settled.outcome for settled in apply(store, changes, clock=store.clock)]


@pytest.mark.parametrize("many", [1, 20, 600])
def test_a_unique_index_added(foreign, store, many):
    """A record that takes the unique value of another one is held, and neither is lost."""
    assert outcomes(store, [person(store, 1, 1, mail="a@x", note="one")]) == [APPLIED]
    foreign.run("CREATE UNIQUE INDEX by_mail ON person (mail)")
    more = [person(store, n, n, mail=f"{n}@x") for n in range(10, 9 + many)]
    puts = [*more, person(store, 2, 4000, mail="a@x", note="two")]
    assert outcomes(store, puts) == [APPLIED] * len(more) + [HELD]
    assert foreign.rows("SELECT * FROM person WHERE id < 10") == [(1, "a@x", "one")]
    assert not any(store.capture())
    assert outcomes(store, [person(store, 2, 5000, mail="b@x")]) == [APPLIED]


def test_an_index_over_the_first_characters(foreign, store):
    """An index over the first characters of a column, as MySQL has it, overwrites no row."""
    if foreign.kind != "mariadb":
        pytest.skip("only MySQL and MariaDB have such indexes")
    assert outcomes(store, [person(store, 1, 1, mail="anna", note="one")]) == [APPLIED]
    foreign.run("CREATE UNIQUE INDEX by_mail ON person (mail(3))")
    assert outcomes(store, [person(store, 2, 2, mail="annb", note="two")]) == [HELD]
    assert foreign.rows("SELECT * FROM person") == [(1, "anna", "one")]


@pytest.mark.parametrize("many", [1, 100, 1000])
def test_a_column_widened(foreign, store, many, monkeypatch):
    """A value that the column takes only since it was widened is written."""
    if foreign.kind == "sqlite":
        pytest.skip("SQLite does not limit the length of text")
    assert outcomes(store, [person(store, n, n, mail="short") for n in range(many)]) == (
        [APPLIED] * many
    )
    long = [person(store, n, 4000 + n, mail=f"longer than eight {n}") for n in range(many)]
    assert outcomes(store, long[-1:]) == [REJECTED]
    foreign.run(
        "ALTER TABLE person ALTER mail TYPE varchar(80)"
        if foreign.kind == "postgresql"
        else "ALTER TABLE person MODIFY mail VARCHAR(80)"
    )
    tries = []
    original = SqlAccessor.write_rows

    def counted(self, writes, removals, transaction):
        tries.append(len(writes))
        original(self, writes, removals, transaction)

    monkeypatch.setattr(SqlAccessor, "write_rows", counted)
    assert outcomes(store, long) == [APPLIED] * many
    assert len(tries) <= 2
    assert foreign.rows("SELECT max(mail) FROM person")[0][0].startswith("longer")


def test_the_key_constraint_dropped(foreign, store, monkeypatch):
    """Once the key is not unique any more, the store refuses to write."""
    if foreign.kind == "sqlite":
        pytest.skip("SQLite cannot drop a primary key")
    monkeypatch.setattr(accessor, "_LOOK_EVERY", 0.0)
    assert outcomes(store, [person(store, 1, 1, note="one")]) == [APPLIED]
    foreign.run(
        "ALTER TABLE person DROP CONSTRAINT person_pkey"
        if foreign.kind == "postgresql"
        else "ALTER TABLE person DROP PRIMARY KEY",
        "INSERT INTO person VALUES (1, NULL, 'another')",
    )
    with pytest.raises(ConfigError, match="unique"):
        apply(store, [person(store, 1, 2, note="two")], clock=store.clock)
    assert sorted(foreign.rows("SELECT note FROM person")) == [("another",), ("one",)]


def test_a_column_added_and_another_dropped(foreign, store):
    """A new column keeps its values; a table without a column of the view is refused."""
    assert outcomes(store, [person(store, 1, 1, note="one")]) == [APPLIED]
    foreign.run("ALTER TABLE person ADD COLUMN size INTEGER", "UPDATE person SET size = 9")
    assert outcomes(store, [person(store, 1, 2, note="two")]) == [APPLIED]
    assert outcomes(store, [person(store, 2, 3, note="new")]) == [APPLIED]
    found = sorted(foreign.rows("SELECT id, note, size FROM person"))
    assert found == [(1, "two", 9), (2, "new", None)]
    foreign.run("ALTER TABLE person DROP COLUMN mail")
    with pytest.raises(ConfigError, match="mail"):
        apply(store, [person(store, 1, 4, note="three")], clock=store.clock)
    assert foreign.rows("SELECT note FROM person WHERE id = 1") == [("two",)]


def test_a_table_made_anew(foreign, store):
    """A table that was dropped and made again with other columns is looked up again."""
    assert outcomes(store, [person(store, n, n, note="old") for n in range(9)]) == [APPLIED] * 9
    foreign.run(
        "DROP TABLE person",
        "CREATE TABLE person (note TEXT, mail TEXT, id INTEGER NOT NULL, UNIQUE (id))",
    )
    assert (
        outcomes(store, [person(store, n, 50 + n, note="new") for n in range(9)]) == [APPLIED] * 9
    )
    assert len(foreign.rows("SELECT * FROM person WHERE note = 'new'")) == 9


@pytest.mark.parametrize("clause", ["REPLACE", "IGNORE"])
def test_conflict_clauses_of_the_table(tmp_path, clause):
    """A table's own ON CONFLICT clause neither removes another row nor drops a put."""
    foreign = ForeignDatabase(f"sqlite:///{tmp_path}/f.db")
    foreign.run(
        "CREATE TABLE person (id INTEGER PRIMARY KEY,"
        f" mail TEXT UNIQUE ON CONFLICT {clause}, note TEXT NOT NULL ON CONFLICT {clause})"
    )
    for type in (Person, Member):
        with Store("people", SqlAccessor(type, foreign.engine, table="person")) as store:
            store.add(type(id=1, mail="a@x", note="one"))
            assert outcomes(store, [person(store, 2, 2, mail="a@x")]) == [HELD]
            store.add(type(id=3, mail="c@x"))
            assert outcomes(
                store, [change_of(type.__record__.name, "3", 3000, {"mail": "a@x"}, "patch")]
            ) == [REJECTED if type is Person else HELD]
            assert foreign.rows("SELECT id, mail FROM person") == [(1, "a@x"), (3, "c@x")]
            assert not any(store.capture())
            del store[type, 1]
            del store[type, 3]


def test_a_row_that_vanishes_while_it_is_updated(foreign, monkeypatch):
    """A patch of a row that a foreign writer deletes meanwhile is not applied without a row."""
    if foreign.kind == "sqlite":
        pytest.skip("SQLite lets one transaction write at a time")
    deleted = []
    original = SqlAccessor.write_rows

    class Racing(SqlAccessor):
        def write_rows(self, writes, removals, transaction):
            if not deleted:
                foreign.run("DELETE FROM person WHERE id = 1")
                deleted.append(1)
            original(self, writes, removals, transaction)

    with Store("people", Racing(Member, foreign.engine, table="person")) as store:
        foreign.run("INSERT INTO person VALUES (1, NULL, 'one')")
        list(store.capture())
        patch = change_of("Member", "1", 3000, {"note": "two"}, "patch")
        (settled,) = apply(store, [patch], clock=store.clock)
        assert settled.outcome is not APPLIED
        assert foreign.rows("SELECT * FROM person") == []
