"""The foreign writers of ``captured.py``: programs that know plain SQL and nothing of eventsync."""

from __future__ import annotations

import contextlib
import random
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator
from typing import Any, ClassVar

import psycopg
import pymysql

__all__ = ["MariaWriter", "PostgresWriter", "SqliteWriter", "Writer"]

_COLUMNS = {
    "Customer": ("id", "name", "mail", "amount"),
    "Item": ("code", "customer", "text"),
    "Setting": ("name", "value"),
}
_ODD = ("", " ", "ä'\"\\%", "Ω" * 30, "null", "line\nbreak", "007")


class Writer(ABC):
    """One program that writes to a database, reconnects when it is killed, and tells what it did.

    What a killed database had not committed is simply gone: in the end the copy is compared with
    what the database holds, not with what was intended.
    """

    mark: ClassVar[str]
    quote: ClassVar[str]
    types: ClassVar[tuple[str, str]]
    """The types of columns for texts and for long texts."""
    errors: ClassVar[tuple[type[Exception], ...]]

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.did: Counter[str] = Counter()
        self.lost = 0
        self._connection: Any = None
        self._number = 0
        self._extra: list[str] = []

    @abstractmethod
    def connect(self) -> Any:
        """Return a new connection that begins transactions by itself."""

    def setup(self) -> None:
        """Create the application's tables, with some rows."""
        text, long = self.types
        q = self.q
        with self._transaction() as run:
            run(
                f"CREATE TABLE {q('Customer')} (id BIGINT PRIMARY KEY, name {long} NOT NULL,"
                f" mail {long}, amount BIGINT NOT NULL)"
            )
            run(
                f"CREATE TABLE {q('Item')} (code {text} PRIMARY KEY, customer BIGINT NOT NULL,"
                f" {q('text')} {long})"
            )
            run(f"CREATE TABLE {q('Setting')} (name {text} PRIMARY KEY, value {long} NOT NULL)")
        for _ in range(20):
            self.step(("insert",))

    def q(self, name: str) -> str:
        """Return a name in the quotes of the database."""
        return f"{self.quote}{name}{self.quote}"

    def step(self, actions: tuple[str, ...] = ()) -> None:
        """Run one transaction. A connection that is lost is made anew with the next step."""
        chosen = actions or self.rng.choices(
            ("insert", "update", "delete", "rename", "mixed", "savepoint", "undone", "truncate",
             "alter"),
            (20, 30, 8, 6, 20, 6, 6, 1, 1),
        )  # fmt: skip
        for action in chosen:
            try:
                getattr(self, f"_{action}")()
            except self.errors:
                self.lost += 1
                self.disconnect()
                time.sleep(0.05)
            else:
                self.did[action] += 1

    def disconnect(self) -> None:
        """Forget the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            with contextlib.suppress(Exception):  # it may be broken already
                connection.close()

    def rows(self) -> dict[str, dict[Any, tuple[Any, ...]]]:
        """Return what the database holds, by table and key."""
        found = {}
        for table, columns in _COLUMNS.items():
            names = ", ".join(map(self.q, columns))
            with self._transaction() as run:
                rows = run(f"SELECT {names} FROM {self.q(table)}").fetchall()
            found[table] = {row[0]: tuple(row[1:]) for row in rows}
        return found

    # -- what it does --------------------------------------------------------------------------

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[Any]:
        if self._connection is None:
            self._connection = self.connect()
        cursor = self._connection.cursor()

        def run(statement: str, *parameters: Any) -> Any:
            cursor.execute(statement.replace("?", self.mark), parameters)
            return cursor

        try:
            yield run
            self._connection.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # the first error is the one to know
                self._connection.rollback()
            raise

    def _text(self) -> str:
        if self.rng.random() < 0.1:
            return self.rng.choice(_ODD)
        return f"t{self.rng.randrange(1 << 40):x}"

    def _some(self, run: Any, table: str, key: str, count: int = 1) -> list[Any]:
        rows = run(f"SELECT {self.q(key)} FROM {self.q(table)}").fetchall()
        return [row[0] for row in self.rng.sample(rows, min(count, len(rows)))]

    def _add(self, run: Any) -> None:
        self._number += 1
        number = self._number * 1000 + self.rng.randrange(1000)
        kind = self.rng.random()
        if kind < 0.5:
            run(
                f"INSERT INTO {self.q('Customer')} (id, name, mail, amount) VALUES (?, ?, ?, ?)",
                number, self._text(), self.rng.choice((None, self._text())), number % 7,
            )  # fmt: skip
        elif kind < 0.95:
            run(
                f"INSERT INTO {self.q('Item')} (code, customer, {self.q('text')})"
                " VALUES (?, ?, ?)",
                f"c{number}", number, self._text(),
            )  # fmt: skip
        else:
            names = run(f"SELECT COUNT(*) FROM {self.q('Setting')}").fetchall()
            if names[0][0] < 9:
                run(
                    f"INSERT INTO {self.q('Setting')} (name, value) VALUES (?, ?)",
                    f"s{number}", self._text(),
                )  # fmt: skip

    def _change(self, run: Any) -> None:
        if self.rng.random() < 0.5:
            for key in self._some(run, "Customer", "id", self.rng.choice((1, 1, 1, 20))):
                run(
                    f"UPDATE {self.q('Customer')} SET name = ?, amount = amount + 1 WHERE id = ?",
                    self._text(), key,
                )  # fmt: skip
        else:
            for key in self._some(run, "Item", "code", self.rng.choice((1, 1, 1, 20))):
                run(
                    f"UPDATE {self.q('Item')} SET {self.q('text')} = ? WHERE code = ?",
                    self._text(), key,
                )  # fmt: skip

    def _remove(self, run: Any) -> None:
        table, key = self.rng.choice((("Customer", "id"), ("Item", "code")))
        for value in self._some(run, table, key, self.rng.choice((1, 1, 3))):
            run(f"DELETE FROM {self.q(table)} WHERE {self.q(key)} = ?", value)

    def _insert(self) -> None:
        with self._transaction() as run:
            for _ in range(self.rng.choice((1, 1, 1, 10, 200))):
                self._add(run)

    def _update(self) -> None:
        with self._transaction() as run:
            self._change(run)

    def _delete(self) -> None:
        with self._transaction() as run:
            self._remove(run)

    def _rename(self) -> None:
        """Change keys."""
        with self._transaction() as run:
            for code in self._some(run, "Item", "code", 2):
                self._number += 1
                run(
                    f"UPDATE {self.q('Item')} SET code = ? WHERE code = ?",
                    f"r{self._number * 1000}", code,
                )  # fmt: skip

    def _mixed(self) -> None:
        with self._transaction() as run:
            for _ in range(self.rng.randrange(1, 12)):
                self.rng.choice((self._add, self._change, self._change, self._remove))(run)

    def _savepoint(self) -> None:
        """Undo a part of a transaction."""
        with self._transaction() as run:
            self._add(run)
            run("SAVEPOINT here")
            self._change(run)
            self._add(run)
            run("ROLLBACK TO SAVEPOINT here")
            run("SAVEPOINT there")
            self._change(run)
            run("RELEASE SAVEPOINT there")

    def _undone(self) -> None:
        """Roll a whole transaction back."""
        with contextlib.suppress(_UndoneError), self._transaction() as run:
            self._add(run)
            self._change(run)
            self._remove(run)
            raise _UndoneError

    def _truncate(self) -> None:
        with self._transaction() as run:
            run(f"TRUNCATE TABLE {self.q('Setting')}")

    def _alter(self) -> None:
        """Add a column that eventsync does not know, or drop it again."""
        with self._transaction() as run:
            if self._extra and self.rng.random() < 0.5:
                run(f"ALTER TABLE {self.q('Customer')} DROP COLUMN {self._extra.pop()}")
            else:
                self._number += 1
                name = f"extra{self._number}"
                run(f"ALTER TABLE {self.q('Customer')} ADD COLUMN {name} INT DEFAULT 3")
                self._extra.append(name)


class _UndoneError(Exception):
    pass


class PostgresWriter(Writer):
    """A program that writes to PostgreSQL."""

    mark = "%s"
    quote = '"'
    types = ("text", "text")
    errors = (psycopg.Error,)

    def __init__(self, rng: random.Random, url: str) -> None:
        super().__init__(rng)
        self._url = url.replace("+psycopg", "")

    def connect(self) -> Any:
        return psycopg.connect(self._url, connect_timeout=5)


class MariaWriter(Writer):
    """A program that writes to MariaDB."""

    mark = "%s"
    quote = "`"
    types = ("VARCHAR(40) COLLATE utf8mb4_bin", "VARCHAR(400) COLLATE utf8mb4_bin")
    errors = (pymysql.err.Error,)

    def __init__(self, rng: random.Random, port: int) -> None:
        super().__init__(rng)
        self._port = port

    def connect(self) -> Any:
        return pymysql.connect(
            host="127.0.0.1", port=self._port, user="root", database="test", charset="utf8mb4",
            ssl_disabled=True,
        )  # fmt: skip

    def _truncate(self) -> None:
        with self._transaction() as run:
            # Triggers do not see TRUNCATE; the log does.
            run(f"DELETE FROM {self.q('Setting')}")


class SqliteWriter(Writer):
    """A program that writes to an SQLite file."""

    mark = "?"
    quote = '"'
    types = ("TEXT", "TEXT")
    errors = (sqlite3.Error,)

    def __init__(self, rng: random.Random, path: str) -> None:
        super().__init__(rng)
        self._path = path

    def connect(self) -> Any:
        return sqlite3.connect(self._path, timeout=30)

    def _truncate(self) -> None:
        with self._transaction() as run:
            run(f"DELETE FROM {self.q('Setting')}")
