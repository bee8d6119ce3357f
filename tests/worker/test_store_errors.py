"""What a worker does with each class of errors of a real server: one letter, hold, wait, go on.

The codes of each class are tested one by one in ``tests/stores/test_*errors*.py``. Here a foreign
client causes an error of the class while a worker runs, and ends it again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import pytest
import redis
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.mongodb import MongoServer
from servers.objects import ObjectServer
from servers.pgbouncer import PgBouncer
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from support.waiting import eventually
from support.worker_harness import letters, running

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record
from eventsync.stores.mongo import MongoAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.rest import Resource, RestAccessor, Service, Token
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


class Item(Record):
    id: int = Field(key=True)
    name: str = ""
    amount: int = 0


POISON, HELD, WAITS = "a dead letter", "held", "waits"
KEYS = {str(number) for number in range(6)}


@pytest.fixture(scope="module")
def postgres() -> Iterator[PostgresServer]:
    with PostgresServer() as server:
        yield server


@pytest.fixture(scope="module")
def mariadb() -> Iterator[MariaServer]:
    with MariaServer() as server:
        yield server


@pytest.fixture(scope="module")
def redis_server() -> Iterator[RedisServer]:
    with RedisServer() as server:
        yield server


@pytest.fixture
def bus(tmp_path) -> Iterator[Bus]:
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        yield bus


def publish(bus: Bus, clock: Clock, numbers) -> None:
    """Publish puts of records, each in a message of its own; record 1 has the name ``poison``."""
    for number in numbers:
        data = {"id": number, "name": "poison" if number == 1 else "x", "amount": 1}
        change = Change(type="Item", key=str(number), op="put", version=clock.tick(), data=data)
        bus.publish("Item", [bus.encode(change)])


@contextmanager
def working(store: Store, bus: Bus) -> Iterator[Worker]:
    """Run a worker that has applied record 0, and check at the end that it still runs."""
    bus.declare(store.name, store.accessors)
    worker = Worker(store, bus, options=Options(retry_for=0.3, hold_for=300.0))
    thread = running(worker)
    try:
        publish(bus, store.clock, [0])
        eventually(lambda: worker.outcomes.total() == 1 or not thread.is_alive())
        yield worker
        assert thread.is_alive(), "the worker has ended"
    finally:
        worker.stop()
        thread.join(20)
        store.close()


def held_keys(store: Store) -> set[str]:
    return {record.key for record in store.find(Item)}


def check(
    store: Store,
    bus: Bus,
    fail: Callable[[], object],
    mend: Callable[[], object],
    outcome: str,
) -> None:
    """Cause an error while a worker runs; see what it does; end the error; see that all is well."""
    with working(store, bus) as worker:
        circuit = worker.progress.circuit
        fail()
        publish(bus, store.clock, range(1, 6))
        if outcome == WAITS:
            eventually(lambda: circuit.opened > 0, what=worker.progress.error)
            eventually(lambda: circuit.error or worker.progress.error)
            said = circuit.error or worker.progress.error
            assert f"store {store.name!r}" in said
            assert worker.outcomes.total() == 1
        else:
            eventually(lambda: worker.outcomes.total() >= 6, what=str(worker.outcomes))
            # A change is counted before the broker has stored its letter.
            eventually(lambda: letters(bus, store.name, held=outcome == HELD))
            found = letters(bus, store.name, held=outcome == HELD)
            assert [letter.key for letter in found] == ["1"]
            assert f"store {store.name!r}" in found[0].message
            assert circuit.opened == 0
        mend()
        whole = KEYS - {"1"} if outcome == POISON else KEYS
        eventually(lambda: held_keys(store) == whole, timeout=60, what=f"all but {whole}")
        dead = [letter.key for letter in letters(bus, store.name)]
        assert dead == (["1"] if outcome == POISON else [])


# -- SQL ---------------------------------------------------------------------------------------

TABLE = "CREATE TABLE item (id BIGINT PRIMARY KEY, name VARCHAR(50) NOT NULL, amount INT)"
OWN = ("item", "eventsync_version", "eventsync_outbox", "eventsync_mark")
RAISES = (
    "CREATE OR REPLACE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN"
    " IF NEW.name = 'poison' THEN RAISE EXCEPTION 'no' {}; END IF; RETURN NEW; END $$;"
    "CREATE TRIGGER refuse BEFORE INSERT ON item FOR EACH ROW EXECUTE FUNCTION refuse()"
)
SIGNALS = (
    "CREATE TRIGGER refuse BEFORE INSERT ON item FOR EACH ROW BEGIN"
    " IF NEW.name = 'poison' THEN SIGNAL SQLSTATE '45000'{}; END IF; END"
)
NOTHING = "SELECT 1"


@dataclass(frozen=True)
class Case:
    """What a foreign client does to a table, how it ends that, and what becomes of record 1."""

    name: str
    fail: str
    mend: str
    outcome: str


POSTGRES = [
    Case("42804 type", "ALTER TABLE item ALTER amount TYPE boolean USING true",
         "ALTER TABLE item ALTER amount TYPE integer USING 1", WAITS),
    Case("42703 column", "ALTER TABLE item RENAME name TO other",
         "ALTER TABLE item RENAME other TO name", WAITS),
    Case("42P01 table", "ALTER TABLE item RENAME TO other", "ALTER TABLE other RENAME TO item",
         WAITS),
    Case("42501 right", "REVOKE INSERT ON item FROM worker", "GRANT INSERT ON item TO worker",
         WAITS),
    Case("42501 right to read", "REVOKE SELECT ON item FROM worker",
         "GRANT SELECT ON item TO worker", WAITS),
    Case("25006 read-only", "ALTER ROLE worker SET default_transaction_read_only = on;"
         "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'",
         "ALTER ROLE worker RESET default_transaction_read_only;"
         "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'", WAITS),
    Case("28000 login", "ALTER ROLE worker NOLOGIN;"
         "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'",
         "ALTER ROLE worker LOGIN", WAITS),
    Case("P0001 raise", RAISES.format(""), NOTHING, POISON),
    Case("U0001 raise", RAISES.format("USING ERRCODE = 'U0001'"), NOTHING, POISON),
    Case("23514 check", "ALTER TABLE item ADD CHECK (name <> 'poison')", NOTHING, POISON),
    Case("22001 length", "ALTER TABLE item ALTER name TYPE varchar(3)", NOTHING, POISON),
]  # fmt: skip
MARIADB = [
    Case("1054 column", "ALTER TABLE item RENAME COLUMN name TO other",
         "ALTER TABLE item RENAME COLUMN other TO name", WAITS),
    Case("1146 table", "RENAME TABLE item TO other", "RENAME TABLE other TO item", WAITS),
    Case("1142 right", "REVOKE INSERT ON test.item FROM worker",
         "GRANT INSERT ON test.item TO worker", WAITS),
    Case("1290 read-only", "SET GLOBAL read_only = 1", "SET GLOBAL read_only = 0", WAITS),
    Case("1644 signal", SIGNALS.format(""), NOTHING, POISON),
    Case("30001 signal", SIGNALS.format(" SET MYSQL_ERRNO = 30001"), NOTHING, POISON),
    Case("4025 check", "ALTER TABLE item ADD CONSTRAINT c CHECK (name <> 'poison')", NOTHING,
         POISON),
    Case("1406 length", "ALTER TABLE item MODIFY name VARCHAR(3) NOT NULL", NOTHING, POISON),
]  # fmt: skip
SQLITE = [
    Case("table", "ALTER TABLE item RENAME TO other", "ALTER TABLE other RENAME TO item", WAITS),
    Case("column", "ALTER TABLE item RENAME name TO other", "ALTER TABLE item RENAME other TO name",
         WAITS),
    Case("raise", "CREATE TRIGGER refuse BEFORE INSERT ON item WHEN NEW.name = 'poison'"
         " BEGIN SELECT RAISE(ABORT, 'no'); END", NOTHING, POISON),
]  # fmt: skip


class Owner:
    """The owner of a database: a foreign client, with a connection of its own."""

    def __init__(self, url: str) -> None:
        self.engine = sa.create_engine(url, isolation_level="AUTOCOMMIT")
        with self.engine.connect() as connection:
            inspector = sa.inspect(connection)
            for name in inspector.get_table_names():
                connection.exec_driver_sql(f"DROP TABLE {name}")

    def run(self, *scripts: str) -> None:
        with self.engine.connect() as connection:
            for script in scripts:
                parts = [script] if "BEGIN" in script and "$$" not in script else None
                for statement in parts or _statements(script):
                    connection.exec_driver_sql(statement)


def _statements(script: str) -> list[str]:
    """Return the statements of a script; a function's body is between dollar signs."""
    quoted = script.split("$$")
    quoted[1::2] = [part.replace(";", "\0") for part in quoted[1::2]]
    return [part.replace("\0", ";") for part in "$$".join(quoted).split(";")]


def as_worker(server: str, owner: Owner) -> str:
    """Create a table, and the user ``worker`` with the rights it needs; return the user's URL."""
    with Store("s", SqlAccessor(Item, owner.engine, table="item", create=True)):
        pass  # creates eventsync's tables
    owner.run("DROP TABLE item", TABLE)
    url = owner.engine.url
    if server == "postgres":
        made = "SELECT 1 FROM pg_roles WHERE rolname = 'worker'"
        with owner.engine.connect() as connection:
            if not connection.exec_driver_sql(made).all():
                connection.exec_driver_sql("CREATE ROLE worker LOGIN")
        owner.run(*(f"GRANT SELECT, INSERT, UPDATE, DELETE ON {name} TO worker" for name in OWN))
        owner.run("GRANT USAGE ON SEQUENCE eventsync_outbox_number_seq TO worker")
        return url.set(username="worker").render_as_string(hide_password=False)
    owner.run("CREATE OR REPLACE USER worker")
    owner.run(*(f"GRANT SELECT, INSERT, UPDATE, DELETE ON test.{n} TO worker" for n in OWN))
    return url.set(username="worker").render_as_string(hide_password=False)


@pytest.mark.parametrize(
    ("server", "case"),
    [
        *(pytest.param("postgres", case, id=f"postgresql {case.name}") for case in POSTGRES),
        *(pytest.param("mariadb", case, id=f"mariadb {case.name}") for case in MARIADB),
    ],
)
def test_error_of_a_database(server: str, case: Case, bus: Bus, request) -> None:
    """A refused record is a dead letter alone; for all else the worker waits, and goes on."""
    owner = Owner(request.getfixturevalue(server).url)
    url = as_worker(server, owner)
    # With this length, record 1 alone is too long.
    if "length" in case.name:
        owner.run(case.fail.replace("3", "5"))
        case = Case(case.name, NOTHING, NOTHING, POISON)
    try:
        store = Store("s", SqlAccessor(Item, url, table="item"))
        check(store, bus, lambda: owner.run(case.fail), lambda: owner.run(case.mend), case.outcome)
    finally:
        owner.engine.dispose()


@pytest.mark.parametrize("case", SQLITE, ids=lambda case: case.name)
def test_error_of_sqlite(case: Case, bus: Bus, tmp_path) -> None:
    """So it is with SQLite."""
    url = f"sqlite:///{tmp_path / 'crm.db'}"
    owner = Owner(url)
    owner.run(TABLE)
    store = Store("s", SqlAccessor(Item, url, table="item"))
    check(store, bus, lambda: owner.run(case.fail), lambda: owner.run(case.mend), case.outcome)
    owner.engine.dispose()


@pytest.mark.parametrize("server", ["postgres", "mariadb"])
def test_locked_row(server: str, bus: Bus, request) -> None:
    """A row that somebody else locks holds its record; others are applied meanwhile."""
    owner = Owner(request.getfixturevalue(server).url)
    url = as_worker(server, owner)
    if server == "postgres":
        owner.run("ALTER ROLE worker SET lock_timeout = '300ms'")
    else:
        owner.run("SET GLOBAL innodb_lock_wait_timeout = 1")
    owner.run("INSERT INTO item VALUES (1, 'theirs', 2)")
    with ExitStack() as stack:
        other = sa.create_engine(owner.engine.url)
        stack.callback(other.dispose)
        theirs = other.connect()
        stack.callback(theirs.close)
        store = Store("s", SqlAccessor(Item, url, table="item"))
        check(
            store,
            bus,
            lambda: theirs.exec_driver_sql("UPDATE item SET name = 'locked' WHERE id = 1"),
            theirs.rollback,
            HELD,
        )
        if server == "postgres":
            owner.run("ALTER ROLE worker RESET lock_timeout")
    owner.engine.dispose()


def test_sessions_that_are_ended(postgres: PostgresServer, bus: Bus) -> None:
    """Sessions that an administrator ends again and again (57P01) cost no change."""
    owner = Owner(postgres.url)
    url = as_worker("postgres", owner)
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'worker'"
    store = Store("s", SqlAccessor(Item, url, table="item"))
    with working(store, bus) as worker:
        for number in range(1, 6):
            owner.run(end)
            publish(bus, store.clock, [number])
        eventually(lambda: held_keys(store) == KEYS)
        assert worker.outcomes.total() == 6
        assert letters(bus, "s") == []
    owner.engine.dispose()


def test_pooler(postgres: PostgresServer, bus: Bus) -> None:
    """Behind a pooler, statements that other clients prepared (42P05) cost no change."""
    owner = Owner(postgres.url)
    with Store("s", SqlAccessor(Item, owner.engine, table="item", create=True)):
        pass
    with PgBouncer(postgres, sessions=1) as pooler:
        store = Store("s", SqlAccessor(Item, pooler.url, table="item"))
        intruder = sa.create_engine(pooler.url, isolation_level="AUTOCOMMIT")
        with working(store, bus), intruder.connect() as connection:
            for number in range(1, 6):
                for place in range(10):
                    # The names that the driver gives to its own statements.
                    name = f"_pg3_{number * 10 + place}"
                    connection.exec_driver_sql(f"PREPARE {name} AS SELECT 1")
                publish(bus, store.clock, [number])
            eventually(lambda: held_keys(store) == KEYS)
            assert letters(bus, "s") == []
        intruder.dispose()
    owner.engine.dispose()


# -- Redis -------------------------------------------------------------------------------------


@pytest.fixture
def client(redis_server: RedisServer) -> Iterator[redis.Redis]:
    with redis_server.client() as client:
        client.replicaof("NO", "ONE")
        client.config_set("maxmemory", 0)
        client.config_set("min-replicas-to-write", 0)
        client.flushall()
        client.execute_command(
            "ACL", "SETUSER", "worker", "reset", "on", ">pw", "~*", "&*", "+@all"
        )
        yield client


@pytest.mark.parametrize(
    ("name", "fail", "mend", "outcome"),
    [
        ("READONLY", "REPLICAOF 127.0.0.1 1", "REPLICAOF NO ONE", WAITS),
        ("NOPERM", "ACL SETUSER worker -hset", "ACL SETUSER worker +hset", WAITS),
        ("NOPERM keys", "ACL SETUSER worker resetkeys", "ACL SETUSER worker ~*", WAITS),
        ("NOAUTH", "ACL SETUSER worker off", "ACL SETUSER worker on", WAITS),
        ("OOM", "CONFIG SET maxmemory 1", "CONFIG SET maxmemory 0", WAITS),
        ("NOREPLICAS", "CONFIG SET min-replicas-to-write 1", "CONFIG SET min-replicas-to-write 0",
         WAITS),
        ("WRONGTYPE", "LPUSH Item:1 theirs", "PING", POISON),
    ],
)  # fmt: skip
def test_error_of_redis(
    name: str, fail: str, mend: str, outcome: str, bus: Bus, redis_server, client
) -> None:
    """A demoted, full or refusing server is waited for; a key of another type is the record's."""

    def broken() -> None:
        client.execute_command(*fail.split())
        if name in ("NOAUTH", "READONLY"):
            client.execute_command("CLIENT", "KILL", "USER", "worker")

    url = redis_server.url.replace("://", "://worker:pw@")
    store = Store("s", RedisAccessor(Item, url))
    check(store, bus, broken, lambda: client.execute_command(*mend.split()), outcome)


def test_demotion_of_the_broker(redis_server: RedisServer, client, tmp_path) -> None:
    """A broker that is demoted during a blocking read (UNBLOCKED, READONLY) ends no worker."""
    prefix = "?prefix={demoted}:"
    with Bus(f"{redis_server.url}{prefix}") as bus:
        bus.declare("s", ["Item"])
        store = Store("s", SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True))
        with working(store, bus) as worker:
            for _ in range(3):
                worker.progress.error = ""
                client.execute_command("REPLICAOF", "127.0.0.1", "1")
                eventually(lambda: worker.progress.error)
                client.execute_command("REPLICAOF", "NO", "ONE")
            eventually(lambda: _published(bus, store))
            eventually(lambda: held_keys(store) == KEYS)
            assert letters(bus, "s") == []
            assert worker.progress.circuit.opened == 0


def _published(bus: Bus, store: Store) -> bool:
    publish(bus, store.clock, range(1, 6))
    return True


@pytest.mark.parametrize(
    ("rights", "said"),
    [(("-evalsha", "-eval"), "NOPERM"), (("-@stream",), "The user executing the script can't")],
)
def test_broker_that_revokes_a_right(
    rights, said: str, redis_server: RedisServer, client, tmp_path
) -> None:
    """A broker that refuses a running worker is waited for; at the start it ends the worker."""
    url = redis_server.url.replace("://", "://worker:pw@") + "?prefix={revoked}:"
    with Bus(url) as bus:
        bus.declare("s", ["Item"])
        store = Store("s", SqlAccessor(Item, f"sqlite:///{tmp_path / 'crm.db'}", create=True))
        with working(store, bus) as worker:
            client.execute_command("ACL", "SETUSER", "worker", *rights)
            eventually(lambda: said in worker.progress.error)
            bus.close()
            with pytest.raises(ConfigError, match=said):
                Worker(store, bus).run()
            client.execute_command("ACL", "SETUSER", "worker", "+@all")
            publish(bus, store.clock, range(1, 6))
            eventually(lambda: held_keys(store) == KEYS)
            assert worker.progress.circuit.opened == 0


# -- MongoDB and REST --------------------------------------------------------------------------


def test_error_of_mongodb(bus: Bus) -> None:
    """A server that is gone is waited for."""
    with MongoServer() as server:
        url = f"{server.url}/shop?serverSelectionTimeoutMS=500&socketTimeoutMS=500"
        store = Store("s", MongoAccessor(Item, url))
        check(store, bus, server.kill, server.start, WAITS)


class _Items(ObjectServer):
    """A service that answers a write of record 1 with ``status``, or every request."""

    status = 0
    every = 0

    def act(self, asked):
        if self.every:
            return self.every, {"message": "for the test"}
        if self.status and asked.method == "PUT" and asked.names[-1] == "1":
            return self.status, {"message": "for the test"}
        return super().act(asked)


@pytest.mark.parametrize(
    ("status", "every", "outcome"),
    [
        (422, 0, POISON),
        (404, 0, POISON),
        (410, 0, POISON),
        (0, 503, WAITS),
        (0, 401, WAITS),
        (0, 403, WAITS),
        (0, 404, WAITS),
        (0, 405, WAITS),
    ],
)
def test_error_of_a_service(status: int, every: int, outcome: str, bus: Bus, tmp_path) -> None:
    """404 and 422 at a creation are the record's; what concerns all records is waited for."""
    with _Items() as server:
        service = Service(server.url, auth=Token("token-of-nobody"), allow=["127.0.0.0/8"])
        resource = Resource(items="items", item="items/{id}", create="PUT")
        store = Store("s", RestAccessor(Item, service, resource), index=tmp_path / "crm.db")

        def fail() -> None:
            server.status, server.every = status, every

        def mend() -> None:
            server.status = server.every = 0

        check(store, bus, fail, mend, outcome)


# -- at the start ------------------------------------------------------------------------------


@pytest.mark.parametrize("status", [401, 403, 404])
def test_refused_from_the_start(status: int, bus: Bus, tmp_path) -> None:
    """What a store refuses before a worker has used it ends the worker, and names the store."""
    with _Items() as server:
        server.every = status
        service = Service(server.url, auth=Token("token-of-nobody"), allow=["127.0.0.0/8"])
        resource = Resource(items="items", item="items/{id}", create="PUT")
        store = Store("s", RestAccessor(Item, service, resource), index=tmp_path / "crm.db")
        bus.declare("s", ["Item"])
        started = time.monotonic()
        with pytest.raises(ConfigError) as caught:
            Worker(store, bus).run()
        assert "store 's'" in str(caught.value)
        assert time.monotonic() - started < 10
        store.close()
