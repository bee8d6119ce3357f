"""The joined store: edits inside a transaction of the caller's, and the outbox after it."""

from __future__ import annotations

import pytest
import sqlalchemy as sa
from sqlalchemy import orm
from support.records import Product

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.store import Store
from eventsync.errors import AlreadyExistsError, ConfigError
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.testing.fake import FakeBus


@pytest.fixture
def engine(tmp_path):
    engine = sa.create_engine(f"sqlite:///{tmp_path / 'crm.db'}")
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE TABLE ledger (text TEXT)")
    yield engine
    engine.dispose()


@pytest.fixture
def bus():
    return FakeBus()


@pytest.fixture
def store(engine, bus):
    with Store("crm", SqlAccessor(Product, engine, create=True), publisher=bus) as store:
        yield store


def ledger(engine):
    with engine.connect() as connection:
        return [text for (text,) in connection.exec_driver_sql("SELECT text FROM ledger")]


@pytest.mark.parametrize("kind", ["connection", "session"])
def test_edit_and_envelope_commit_with_the_rest(engine, store, bus, kind):
    """The record, the caller's row and the envelope exist after the commit, and not before."""
    opened = engine.connect() if kind == "connection" else orm.Session(engine)
    with opened as transaction:
        transaction.execute(sa.text("INSERT INTO ledger VALUES ('bought')"))
        crm = store.using(transaction)
        crm.add(Product(id=1, name="Lamp"))
        crm.update(Product(id=1, name="Lantern"))
        assert crm.get(Product, 1).name == "Lantern"
        assert store.get(Product, 1) is None
        assert store.index.outgoing() == []
        transaction.commit()
    assert store[Product, 1].name == "Lantern"
    assert ledger(engine) == ["bought"]
    assert bus.envelopes == []
    backlog = store.backlog()
    assert backlog.waiting == 2
    assert 0 <= backlog.oldest < 60
    store.flush()
    assert [change.data["name"] for change in bus.changes()] == ["Lamp", "Lantern"]
    assert store.backlog().waiting == 0


def test_a_rollback_undoes_edit_and_envelope(engine, store):
    """Neither the record nor the envelope exists after a rollback."""
    with engine.connect() as connection:
        store.using(connection).add(Product(id=1, name="Lamp"))
        connection.rollback()
    assert store.get(Product, 1) is None
    assert store.index.outgoing() == []


def test_refused_edit_leaves_no_trace(engine, store, bus):
    """An edit that fails publishes nothing, even if the caller continues and commits."""
    store.add(Product(id=1, name="Lamp"))
    published = len(bus.envelopes)
    with engine.connect() as connection:
        crm = store.using(connection)
        with pytest.raises(AlreadyExistsError):
            crm.add([Product(id=2, name="Chair"), Product(id=1, name="again")])
        crm.add(Product(id=3, name="Desk"))
        connection.commit()
    store.flush()
    assert [change.key for change in bus.changes()[published:]] == ["3"]
    assert store.get(Product, 2) is None


def test_reading_is_under_the_writers_lock(engine, store):
    """No other writer can write between the read of a version and the write of the data."""
    with engine.connect() as connection:
        connection.execute(sa.text("SELECT * FROM ledger")).all()
        with store.using(connection).index.transaction():
            other = sa.create_engine(engine.url, connect_args={"timeout": 0})
            with other.connect() as writer, pytest.raises(sa.exc.OperationalError, match="locked"):
                writer.exec_driver_sql("BEGIN IMMEDIATE")
            other.dispose()


def test_a_producer_publishes_its_own_changes(engine, store, bus):
    """A producer may put changes in the outbox without applying them to the store."""
    change = Change(
        type="Product", key="7", op="delete", version=Clock().tick(), data=None, source="t"
    )
    with engine.connect() as connection:
        store.using(connection).publish(change)
        connection.commit()
    store.flush()
    assert [change.key for change in bus.changes()] == ["7"]


def test_transactions_that_cannot_be_joined(engine, store, tmp_path):
    """Another database, another kind of store and an engine each have their own error."""
    other = sa.create_engine(f"sqlite:///{tmp_path / 'other.db'}")
    with other.connect() as connection, pytest.raises(ConfigError, match="the store is in"):
        store.using(connection).add(Product(id=1, name="Lamp"))
    other.dispose()
    with pytest.raises(ConfigError, match="neither an SQLAlchemy session"):
        store.using(engine).add(Product(id=1, name="Lamp"))
    memory = Store("memory", MemoryAccessor(Product)).open()
    with engine.connect() as connection, pytest.raises(ConfigError, match="only SQL stores"):
        memory.using(connection).add(Product(id=1, name="Lamp"))


def test_republish_sends_what_is_recent(store, bus):
    """Records and deletes since a time are published again, and older ones are not."""
    store.add(Product(id=1, name="old"))
    old = store.index.scan("Product")[0][1].stamp.version.millis / 1000
    while store.clock.tick().millis / 1000 <= old + 0.001:
        pass
    store.add([Product(id=2, name="new"), Product(id=3, name="gone")])
    store.remove(Product(id=3, name="gone"))
    bus.envelopes.clear()
    assert store.republish(bus, since=old + 0.001) == 2
    assert {(c.key, c.op) for c in bus.changes()} == {("2", "put"), ("3", "delete")}
