"""The dialect of SQLite: one writer at a time."""

from __future__ import annotations

import datetime as dt
import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from itertools import chain
from typing import Any, ClassVar, Final
from uuid import UUID

import sqlalchemy as sa

from eventsync.errors import RejectedError
from eventsync.records.field import Field
from eventsync.stores.sql.dialect import (
    ColumnCodec,
    ColumnComparison,
    Dialect,
    Fault,
    Statement,
    Target,
)
from eventsync.stores.sql.value import (
    from_json,
    number_operand,
    text_operand,
    to_json,
    to_text,
)

__all__ = ["Sqlite"]

_CACHE = 16_384
"""How many KiB of the file a connection keeps in memory."""
_ROWS = 64
"""How many rows one statement writes, within the limit of parameters."""
_PARAMETERS = 999
_NATIVE = frozenset({str, int, float, bool, bytes})
_AS_TEXT = frozenset({Decimal, UUID, dt.date, dt.time})
_FAITHFUL = _NATIVE | {dt.date, dt.time, dt.datetime, UUID, Decimal}


# What errors mean, by SQLite's code, or by the primary code in its last byte.
FAULTS: Final[Mapping[int, Fault]] = {
    sqlite3.SQLITE_PERM: Fault.ACCESS,
    sqlite3.SQLITE_BUSY: Fault.UNREACHABLE,
    sqlite3.SQLITE_LOCKED: Fault.UNREACHABLE,
    sqlite3.SQLITE_READONLY: Fault.ACCESS,
    sqlite3.SQLITE_IOERR: Fault.UNREACHABLE,
    sqlite3.SQLITE_CORRUPT: Fault.UNREACHABLE,
    sqlite3.SQLITE_FULL: Fault.UNREACHABLE,
    sqlite3.SQLITE_CANTOPEN: Fault.ACCESS,
    sqlite3.SQLITE_SCHEMA: Fault.UNDONE,
    sqlite3.SQLITE_TOOBIG: Fault.REJECTED,
    sqlite3.SQLITE_CONSTRAINT: Fault.REJECTED,
    sqlite3.SQLITE_CONSTRAINT_FOREIGNKEY: Fault.DEPENDENCY,
    sqlite3.SQLITE_CONSTRAINT_PRIMARYKEY: Fault.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_ROWID: Fault.UNIQUE,
    sqlite3.SQLITE_CONSTRAINT_UNIQUE: Fault.UNIQUE,
    sqlite3.SQLITE_MISMATCH: Fault.REJECTED,
    sqlite3.SQLITE_AUTH: Fault.ACCESS,
    sqlite3.SQLITE_RANGE: Fault.REJECTED,
    sqlite3.SQLITE_NOTADB: Fault.ACCESS,
}
_MISFIT: Final = re.compile(
    "^no such (?:table|column)|has no column named|^ON CONFLICT clause does not match"
    "|^cannot modify|syntax error|values for [0-9]+ columns"
)


class Sqlite(Dialect):
    """SQLite, with the standard library's driver."""

    mark: ClassVar[str] = "?"
    concurrent: ClassVar[bool] = False
    conditional: ClassVar[bool] = sqlite3.sqlite_version_info >= (3, 35)  # has RETURNING
    error = sqlite3.Error

    def fault(self, error: Exception) -> Fault:
        code = getattr(error, "sqlite_errorcode", None)
        if code == sqlite3.SQLITE_ERROR:
            # The code of a wrong statement, and also of a function that fails in a trigger.
            return Fault.CONFIG if _MISFIT.search(str(error)) else Fault.REJECTED
        if code is not None:
            return FAULTS.get(code) or FAULTS.get(code & 0xFF, Fault.UNREACHABLE)
        # The driver's own errors.
        rejecting = (sqlite3.DataError, sqlite3.InterfaceError, sqlite3.ProgrammingError)
        return Fault.REJECTED if isinstance(error, rejecting) else Fault.UNREACHABLE

    def set_up(self, connection: sa.Connection) -> None:
        # The default of 2 MB makes a large transaction write and read pages several times.
        self.raw(connection).execute(f"PRAGMA cache_size = -{_CACHE}")

    def begin(self, connection: sa.Connection) -> None:
        # Other writers wait from here on, before anything is read. Readers do not wait.
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    def join(self, connection: sa.Connection, outbox: str) -> None:
        raw = self.raw(connection)
        if raw.in_transaction:
            # The transaction may have begun with a read; a write takes the lock.
            raw.execute(f"DELETE FROM {outbox} WHERE number < 0")
        else:
            self.begin(connection)

    @contextmanager
    def alone(self, connection: sa.Connection) -> Iterator[None]:
        self.begin(connection)
        yield
        connection.commit()

    def text_key(self, length: int) -> sa.types.TypeEngine[Any]:
        return sa.String(length)

    def column_type(self, field: Field, *, keys: int) -> sa.types.TypeEngine[Any]:
        if field.type is bool or field.type is int:
            return sa.BigInteger()
        if field.type is float:
            return sa.REAL()
        if field.type is bytes:
            return sa.LargeBinary()
        return sa.Text()

    def codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        numeric = isinstance(kind, sa.Numeric | sa.Integer)
        write: Callable[[Any], Any] = _to_number if numeric else to_text
        if field is None:
            return ColumnCodec(write, faithful=False)
        if not field.scalar:
            write_json = to_json(field, unchanged=frozenset({bytes}))
            return ColumnCodec(write_json, from_json(field), faithful=False)
        faithful = field.type in _FAITHFUL and not (
            (field.type is float and not isinstance(kind, sa.Float | sa.Numeric))
            or (field.type is str and (numeric or isinstance(kind, sa.types.NullType)))
        )
        verbatim = not (numeric and field.type is Decimal)
        if field.type in _NATIVE:
            return ColumnCodec(faithful=faithful, verbatim=verbatim)
        if write is to_text and field.type in _AS_TEXT and not field.optional:
            write = str  # same result as ``to_text``, without a Python call
        return ColumnCodec(write, faithful=faithful, verbatim=verbatim)

    def hidden_uniques(
        self, inspector: sa.Inspector, table: str, schema: str | None
    ) -> list[tuple[str, ...]]:
        # SQLAlchemy parses the CREATE TABLE text and misses some that only their indexes show.
        indexes = inspector.get_indexes(table, schema=schema, include_auto_indexes=True)
        columns = [index["column_names"] for index in indexes if index["unique"]]
        return [tuple(map(str, names)) for names in columns if None not in names]

    def comparison(self, kind: sa.types.TypeEngine[Any], field: Field) -> ColumnComparison | None:
        # Other programs may have written any form that the field reads. So compare only where the
        # column itself brings values into one form.
        if field.type in (int, bool) and isinstance(kind, sa.Integer):
            return ColumnComparison(number_operand)
        if field.type is float and isinstance(kind, sa.Float):
            return ColumnComparison(number_operand)
        if field.type is str and isinstance(kind, sa.String):
            # Not by the column's own collation. The order would be that of the file's encoding.
            return ColumnComparison(text_operand, column="{} COLLATE BINARY", ordered=False)
        if field.type is bytes and isinstance(kind, sa.LargeBinary):
            return ColumnComparison()
        return None

    def upsert_if(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        condition: str,
        returning: str,
    ) -> list[Any]:
        clause = f"{self.on_conflict(target)} WHERE {condition} RETURNING {returning}"
        many, written = self._at_a_time(target), []
        for start in range(0, len(rows), many):
            chunk = rows[start : start + many]
            found = self.raw(connection).execute(
                f"{self._insert_many_sql(target, len(chunk))} {clause}",
                tuple(chain.from_iterable(chunk)),
            )
            written += [row[0] for row in found]
        return written

    def _at_a_time(self, target: Target) -> int:
        return max(1, min(_ROWS, _PARAMETERS // len(target.columns)))

    def _insert_many_sql(self, target: Target, count: int) -> str:
        # One statement of many rows takes less time than one statement run for each row.
        more = f", ({', '.join([self.mark] * len(target.columns))})" * (count - 1)
        return f"{self.insert_sql(target)}{more}"

    def write(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        *,
        upsert: bool,
    ) -> None:
        clause = self.on_conflict(target) if upsert else ""
        many = self._at_a_time(target)
        statement, alone = self._insert_many_sql(target, many), len(rows) - len(rows) % many
        for start in range(0, alone, many):
            parts = tuple(chain.from_iterable(rows[start : start + many]))
            self.raw(connection).execute(f"{statement} {clause}", parts)
        self.run(connection, f"{self.insert_sql(target)} {clause}", rows[alone:])

    def run(self, connection: sa.Connection, statement: str, rows: list[tuple[Any, ...]]) -> None:
        # Past SQLAlchemy, which would inspect every value and double the time.
        self.raw(connection).executemany(statement, rows)

    def fetch(
        self, connection: sa.Connection, statement: str, parameters: tuple[Any, ...]
    ) -> Iterable[Sequence[Any]]:
        return _rows(self.raw(connection), statement, parameters)

    def execute_all(
        self, connection: sa.Connection, statements: Sequence[Statement]
    ) -> list[list[Sequence[Any]]]:
        raw = self.raw(connection)
        return [_rows(raw, *statement) for statement in statements]

    def keys_in(self, keys: Sequence[str], count: int) -> str:
        if len(keys) == 1:
            return super().keys_in(keys, count)
        one = f"({', '.join([self.mark] * len(keys))})"
        return f"({', '.join(keys)}) IN (VALUES {', '.join([one] * count)})"


def _rows(raw: Any, statement: str, parameters: tuple[Any, ...]) -> list[Sequence[Any]]:
    """Return the rows that a statement finds. Text that is not UTF-8 is returned as bytes.

    The field rejects the bytes of its record only.
    """
    try:
        return list(raw.execute(statement, parameters))
    except sqlite3.OperationalError as error:
        if "Could not decode" not in str(error):
            raise
    raw.text_factory = _text_or_bytes
    try:
        return list(raw.execute(statement, parameters))
    finally:
        raw.text_factory = str


def _text_or_bytes(data: bytes) -> str | bytes:
    try:
        return data.decode()
    except UnicodeDecodeError:
        return data


def _to_number(value: Any) -> Any:
    """Return a value for a numeric column. Raise ``RejectedError`` if it would be rounded."""
    if type(value) is Decimal:
        if Decimal(repr(float(value))) != value:
            raise RejectedError(
                f"{value} has more digits than SQLite keeps in a numeric column",
                hint="make the column a TEXT column",
            )
        return str(value)
    return value
