"""Tables whose triggers or generated values alter what is written."""

from __future__ import annotations

import datetime as dt

import pytest
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor

APPLIED, REJECTED, HELD = Outcome.APPLIED, Outcome.REJECTED, Outcome.HELD


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture
def make(servers, tmp_path):
    """A function that returns a new database of a kind."""
    made = []

    def make(kind):
        place = f"sqlite:///{tmp_path}/{len(made)}.db"
        made.append(ForeignDatabase(place if kind == "sqlite" else fresh_database(servers[kind])))
        return made[-1]

    yield make
    for database in made:
        database.engine.dispose()


KINDS = ["sqlite", "postgresql", "mariadb"]


class Person(Record):
    id: int = Field(key=True)
    name: str = ""
    touched: str | None = None


class Member(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    touched: str | None = None


TABLE = (
    "CREATE TABLE person (id INTEGER PRIMARY KEY, name VARCHAR(40) NOT NULL, touched VARCHAR(40))"
)
TOUCH = {
    "sqlite": [
        """CREATE TRIGGER touch AFTER UPDATE ON person BEGIN
        UPDATE person SET touched = hex(randomblob(4)), name = trim(name) WHERE id = NEW.id; END""",
        """CREATE TRIGGER born AFTER INSERT ON person BEGIN
        UPDATE person SET touched = hex(randomblob(4)), name = trim(name) WHERE id = NEW.id; END""",
    ],
    "postgresql": [
        """CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
        NEW.touched := clock_timestamp()::text; NEW.name = trim(NEW.name); RETURN NEW; END $$""",
        "CREATE TRIGGER touch BEFORE INSERT OR UPDATE ON person FOR EACH ROW"
        " EXECUTE FUNCTION touch()",
    ],
    "mariadb": [
        "CREATE TRIGGER touch BEFORE UPDATE ON person FOR EACH ROW"
        " SET NEW.touched = UUID(), NEW.name = TRIM(NEW.name)",
        "CREATE TRIGGER born BEFORE INSERT ON person FOR EACH ROW"
        " SET NEW.touched = UUID(), NEW.name = TRIM(NEW.name)",
    ],
}


def pass_on(source, target):
    """Capture the edits of one store and apply them to the other; return how many there were."""
    changes = [change for part in source.capture() for change in part]
    apply(target, changes, clock=target.clock)
    return len(changes)


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize("kind", KINDS)
def test_two_stores_with_triggers_come_to_rest(make, kind, type):
    """After one edit each way, two stores that alter every write publish nothing more."""
    databases = [make(kind), make(kind)]
    stores = []
    for number, database in enumerate(databases):
        database.run(TABLE, *TOUCH[kind])
        accessor = SqlAccessor(type, database.engine, table="person")
        stores.append(Store(f"store{number}", accessor).open())
    left, right = stores
    databases[0].run(*(f"INSERT INTO person (id, name) VALUES ({n}, ' a ')" for n in range(40)))
    assert pass_on(left, right) == 40
    assert [pass_on(*pair) for pair in ((right, left), (left, right)) * 3] == [0] * 6
    databases[1].run("UPDATE person SET name = 'b' WHERE id < 5")
    assert pass_on(right, left) == 5
    assert [pass_on(*pair) for pair in ((left, right), (right, left)) * 3] == [0] * 6
    names = [database.rows("SELECT name FROM person ORDER BY id") for database in databases]
    assert names[0] == names[1] == [("b",)] * 5 + [("a",)] * 35
    for store in stores:
        store.close()


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize("kind", KINDS)
def test_a_trigger_that_comes_while_the_store_is_open(make, kind, type, monkeypatch):
    """A trigger made later is noticed too, and its values are no edits."""
    monkeypatch.setattr("eventsync.stores.sql.accessor._LOOK_EVERY", 0.0)
    database = make(kind)
    database.run(TABLE)
    name = type.__record__.name
    with Store("people", SqlAccessor(type, database.engine, table="person")) as store:
        store.add(type(id=1, name="a"))
        database.run(*TOUCH[kind])
        put = change_of(name, "1", 2000, {"id": 1, "name": "b", "touched": None})
        assert apply(store, [put], clock=store.clock)[0].outcome is APPLIED
        assert store[type, 1]["touched"]
        assert not any(store.capture())


SKIP = {
    "sqlite": "CREATE TRIGGER skip BEFORE {event} ON person"
    " WHEN {row}.id = 2 BEGIN SELECT RAISE(IGNORE); END",
    "postgresql": "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " RETURN NULL; END $$;"
    "CREATE TRIGGER skip BEFORE {event} ON person FOR EACH ROW WHEN ({row}.id = 2)"
    " EXECUTE FUNCTION skip()",
}


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize("event", ["INSERT", "UPDATE", "DELETE"])
@pytest.mark.parametrize("kind", SKIP)
def test_a_trigger_that_skips_a_row(make, kind, event, type):
    """What a trigger keeps from being written or deleted is rejected, and nothing else."""
    database = make(kind)
    name = type.__record__.name
    database.run(TABLE)
    if event != "INSERT":
        database.run("INSERT INTO person (id, name) VALUES (1, 'a'), (2, 'a'), (3, 'a')")
    statement = SKIP[kind].format(event=event, row="OLD" if event == "DELETE" else "NEW")
    database.run(statement)
    with Store("people", SqlAccessor(type, database.engine, table="person")) as store:
        list(store.capture())
        data = [{"id": n, "name": "b", "touched": None} for n in (1, 2, 3)]
        changes = [
            change_of(name, str(n + 1), 1500 + n, None if event == "DELETE" else data[n])
            for n in range(3)
        ]
        outcomes = [settled.outcome for settled in apply(store, changes, clock=store.clock)]
        assert outcomes == [APPLIED, REJECTED, APPLIED]
        found = dict(database.rows("SELECT id, name FROM person"))
        expected = {
            "INSERT": {1: "b", 3: "b"},
            "UPDATE": {1: "b", 2: "a", 3: "b"},
            "DELETE": {2: "a"},
        }
        assert found == expected[event]
        assert not any(store.capture())


def test_a_trigger_that_alters_the_key(make):
    """A key that a trigger rewrites is rejected, unless it is written as the trigger wants it."""

    class Named(Record):
        name: str = Field(key=True)

    database = make("postgresql")
    database.run(
        "CREATE TABLE named (name text PRIMARY KEY)",
        "CREATE FUNCTION low() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
        " NEW.name := lower(NEW.name); RETURN NEW; END $$",
        "CREATE TRIGGER low BEFORE INSERT OR UPDATE ON named FOR EACH ROW EXECUTE FUNCTION low()",
    )
    with Store("names", SqlAccessor(Named, database.engine, table="named")) as store:
        puts = [change_of("Named", n, 1, {"name": n}) for n in ("ann", "Ben", "ANN")]
        settled = apply(store, puts, clock=store.clock)
        # The row of ann may yet go, so the change that the trigger turns into it waits.
        assert [s.outcome for s in settled] == [APPLIED, REJECTED, HELD]
        assert database.rows("SELECT * FROM named") == [("ann",)]
        assert not any(store.capture())


class Stamped(Record):
    id: int = Field(key=True)
    name: str = ""
    at: dt.datetime | None = Field(default=None, zoned=True)


class Marked(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    at: dt.datetime | None = Field(default=None, zoned=True)


@pytest.mark.parametrize("type", [Stamped, Marked])
def test_mysql_timestamps_that_fill_themselves(make, type):
    """ON UPDATE CURRENT_TIMESTAMP and a TIMESTAMP that takes no NULL are read back."""
    database = make("mariadb")
    database.run(
        "CREATE TABLE stamped (id INT PRIMARY KEY, name VARCHAR(40) NOT NULL,"
        " at TIMESTAMP(6) NOT NULL DEFAULT CURRENT_TIMESTAMP(6)"
        " ON UPDATE CURRENT_TIMESTAMP(6))"
    )
    name = type.__record__.name
    with Store("stamps", SqlAccessor(type, database.engine, table="stamped")) as store:
        put = change_of(name, "1", 1, {"id": 1, "name": "a", "at": None})
        assert apply(store, [put], clock=store.clock)[0].outcome is APPLIED
        assert not any(store.capture())
        if type is Marked:
            patch = change_of(name, "1", 2000, {"name": "b"}, "patch")
            assert apply(store, [patch], clock=store.clock)[0].outcome is APPLIED
            assert store[type, 1]["name"] == "b"
            assert not any(store.capture())
