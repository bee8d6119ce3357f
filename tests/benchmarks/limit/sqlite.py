"""Rows that ``sqlite3`` writes, with the same settings of the file as eventsync's."""

from __future__ import annotations

import datetime as dt
import sqlite3
from collections.abc import Sequence
from decimal import Decimal
from typing import Any, ClassVar
from uuid import UUID

from benchmarks.limit.raw import Row, Stamped, Way, Ways, Write
from benchmarks.limit.sql import VERSIONS, SqlRaw

from eventsync.records.record import Record

__all__ = ["Sqlite"]

_ROWS = 64
_PARAMETERS = 32_000
_KEYS = ("type", "key")
_ENTRY = ("type", "key", "stamp", "presence")
_TEXTS = (Decimal, UUID, dt.date)


class Sqlite(SqlRaw):
    """SQLite."""

    emptying = "DELETE FROM {}"
    ways: ClassVar[Ways] = {
        Way.PLAIN: ("executemany", "many_rows"),
        Way.IN_ROW: ("executemany", "many_rows"),
        Way.TABLES: ("executemany", "many_rows", "temporary_table"),
    }

    def __init__(self, url: str, record: type[Record]) -> None:
        super().__init__(url, record)
        self.connection = sqlite3.connect(url.removeprefix("sqlite:///"), isolation_level=None)
        self.connection.execute("PRAGMA cache_size = -16384")
        fields = enumerate(self.fields.values())
        self._texts = [number for number, field in fields if issubclass(field.type, _TEXTS)]

    def close(self) -> None:
        self.connection.close()

    def executemany(self, way: Way) -> Write:
        """A statement of one row, again and again."""
        return self._writer(way, many=False)

    def many_rows(self, way: Way) -> Write:
        """A statement of as many rows as pay."""
        return self._writer(way, many=True)

    def temporary_table(self, way: Way) -> Write:
        """All into a temporary table; two statements put from there what is newer."""
        columns = [*self.names, "entry", "stamp"]
        held = ", ".join(f"{name} BLOB" for name in columns)
        self.connection.execute("DROP TABLE IF EXISTS temp.incoming")
        self.connection.execute(f"CREATE TEMP TABLE incoming ({held})")
        names = ", ".join(self.names)
        newer = (
            f"FROM incoming i LEFT JOIN {VERSIONS} v ON v.type = '{self.type}' AND v.key = i.entry"
            " WHERE v.stamp IS NULL OR v.stamp < i.stamp"
        )
        select = ", ".join(f"i.{name}" for name in self.names)
        data = f"INSERT INTO {self.table} ({names}) SELECT {select} {newer}" + self.upsert(
            self.table, self.names, ["id"]
        )
        entries = (
            f"INSERT INTO {VERSIONS} ({', '.join(_ENTRY)})"
            f" SELECT '{self.type}', i.entry, i.stamp, 1 {newer}"
        ) + self.upsert(VERSIONS, _ENTRY, _KEYS)
        fill = f"INSERT INTO incoming VALUES ({', '.join('?' * len(columns))})"

        def write(rows: Stamped) -> None:
            values = [(*self._row(row), str(row["id"]), stamp) for row, stamp in rows]
            self.connection.execute("BEGIN IMMEDIATE")
            self.connection.executemany(fill, values)
            self.connection.execute(data)
            self.connection.execute(entries)
            self.connection.execute("DELETE FROM incoming")
            self.connection.execute("COMMIT")

        return write

    def _row(self, row: Row) -> list[Any]:
        values = list(row.values())
        for number in self._texts:
            values[number] = str(values[number])
        return values

    def _writer(self, way: Way, *, many: bool) -> Write:
        columns = self.columns(way)
        newer = "version" if way is Way.IN_ROW else ""
        data = self._statement(
            self.table, columns, self.upsert(self.table, columns, ["id"], newer), many
        )
        entries = self._statement(VERSIONS, _ENTRY, self.upsert(VERSIONS, _ENTRY, _KEYS), many)

        def write(rows: Stamped) -> None:
            self.connection.execute("BEGIN IMMEDIATE")
            if way is Way.TABLES:
                rows = self._winners(rows)
                data([self._row(row) for row, _ in rows])
                entries([(self.type, str(row["id"]), stamp, 1) for row, stamp in rows])
            elif way is Way.IN_ROW:
                data([[*self._row(row), stamp[:16]] for row, stamp in rows])
            else:
                data([self._row(row) for row, _ in rows])
            self.connection.execute("COMMIT")

        return write

    def _winners(self, rows: Stamped) -> Stamped:
        """Those that are newer than what is there."""
        keys = [str(row["id"]) for row, _ in rows]
        held: dict[str, bytes] = {}
        for start in range(0, len(keys), 1000):
            some = keys[start : start + 1000]
            held |= self.connection.execute(
                f"SELECT key, stamp FROM {VERSIONS} WHERE type = ?"
                f" AND key IN ({', '.join('?' * len(some))})",
                (self.type, *some),
            ).fetchall()
        return [each for key, each in zip(keys, rows, strict=True) if each[1] > held.get(key, b"")]

    def _statement(self, table: str, columns: Sequence[str], end: str, many: bool) -> Any:
        mark = f"({', '.join('?' * len(columns))})"
        begin = f"INSERT INTO {table} ({', '.join(columns)}) VALUES "
        one = f"{begin}{mark}{end}"
        if not many:
            return lambda rows: self.connection.executemany(one, rows)
        step = min(_ROWS, _PARAMETERS // len(columns))
        several = f"{begin}{', '.join([mark] * step)}{end}"

        def run(rows: Sequence[Sequence[Any]]) -> None:
            whole = len(rows) // step * step
            chunks = (rows[start : start + step] for start in range(0, whole, step))
            flat = ([value for row in chunk for value in row] for chunk in chunks)
            self.connection.executemany(several, flat)
            self.connection.executemany(one, rows[whole:])

        return run
