"""Capture by triggers: what the conformance suite for change sources demands, on each database."""

from __future__ import annotations

import pytest
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer
from support.foreign_sql import ForeignMariadb, ForeignPostgres, ForeignSqlite

from eventsync.testing import SourceContract


@pytest.fixture(scope="session")
def postgres():
    with PostgresServer() as server:
        yield server.url


@pytest.fixture(scope="session")
def mariadb():
    with MariaServer() as server:
        yield server.url


class ByTriggers(SourceContract):
    kind = "triggers"
    loses = True

    def lose(self, folder):
        self.run(folder, "DROP TABLE eventsync_change")


class TestSqlite(ForeignSqlite, ByTriggers):
    def lose(self, folder):
        names = self.run(
            folder,
            "SELECT name FROM sqlite_master WHERE name LIKE 'eventsync_%e%' AND type = 'trigger'",
        )
        self.run(
            folder, *(f"DROP TRIGGER {name}" for (name,) in names), "DROP TABLE eventsync_change"
        )


class TestPostgres(ForeignPostgres, ByTriggers):
    @pytest.fixture(autouse=True)
    def _server(self, postgres):
        type(self).server = postgres


class TestMariadb(ForeignMariadb, ByTriggers):
    truncates = True

    @pytest.fixture(autouse=True)
    def _server(self, mariadb):
        type(self).server = mariadb
