"""Changes that depend on another record: unique values that it releases, rows that it refers to."""

from __future__ import annotations

import itertools
import random

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import ForeignDatabase, change_of, fresh_database

from eventsync.broker.bus import Bus
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import DependencyError, StoreUnavailableError, UniqueError
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker

KINDS = ("sqlite", "postgresql", "mariadb")
APPLIED, HELD = Outcome.APPLIED, Outcome.HELD


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


@pytest.fixture
def database(request, servers, tmp_path):
    """A function that returns a new database of a kind; SQLite checks foreign keys."""
    made = []

    def make(kind):
        url = f"sqlite:///{tmp_path}/{len(made)}.db"
        found = ForeignDatabase(url if kind == "sqlite" else fresh_database(servers[kind]))
        if kind == "sqlite":
            sa.event.listen(
                found.engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON")
            )
        made.append(found)
        return found

    yield make
    for one in made:
        one.engine.dispose()


class Person(Record):
    id: int = Field(key=True)
    mail: str | None = None
    note: str | None = None


class Member(Record, rule="field"):
    id: int = Field(key=True)
    mail: str | None = None
    note: str | None = None


PERSON = "CREATE TABLE person (id INT PRIMARY KEY, mail VARCHAR(40){}, note VARCHAR(40))"
UNIQUE, FIRM = " UNIQUE", " NOT NULL UNIQUE"
DEFERRABLE = " NOT NULL UNIQUE DEFERRABLE"


def people(database, kind, type=Person, mails=("x@a", "y@a"), column=UNIQUE):
    """Return a database and an open store of persons with these addresses."""
    found = database(kind)
    found.run(PERSON.format(column))
    store = Store("people", SqlAccessor(type, found.engine, table="person")).open()
    puts = [mail(n, m, step=n, type=type) for n, m in enumerate(mails, start=1)]
    assert outcomes(apply(store, puts, clock=store.clock)) == [APPLIED] * len(mails)
    return found, store


def mail(key, value, *, step, type=Person):
    return change_of(type.__record__.name, str(key), step, {"id": key, "mail": value, "note": None})


def outcomes(settled):
    return [item.outcome for item in settled]


def mails(database):
    return dict(database.rows("SELECT id, mail FROM person"))


# -- unique values --------------------------------------------------------------------------------


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("release", ["change", "empty", "delete"])
def test_a_value_taken_before_its_release(database, kind, type, release):
    """A taken value is held with the name of the record that has it, and applied afterwards."""
    found, store = people(database, kind, type)
    take = mail(2, "x@a", step=20, type=type)
    (early,) = apply(store, [take], clock=store.clock)
    assert (early.outcome, early.error.reason) == (HELD, "unique")
    assert isinstance(early.error, UniqueError)
    assert f"{type.__name__} '1' has the same mail" in early.error.message
    assert mails(found) == {1: "x@a", 2: "y@a"}
    values = {"change": "z@a", "empty": None}
    released = (
        change_of(type.__name__, "1", 10, None)
        if release == "delete"
        else mail(1, values[release], step=10, type=type)
    )
    assert outcomes(apply(store, [released], clock=store.clock)) == [APPLIED]
    assert outcomes(apply(store, [take], clock=store.clock)) == [APPLIED]
    left = {} if release == "delete" else {1: values[release]}
    assert mails(found) == {**left, 2: "x@a"}
    assert not any(store.capture())


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("column", [UNIQUE, FIRM])
def test_a_release_and_a_take_in_one_batch(database, kind, type, column):
    """Within one batch the release comes first, whatever the keys, the order and the kind."""
    found, store = people(database, kind, type, mails="abcde", column=column)
    batch = [
        mail(1, "b", step=21, type=type),  # 2 releases it
        mail(2, "c", step=22, type=type),  # 3 releases it
        mail(3, "new", step=23, type=type),
        change_of(type.__name__, "5", 24, None),
        mail(4, "e", step=25, type=type),  # the delete of 5 releases it
        mail(6, "a", step=26, type=type),  # a new record
    ]
    random.Random(3).shuffle(batch)
    assert outcomes(apply(store, batch, clock=store.clock)) == [APPLIED] * 6
    assert mails(found) == {1: "b", 2: "c", 3: "new", 4: "e", 6: "a"}
    assert not any(store.capture())


SWAPS = {
    "sqlite": [(UNIQUE, True), (FIRM, False)],
    "postgresql": [(UNIQUE, True), (FIRM, False), (DEFERRABLE, True)],
    "mariadb": [(UNIQUE, True), (FIRM, False)],
}


@pytest.mark.parametrize("type", [Person, Member])
@pytest.mark.parametrize(
    ("kind", "column", "possible"), [(kind, *one) for kind, some in SWAPS.items() for one in some]
)
@pytest.mark.parametrize("count", [2, 5])
def test_records_that_exchange_their_values(database, kind, type, column, possible, count):
    """They are applied together if the column may be NULL or is checked at the commit."""
    names = [f"{n}@a" for n in range(count)]
    found, store = people(database, kind, type, mails=names, column=column)
    swap = [mail(n + 1, names[(n + 1) % count], step=20 + n, type=type) for n in range(count)]
    for change in swap:
        assert outcomes(apply(store, [change], clock=store.clock)) == [HELD]
    settled = apply(store, [*swap, mail(9, "other", step=30, type=type)], clock=store.clock)
    assert outcomes(settled) == [APPLIED if possible else HELD] * count + [APPLIED]
    turned = {n + 1: names[(n + 1) % count] for n in range(count)}
    unturned = dict(enumerate(names, start=1))
    assert mails(found) == {**(turned if possible else unturned), 9: "other"}
    if not possible:
        assert f"{type.__name__} '2' has the same mail" in settled[0].error.message
    assert not any(store.capture())


@pytest.mark.parametrize("kind", KINDS)
def test_an_exchange_that_arrives_one_by_one(database, kind, tmp_path):
    """A worker applies two records together that exchange a value and arrive in two messages."""
    found, store = people(database, kind)
    with Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        bus.declare("people", store.accessors)
        worker = Worker(store, bus)
        for change in (mail(1, "y@a", step=20), mail(2, "x@a", step=21)):
            bus.publish("Person", [bus.encode(change)])
            worker.drain(timeout=0.05)
        worker.drain(timeout=0.05)
        assert bus.states("people")["held"].ready == 0
        assert mails(found) == {1: "y@a", 2: "x@a"}
        assert not any(store.capture())


def test_an_exchange_of_values_that_may_not_be_empty(database, tmp_path):
    """It is held, and becomes a dead letter whose reason names the other record."""
    found, store = people(database, "sqlite", column=FIRM)
    with Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        bus.declare("people", store.accessors)
        for change in (mail(1, "y@a", step=20), mail(2, "x@a", step=21)):
            bus.publish("Person", [bus.encode(change)])
        Worker(store, bus).drain(timeout=0.05)
        assert bus.states("people")["held"].ready == 2
        Worker(store, bus, options=Options(hold_for=0.0)).drain(timeout=0.05)
        with bus.letters("people") as letters:
            dead = {letter.key: letter for letter, _ in letters.read()}
        assert {letter.reason for letter in dead.values()} == {"unique"}
        assert "Person '2' has the same mail" in dead["1"].message
        assert "Person '1' has the same mail" in dead["2"].message
    assert mails(found) == {1: "x@a", 2: "y@a"}


@pytest.mark.parametrize("kind", KINDS)
def test_a_taken_value_holds_up_nobody(database, kind):
    """Only the record that takes the value waits, and those that take what it does not release."""
    found, store = people(database, kind, mails=["a", "b", "c"])
    batch = [mail(n, f"m{n}", step=n) for n in range(10, 110)]
    batch += [mail(5, "a", step=120), mail(2, "c", step=121), mail(3, "b", step=122)]
    batch += [mail(7, "m9", step=123), mail(8, "m9", step=124)]
    settled = {item.change.key: item for item in apply(store, batch, clock=store.clock)}
    held = {key: item.error.message for key, item in settled.items() if item.outcome is HELD}
    assert held.keys() == {"5", "8"}
    assert "Person '1' has the same mail" in held["5"]
    assert "Person '7' has the same mail" in held["8"]
    assert mails(found) | {2: "c", 3: "b"} == mails(found)


def test_an_exclusion_constraint(database):
    """A record that overlaps with another one is held until the other has moved."""

    class Booking(Record):
        id: int = Field(key=True)
        room: int = 0
        hours: str = ""

    found = database("postgresql")
    found.run(
        "CREATE TABLE booking (id INT PRIMARY KEY, room INT NOT NULL, hours int4range NOT NULL,"
        " EXCLUDE USING gist (hours WITH &&))"
    )
    with Store("rooms", SqlAccessor(Booking, found.engine, table="booking")) as store:

        def book(key, hours, step):
            data = {"id": key, "room": 1, "hours": hours}
            return change_of("Booking", str(key), step, data)

        first, second = book(1, "[8,10)", 1), book(2, "[9,11)", 9)
        assert outcomes(apply(store, [first], clock=store.clock)) == [APPLIED]
        (early,) = apply(store, [second], clock=store.clock)
        assert (early.outcome, early.error.reason) == (HELD, "unique")
        moved = [second, book(1, "[6,8)", 5)]
        apply(store, moved, clock=store.clock)
        apply(store, [second], clock=store.clock)
        assert found.rows("SELECT id, hours::text FROM booking ORDER BY id") == [
            (1, "[6,8)"),
            (2, "[9,11)"),
        ]
        assert not any(store.capture())


RENAMED = {
    "sqlite": "TEXT COLLATE NOCASE PRIMARY KEY",
    "postgresql": "citext PRIMARY KEY",
    "mariadb": "VARCHAR(40) COLLATE utf8mb4_general_ci PRIMARY KEY",
}


class Named(Record):
    name: str = Field(key=True)
    note: str | None = None


@pytest.mark.parametrize("kind", KINDS)
def test_a_key_renamed_in_another_case(database, kind):
    """A put of ``ann`` waits for the delete of ``Ann`` where the column takes them for one."""
    found = database(kind)
    if kind == "postgresql":
        found.run("CREATE EXTENSION IF NOT EXISTS citext SCHEMA public")
    found.run(f"CREATE TABLE named (name {RENAMED[kind]}, note VARCHAR(40))")
    found.run("INSERT INTO named VALUES ('Ann', 'first'), ('Ben', 'second')")
    with Store("people", SqlAccessor(Named, found.engine, table="named")) as store:
        assert len([c for part in store.capture() for c in part]) == 2
        put = change_of("Named", "ann", 5001, {"name": "ann", "note": "first"})
        gone = change_of("Named", "Ann", 5000, None)
        (early,) = apply(store, [put], clock=store.clock)
        assert (early.outcome, early.error.reason) == (HELD, "unique")
        assert "Named 'Ann'" in early.error.message
        apply(store, [gone], clock=store.clock)
        assert outcomes(apply(store, [put], clock=store.clock)) == [APPLIED]
        both = [
            change_of("Named", "BEN", 5003, {"name": "BEN", "note": "second"}),
            change_of("Named", "Ben", 5002, None),
        ]
        assert outcomes(apply(store, both, clock=store.clock)) == [APPLIED] * 2
        assert sorted(found.rows("SELECT name FROM named")) == [("BEN",), ("ann",)]
        assert not any(store.capture())


# -- foreign keys ---------------------------------------------------------------------------------


class Staff(Record):
    id: int = Field(key=True)
    team: int | None = None
    note: str | None = None


class Team(Record):
    id: int = Field(key=True)
    lead: int | None = None
    note: str | None = None


class FieldStaff(Record, name="Staff", rule="field"):
    id: int = Field(key=True)
    team: int | None = None
    note: str | None = None


class FieldTeam(Record, name="Team", rule="field"):
    id: int = Field(key=True)
    lead: int | None = None
    note: str | None = None


LATE = " DEFERRABLE INITIALLY IMMEDIATE"
CIRCLE = (
    "CREATE TABLE staff (id INT PRIMARY KEY, team INT{0}, note VARCHAR(40))",
    "CREATE TABLE team (id INT PRIMARY KEY, lead INT{0}, note VARCHAR(40){1})",
    "ALTER TABLE staff ADD CONSTRAINT of_team FOREIGN KEY (team) REFERENCES team (id){2}",
    "ALTER TABLE team ADD CONSTRAINT by_lead FOREIGN KEY (lead) REFERENCES staff (id){2}",
)
IN_SQLITE = (
    "CREATE TABLE staff (id INT PRIMARY KEY, team INT{0} REFERENCES team (id), note VARCHAR(40))",
    "CREATE TABLE team (id INT PRIMARY KEY, lead INT{0} REFERENCES staff (id), note VARCHAR(40))",
)
CIRCLES = {
    "sqlite, nullable": ("sqlite", "", "", True),
    "sqlite, not null": ("sqlite", " NOT NULL", "", True),
    "postgresql, nullable": ("postgresql", "", "", True),
    "postgresql, deferrable": ("postgresql", " NOT NULL", LATE, True),
    "postgresql, firm": ("postgresql", " NOT NULL", "", False),
    "mariadb, nullable": ("mariadb", "", "", True),
    "mariadb, firm": ("mariadb", " NOT NULL", "", False),
}


def circle(database, name, types=(Staff, Team), store="firm"):
    """Return a database with two tables that refer to each other, and an open store of them."""
    kind, null, late, _ = CIRCLES[name]
    found = database(kind)
    found.run(*(s.format(null, "", late) for s in (IN_SQLITE if kind == "sqlite" else CIRCLE)))
    accessors = [SqlAccessor(t, found.engine, table=t.__record__.name.lower()) for t in types]
    return found, Store(store, *accessors).open()


def staff(key, team, step):
    return change_of("Staff", str(key), step, {"id": key, "team": team, "note": None})


def team(key, lead, step):
    return change_of("Team", str(key), step, {"id": key, "lead": lead, "note": None})


def rows(found):
    return (
        sorted(found.rows("SELECT id, team FROM staff")),
        sorted(found.rows("SELECT id, lead FROM team")),
    )


@pytest.mark.parametrize("types", [(Staff, Team), (FieldTeam, FieldStaff)], ids=["record", "field"])
@pytest.mark.parametrize("name", CIRCLES)
def test_tables_that_refer_to_each_other(database, name, types):
    """A circle is written and removed in one transaction, in any order, or is held as a whole."""
    found, store = circle(database, name, types)
    possible = CIRCLES[name][3]
    puts = [staff(1, 7, 1), staff(2, 7, 2), team(7, 1, 3), staff(3, 8, 4), team(8, 99, 5)]
    for change in puts[:3]:
        assert outcomes(apply(store, [change], clock=store.clock)) == [HELD]
    settled = apply(store, puts, clock=store.clock)
    assert outcomes(settled) == [APPLIED if possible else HELD] * 3 + [HELD] * 2
    assert "staff '99'" in settled[4].error.message
    assert rows(found) == (([(1, 7), (2, 7)], [(7, 1)]) if possible else ([], []))
    assert not any(store.capture())
    if possible:
        again = apply(store, puts, clock=store.clock)
        assert outcomes(again)[:3] == [Outcome.DUPLICATE] * 3
        gone = [change_of("Team", "7", 20, None), change_of("Staff", "1", 21, None)]
        settled = apply(store, gone, clock=store.clock)
        assert outcomes(settled) == [HELD] * 2  # 2 still refers to team 7
        gone.append(change_of("Staff", "2", 22, None))
        assert outcomes(apply(store, gone, clock=store.clock)) == [APPLIED] * 3
        assert rows(found) == ([], [])
        assert not any(store.capture())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("null", ["", " NOT NULL"])
def test_rows_that_refer_to_each_other(database, kind, null):
    """Two rows of one table, and a row that refers to itself."""
    found = database(kind)
    found.run(
        f"CREATE TABLE staff (id INT PRIMARY KEY, team INT{null}, note VARCHAR(40),"
        " FOREIGN KEY (team) REFERENCES staff (id))"
    )
    with Store("firm", SqlAccessor(Staff, found.engine, table="staff")) as store:
        # PostgreSQL checks all rows of one statement together.
        possible = not null or kind != "mariadb"
        puts = [staff(1, 2, 1), staff(2, 3, 2), staff(3, 1, 3), staff(4, 4, 4), staff(5, 1, 5)]
        expected = [APPLIED if possible or n == 3 else HELD for n in range(5)]
        assert outcomes(apply(store, puts, clock=store.clock)) == expected
        gone = [change_of("Staff", str(n), 20 + n, None) for n in range(1, 6)]
        # MariaDB deletes no row that refers to itself.
        expected = [APPLIED if possible or n != 3 else HELD for n in range(5)]
        assert outcomes(apply(store, gone, clock=store.clock)) == expected
        assert found.rows("SELECT id FROM staff") == ([] if possible else [(4,)])
        assert not any(store.capture())


@pytest.mark.parametrize("kind", KINDS)
def test_a_child_that_leaves_its_parent(database, kind):
    """A parent is removed after its child has got another one in the same batch."""
    found, store = circle(database, f"{kind}, nullable")
    puts = [team(1, None, 1), team(2, None, 2), staff(1, 1, 3)]
    assert outcomes(apply(store, puts, clock=store.clock)) == [APPLIED] * 3
    gone = change_of("Team", "1", 10, None)
    (early,) = apply(store, [gone], clock=store.clock)
    assert (early.outcome, type(early.error)) == (HELD, DependencyError)
    assert outcomes(apply(store, [gone, staff(1, 2, 11)], clock=store.clock)) == [APPLIED] * 2
    assert rows(found) == ([(1, 2)], [(2, None)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_circle_that_arrives_one_by_one(database, kind, tmp_path):
    """A worker applies a circle of two messages; what still lacks a record stays held."""
    found, store = circle(database, f"{kind}, nullable")
    with Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        bus.declare("firm", store.accessors)
        worker = Worker(store, bus)
        for change in (staff(1, 7, 1), team(8, 9, 2), team(7, 1, 3)):
            bus.publish(change.type, [bus.encode(change)])
            worker.drain(timeout=0.05)
        worker.drain(timeout=0.05)
        assert bus.states("firm")["held"].ready == 1
        assert rows(found) == ([(1, 7)], [(7, 1)])


@pytest.mark.parametrize("kind", KINDS)
def test_a_circle_that_is_cut_off(database, kind, monkeypatch):
    """If the worker dies at any step, nothing is written, captured or lost."""
    found, store = circle(database, f"{kind}, nullable")
    batch = [staff(1, 7, 1), team(7, 1, 2)]
    original, cuts = SqlAccessor.write_rows, 0
    for last in itertools.count(1):
        calls = itertools.count(1)

        def cut(self, *arguments, calls=calls, last=last):
            original(self, *arguments)
            if next(calls) == last:
                raise StoreUnavailableError("cut off")

        monkeypatch.setattr(SqlAccessor, "write_rows", cut)
        try:
            settled = apply(store, batch, clock=store.clock)
        except StoreUnavailableError:
            cuts += 1
            assert rows(found) == ([], [])
            assert not any(store.capture())
        else:
            break
    assert cuts >= 2
    assert outcomes(settled) == [APPLIED] * 2
    assert rows(found) == ([(1, 7)], [(7, 1)])
    assert not any(store.capture())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [3, 5000])
def test_a_circle_is_copied_by_a_synchronization(database, kind, count):
    """``synchronize`` fills an empty store, whatever the order of the record types."""
    found, store = circle(database, f"{kind}, nullable")
    other, target = circle(database, "sqlite, nullable", (Team, Staff), "copy")
    people = [staff(n, n % 4 + 1, n) for n in range(1, 20)]
    teams = [team(n, 20 - n, 100 + n) for n in range(1, 5)]
    assert outcomes(apply(store, [*people, *teams], clock=store.clock)) == [APPLIED] * 23
    registry = StoreRegistry(store, target)
    report = registry.synchronize(sources=["firm"], targets=["copy"], count=count)
    assert report.outcomes["copy"] == {HELD: 0, APPLIED: 23}
    assert rows(other) == rows(found)


# -- what `check` says beforehand -----------------------------------------------------------------


@pytest.mark.parametrize("name", CIRCLES)
def test_check_names_a_circle_that_cannot_be_written(database, name):
    """``check`` names tables and columns of a firm circle, and is silent about any other one."""
    _, store = circle(database, name)
    found = {
        type: [f.text for f in accessor.findings() if "refer to each other" in f.text]
        for type, accessor in store.accessors.items()
    }
    if CIRCLES[name][3]:
        assert found == {"Staff": [], "Team": []}
        return
    ((text,), (other,)) = found.values()
    assert "staff.team refers to team; team.lead refers to staff" in text
    assert "team.lead refers to staff; staff.team refers to team" in other
    assert ("DEFERRABLE" in text) is name.startswith("postgresql")


@pytest.mark.parametrize(
    ("kind", "column", "possible"), [(kind, *one) for kind, some in SWAPS.items() for one in some]
)
def test_check_names_values_that_cannot_be_exchanged(database, kind, column, possible):
    """``check`` names a unique column that neither takes NULL nor is checked at the commit."""
    _, store = people(database, kind, column=column)
    found = [f.text for f in store.accessor(Person).findings() if "exchange" in f.text]
    assert len(found) == (not possible)
    assert all("values of mail" in text for text in found)


def test_check_names_rows_that_cannot_refer_to_each_other(database):
    """A table that refers to itself by a column without NULL is noted."""
    found = database("mariadb")
    found.run(
        "CREATE TABLE staff (id INT PRIMARY KEY, team INT NOT NULL, note VARCHAR(40),"
        " FOREIGN KEY (team) REFERENCES staff (id))"
    )
    (text,) = [
        f.text
        for f in SqlAccessor(Staff, found.engine, table="staff").findings()
        if "refer to each other" in f.text
    ]
    assert "staff.team refers to staff" in text
