"""A PostgreSQL server whose changes can be followed, and changes committed there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import psycopg
from benchmarks.customer import COLUMNS
from benchmarks.peer.target import create, plain
from servers.postgres import PostgresServer

__all__ = ["FollowedServer", "commit", "commit_by_server", "upsert"]

Row = dict[str, Any]


class FollowedServer(PostgresServer):
    """A durable PostgreSQL with ``wal_level = logical`` and an empty table of customers."""

    def __init__(self) -> None:
        super().__init__(durable=True)

    def command(self) -> list[str]:
        # A subscription that is enabled again would otherwise wait for up to five seconds.
        settings = ("wal_level=logical", "wal_retrieve_retry_interval=10ms")
        return [*super().command(), *(part for one in settings for part in ("-c", one))]

    def start(self) -> FollowedServer:
        super().start()
        create(self.url)
        return self

    def run(self, *statements: str) -> None:
        """Execute SQL, each statement in a transaction of its own."""
        with psycopg.connect(plain(self.url), autocommit=True) as connection:
            for statement in statements:
                connection.execute(statement)

    def ask(self, query: str) -> Any:
        """The one value that a query gives."""
        with psycopg.connect(plain(self.url), autocommit=True) as connection:
            row = connection.execute(query).fetchone()
            return row and row[0]


def upsert(source: str) -> str:
    """Customers from a source, as SQL, inserted or updated."""
    sets = ", ".join(f"{name} = excluded.{name}" for name in COLUMNS if name != "id")
    names = ", ".join(COLUMNS)
    return f"INSERT INTO customer ({names}) {source} ON CONFLICT (id) DO UPDATE SET {sets}"


def commit(rows: Sequence[Row], url: str, size: int, started: Any) -> None:
    """Write rows as an application does: a plain upsert each, so many a durable transaction."""
    statement = upsert(f"VALUES ({', '.join(f'%({name})s' for name in COLUMNS)})")
    with psycopg.connect(plain(url)) as connection:
        started.wait()
        for start in range(0, len(rows), size):
            with connection.transaction(), connection.cursor() as cursor:
                if size == 1:
                    cursor.execute(statement, rows[start])
                else:
                    cursor.executemany(statement, rows[start : start + size])


def commit_by_server(rows: Sequence[Row], server: FollowedServer, size: int) -> None:
    """The same changes in the same transactions, but fast: made by the server itself, not durable.

    For a backlog, of which it does not matter how it came to be.
    """
    names = ", ".join(COLUMNS)
    with psycopg.connect(plain(server.url), autocommit=True) as connection:
        connection.execute("SET synchronous_commit = off")
        connection.execute("DROP TABLE IF EXISTS made")
        connection.execute("CREATE TABLE made (LIKE customer)")
        connection.execute("ALTER TABLE made ADD number serial")
        with connection.cursor() as cursor, cursor.copy(f"COPY made ({names}) FROM STDIN") as copy:
            for row in rows:
                copy.write_row(list(row.values()))
        connection.execute("CREATE INDEX ON made (number)")
        each = upsert(f"SELECT {names} FROM made WHERE number = one")
        connection.execute(
            f"DO $$ BEGIN FOR one IN 1..{len(rows)} LOOP {each};"
            f" IF one % {size} = 0 THEN COMMIT; END IF; END LOOP; END $$"
        )
