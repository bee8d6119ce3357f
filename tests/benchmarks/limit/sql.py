"""What the three SQL databases have in common: their tables, made by eventsync, and statements.

It knows no driver.
"""

from __future__ import annotations

from collections.abc import Sequence

import sqlalchemy as sa
from benchmarks.deployment import made, table_of
from benchmarks.limit.raw import Raw, Way

from eventsync.records.record import Record

__all__ = ["VERSIONS", "SqlRaw"]

VERSIONS = "eventsync_version"


class SqlRaw(Raw):
    """A database with the tables that eventsync makes for a type of records."""

    blob = "BLOB"

    def prepare(self, way: Way) -> None:
        made(self.url, self.record).open().close()
        engine = sa.create_engine(self.url)
        with engine.begin() as connection:
            found = {column["name"] for column in sa.inspect(connection).get_columns(self.table)}
            if (way is Way.IN_ROW) != ("version" in found):
                change = f"ADD version {self.blob}" if way is Way.IN_ROW else "DROP COLUMN version"
                connection.exec_driver_sql(f"ALTER TABLE {self.table} {change}")
            for table in (self.table, VERSIONS):
                connection.exec_driver_sql(self.emptying.format(table))
        engine.dispose()

    emptying = "TRUNCATE TABLE {}"

    def __init__(self, url: str, record: type[Record]) -> None:
        super().__init__(url, record)
        self.record = record
        self.table = table_of(record)

    def columns(self, way: Way) -> list[str]:
        """The columns of a row."""
        return [*self.names, "version"] if way is Way.IN_ROW else self.names

    @staticmethod
    def upsert(table: str, columns: Sequence[str], keys: Sequence[str], newer: str = "") -> str:
        """The end of a statement that overwrites what is there, if ``newer`` than that."""
        sets = ", ".join(f"{name} = excluded.{name}" for name in columns if name not in keys)
        where = f" WHERE excluded.{newer} > {table}.{newer}" if newer else ""
        return f" ON CONFLICT ({', '.join(keys)}) DO UPDATE SET {sets}{where}"
