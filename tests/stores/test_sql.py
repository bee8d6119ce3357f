"""The SQL store, on SQLite, PostgreSQL and MariaDB."""

from __future__ import annotations

import contextlib
import sqlite3
import uuid

import pytest
import sqlalchemy as sa
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

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


class OnServer(StoreContract):
    """Each folder stands for a database of its own, on one server."""

    examples = 5

    def accessor(self, record_type, folder, view=None):
        mark = folder / "database"
        if not mark.exists():
            name = f"t{uuid.uuid4().hex}"
            engine = sa.create_engine(self.server, isolation_level="AUTOCOMMIT")
            with engine.connect() as connection:
                connection.exec_driver_sql(f"CREATE DATABASE {name}")
            engine.dispose()
            mark.write_text(name)
        url = self.server.rpartition("/")[0] + "/" + mark.read_text()
        return SqlAccessor(record_type, url, create=True, view=view)


class TestPostgres(OnServer):
    """The conformance suite on PostgreSQL, whose text cannot hold NUL."""

    odd_text = False

    @pytest.fixture(autouse=True)
    def _server(self, postgres):
        self.server = postgres


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
