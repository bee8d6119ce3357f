"""The SQL store, on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

from eventsync.apply import apply
from eventsync.change import Change
from eventsync.clock import Clock, Version
from eventsync.errors import DependencyError, StoreUnavailableError
from eventsync.gate import Outcome
from eventsync.record import Field, Record
from eventsync.retry import retrying
from eventsync.store import Store
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.testing import FakeBus, StoreContract


class TestSqlAccessor(StoreContract):
    """The conformance suite on tables that eventsync makes."""

    def accessor(self, record_type, folder, view=None):
        return SqlAccessor(record_type, f"sqlite:///{folder}/data.db", create=True, view=view)


@pytest.fixture(scope="session")
def postgres():
    """The URL of a PostgreSQL server."""
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb():
    """The URL of a MariaDB server."""
    with MariaServer() as server:
        yield server.url


def fresh(server):
    """The URL of a new schema on a server."""
    name = f"t{uuid.uuid4().hex}"
    with contextlib.closing(sa.create_engine(server).raw_connection()) as connection:
        connection.cursor().execute(f"CREATE SCHEMA {name}")
        connection.commit()
        connection.detach()
    if server.startswith("postgresql"):
        return f"{server}?options=-csearch_path%3D{name}"
    return f"{server.rpartition('/')[0]}/{name}"


class OnServer(StoreContract):
    """Each folder stands for a database of its own, on one server."""

    examples = 5

    def accessor(self, record_type, folder, view=None):
        mark = folder / "database"
        if not mark.exists():
            mark.write_text(fresh(self.server))
        return SqlAccessor(record_type, mark.read_text(), create=True, view=view)


@pytest.mark.slow
class TestPostgres(OnServer):
    """The conformance suite on PostgreSQL, whose text cannot hold NUL."""

    odd_text = False

    @pytest.fixture(autouse=True)
    def _server(self, postgres):
        self.server = postgres


@pytest.mark.slow
class TestMariadb(OnServer):
    """The conformance suite on MariaDB."""

    @pytest.fixture(autouse=True)
    def _server(self, mariadb):
        self.server = mariadb


def test_derived_records_can_travel(tmp_path):
    """A record of a type that was derived from a table goes into an envelope as any other."""
    database = f"sqlite:///{tmp_path / 'music.db'}"
    with contextlib.closing(sqlite3.connect(tmp_path / "music.db")) as connection:
        connection.execute(
            'CREATE TABLE "Track List" (list INT, track INT, "the Title" TEXT,'
            " PRIMARY KEY (list, track))"
        )
        connection.execute("INSERT INTO \"Track List\" VALUES (1, 2, 'Für Elise')")
        connection.commit()
    record_type = derive(database, "Track List", name="TrackList")
    bus = FakeBus()
    accessor = SqlAccessor(record_type, database, table="Track List")
    with Store("music", accessor, publisher=bus) as store:
        assert [len(chunk) for chunk in store.capture()] == [1]
        (change,) = bus.changes()
        assert (change.key, change.data["the Title"]) == ("1/2", "Für Elise")


class Counter(Record):
    """A record that many processes change."""

    id: int = Field(key=True)
    step: int = 0


def puts(steps, now):
    """Changes of five records; each step is later than the one before."""
    return [
        Change(
            type="Counter",
            key=str(number),
            op="put",
            version=Version.of(now + step, 0, 7),
            data={"id": number, "step": step},
        )
        for step in steps
        for number in range(5)
    ]


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_many_writers(server, request):
    """However many apply changes of the same records at once, the latest is what is there."""
    url = fresh(request.getfixturevalue(server))
    clock = Clock()
    now = int(clock.now() * 1000) - 1000
    with Store("crm", SqlAccessor(Counter, url, create=True)) as store:
        store.index.counts("Counter")

        def work(seed):
            rng = random.Random(seed)
            steps = list(range(60))
            rng.shuffle(steps)
            with Store("crm", SqlAccessor(Counter, url)) as own:
                for step in steps:
                    changes = puts([step], now)
                    rng.shuffle(changes)
                    retrying(
                        lambda changes=changes: apply(own, changes, clock=Clock()),
                        budget=60.0,
                        wait=time.sleep,
                    )

        with ThreadPoolExecutor(4) as pool:
            list(pool.map(work, range(4)))
        assert {record.step for record in store.find(Counter)} == {59}
        entries = store.index.scan("Counter")
        assert {entry.stamp.version for _, entry in entries} == {Version.of(now + 59, 0, 7)}
        assert [c for chunk in store.capture() for c in chunk] == []


SHOP = """
CREATE TABLE maker (id INT PRIMARY KEY, name VARCHAR(80) NOT NULL UNIQUE);
CREATE TABLE item (id INT PRIMARY KEY, maker INT NOT NULL REFERENCES maker (id),
    part_of INT REFERENCES item (id), price DECIMAL(10,2) NOT NULL);
"""


@pytest.fixture(params=["postgres", "mariadb"])
def shop(request):
    """A store of two tables with foreign keys, which a database had before eventsync."""
    url = fresh(request.getfixturevalue(request.param))
    engine = sa.create_engine(url)
    with engine.begin() as connection:
        for statement in SHOP.split(";")[:-1]:
            connection.exec_driver_sql(statement)
    types = [derive(engine, name) for name in ("item", "maker")]
    with Store("shop", *(SqlAccessor(t, engine) for t in types)) as store:
        yield store


def shop_change(type, key, step, data):
    now = int(time.time() * 1000) - 1000
    op = "delete" if data is None else "put"
    return Change(type=type, key=key, op=op, version=Version.of(now + step, 0, 7), data=data)


def test_parents_and_children_in_any_order(shop):
    """What comes before its parent is held alone; in one batch the order does not matter."""
    maker = shop_change("maker", "1", 1, {"id": 1, "name": "Acme"})
    part = shop_change("item", "2", 2, {"id": 2, "maker": 1, "part_of": 1, "price": "1.50"})
    whole = shop_change("item", "1", 3, {"id": 1, "maker": 1, "part_of": None, "price": "9"})
    (early,) = apply(shop, [part], clock=shop.clock)
    assert early.outcome is Outcome.HELD
    assert isinstance(early.error, DependencyError)
    settled = apply(shop, [part, whole, maker], clock=shop.clock)
    assert [item.outcome for item in settled] == [Outcome.APPLIED] * 3
    gone = [shop_change("maker", "1", 5, None), shop_change("item", "1", 6, None)]
    settled = apply(shop, gone, clock=shop.clock)
    assert [item.outcome for item in settled] == [Outcome.HELD] * 2
    settled = apply(shop, [*gone, shop_change("item", "2", 7, None)], clock=shop.clock)
    settled += apply(shop, gone, clock=shop.clock)
    assert shop.count() == 0


def test_refused_batches_are_quiet(shop, caplog):
    """Children without their parent are held, and the driver has nothing to warn of."""
    orphans = [
        shop_change("item", str(n), n, {"id": n, "maker": 9, "part_of": None, "price": "1"})
        for n in range(1, 9)
    ]
    settled = apply(shop, orphans, clock=shop.clock)
    assert [item.outcome for item in settled] == [Outcome.HELD] * 8
    assert [r.getMessage() for r in caplog.records if r.name.startswith("psycopg")] == []


def test_unique_and_exact(shop):
    """What breaks a unique constraint or would be rounded is rejected, and nothing else."""
    changes = [
        shop_change("maker", "1", 1, {"id": 1, "name": "Acme"}),
        shop_change("maker", "2", 2, {"id": 2, "name": "Acme"}),
        shop_change("item", "1", 3, {"id": 1, "maker": 1, "part_of": None, "price": "1.005"}),
        shop_change("item", "2", 4, {"id": 2, "maker": 1, "part_of": None, "price": "1.50"}),
    ]
    outcomes = [item.outcome for item in apply(shop, changes, clock=shop.clock)]
    assert sorted(outcomes) == ["applied", "applied", "rejected", "rejected"]
    assert outcomes[2:] == ["rejected", "applied"]
    assert [c for chunk in shop.capture() for c in chunk] == []


def test_connections_that_are_cut(postgres):
    """Connections that the server ended are made again, and a missing server is worth waiting."""
    url = fresh(postgres)
    with Store("crm", SqlAccessor(Counter, url, create=True)) as store:
        store.add(Counter(id=1))
        engine = sa.create_engine(postgres)
        with engine.connect() as connection:
            connection.exec_driver_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                " WHERE pid <> pg_backend_pid() AND datname = current_database()"
            )
        engine.dispose()
        store.add(Counter(id=2))
        assert store.count(Counter) == 2


@pytest.mark.slow
@pytest.mark.parametrize("kind", [PostgresServer, MariaServer])
def test_server_killed_and_started_again(kind):
    """What was applied survives the server's death; while it is away errors are retryable."""
    with kind() as server, Store("crm", SqlAccessor(Counter, server.url, create=True)) as store:
        store.add(Counter(id=1, step=5))
        server.kill()
        with pytest.raises(StoreUnavailableError):
            store.add(Counter(id=2))
        server.start()
        assert store[Counter, 1].step == 5
        store.add(Counter(id=2))
        assert [c for chunk in store.capture() for c in chunk] == []
