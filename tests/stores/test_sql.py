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

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.replica import Replica
from eventsync.engine.store import Store
from eventsync.errors import DependencyError, RejectedError, StoreUnavailableError
from eventsync.index import Presence
from eventsync.records.record import Field, Record
from eventsync.retry import retrying
from eventsync.stores.sql import SqlAccessor, derive
from eventsync.testing import FakeBus, StoreContract
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


class TestSqlAccessor(StoreContract):
    """The conformance suite on tables that eventsync creates."""

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
    return sa.make_url(server).set(database=name).render_as_string(hide_password=False)


class OnServer(StoreContract):
    """Each folder stands for a database of its own, on one server."""

    examples = 5

    def database(self, url):
        """What an accessor gets of the database at ``url``."""
        return url

    def accessor(self, record_type, folder, view=None):
        mark = folder / "database"
        if not mark.exists():
            mark.write_text(fresh(self.server))
        return SqlAccessor(record_type, self.database(mark.read_text()), create=True, view=view)


@pytest.fixture(scope="session")
def compiled(postgres):
    """PostgreSQL's dialect as one connection has found it, and statements compiled for it.

    To compile them anew for a thousand stores takes more time than all that is tested.
    """
    known = sa.create_engine(postgres)
    known.connect().close()
    known.dispose()
    return known.dialect, {}


@pytest.mark.slow
class TestPostgres(OnServer):
    """The conformance suite on PostgreSQL, whose text cannot hold NUL."""

    odd_text = False

    @pytest.fixture(autouse=True)
    def _server(self, postgres, compiled):
        self.server = postgres
        self.dialect, self.compiled = compiled

    def database(self, url):
        """An engine of its own, as another process would make it."""
        place, dialect = sa.make_url(url), self.dialect
        arguments, options = dialect.create_connect_args(place)
        pool = sa.QueuePool(lambda: dialect.connect(*arguments, **options))
        on_connect = dialect.on_connect_url(place) or (lambda connection: None)
        sa.event.listen(pool, "connect", lambda connection, record: on_connect(connection))
        return sa.Engine(pool, dialect, place, execution_options={"compiled_cache": self.compiled})


@pytest.mark.slow
class TestMariadb(OnServer):
    """The conformance suite on MariaDB."""

    @pytest.fixture(autouse=True)
    def _server(self, mariadb):
        self.server = mariadb


def test_derived_records_can_travel(tmp_path):
    """A record of a derived type can be put into an envelope like any other record."""
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
    """When many processes apply changes of the same records at once, the latest change wins."""
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
    """A record that comes before its parent is held alone; within one batch the order is free."""
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
    """Children without their parent are held, and the driver warns of nothing."""
    orphans = [
        shop_change("item", str(n), n, {"id": n, "maker": 9, "part_of": None, "price": "1"})
        for n in range(1, 9)
    ]
    settled = apply(shop, orphans, clock=shop.clock)
    assert [item.outcome for item in settled] == [Outcome.HELD] * 8
    assert [r.getMessage() for r in caplog.records if r.name.startswith("psycopg")] == []


def item(number, step, *, maker=1, part_of=None):
    data = {"id": number, "maker": maker, "part_of": part_of, "price": "1"}
    return shop_change("item", str(number), step, data)


def test_who_waits_holds_up_nobody(shop, monkeypatch):
    """In a large batch only records with missing parents, and their followers, are held."""
    goes = []

    def counted(self, work, decisions):
        goes.append(len(decisions))
        return original(self, work, decisions)

    original = Replica.decide
    monkeypatch.setattr(Replica, "decide", counted)
    changes = [item(n, n, part_of=n + 1 if n < 200 else None) for n in range(1, 201)]
    changes += [item(301, 301, maker=9), item(302, 302, part_of=999), item(303, 303, part_of=302)]
    random.Random(5).shuffle(changes)
    maker = shop_change("maker", "1", 999, {"id": 1, "name": "Acme"})
    settled = apply(shop, [*changes, maker], clock=shop.clock)
    held = {s.change.key: s.error.message for s in settled if s.outcome is Outcome.HELD}
    assert held.keys() == {"301", "302", "303"}
    assert "maker '9'" in held["301"]
    assert "item '999'" in held["302"]
    assert "item '302'" in held["303"]
    assert shop.count() == 201
    assert goes == [203]


def test_a_patch_that_refers_to_what_is_missing(shop):
    """Under the per-field rule a patch is held alone, and fields it leaves out stay unchanged."""
    engine = shop.index.engine
    piece = derive(engine, "item", name="piece", rule="field")
    apply(shop, [shop_change("maker", "1", 1, {"id": 1, "name": "Acme"})], clock=shop.clock)
    with Store("pieces", SqlAccessor(piece, engine, table="item")) as pieces:
        for number in range(1, 9):
            pieces.add(piece(id=number, maker=1, part_of=None, price="1"))
        later = shop.clock.now() * 1000 + 1000
        patches = [
            Change(
                type="piece",
                key=str(number),
                op="patch",
                version=Version.of(int(later), 0, number),
                data={"maker": 9} if number == 5 else {"part_of": number % 8 + 1},
            )
            for number in range(1, 9)
        ]
        settled = apply(pieces, patches, clock=shop.clock)
        assert [s.change.key for s in settled if s.outcome is Outcome.HELD] == ["5"]
        assert (pieces[piece, 5]["maker"], pieces[piece, 4]["part_of"]) == (1, 5)


def test_a_tree_is_removed_from_its_leaves(shop, monkeypatch):
    """Deletes come in any order: children go first, and only a record still referred to is held."""
    changes = [item(n, n, part_of=n // 2 or None) for n in range(1, 601)]
    maker = shop_change("maker", "1", 999, {"id": 1, "name": "Acme"})
    settled = apply(shop, [*changes, maker], clock=shop.clock)
    assert {s.outcome for s in settled} == {Outcome.APPLIED}
    gone = [shop_change("item", str(n), 2000 + n, None) for n in range(1, 601) if n != 75]
    gone.append(shop_change("maker", "1", 2999, None))
    random.Random(7).shuffle(gone)
    settled = apply(shop, gone, clock=shop.clock)
    held = {s.change.key: s.error.message for s in settled if s.outcome is Outcome.HELD}
    # 75 stays, so what is above it has to stay, too.
    assert held.keys() == {"1", "2", "4", "9", "18", "37"}
    assert "item '75' still refers to item '37'" in held["37"]
    makers = [s for s in settled if s.change.type == "maker"]
    assert [s.outcome for s in makers] == [Outcome.HELD]
    assert "item still refers to maker '1'" in makers[0].error.message
    settled = apply(shop, [*gone, shop_change("item", "75", 2999, None)], clock=shop.clock)
    assert shop.count() == 0


def test_keys_that_a_database_takes_for_the_same(request):
    """MariaDB ignores case by default, so a child that refers to 'de' as 'DE' is not held."""
    engine = sa.create_engine(fresh(request.getfixturevalue("mariadb")))
    with engine.begin() as connection:
        for statement in (
            "CREATE TABLE country (code VARCHAR(9) PRIMARY KEY)",
            "CREATE TABLE town (id INT PRIMARY KEY, country VARCHAR(9) REFERENCES country (code))",
        ):
            connection.exec_driver_sql(statement)
        connection.exec_driver_sql("INSERT INTO country VALUES ('de')")
    town = derive(engine, "town")
    with Store("map", SqlAccessor(town, engine)) as store:
        changes = [
            shop_change("town", str(n), n, {"id": n, "country": code})
            for n, code in enumerate(["DE", "de", "fr", "Dé"])
        ]
        settled = apply(store, changes, clock=store.clock)
        assert [s.outcome for s in settled] == ["applied", "applied", "held", "applied"]


def test_held_ones_are_tried_once_their_parent_has_come(shop, tmp_path):
    """A held change is applied as soon as its parent is; one held too long names what it lacked."""
    with Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        bus.declare("shop", shop.accessors)
        worker = Worker(shop, bus)
        orphan = shop_change("item", "7", 1, {"id": 7, "maker": 9, "part_of": None, "price": "1"})
        for change in (item(1, 1), orphan):
            bus.publish("item", [bus.encode(change)])
        worker.drain(timeout=0.05)
        assert (shop.count(), bus.states("shop")["held"].ready) == (0, 2)
        maker = shop_change("maker", "1", 1, {"id": 1, "name": "Acme"})
        bus.publish("maker", [bus.encode(maker)])
        worker.drain(timeout=0.05)
        assert (shop.count(), bus.states("shop")["held"].ready) == (2, 1)
        Worker(shop, bus, options=Options(hold_for=0.0)).drain(timeout=0.05)
        with bus.letters("shop") as letters:
            ((letter, _),) = letters.read()
        assert (letter.key, letter.reason) == ("7", "dependency")
        assert "maker '9'" in letter.message


def test_what_is_behind_a_backlog_may_still_come(shop, tmp_path):
    """A held change is not given up while its parent may still be in the queue behind it."""
    with Bus(f"sqlite:///{tmp_path}/broker.db") as bus:
        bus.declare("shop", shop.accessors)
        maker = shop_change("maker", "1", 1, {"id": 1, "name": "Acme"})
        for change in (item(1, 1), maker):
            bus.publish(change.type, [bus.encode(change)])
        worker = Worker(shop, bus, options=Options(hold_for=0.0))
        subscription = bus.subscribe("shop", shop.accessors, prefetch=1)
        first = subscription.fetch(timeout=5.0, limit=1)
        patient = Worker(shop, bus)
        patient._handle(first, subscription)
        subscription.close()
        worker.maintenance.run(at_once=True)
        assert [state.ready for state in bus.states("shop").values()] == [1, 1, 0]
        worker.drain(timeout=0.05)
        assert [state.ready for state in bus.states("shop").values()] == [0, 0, 0]
        assert shop.count() == 2


def test_unique_and_exact(shop):
    """Values that would be rounded are rejected, and taken unique values are held."""
    changes = [
        shop_change("maker", "1", 1, {"id": 1, "name": "Acme"}),
        shop_change("maker", "2", 2, {"id": 2, "name": "Acme"}),
        shop_change("item", "1", 3, {"id": 1, "maker": 1, "part_of": None, "price": "1.005"}),
        shop_change("item", "2", 4, {"id": 2, "maker": 1, "part_of": None, "price": "1.50"}),
    ]
    outcomes = [item.outcome for item in apply(shop, changes, clock=shop.clock)]
    assert outcomes == ["applied", "held", "rejected", "applied"]
    assert [c for chunk in shop.capture() for c in chunk] == []


@pytest.mark.parametrize("server", ["sqlite", "postgres", "mariadb"])
def test_who_has_the_value_already(server, request, tmp_path):
    """A rejection names the conflicting record, for a received change and for a local edit."""
    sqlite = f"sqlite:///{tmp_path}/people.db"
    engine = sa.create_engine(
        sqlite if server == "sqlite" else fresh(request.getfixturevalue(server))
    )
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE person (id INT PRIMARY KEY, mail VARCHAR(80) NOT NULL UNIQUE,"
            " floor INT, room INT, UNIQUE (floor, room))"
        )
    person = derive(engine, "person", rule="field")
    with Store("people", SqlAccessor(person, engine)) as store:
        store.add(person(id=7, mail="ann@example.org", floor=1, room=2))
        store.add(person(id=8, mail="ben@example.org", floor=1, room=3))
        data = {"id": 9, "mail": "ann@example.org", "floor": None, "room": 2}
        (settled,) = apply(store, [shop_change("person", "9", 1, data)], clock=store.clock)
        assert settled.outcome is Outcome.HELD
        assert "person '7' has the same mail" in str(settled.error)
        ben = store[person, 8]
        ben["room"] = 2
        with pytest.raises(RejectedError, match="person '7' has the same floor and room"):
            store.update(ben)
        assert store.count(person) == 2


@pytest.mark.parametrize("server", ["sqlite", "postgres", "mariadb"])
def test_many_patches(server, request, tmp_path):
    """Patches are written once each, except a held one and one whose row is missing."""
    url = f"sqlite:///{tmp_path}/p.db" if server == "sqlite" else None
    engine = sa.create_engine(url or fresh(request.getfixturevalue(server)))
    with engine.begin() as connection:
        connection.exec_driver_sql(
            "CREATE TABLE person"
            " (id BIGINT PRIMARY KEY, name VARCHAR(9), floor INT, room INT UNIQUE)"
        )
    person = derive(engine, "person", rule="field")
    accessor = SqlAccessor(person, engine)
    with Store("people", accessor) as store:
        assert accessor.patchable
        store.add([person(id=n, name="a", floor=n, room=n) for n in range(200)])
        with engine.begin() as connection:
            connection.exec_driver_sql("DELETE FROM person WHERE id = 3")
        names = [("name",), ("floor", "name"), ("room",), ("name",)]
        values = {n: {"name": "b", "floor": None, "room": 200 + n} for n in range(200)}
        values[6]["room"] = 5
        later = int(store.clock.now() * 1000) + 1000
        patches = [
            Change(
                type="person",
                key=str(n),
                op="patch",
                version=Version.of(later, 0, n),
                data={name: values[n][name] for name in names[n % 4]},
            )
            for n in range(200)
        ]
        outcomes = [settled.outcome for settled in apply(store, patches, clock=store.clock)]
        expected = dict.fromkeys(range(200), Outcome.APPLIED)
        expected |= {3: Outcome.PENDING, 6: Outcome.HELD}
        assert outcomes == list(expected.values())
        again = [settled.outcome for settled in apply(store, patches, clock=store.clock)]
        assert set(again) == {Outcome.DUPLICATE, Outcome.HELD}
        for n in {*range(200)} - {3}:
            changed = names[n % 4] if n != 6 else ()
            assert store[person, n].raw() == {"id": n, "name": "a", "floor": n, "room": n} | {
                name: values[n][name] for name in changed
            }
        assert [key for key, _ in store.index.scan("person", presence=Presence.PENDING)] == ["3"]
        assert not any(store.capture())


@pytest.mark.parametrize("server", ["sqlite", "postgres", "mariadb"])
def test_one_of_many_is_refused(server, request, tmp_path):
    """When many rows are written together, a row that waits does not stop the others."""
    url = f"sqlite:///{tmp_path}/p.db" if server == "sqlite" else None
    engine = sa.create_engine(url or fresh(request.getfixturevalue(server)))
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE person (id INT PRIMARY KEY, mail INT UNIQUE)")
    person = derive(engine, "person")
    with Store("people", SqlAccessor(person, engine)) as store:
        store.add(person(id=0, mail=150))
        changes = [shop_change("person", str(n), n, {"id": n, "mail": n}) for n in range(1, 201)]
        for verdict in (Outcome.APPLIED, Outcome.DUPLICATE):
            outcomes = [item.outcome for item in apply(store, changes, clock=store.clock)]
            assert outcomes[149] is Outcome.HELD
            assert {*outcomes[:149], *outcomes[150:]} == {verdict}
        later = [
            shop_change("person", str(n), 500 + n, {"id": n, "mail": -n}) for n in range(1, 201)
        ]
        assert {item.outcome for item in apply(store, later, clock=store.clock)} == {
            Outcome.APPLIED
        }
        held = {record["id"]: record["mail"] for record in store.find(person)}
        assert held == {0: 150} | {n: -n for n in range(1, 201)}


def test_connections_that_are_cut(postgres):
    """Connections closed by the server are opened again; a missing server is a retryable error."""
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
    """Applied changes survive a crash of the server; meanwhile errors are retryable."""
    with kind() as server, Store("crm", SqlAccessor(Counter, server.url, create=True)) as store:
        store.add(Counter(id=1, step=5))
        server.kill()
        with pytest.raises(StoreUnavailableError):
            store.add(Counter(id=2))
        server.start()
        assert store[Counter, 1].step == 5
        store.add(Counter(id=2))
        assert [c for chunk in store.capture() for c in chunk] == []
