"""Rows that PyMySQL writes: statements of many rows, straight or through a temporary table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar
from uuid import UUID

import pymysql
import sqlalchemy as sa
from benchmarks.limit.raw import Row, Stamped, Way, Ways, Write
from benchmarks.limit.sql import VERSIONS, SqlRaw

from eventsync.records.record import Record

__all__ = ["Mariadb"]

_ENTRY = ("`type`", "`key`", "stamp", "presence")


class Mariadb(SqlRaw):
    """MariaDB."""

    blob = "VARBINARY(16)"
    ways: ClassVar[Ways] = {
        Way.PLAIN: ("many_rows",),
        Way.IN_ROW: ("many_rows",),
        Way.TABLES: ("many_rows", "temporary_table"),
    }

    def __init__(self, url: str, record: type[Record]) -> None:
        super().__init__(url, record)
        found = sa.make_url(url)
        self.connection = pymysql.connect(
            host=found.host, port=found.port, user="root", database="test", ssl_disabled=True
        )

    def close(self) -> None:
        self.connection.close()

    def many_rows(self, way: Way) -> Write:
        """Statements of many rows, and before them, with versions apart, a look at those."""
        columns = self.columns(way)
        data = self._insert(self.table, columns, newer=way is Way.IN_ROW)
        entries = self._insert(VERSIONS, _ENTRY)

        def write(rows: Stamped) -> None:
            with self.connection.cursor() as cursor:
                if way is Way.TABLES:
                    rows = self._winners(cursor, rows)
                    made = [(self.type, str(row["id"]), stamp, 1) for row, stamp in rows]
                    cursor.executemany(entries, made)
                more = way is Way.IN_ROW
                cursor.executemany(
                    data,
                    [[*self._row(row), *([stamp[:16]] if more else [])] for row, stamp in rows],
                )
            self.connection.commit()

        return write

    def temporary_table(self, way: Way) -> Write:
        """All into a temporary table; what is not newer is deleted there, two upserts follow."""
        names = ", ".join(self.names)
        with self.connection.cursor() as cursor:
            cursor.execute("DROP TEMPORARY TABLE IF EXISTS incoming")
            cursor.execute(
                f"CREATE TEMPORARY TABLE incoming AS SELECT {names}, `key` AS entry, stamp"
                f" FROM {self.table}, {VERSIONS} LIMIT 0"
            )
        marks = ", ".join(["%s"] * (len(self.names) + 2))
        fill = f"INSERT INTO incoming ({names}, entry, stamp) VALUES ({marks})"
        losers = (
            f"DELETE i FROM incoming i JOIN {VERSIONS} v ON v.type = '{self.type}'"
            " AND v.`key` = i.entry WHERE v.stamp >= i.stamp"
        )
        sets = ", ".join(f"{name} = VALUES({name})" for name in self.names)
        data = f"INSERT INTO {self.table} ({names}) SELECT {names} FROM incoming"
        entries = (
            f"INSERT INTO {VERSIONS} ({', '.join(_ENTRY)})"
            f" SELECT '{self.type}', entry, stamp, 1 FROM incoming"
            " ON DUPLICATE KEY UPDATE stamp = VALUES(stamp), presence = VALUES(presence)"
        )

        def write(rows: Stamped) -> None:
            with self.connection.cursor() as cursor:
                values = [[*self._row(row), str(row["id"]), stamp] for row, stamp in rows]
                cursor.executemany(fill, values)
                cursor.execute(losers)
                cursor.execute(f"{data} ON DUPLICATE KEY UPDATE {sets}")
                cursor.execute(entries)
                cursor.execute("DELETE FROM incoming")
            self.connection.commit()

        return write

    def _winners(self, cursor: Any, rows: Stamped) -> Stamped:
        """Those that are newer than what is there."""
        keys = [str(row["id"]) for row, _ in rows]
        cursor.execute(
            f"SELECT `key`, stamp FROM {VERSIONS} WHERE type = %s AND `key` IN %s"
            " ORDER BY `key` FOR UPDATE",
            (self.type, keys),
        )
        held = dict(cursor.fetchall())
        return [each for key, each in zip(keys, rows, strict=True) if each[1] > held.get(key, b"")]

    @staticmethod
    def _insert(table: str, columns: Sequence[str], *, newer: bool = False) -> str:
        # The version comes last: what stands before it is still compared with the old one.
        value = "IF(VALUES(version) > version, VALUES({0}), {0})" if newer else "VALUES({0})"
        sets = ", ".join(f"{name} = {value.format(name)}" for name in columns)
        marks = ", ".join(["%s"] * len(columns))
        return (
            f"INSERT INTO {table} ({', '.join(columns)}) VALUES ({marks})"
            f" ON DUPLICATE KEY UPDATE {sets}"
        )

    @staticmethod
    def _row(row: Row) -> list[Any]:
        return [str(held) if isinstance(held, UUID) else held for held in row.values()]
