"""PostgreSQL's log as a change source: the suite of all sources, and what only a log can do."""

from __future__ import annotations

import contextlib

import psycopg
import pytest
from servers import running
from servers.postgres import PostgresServer
from support.foreign_sql import ForeignPostgres

from eventsync.testing.sources import SourceContract

pytestmark = pytest.mark.server


@pytest.fixture(scope="module")
def server():
    """A server with logical decoding."""
    options = ("wal_level=logical", "max_replication_slots=60", "max_wal_senders=30")
    with running(PostgresServer(options=options)) as server:
        yield server


@contextlib.contextmanager
def asked(url):
    """Ask the database as its administrator."""
    url = url.replace("+psycopg", "")
    with psycopg.connect(url, autocommit=True) as connection:
        yield lambda *statement: connection.execute(*statement)


class TestPostgresqlLog(ForeignPostgres, SourceContract):
    kind = "log"
    resolution = 0.01
    loses = True

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.server = server.url

    def teardown_method(self):
        super().teardown_method()
        with asked(self.server) as ask:
            for name, pid in ask("SELECT slot_name, active_pid FROM pg_replication_slots"):
                if pid:
                    ask("SELECT pg_terminate_backend(%s)", (pid,))
                with contextlib.suppress(psycopg.Error):
                    ask("SELECT pg_drop_replication_slot(%s)", (name,))

    def lose(self, folder):
        with asked(self.database(folder)) as ask:
            (name,) = ask(
                "SELECT slot_name FROM pg_replication_slots WHERE database = current_database()"
            ).fetchone()
            ask("SELECT pg_drop_replication_slot(%s)", (name,))
