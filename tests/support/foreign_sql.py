"""Programs that write to SQL tables and know nothing of eventsync, for ``SourceContract``.

The tables are made by plain SQL, as an application has them: they take values that no record may
have. Each folder of a test stands for a database of its own.
"""

from __future__ import annotations

import contextlib
import sqlite3
import uuid
from typing import ClassVar

import psycopg
import pymysql
import sqlalchemy as sa

from eventsync.stores.sql import SqlAccessor

__all__ = ["ForeignMariadb", "ForeignPostgres", "ForeignSqlite"]

_TABLES = """
CREATE TABLE {q}Item{q} (id {int} PRIMARY KEY, name {text}, amount {int} NOT NULL, note {text});
CREATE TABLE {q}Contact{q} (id {int} PRIMARY KEY, name {text} NOT NULL, email {text}, city {text},
    score {int} NOT NULL, active {bool} NOT NULL);
CREATE TABLE {q}Visit{q} (place {key} NOT NULL, number {int} NOT NULL, guests {int},
    PRIMARY KEY (place, number));
"""


class ForeignSql:
    """What the foreign programs of all databases share. Mix it into a ``SourceContract``.

    ``tables``: the statements that make the tables of a new database.
    """

    alters = True
    quote = '"'
    mark = "%s"
    words: ClassVar = {"int": "bigint", "text": "text", "bool": "boolean", "key": "text"}
    tables = _TABLES

    def connect(self, folder):
        """Return a new connection of the database's own driver, not in autocommit mode."""
        raise NotImplementedError

    def database(self, folder):
        """Return the URL of the database of a folder, which has the tables."""
        raise NotImplementedError

    def accessor(self, record_type, folder):
        return SqlAccessor(record_type, self.database(folder))

    def statements(self):
        """Return the statements that make the tables."""
        return [s for s in self.tables.format(q=self.quote, **self.words).split(";") if s.strip()]

    def run(self, folder, *statements):
        """Run statements in one transaction; return the rows of the last one."""
        with contextlib.closing(self.connect(folder)) as connection:
            cursor = connection.cursor()
            for statement in statements:
                cursor.execute(statement)
            rows = list(cursor.fetchall()) if cursor.description else []
            connection.commit()
            return rows

    def quoted(self, name):
        return f"{self.quote}{name.replace(self.quote, self.quote * 2)}{self.quote}"

    def edit(self, folder, *edits):
        self.database(folder)
        with contextlib.closing(self.connect(folder)) as connection:
            cursor = connection.cursor()
            for edit in edits:
                cursor.execute(*self.statement(edit))
            connection.commit()

    def statement(self, edit):
        """Return the statement of an edit, and its parameters."""
        table = self.quoted(edit.record_type.__record__.name)
        if edit.key is None:
            names = ", ".join(edit.values)
            marks = ", ".join([self.mark] * len(edit.values))
            return f"INSERT INTO {table} ({names}) VALUES ({marks})", list(edit.values.values())
        same = " AND ".join(f"{name} = {self.mark}" for name in edit.key)
        if edit.values is None:
            return f"DELETE FROM {table} WHERE {same}", list(edit.key.values())
        sets = ", ".join(f"{name} = {self.mark}" for name in edit.values)
        return (
            f"UPDATE {table} SET {sets} WHERE {same}",
            [*edit.values.values(), *edit.key.values()],
        )

    def truncate(self, folder, record_type):
        self.run(folder, f"TRUNCATE TABLE {self.quoted(record_type.__record__.name)}")

    def alter(self, folder, record_type, change, column):
        what = {
            "add": f"ADD COLUMN {column} {self.words['int']} DEFAULT 7",
            "drop": f"DROP COLUMN {column}",
            "rename": f"RENAME COLUMN {column} TO {column}_renamed",
            "restore": f"RENAME COLUMN {column}_renamed TO {column}",
        }[change]
        self.run(folder, f"ALTER TABLE {self.quoted(record_type.__record__.name)} {what}")


class ForeignSqlite(ForeignSql):
    """A program that writes to an SQLite file."""

    mark = "?"
    words: ClassVar = {**ForeignSql.words, "int": "integer"}

    def connect(self, folder):
        return sqlite3.connect(folder / "data.db", timeout=20)

    def database(self, folder):
        if not (folder / "data.db").exists():
            with contextlib.closing(self.connect(folder)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
                for statement in self.statements():
                    connection.execute(statement)
                connection.commit()
        return f"sqlite:///{folder}/data.db"


class _OnServer(ForeignSql):
    """``server``: the URL of the server; each folder gets a database of its own on it."""

    server = ""

    def database(self, folder):
        mark = folder / "database"
        if not mark.exists():
            name = f"t{uuid.uuid4().hex}"
            mark.write_text(name)
            self.create(name)
            self.run(folder, *self.statements())
        return sa.make_url(self.server).set(database=mark.read_text()).render_as_string(False)

    def create(self, name):
        """Create a database."""
        raise NotImplementedError


class ForeignPostgres(_OnServer):
    """A program that writes to PostgreSQL with psycopg."""

    truncates = True

    def create(self, name):
        url = self.server.replace("+psycopg", "")
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name}")

    def connect(self, folder):
        return psycopg.connect(self.database(folder).replace("+psycopg", ""))


class ForeignMariadb(_OnServer):
    """A program that writes to MariaDB with PyMySQL."""

    quote = "`"
    words: ClassVar = {
        "int": "bigint",
        "text": "varchar(500)",
        "bool": "boolean",
        "key": "varchar(700) COLLATE utf8mb4_nopad_bin",
    }

    def create(self, name):
        self._run_on("mysql", f"CREATE DATABASE {name} CHARACTER SET utf8mb4")

    def connect(self, folder):
        return self._connection(sa.make_url(self.database(folder)).database)

    def _connection(self, database):
        url = sa.make_url(self.server)
        return pymysql.connect(
            host=url.host, port=url.port, user=url.username, database=database, ssl_disabled=True
        )

    def _run_on(self, database, statement):
        with contextlib.closing(self._connection(database)) as connection:
            connection.cursor().execute(statement)
            connection.commit()
