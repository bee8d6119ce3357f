"""Edits within a caller's own transaction, on each database: their effect and their cost."""

from __future__ import annotations

import uuid

import psycopg
import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

from eventsync.engine.store import Store
from eventsync.errors import (
    AlreadyExistsError,
    EventSyncError,
    RejectedError,
    StoreUnavailableError,
)
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.fake import FakeBus


class Product(Record):
    id: int = Field(key=True)
    name: str = Field(unique=True, length=200)


class Part(Record, rule="field"):
    id: int = Field(key=True)
    name: str
    weight: int = 0


@pytest.fixture(scope="module", params=["sqlite", "postgres", "mariadb"])
def url(request, tmp_path_factory):
    """The URL of a database, with a server of its own where it takes one."""
    if request.param == "sqlite":
        yield f"sqlite:///{tmp_path_factory.mktemp('joined') / 'crm.db'}"
        return
    with {"postgres": PostgresServer, "mariadb": MariaServer}[request.param]() as server:
        yield server.url


@pytest.fixture
def engine(url):
    engine = sa.create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def store(engine):
    """An empty store, and no envelopes in its outbox."""
    table = f"t{uuid.uuid4().hex}"
    products = SqlAccessor(Product, engine, table=table, create=True)
    parts = SqlAccessor(Part, engine, table=f"{table}p", create=True)
    with Store("crm", products, parts, publisher=FakeBus()) as store:
        yield store
        with engine.begin() as connection:
            for name in ("eventsync_version", "eventsync_outbox"):
                connection.exec_driver_sql(f"DELETE FROM {name}")


def products(*numbers):
    return [Product(id=number, name=f"Product {number}") for number in numbers]


def sent(store):
    """The keys in the outbox's envelopes, which leave it."""
    store.publisher.envelopes.clear()
    store.flush()
    return [change.key for change in store.publisher.changes()]


@pytest.mark.parametrize("count", [1, 29, 30, 100])
def test_few_and_many(engine, store, count):
    """After the commit, rows, versions and envelopes are there in order, few or many."""
    with engine.connect() as connection:
        crm = store.using(connection)
        crm.add(products(*range(count)))
        crm.update([Product(id=n, name=f"Item {n}") for n in range(count)])
        assert crm.get(Product, count - 1).name == f"Item {count - 1}"
        connection.commit()
    assert [record.name for record in store.find(Product, sort=["id"])] == [
        f"Item {n}" for n in range(count)
    ]
    assert len(store.index.scan("Product")) == count
    assert sent(store) == [str(n) for n in [*range(count), *range(count)]]


def refusals(engine):
    """Edits that are refused, each in another way."""
    yield "add", [*products(8, 1)], AlreadyExistsError
    yield "upsert", [Product(id=9, name="Product 1")], RejectedError
    yield "upsert", [*products(*range(20, 60)), Product(id=61, name="Product 1")], RejectedError
    if engine.dialect.name == "postgresql":
        # The driver refuses it: the first time the key, before anything was sent; then a value.
        yield "upsert", [Product(id=10, name="a\0b")], RejectedError
    if engine.dialect.name != "sqlite":
        yield "upsert", [Product(id=2**70, name="far")], EventSyncError


def test_refused_edit_leaves_no_trace(engine, store):
    """A rejected edit leaves no trace, and the transaction goes on."""
    store.add(products(1))
    sent(store)
    for number, (op, records, error) in enumerate(refusals(engine), start=100):
        with engine.connect() as connection:
            crm = store.using(connection)
            for written in range(2):
                with pytest.raises(error):
                    crm.add(records) if op == "add" else crm.update(records, upsert=True)
                if not written:
                    crm.add(products(number))
            connection.commit()
        assert sent(store) == [str(number)], (op, error)
        for record in records:
            assert record.id == 1 or store.get(record) is None
        assert {key for key, _ in store.index.scan("Product")} == {
            "1",
            *map(str, range(100, number + 1)),
        }


class Odd(Record):
    name: str = Field(key=True, length=200)


@pytest.mark.parametrize("url", ["postgres"], indirect=True)  # the others take any text
def test_what_the_driver_refuses_first(engine):
    """A key that cannot be sent to the database leaves the transaction unchanged."""
    with Store("odd", SqlAccessor(Odd, engine, create=True), publisher=FakeBus()) as store:
        with engine.connect() as connection:
            connection.exec_driver_sql("CREATE TABLE note (text TEXT)")
            with pytest.raises(RejectedError):
                store.using(connection).add(Odd(name="a\0b"))
            connection.exec_driver_sql("INSERT INTO note VALUES ('still here')")
            connection.commit()
        with engine.connect() as connection:
            assert connection.exec_driver_sql("SELECT text FROM note").all() == [("still here",)]


# In SQLite one writes after the other.
@pytest.mark.parametrize("url", ["postgres", "mariadb"], indirect=True)
def test_another_was_quicker(engine, store):
    """When two transactions add the same record at once, the second is told to begin again."""
    with engine.connect() as connection:
        crm = store.using(connection)

        def add_late():
            with crm.index.transaction() as transaction:
                assert transaction.read("Product", ["1"]) == {}
                store.add(products(1))
                transaction.write("Product", dict(store.index.scan("Product")))

        with pytest.raises(StoreUnavailableError, match="inserted the same entry"):
            add_late()
        crm.add(products(2))
        connection.commit()
    assert sent(store) == ["2"]
    assert {record.id for record in store.find(Product)} == {1, 2}


STATEMENTS = {
    "sqlite": 8,  # lock and begin; read version, record; write record, version, envelope; end
    "postgresql": 3,  # read; write the record; write its version and envelope
    "mariadb": 7,  # as SQLite, without the lock
}


@pytest.fixture
def counted(engine, store, monkeypatch):
    """A connection, and what is sent over it: statements, in PostgreSQL's case round trips."""
    sent = []
    wait = psycopg.Connection.wait

    def waited(self, *args, **kwargs):
        sent.append("round trip")
        return wait(self, *args, **kwargs)

    with engine.connect() as connection:
        raw = connection.connection.driver_connection
        # What begins it is not counted, as it is but once.
        connection.exec_driver_sql("BEGIN" if engine.dialect.name == "sqlite" else "SELECT 1")
        if engine.dialect.name == "sqlite":
            raw.set_trace_callback(sent.append)
        elif engine.dialect.name == "postgresql":
            monkeypatch.setattr(psycopg.Connection, "wait", waited)
        else:
            sa.event.listen(connection, "before_cursor_execute", lambda *of: sent.append(of[2]))
        yield connection, sent
        connection.rollback()


def test_edit_takes_few_statements(counted, engine, store):
    """An edit reads and writes a record, its version and its envelope, and nothing else."""
    connection, sent = counted
    crm = store.using(connection)
    for edit, name in ((crm.add, "Shade"), (crm.update, "Bulb"), (crm.remove, "Bulb")):
        sent.clear()
        edit(Part(id=1, name=name))
        assert len(sent) == STATEMENTS[engine.dialect.name], sent


# It is the one that takes several statements at once.
@pytest.mark.parametrize("url", ["postgres"], indirect=True)
def test_edits_of_one_call_are_one_edit(counted, store):
    """Editing twenty records takes no more round trips than editing one."""
    connection, sent = counted
    store.using(connection).add([Part(id=number, name="Bulb") for number in range(20)])
    assert len(sent) == STATEMENTS["postgresql"]
