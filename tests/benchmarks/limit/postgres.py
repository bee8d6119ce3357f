"""Rows that psycopg writes: binary COPY, or arrays, and statements that go on from there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import psycopg
from benchmarks.limit.raw import Stamped, Way, Ways, Write
from benchmarks.limit.sql import VERSIONS, SqlRaw

from eventsync.records.record import Record

__all__ = ["Postgres"]

_KEYS = ("type", "key")
_ENTRY = ("type", "key", "stamp", "presence")


class Postgres(SqlRaw):
    """PostgreSQL."""

    blob = "bytea"
    ways: ClassVar[Ways] = {
        Way.PLAIN: ("copy", "arrays"),
        Way.IN_ROW: ("copy", "arrays"),
        Way.TABLES: ("winners_returned", "losers_deleted", "looked_up"),
    }

    def __init__(self, url: str, record: type[Record]) -> None:
        super().__init__(url, record)
        self.connection = psycopg.connect(url.replace("+psycopg", ""), autocommit=True)

    def close(self) -> None:
        self.connection.close()

    # -- of the data alone ---------------------------------------------------------------------

    def copy(self, way: Way) -> Write:
        """COPY into a temporary table, one upsert from there."""
        columns = self.columns(way)
        incoming = self.temporary("incoming", self.table, columns)
        names = ", ".join(columns)
        newer = "version" if way is Way.IN_ROW else ""
        data = f"INSERT INTO {self.table} ({names}) SELECT {names} FROM incoming" + self.upsert(
            self.table, columns, ["id"], newer
        )

        def write(rows: Stamped) -> None:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                self.fill(cursor, "incoming", incoming, self.values(rows, way))
                cursor.execute(data)

        return write

    def arrays(self, way: Way) -> Write:
        """One statement, its parameters an array for each column."""
        columns = self.columns(way)
        kinds = self.temporary("incoming", self.table, columns)
        newer = "version" if way is Way.IN_ROW else ""
        arrays = ", ".join(f"%b::{kind}[]" for kind in kinds)
        data = f"INSERT INTO {self.table} ({', '.join(columns)}) SELECT * FROM unnest({arrays})"
        data += self.upsert(self.table, columns, ["id"], newer)

        def write(rows: Stamped) -> None:
            by_column = [list(column) for column in zip(*self.values(rows, way), strict=True)]
            with self.connection.transaction():
                self.connection.execute(data, by_column)

        return write

    # -- with versions in a table of their own -------------------------------------------------

    def winners_returned(self, way: Way) -> Write:
        """COPY; one statement, which upserts versions and then the data of those that won."""
        names = ", ".join(self.names)
        winners = f"WITH won AS ({self.newer_entries()} RETURNING key)"
        data = (
            f"{winners} INSERT INTO {self.table} ({names})"
            f" SELECT {names} FROM incoming JOIN won ON won.key = incoming.entry"
        ) + self.upsert(self.table, self.names, ["id"])
        return self.staged([data])

    def losers_deleted(self, way: Way) -> Write:
        """COPY; what is not newer is deleted there, and two upserts follow."""
        names = ", ".join(self.names)
        losers = (
            f"DELETE FROM incoming USING {VERSIONS} v WHERE v.type = '{self.type}'"
            " AND v.key = incoming.entry AND v.stamp >= incoming.stamp"
        )
        data = f"INSERT INTO {self.table} ({names}) SELECT {names} FROM incoming" + self.upsert(
            self.table, self.names, ["id"]
        )
        entries = self.entries() + self.upsert(VERSIONS, _ENTRY, _KEYS)
        return self.staged([losers, data, entries])

    def looked_up(self, way: Way) -> Write:
        """The versions are read; COPY of what is newer into two tables, and two upserts."""
        names = ", ".join(self.names)
        incoming = self.temporary("incoming", self.table, self.names)
        stamps = self.temporary("entries", VERSIONS, _ENTRY)
        look = (
            f"SELECT key, stamp FROM {VERSIONS} WHERE type = %s AND key = ANY(%s)"
            " ORDER BY key FOR UPDATE"
        )
        data = f"INSERT INTO {self.table} ({names}) SELECT {names} FROM incoming" + self.upsert(
            self.table, self.names, ["id"]
        )
        entry = ", ".join(_ENTRY)
        entries = f"INSERT INTO {VERSIONS} ({entry}) SELECT {entry} FROM entries" + self.upsert(
            VERSIONS, _ENTRY, _KEYS
        )

        def write(rows: Stamped) -> None:
            with self.connection.transaction(), self.connection.cursor(binary=True) as cursor:
                keys = [str(row["id"]) for row, _ in rows]
                held: dict[str, bytes] = dict(cursor.execute(look, (self.type, keys)).fetchall())
                won = [
                    (key, row, stamp)
                    for key, (row, stamp) in zip(keys, rows, strict=True)
                    if stamp > held.get(key, b"")
                ]
                self.fill(cursor, "incoming", incoming, [list(row.values()) for _, row, _ in won])
                cursor.execute(data)
                made = [(self.type, key, stamp, 1) for key, _, stamp in won]
                self.fill(cursor, "entries", stamps, made)
                cursor.execute(entries)

        return write

    def one_by_one(self, way: Way) -> Write:
        """A statement for each row, all sent at once: for a few rows, or to see each of them."""
        marks = ", ".join(["%b"] * len(self.names))
        statement = (
            f"WITH won AS (INSERT INTO {VERSIONS} ({', '.join(_ENTRY)})"
            f" VALUES ('{self.type}', %b, %b, 1)"
            f"{self.upsert(VERSIONS, _ENTRY, _KEYS, newer='stamp')} RETURNING key)"
            f" INSERT INTO {self.table} ({', '.join(self.names)}) SELECT {marks} FROM won"
        ) + self.upsert(self.table, self.names, ["id"])

        def write(rows: Stamped) -> None:
            with self.connection.transaction(), self.connection.cursor() as cursor:
                values = [[str(row["id"]), stamp, *row.values()] for row, stamp in rows]
                cursor.executemany(statement, values)

        return write

    def staged(self, statements: Sequence[str], columns: Sequence[str] | None = None) -> Write:
        """COPY of rows, with key and stamp, into a temporary table; then these statements."""
        taken = self.names if columns is None else list(columns)
        kinds = self.temporary(
            "incoming", self.table, taken, ", ''::text AS entry, ''::bytea AS stamp"
        )

        def write(rows: Stamped) -> None:
            values = [
                [*(row[name] for name in taken), str(row["id"]), stamp] for row, stamp in rows
            ]
            with self.connection.transaction(), self.connection.cursor() as cursor:
                self.fill(cursor, "incoming", kinds, values)
                for statement in statements:
                    cursor.execute(statement)

        return write

    def entries(self, presence: int = 1) -> str:
        """The begin of a statement that puts the entries of what came in."""
        return (
            f"INSERT INTO {VERSIONS} ({', '.join(_ENTRY)})"
            f" SELECT '{self.type}', entry, stamp, {presence} FROM incoming"
        )

    def newer_entries(self, presence: int = 1) -> str:
        """The statement that puts those of them that are newer."""
        return self.entries(presence) + self.upsert(VERSIONS, _ENTRY, _KEYS, newer="stamp")

    # -- the driver ------------------------------------------------------------------------------

    def values(self, rows: Stamped, way: Way) -> list[list[Any]]:
        if way is Way.IN_ROW:
            return [[*row.values(), stamp[:16]] for row, stamp in rows]
        return [list(row.values()) for row, _ in rows]

    def temporary(self, name: str, like: str, columns: Sequence[str], more: str = "") -> list[str]:
        """Make a temporary table with columns of another; the types of its columns."""
        self.connection.execute(f"DROP TABLE IF EXISTS pg_temp.{name}")
        self.connection.execute(
            f"CREATE TEMP TABLE {name} ON COMMIT DELETE ROWS AS"
            f" SELECT {', '.join(columns)}{more} FROM {like} WITH NO DATA"
        )
        return [
            str(kind)
            for (kind,) in self.connection.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
                f" WHERE attrelid = 'pg_temp.{name}'::regclass AND attnum > 0 ORDER BY attnum"
            )
        ]

    @staticmethod
    def fill(
        cursor: psycopg.Cursor[Any], name: str, kinds: Sequence[str], rows: Sequence[Sequence[Any]]
    ) -> None:
        """COPY rows into a table, in binary."""
        with cursor.copy(f"COPY {name} FROM STDIN (FORMAT BINARY)") as copy:
            copy.set_types(kinds)
            for row in rows:
                copy.write_row(row)
