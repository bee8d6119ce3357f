"""What databases take from their plain drivers: bulk upserts of customers, the fastest known way.

It knows nothing of eventsync but the record.
"""

from __future__ import annotations

import datetime as dt
import sqlite3
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.customer import COLUMNS, Customer

__all__ = ["create_postgres", "create_sqlite", "postgres", "sqlite"]

Row = dict[str, Any]


def _upsert(table: str, names: Sequence[str], source: str, *, version: bool) -> str:
    sets = ", ".join(f"{name} = excluded.{name}" for name in names if name != "id")
    where = f" WHERE excluded.version > {table}.version" if version else ""
    return (
        f"INSERT INTO {table} ({', '.join(names)}) {source}"
        f" ON CONFLICT (id) DO UPDATE SET {sets}{where}"
    )


def _rate(rows: Sequence[Row], batch: int, write: Callable[[int, Sequence[Row]], None]) -> float:
    started = time.perf_counter()
    for start in range(0, len(rows), batch):
        # Of a record that changes twice in a batch only the last is written, as workers do it.
        write(start, list({row["id"]: row for row in rows[start : start + batch]}.values()))
    return len(rows) / (time.perf_counter() - started)


def create_sqlite(path: Path, *, version: bool = False) -> None:
    """The table that both the raw run and eventsync write to."""
    extra = ", version BLOB" if version else ""
    connection = sqlite3.connect(path)
    connection.execute("PRAGMA journal_mode = WAL")
    connection.execute(
        "CREATE TABLE customer (id INTEGER PRIMARY KEY, name TEXT, email TEXT, street TEXT,"
        " city TEXT, country TEXT, balance TEXT, visits INTEGER, score REAL, active INTEGER,"
        f" born TEXT, token TEXT{extra})"
    )
    connection.close()


def sqlite(path: Path, rows: Sequence[Row], *, version: bool, batch: int) -> float:
    """Rows per second of ``sqlite3``'s ``executemany``, the conversion of values included."""
    create_sqlite(path, version=version)
    names = [*COLUMNS, *(["version"] if version else [])]
    sql = _upsert("customer", names, f"VALUES ({', '.join('?' * len(names))})", version=version)
    connection = sqlite3.connect(path, isolation_level=None)

    def write(start: int, some: Sequence[Row]) -> None:
        values = []
        for number, row in enumerate(some, start=start):
            converted = list(row.values())
            converted[6] = str(converted[6])
            converted[10] = converted[10].isoformat()
            converted[11] = str(converted[11])
            if version:
                converted.append(number.to_bytes(16, "big"))
            values.append(converted)
        connection.execute("BEGIN IMMEDIATE")
        connection.executemany(sql, values)
        connection.execute("COMMIT")

    rate = _rate(rows, batch, write)
    connection.close()
    return rate


_POSTGRES = {
    int: "bigint",
    str: "text",
    float: "float8",
    bool: "bool",
    dt.date: "date",
}


def create_postgres(url: str, table: str = "customer", *, version: bool = False) -> None:
    """The table that both the raw run and eventsync write to."""
    columns = {name: field.type for name, field in Customer.__record__.fields.items()}
    kinds = {name: _POSTGRES.get(kind, kind.__name__.lower()) for name, kind in columns.items()}
    kinds |= {"balance": "numeric", "token": "uuid", "id": "bigint PRIMARY KEY"}
    if version:
        kinds["version"] = "bytea"
    with psycopg.connect(url, autocommit=True) as connection:
        text = ", ".join(f"{name} {kind}" for name, kind in kinds.items())
        connection.execute(f"DROP TABLE IF EXISTS {table}")
        connection.execute(f"CREATE TABLE {table} ({text})")


def postgres(url: str, rows: Sequence[Row], *, version: bool, batch: int) -> float:
    """Rows per second of binary COPY into a temporary table and one upsert from it.

    Writes into a table of its own, made anew.
    """
    table = f"raw_{'gated' if version else 'plain'}"
    create_postgres(url, table, version=version)
    names = [*COLUMNS, *(["version"] if version else [])]
    source = f"SELECT {', '.join(names)} FROM incoming"
    sql = _upsert(table, names, source, version=version)
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE TEMP TABLE incoming (LIKE {table}) ON COMMIT DELETE ROWS")
        kinds = [
            str(kind)
            for (kind,) in connection.execute(
                "SELECT format_type(atttypid, atttypmod) FROM pg_attribute"
                " WHERE attrelid = 'incoming'::regclass AND attnum > 0 ORDER BY attnum"
            )
        ]

        def write(start: int, some: Sequence[Row]) -> None:
            with connection.transaction(), connection.cursor() as cursor:
                with cursor.copy("COPY incoming FROM STDIN (FORMAT BINARY)") as copy:
                    copy.set_types(kinds)
                    for number, row in enumerate(some, start=start):
                        gate = [number.to_bytes(16, "big")] if version else []
                        copy.write_row([*row.values(), *gate])
                cursor.execute(sql)

        return _rate(rows, batch, write)
