"""The table that all write to: when the last change is there, and whether all are right."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.customer import COLUMNS, Customer, row
from benchmarks.database import emptied, running_store
from benchmarks.deployment import made

__all__ = ["WARM", "Target", "create", "database", "plain", "warm_row"]

WARM = -1
"""The key of a record that is sent ahead, so that all connections are there; it does not count."""

Row = dict[str, Any]

# Some make the table themselves, of the types that they know.
_CASTS = {
    "balance": "balance::numeric",
    "score": "score::float8",
    "born": "born::date",
    "token": "token::uuid",
}


def plain(url: str) -> str:
    """The URL without SQLAlchemy's name of a driver."""
    return url.replace("+psycopg", "")


def create(url: str) -> None:
    """Have an empty table of customers in a database, as eventsync makes it, and nothing else."""
    with_driver = plain(url).replace("postgresql:", "postgresql+psycopg:")
    made(emptied(with_driver), Customer).open().close()


@contextmanager
def database(folder: Path) -> Iterator[str]:
    """The URL of a durable PostgreSQL with that table."""
    with running_store("postgres", folder) as url:
        create(url)
        yield url


def warm_row(number: int = 0) -> Row:
    """The record that is sent ahead; another for each number."""
    return row(random.Random(number), WARM)


class Target:
    """A database with a table of customers. Usable as a context manager."""

    def __init__(self, url: str, *, table: str = "customer", pause: float = 0.02) -> None:
        self._connection = psycopg.connect(plain(url), autocommit=True)
        self._table = table
        self._pause = pause

    def __enter__(self) -> Target:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._connection.close()

    def wait_for_first(self, *, timeout: float = 60.0) -> None:
        """Block until any change but the one sent ahead is visible. Raises ``TimeoutError``."""
        self._wait(f"SELECT 1 FROM {self._table} WHERE id <> {WARM} LIMIT 1", (), timeout)

    def wait(self, row: Row, *, timeout: float = 300.0) -> None:
        """Block until a change is visible; each has a token of its own. Raises ``TimeoutError``."""
        query = f"SELECT 1 FROM {self._table} WHERE id = %s AND token = %s"
        self._wait(query, (row["id"], row["token"]), timeout)

    def _wait(self, query: str, values: Sequence[Any], timeout: float) -> None:
        deadline = time.monotonic() + timeout
        while not self._connection.execute(query, values).fetchone():
            if time.monotonic() > deadline:
                raise TimeoutError(f"a change was not applied within {timeout:g} s")
            time.sleep(self._pause)

    def wrong(self, rows: Sequence[Row]) -> int:
        """How many records are not what the last of ``rows`` made them, missing or too many."""
        expected = {row["id"]: tuple(row.values()) for row in rows}
        names = ", ".join(_CASTS.get(name, name) for name in COLUMNS)
        query = f"SELECT {names} FROM {self._table} WHERE id <> {WARM}"
        found = {values[0]: values for values in self._connection.execute(query)}
        return sum(expected.get(key) != found.get(key) for key in expected.keys() | found.keys())
