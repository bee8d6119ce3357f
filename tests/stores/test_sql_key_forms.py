"""Keys that stand in a text column in a form that their field takes for another text."""

from __future__ import annotations

from uuid import UUID

import pytest
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.finding import Level
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import RecordError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor

U = "550e8400-e29b-41d4-a716-446655440000"


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture(params=["sqlite", "postgresql", "mariadb"])
def foreign(request, servers, tmp_path):
    """A database with a table whose key is text, of each kind."""
    kind = request.param
    url = f"sqlite:///{tmp_path}/f.db" if kind == "sqlite" else fresh_database(servers[kind])
    database = ForeignDatabase(url)
    collate = " COLLATE utf8mb4_bin" if kind == "mariadb" else ""
    database.run(f"CREATE TABLE thing (id VARCHAR(40){collate} PRIMARY KEY, name VARCHAR(40))")
    yield database
    database.engine.dispose()


def make(type, rule):
    class Thing(Record, rule=rule):
        id: type = Field(key=True)
        name: str | None = None

    return Thing


FORMS = [
    (int, "7", "007"),
    (int, "7", "+7"),
    (int, "-7", "-07"),
    (int, "7", " 7"),
    (UUID, U, U.upper()),
    (UUID, U, U.replace("-", "")),
    (UUID, U, f"{{{U}}}"),
]
each_form = pytest.mark.parametrize(
    ("type", "key", "form"), FORMS, ids=lambda value: str(value)[:3]
)
both_rules = pytest.mark.parametrize("rule", ["record", "field"])


def rows(foreign):
    return sorted(foreign.rows("SELECT id, name FROM thing"))


@each_form
@both_rules
def test_a_row_in_another_form_is_refused(foreign, type, key, form, rule):
    """Nothing is written to it, no second row is added, and other records are not held up."""
    foreign.run(f"INSERT INTO thing VALUES ('{form}', 'theirs')")
    record_type = make(type, rule)
    other = "8" if type is int else U.replace("5", "6")
    with Store("things", SqlAccessor(record_type, foreign.engine, table="thing")) as store:
        errors = []
        assert not any(store.capture(unreadable=errors.append))
        assert form in errors[0].message
        assert key in errors[0].message
        with pytest.raises(RecordError, match="would add a second row"):
            store.add(record_type(id=key, name="ours"))
        changes = [
            change_of("Thing", key, 1, {"id": record_type(id=key).id, "name": "ours"}),
            change_of("Thing", other, 1, {"id": record_type(id=other).id, "name": "ours"}),
        ]
        settled = {one.change.key: one for one in apply(store, changes, clock=store.clock)}
        assert settled[key].outcome is Outcome.REJECTED
        assert form in settled[key].error.message
        assert settled[other].outcome is Outcome.APPLIED
        assert rows(foreign) == sorted([(form, "theirs"), (other, "ours")])
        # Mended by its owner, the row is a record as any other.
        foreign.run(f"UPDATE thing SET id = '{key}' WHERE name = 'theirs'")
        store.accessor(record_type).ensure()
        (captured,) = [change for changes in store.capture() for change in changes]
        assert captured.key == key


@each_form
@both_rules
def test_a_row_that_gets_another_form_is_not_deleted(foreign, type, key, form, rule):
    """Neither capture of all records nor capture before a change takes it for a delete."""
    record_type = make(type, rule)
    with Store("things", SqlAccessor(record_type, foreign.engine, table="thing")) as store:
        store.add(record_type(id=key, name="ours"))
        foreign.run(f"UPDATE thing SET id = '{form}'")
        replica, errors = store.replicas["Thing"], []
        with pytest.raises(RecordError, match="second row"):
            replica.capture([key], None)
        assert not any(store.capture(unreadable=errors.append))
        assert [form in error.message for error in errors] == [True]
        assert store.index.scan("Thing")[0][1].presence.name == "PRESENT"
        assert rows(foreign) == [(form, "ours")]


def test_a_text_that_only_begins_with_the_number(foreign):
    """It is another row, which no write and no delete reaches."""
    foreign.run("INSERT INTO thing VALUES ('7 days', 'theirs')")
    record_type = make(int, "record")
    with Store("things", SqlAccessor(record_type, foreign.engine, table="thing")) as store:
        store.add(record_type(id=7, name="ours"))
        assert rows(foreign) == [("7", "ours"), ("7 days", "theirs")]
        store.remove(store[record_type, 7])
        assert rows(foreign) == [("7 days", "theirs")]


@pytest.mark.parametrize("type", [int, UUID])
def test_check_tells_of_it(foreign, type):
    """The key's field and its column differ, which ``check`` says beforehand."""
    accessor = SqlAccessor(make(type, "record"), foreign.engine, table="thing")
    texts = [one.text for one in accessor.findings() if one.level in (Level.RISK, Level.NOTE)]
    assert any("in one form" in text for text in texts)


def test_the_forms_that_the_database_takes_for_one(servers):
    """With a collation without case, an upper-case UUID is found and written in its own row."""
    database = ForeignDatabase(fresh_database(servers["mariadb"]))
    database.run(
        "CREATE TABLE thing (id VARCHAR(40) COLLATE utf8mb4_general_ci PRIMARY KEY, name TEXT)",
        f"INSERT INTO thing VALUES ('{U.upper()}', 'theirs')",
    )
    record_type = make(UUID, "field")
    with Store("things", SqlAccessor(record_type, database.engine, table="thing")) as store:
        assert len([one for changes in store.capture() for one in changes]) == 1
        record = next(iter(store.accessor(record_type).find(Query.parse(record_type.__record__))))
        record.name = "ours"
        store.update(record)
        assert rows(database) == [(U.upper(), "ours")]
    database.engine.dispose()


@pytest.mark.parametrize("type", [int, UUID])
@both_rules
def test_many_records(foreign, type, rule):
    """Large batches write and find the same rows as small ones."""
    record_type = make(type, rule)
    ids = [type(n) if type is int else UUID(int=n) for n in range(1200)]
    keys = [record_type(id=one).key for one in ids]
    with Store("things", SqlAccessor(record_type, foreign.engine, table="thing")) as store:
        for step, name in [(1, "first"), (2, "second")]:
            changes = [
                change_of("Thing", key, step, {"id": one, "name": name})
                for key, one in zip(keys, ids, strict=True)
            ]
            settled = apply(store, changes, clock=store.clock)
            assert {one.outcome for one in settled} == {Outcome.APPLIED}
        assert sorted(foreign.rows("SELECT id, name FROM thing")) == sorted(
            (key, "second") for key in keys
        )
        assert not any(store.capture())
