"""The dialect of MySQL and MariaDB."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

import pymysql
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from eventsync.errors import StoreUnavailableError
from eventsync.records.field import Field
from eventsync.stores.sql.dialect import ColumnCodec, ColumnComparison, Dialect, Fault, Target
from eventsync.stores.sql.value import (
    exact_decimal,
    from_json,
    moment,
    number_operand,
    text_operand,
    time_operand,
    to_json,
    to_text,
)

__all__ = ["Mysql"]

# What errors mean, by their number.
FAULTS: Final[Mapping[int, Fault]] = {
    1020: Fault.UNDONE,  # changed since it was read
    1021: Fault.UNREACHABLE,  # disk full
    1040: Fault.UNREACHABLE,  # too many connections
    1044: Fault.ACCESS,
    1045: Fault.ACCESS,  # user or password
    1048: Fault.REJECTED,  # NULL in a NOT NULL column
    1049: Fault.ACCESS,  # no such database
    1053: Fault.UNREACHABLE,  # shutting down
    1054: Fault.CONFIG,  # no such column
    1062: Fault.UNIQUE,
    1064: Fault.CONFIG,
    1114: Fault.UNREACHABLE,  # table full
    1118: Fault.REJECTED,  # row too large
    1136: Fault.CONFIG,  # number of columns
    1142: Fault.ACCESS,
    1143: Fault.ACCESS,
    1146: Fault.CONFIG,  # no such table
    1153: Fault.REJECTED,  # larger than a packet may be
    1203: Fault.UNREACHABLE,  # connections of this user
    1205: Fault.LOCKED,
    1213: Fault.UNDONE,  # deadlock
    1216: Fault.DEPENDENCY,
    1217: Fault.DEPENDENCY,
    1226: Fault.UNREACHABLE,  # resources of this user
    1227: Fault.ACCESS,
    1263: Fault.REJECTED,
    1264: Fault.REJECTED,  # out of range
    1265: Fault.REJECTED,  # truncated
    1290: Fault.UNREACHABLE,  # read-only, as on a replica
    1292: Fault.REJECTED,
    1317: Fault.UNREACHABLE,  # cancelled
    1364: Fault.CONFIG,  # a column outside the view has no default
    1366: Fault.REJECTED,
    1367: Fault.REJECTED,
    1370: Fault.ACCESS,
    1406: Fault.REJECTED,  # too long
    1451: Fault.DEPENDENCY,
    1452: Fault.DEPENDENCY,
    1586: Fault.UNIQUE,
    1644: Fault.REJECTED,  # SIGNAL in a trigger
    1698: Fault.ACCESS,  # user or password
    1792: Fault.UNREACHABLE,  # read-only
    1836: Fault.UNREACHABLE,
    1969: Fault.UNREACHABLE,  # statement took too long
    3024: Fault.UNREACHABLE,
    3140: Fault.REJECTED,  # not JSON
    3572: Fault.LOCKED,
    3819: Fault.REJECTED,  # CHECK
    4025: Fault.REJECTED,
}
_LOCK_TIMEOUT: Final = 5
"""After so many seconds a write stops waiting for a row that another session has locked."""
_OF_USERS: Final = 20_000
"""Larger numbers are those of applications: SIGNAL ... SET MYSQL_ERRNO."""
_NO_TEXT = (sa.CHAR, sa.Enum, mysql.SET, mysql.BINARY)
_BYTES = (sa.LargeBinary, sa.VARBINARY, mysql.TINYBLOB, mysql.MEDIUMBLOB, mysql.LONGBLOB)
_EXACT = (mysql.TIMESTAMP, mysql.DATETIME, sa.Date, sa.Time, sa.Double, sa.String, *_BYTES)


class Mysql(Dialect):
    """MySQL or MariaDB, with PyMySQL."""

    error = pymysql.err.Error

    def __init__(self, *, maria: bool) -> None:
        # Collations that distinguish case, and blanks at the end.
        self._maria = maria
        self._exact_text = "utf8mb4_nopad_bin" if maria else "utf8mb4_0900_bin"

    def fault(self, error: Exception) -> Fault:
        number = error.args[0] if error.args else 0
        fault = FAULTS.get(number)
        if fault is not None:
            return fault
        if isinstance(number, int) and number >= _OF_USERS:
            return Fault.REJECTED
        rejecting = (
            pymysql.err.DataError,
            pymysql.err.IntegrityError,
            pymysql.err.ProgrammingError,
            pymysql.err.NotSupportedError,
        )
        return Fault.REJECTED if isinstance(error, rejecting) else Fault.UNREACHABLE

    def set_up(self, connection: sa.Connection) -> None:
        raw = self.raw(connection)
        with raw.cursor() as cursor:
            # Do not truncate or round values or number rows; keep times in UTC.
            cursor.execute(
                "SET SESSION time_zone = '+00:00', sql_mode = CONCAT_WS(',', @@sql_mode,"
                " 'STRICT_ALL_TABLES', 'NO_AUTO_VALUE_ON_ZERO'),"
                f" innodb_lock_wait_timeout = LEAST(@@innodb_lock_wait_timeout, {_LOCK_TIMEOUT}),"
                f" lock_wait_timeout = LEAST(@@lock_wait_timeout, {_LOCK_TIMEOUT})"
            )
            cursor.execute("SET SESSION TRANSACTION ISOLATION LEVEL READ COMMITTED")
        raw.commit()

    def skip_locked(self, connection: sa.Connection) -> str:
        since = (10, 6) if self._maria else (8, 0, 1)
        version = getattr(connection.dialect, "server_version_info", None) or ()
        return " FOR UPDATE SKIP LOCKED" if version >= since else ""

    @contextmanager
    def alone(self, connection: sa.Connection) -> Iterator[None]:
        got = connection.exec_driver_sql("SELECT GET_LOCK('eventsync', 60)").scalar()
        if got != 1:
            raise StoreUnavailableError(
                "another process has value the lock for creating eventsync's tables for 60 s",
                hint="look for a session that holds the MySQL lock 'eventsync'",
            )
        try:
            yield
        finally:
            connection.exec_driver_sql("SELECT RELEASE_LOCK('eventsync')")
            connection.commit()

    def text_key(self, length: int) -> sa.types.TypeEngine[Any]:
        return mysql.VARCHAR(length, charset="utf8mb4", collation=self._exact_text)

    def column_type(self, field: Field, *, keys: int) -> sa.types.TypeEngine[Any]:
        kind: Any = field.type
        if kind is str:
            if keys:
                # All columns of an index together may take 3072 bytes.
                return self.text_key(min(field.length or 512, 760 // keys))
            return mysql.LONGTEXT(charset="utf8mb4", collation=self._exact_text)
        if kind in (dt.datetime, dt.time) and field.zoned is None:
            return self.text_key(40)  # other columns confuse values with and without a zone
        if kind is dt.time and field.zoned:
            return self.text_key(40)
        made: dict[Any, sa.types.TypeEngine[Any]] = {
            bool: mysql.TINYINT(display_width=1),
            int: sa.BigInteger(),
            float: mysql.DOUBLE(),
            Decimal: mysql.DECIMAL(65, 30),
            bytes: mysql.VARBINARY(min(field.length or 512, 3000 // keys))
            if keys
            else mysql.LONGBLOB(),
            dt.date: sa.Date(),
            dt.time: mysql.TIME(fsp=6),
            dt.datetime: mysql.DATETIME(fsp=6),
            UUID: self.text_key(36),
        }
        # Not the JSON type, which changes numbers.
        return made.get(kind) or mysql.LONGTEXT(charset="utf8mb4", collation=self._exact_text)

    def loose(self, kind: sa.types.TypeEngine[Any]) -> bool:
        if not isinstance(kind, sa.String):
            return False
        return not str(getattr(kind, "collation", "") or "").endswith(("nopad_bin", "0900_bin"))

    def codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        if field is None:
            if isinstance(kind, sa.Numeric):
                return ColumnCodec(exact_decimal(None, _plain), faithful=False)
            return ColumnCodec(to_text if isinstance(kind, sa.String) else None, faithful=False)
        if isinstance(kind, sa.JSON):
            # MySQL keeps the numbers of its own JSON type as floats, MariaDB keeps the text.
            write_json = to_json(field, always=True, numbers=self._maria)
            return ColumnCodec(write_json, from_json(field, always=True), faithful=False)
        if isinstance(kind, sa.Uuid | mysql.BINARY) and field.type is UUID:
            if isinstance(kind, sa.Uuid):
                return ColumnCodec(to_text)
            return ColumnCodec(
                lambda value: value and value.bytes, lambda value: value and UUID(bytes=value)
            )
        if isinstance(kind, sa.DateTime | sa.Time):
            stamp = isinstance(kind, sa.TIMESTAMP)
            write = moment(
                column_zoned=stamp and field.zoned is not False,
                field_zoned=field.zoned and isinstance(kind, sa.DateTime),
                digits=getattr(kind, "fsp", None) or 0,
                utc=True,
            )
            if isinstance(kind, sa.Time):
                return ColumnCodec(write, _time, faithful=field.type is dt.time)
            zoned = field.zoned or (stamp and field.zoned is None)
            return ColumnCodec(
                write, _in_utc if zoned else None, faithful=field.type is dt.datetime
            )
        if isinstance(kind, sa.Float):
            double = isinstance(kind, sa.Double | mysql.DOUBLE)
            return ColumnCodec(faithful=double and field.type is float)
        if isinstance(kind, sa.Numeric):
            scale = kind.scale or 0
            return ColumnCodec(
                exact_decimal(scale, _plain), faithful=field.type is Decimal, verbatim=False
            )
        if isinstance(kind, mysql.BIT):
            return ColumnCodec(read=_bit, faithful=False)
        if not field.scalar:
            return ColumnCodec(to_json(field), from_json(field), faithful=False)
        if isinstance(kind, sa.Integer):
            return ColumnCodec(None, faithful=field.type in (int, bool))
        exact = isinstance(kind, _EXACT) and not isinstance(kind, sa.CHAR | mysql.BINARY)
        return ColumnCodec(None if field.type in (str, bytes) else to_text, faithful=exact)

    def comparison(self, kind: sa.types.TypeEngine[Any], field: Field) -> ColumnComparison | None:
        if field.type in (int, bool) and isinstance(kind, sa.Integer):
            return ColumnComparison(number_operand)
        if field.type is float and isinstance(kind, sa.Double | mysql.DOUBLE):
            return ColumnComparison(number_operand)
        numeric = isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float)
        if field.type is Decimal and numeric:
            # As text or a literal it would be compared as an inexact number.
            return ColumnComparison(_decimal_operand, value="CAST({} AS DECIMAL(65,30))")
        if field.type is dt.date and isinstance(kind, sa.Date):
            return ColumnComparison()
        if field.type is dt.datetime and isinstance(kind, sa.DateTime) and field.zoned is not None:
            return ColumnComparison(time_operand(zoned=field.zoned, utc=True))
        if field.type is bytes and isinstance(kind, _BYTES):
            return ColumnComparison()
        if field.type is str and isinstance(kind, sa.String) and not isinstance(kind, _NO_TEXT):
            wide = str(kind.collation or "").startswith("utf8mb4")
            operand = text_operand if wide else _ascii_operand
            return ColumnComparison(operand, ordered=False, exact=not self.loose(kind))
        return None

    def upsert_sql(self, target: Target) -> str:
        # MySQL's newer way, a row alias, is unknown to MariaDB.
        changed = target.changed or target.keys[:1]
        sets = ", ".join(f"{column} = VALUES({column})" for column in changed)
        return f"{self.insert_sql(target)} ON DUPLICATE KEY UPDATE {sets}"


def _ascii_operand(value: str) -> str | None:
    # The column may refuse a comparison with characters outside its own set.
    return text_operand(value) if value.isascii() else None


def _decimal_operand(value: Decimal) -> str | None:
    if not value.is_finite() or value.adjusted() >= 35 or int(value.as_tuple().exponent) < -30:
        return None
    return _plain(value)


def _plain(number: Decimal) -> str:
    # With an exponent, MySQL would read an inexact number.
    return format(number, "f")


def _time(value: Any) -> Any:
    day = dt.timedelta(days=1)
    if isinstance(value, dt.timedelta) and dt.timedelta() <= value < day:
        return (dt.datetime.min + value).time()
    return value


def _in_utc(value: Any) -> Any:
    return value.replace(tzinfo=dt.UTC) if isinstance(value, dt.datetime) else value


def _bit(value: Any) -> Any:
    return int.from_bytes(value, "big") if isinstance(value, bytes) else value
