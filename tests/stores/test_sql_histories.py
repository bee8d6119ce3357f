"""Random histories of unique values and references that arrive in any order at a second store."""

from __future__ import annotations

import random

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign import change_of, fresh_database

from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor


class Staff(Record):
    id: int = Field(key=True)
    mail: str | None = None
    team: int | None = None


class Team(Record):
    id: int = Field(key=True)
    lead: int | None = None


class FieldStaff(Record, name="Staff", rule="field"):
    id: int = Field(key=True)
    mail: str | None = None
    team: int | None = None


class FieldTeam(Record, name="Team", rule="field"):
    id: int = Field(key=True)
    lead: int | None = None


TABLES = (
    "CREATE TABLE staff (id INT PRIMARY KEY, mail VARCHAR(9) UNIQUE, team INT)",
    "CREATE TABLE team (id INT PRIMARY KEY, lead INT)",
    "ALTER TABLE staff ADD CONSTRAINT of_team FOREIGN KEY (team) REFERENCES team (id)",
    "ALTER TABLE team ADD CONSTRAINT by_lead FOREIGN KEY (lead) REFERENCES staff (id)",
)
IN_SQLITE = (
    "CREATE TABLE staff"
    " (id INT PRIMARY KEY, mail VARCHAR(9) UNIQUE, team INT REFERENCES team (id))",
    "CREATE TABLE team (id INT PRIMARY KEY, lead INT REFERENCES staff (id))",
)
MAILS, IDS, TEAMS = "abcdef", range(1, 7), range(1, 4)


class History:
    """A valid history of the two tables: its changes, and the rows at its end."""

    def __init__(self, rng, *, patches):
        self.rng, self.patches = rng, patches
        self.staff, self.teams, self.changes = {}, {}, []

    def run(self, count):
        steps = (self.write, self.write, self.exchange, self.circle, self.remove)
        while len(self.changes) < count:
            self.rng.choice(steps)()
        return self

    def put(self, type, id, **values):
        rows = self.staff if type == "Staff" else self.teams
        before, after = rows.get(id), {"id": id, **values}
        rows[id] = after
        data, op = after, "put"
        if self.patches and before is not None:
            data, op = {n: v for n, v in after.items() if before[n] != v}, "patch"
        if data:
            self.changes.append(change_of(type, str(id), len(self.changes), data, op))

    def free_mails(self, id):
        taken = {row["mail"] for key, row in self.staff.items() if key != id}
        return [None, *(mail for mail in MAILS if mail not in taken)]

    def write(self):
        choose = self.rng.choice
        if self.rng.random() < 0.3:
            self.put("Team", choose(TEAMS), lead=choose([None, *self.staff]))
        else:
            id = choose(IDS)
            self.put(
                "Staff", id, mail=choose(self.free_mails(id)), team=choose([None, *self.teams])
            )

    def exchange(self):
        chosen = self.rng.sample(sorted(self.staff), min(len(self.staff), self.rng.choice([2, 3])))
        mails = [self.staff[id]["mail"] for id in chosen]
        for id, mail in zip(chosen, mails[1:] + mails[:1], strict=True):
            self.put("Staff", id, mail=mail, team=self.staff[id]["team"])

    def circle(self):
        id, team = self.rng.choice(IDS), self.rng.choice(TEAMS)
        self.put("Staff", id, mail=self.rng.choice(self.free_mails(id)), team=team)
        self.put("Team", team, lead=id)

    def remove(self):
        id = self.rng.choice(IDS)
        if id in self.staff and all(row["lead"] != id for row in self.teams.values()):
            del self.staff[id]
            self.changes.append(change_of("Staff", str(id), len(self.changes), None))


@pytest.fixture(scope="module")
def servers():
    """The URLs of a PostgreSQL and a MariaDB server."""
    with PostgresServer() as postgres, MariaServer() as maria:
        yield {"postgresql": postgres.url, "mariadb": maria.url}


def tables(url):
    """Return an engine with the two empty tables."""
    engine = sa.create_engine(url)
    sqlite = url.startswith("sqlite")
    if sqlite:
        sa.event.listen(engine, "connect", lambda raw, _: raw.execute("PRAGMA foreign_keys = ON"))
    with engine.begin() as connection:
        for statement in IN_SQLITE if sqlite else TABLES:
            connection.exec_driver_sql(statement)
    return engine


def deliver(store, changes, rng):
    """Apply changes in batches of any size; try the held ones again together with later ones."""
    waiting = list(changes)
    held = []
    while waiting:
        size = rng.choice([1, 1, 2, 5, 20])
        batch, waiting = waiting[:size], waiting[size:]
        if rng.random() < 0.3:
            batch, held = [*batch, *held], []
        settled = apply(store, batch, clock=store.clock)
        assert {s.outcome for s in settled} <= {*Outcome} - {Outcome.REJECTED}
        held += [s.change for s in settled if s.outcome is Outcome.HELD]
    for _ in range(3):
        settled = apply(store, held, clock=store.clock)
        held = [s.change for s in settled if s.outcome is Outcome.HELD]
    return [s for s in settled if s.outcome is Outcome.HELD]


@pytest.mark.parametrize("types", [(Staff, Team), (FieldStaff, FieldTeam)], ids=["record", "field"])
@pytest.mark.parametrize(("kind", "count"), [("sqlite", 60), ("postgresql", 25), ("mariadb", 25)])
def test_any_order_ends_alike(servers, tmp_path, kind, count, types):
    """After all changes have arrived, the second store has exactly the rows of the first one."""
    for seed in range(count):
        rng = random.Random(f"{kind}{seed}")
        history = History(rng, patches=types[0] is FieldStaff).run(40)
        url = (
            f"sqlite:///{tmp_path}/{seed}.db" if kind == "sqlite" else fresh_database(servers[kind])
        )
        engine = tables(url)
        accessors = [SqlAccessor(t, engine, table=t.__record__.name.lower()) for t in types]
        with Store("second", *accessors) as store:
            changes = list(history.changes)
            rng.shuffle(changes)
            held = deliver(store, changes, rng)
            assert held == [], (seed, [str(s.error) for s in held])
            for type, rows in zip(types, (history.staff, history.teams), strict=True):
                found = {record["id"]: record.raw() for record in store.find(type)}
                assert found == rows, seed
            assert not any(store.capture()), seed
        engine.dispose()
