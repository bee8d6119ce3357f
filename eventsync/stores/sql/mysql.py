"""The dialect of MySQL and MariaDB."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import Any, ClassVar, Final
from uuid import UUID

import pymysql
import sqlalchemy as sa
from sqlalchemy.dialects import mysql

from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.records.field import Field
from eventsync.stores.sql.catalogue import Catalogue, Trigger, UniqueIndex
from eventsync.stores.sql.dialect import (
    ColumnCodec,
    ColumnComparison,
    Dialect,
    Fault,
    Statement,
    Target,
)
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

_DENIED = frozenset({1044, 1142, 1143, 1227})
_NO_DEFAULT = 1364
# What errors mean, by their number.
FAULTS: Final[Mapping[int, Fault]] = {
    1020: Fault.UNDONE,  # changed since it was read
    1021: Fault.UNREACHABLE,  # disk full
    1022: Fault.UNIQUE,
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
    1169: Fault.UNIQUE,
    1216: Fault.DEPENDENCY,
    1217: Fault.DEPENDENCY,
    1242: Fault.UNIQUE,  # see ``upsert_sql``
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
    1419: Fault.ACCESS,  # triggers need SUPER or log_bin_trust_function_creators
    1449: Fault.ACCESS,  # the user who defined a trigger is gone
    1451: Fault.DEPENDENCY,
    1452: Fault.DEPENDENCY,
    1586: Fault.UNIQUE,
    1644: Fault.REJECTED,  # SIGNAL in a trigger
    1698: Fault.ACCESS,  # user or password
    1792: Fault.UNREACHABLE,  # read-only
    1836: Fault.UNREACHABLE,
    1859: Fault.UNIQUE,
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


_RELATION = """
SELECT table_type FROM information_schema.tables
WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s
"""
_COLUMNS = """
SELECT column_name, collation_name, column_type, extra, is_nullable, column_default
FROM information_schema.columns
WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s ORDER BY ordinal_position
"""
_UNIQUES = """
SELECT index_name, column_name, sub_part FROM information_schema.statistics
WHERE table_schema = COALESCE(%s, DATABASE()) AND table_name = %s AND non_unique = 0
ORDER BY index_name, seq_in_index
"""
_TRIGGERS = """
SELECT trigger_name, CONCAT(action_timing, ' ', event_manipulation), action_statement
FROM information_schema.triggers
WHERE event_object_schema = COALESCE(%s, DATABASE()) AND event_object_table = %s
ORDER BY trigger_name
"""
_FOREIGN_KEYS = """
SELECT k.table_name, k.constraint_name, k.column_name, k.referenced_table_schema,
    k.referenced_table_name, k.referenced_column_name, k.table_schema, r.delete_rule
FROM information_schema.key_column_usage k JOIN information_schema.referential_constraints r
    ON r.constraint_schema = k.constraint_schema AND r.constraint_name = k.constraint_name
    AND r.table_name = k.table_name
WHERE k.table_schema = COALESCE(%s, DATABASE()) AND k.referenced_table_name IS NOT NULL
ORDER BY k.table_name, k.constraint_name, k.ordinal_position
"""
_MAY_SEE_TRIGGERS = """
SELECT 1 FROM information_schema.user_privileges WHERE privilege_type = 'TRIGGER'
UNION SELECT 1 FROM information_schema.schema_privileges
    WHERE privilege_type = 'TRIGGER' AND COALESCE(%s, DATABASE()) LIKE table_schema
UNION SELECT 1 FROM information_schema.table_privileges
    WHERE privilege_type = 'TRIGGER' AND table_schema = COALESCE(%s, DATABASE())
    AND table_name = %s
"""


# The value in "Duplicate entry '...' for key", "Incorrect integer value: '...' for column",
# "Truncated incorrect DECIMAL value: '...'" and the like. It may contain quotes itself.
_QUOTED_VALUES = tuple(
    re.compile(rf"(?s)(Duplicate entry |[Ii]ncorrect [\w ]*?: |[Vv]alue:? )'.*'({end})")
    for end in (" for key| for column", r"\W*$")
)


class Mysql(Dialect):
    """MySQL or MariaDB, with PyMySQL."""

    skipping: ClassVar[bool] = False
    removes_own_parent: ClassVar[bool] = False
    unmark: ClassVar[tuple[Statement, ...]] = (("SET @eventsync_own = NULL", ()),)
    mark_lasts: ClassVar[bool] = True
    error = pymysql.err.Error

    def __init__(self, *, maria: bool) -> None:
        # Collations that distinguish case, and blanks at the end.
        self._maria = maria
        self._exact_text = "utf8mb4_nopad_bin" if maria else "utf8mb4_0900_bin"

    def fault(self, error: Exception) -> Fault:
        number = error.args[0] if error.args else 0
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return Fault.ACCESS
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

    def said(self, error: Exception, *, values: bool = True) -> str:
        text = super().said(error, values=values)
        if values:
            return text
        for pattern in _QUOTED_VALUES:
            text, count = pattern.subn(r"\1'***'\2", text)
            if count:
                break
        return text

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

    def lacking_rights(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[str]:
        # Statements about no row: rights may come from roles, which no table lists.
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        names = ", ".join(map(_quoted, columns))
        sets = ", ".join(f"{_quoted(column)} = {_quoted(column)}" for column in columns)
        lacking = []
        with self.raw(connection).cursor() as cursor:
            for right, statement in (
                ("SELECT", f"SELECT {names} FROM {name} LIMIT 0"),
                ("INSERT", f"INSERT INTO {name} ({names}) SELECT {names} FROM {name} WHERE FALSE"),
                ("UPDATE", f"UPDATE {name} SET {sets} WHERE FALSE"),
                ("DELETE", f"DELETE FROM {name} WHERE FALSE"),
            ):
                try:
                    cursor.execute(statement)
                except pymysql.err.MySQLError as error:
                    if error.args[0] in _DENIED:
                        lacking.append(right)
                    elif error.args[0] != _NO_DEFAULT:  # found after the rights
                        raise
        self.raw(connection).rollback()
        return lacking

    def stuck_sequences(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[tuple[str, str, bool]]:
        # AUTO_INCREMENT advances itself; a sequence of MariaDB, named in a DEFAULT, does not.
        with self.raw(connection).cursor() as cursor:
            cursor.execute(
                "SELECT column_name, column_default FROM information_schema.columns"
                " WHERE table_schema = coalesce(%s, database()) AND table_name = %s"
                " AND column_default LIKE 'nextval(%%'",
                (schema, table),
            )
            found = cursor.fetchall()
        return [
            (column, str(default)[len("nextval(") :].rstrip(")"), False)
            for column, default in found
            if column in columns
        ]

    def mark_own(self, connection: sa.Connection) -> tuple[Statement, ...]:
        return (("SET @eventsync_own = 1", ()),)

    def user(self, connection: sa.Connection) -> str:
        user, _, host = str(
            connection.exec_driver_sql("SELECT CURRENT_USER()").scalar_one()
        ).rpartition("@")
        return f"'{user}'@'{host}'"

    def foreign_keys(
        self, engine: sa.Engine, schema: str | None
    ) -> Mapping[tuple[str | None, str], Sequence[Mapping[str, Any]]]:
        # SQLAlchemy reads the text of CREATE TABLE, and misses names with signs like ``(``.
        made: dict[tuple[str, str], dict[str, Any]] = {}
        with self.connected(engine) as connection:
            for (
                table,
                name,
                column,
                other_schema,
                other,
                referred,
                own,
                rule,
            ) in connection.exec_driver_sql(_FOREIGN_KEYS, (schema,)):
                key = made.setdefault(
                    (table, name),
                    {
                        "name": name,
                        "constrained_columns": [],
                        "referred_schema": schema if other_schema == own else other_schema,
                        "referred_table": other,
                        "referred_columns": [],
                        "options": {"ondelete": rule},
                    },
                )
                key["constrained_columns"].append(column)
                key["referred_columns"].append(referred)
        found: dict[tuple[str | None, str], list[Mapping[str, Any]]] = {}
        for (table, _), key in made.items():
            found.setdefault((schema, table), []).append(key)
        return found

    def reflected(self, engine: sa.Engine, found: sa.Table) -> sa.Table:
        with self.connected(engine) as connection:
            place = (found.schema, str(found.name))
            names = [str(row[0]) for row in connection.exec_driver_sql(_COLUMNS, place) if row[0]]
            key = [
                str(column)
                for index, column, _ in connection.exec_driver_sql(_UNIQUES, place)
                if index == "PRIMARY"
            ]
        if names == list(found.c.keys()) and key == [str(c.name) for c in found.primary_key]:
            return found
        if len(names) != len(found.c):
            raise ConfigError(
                f"table {found.name!r} has a column whose name SQLAlchemy cannot read on MySQL",
                hint="rename the column with line breaks or backticks in its name",
            )
        columns = [
            sa.Column(
                name,
                column.type,
                *filter(None, (column.computed, column.identity)),
                primary_key=name in key,
                nullable=column.nullable,
                autoincrement=column.autoincrement,
            )
            for name, column in zip(names, found.c, strict=True)
        ]
        return sa.Table(found.name, sa.MetaData(), *columns, schema=found.schema)

    def catalogue(self, connection: sa.Connection, table: str, schema: str | None) -> Catalogue:
        with self.raw(connection).cursor() as cursor:

            def ask(statement: str, *more: str) -> list[tuple[Any, ...]]:
                cursor.execute(statement, (schema, table, *more))
                return list(cursor.fetchall())

            kinds = ask(_RELATION)
            columns = ask(_COLUMNS)
            indexes: dict[str, list[tuple[str, int | None]]] = {}
            for index, column, prefix in ask(_UNIQUES):
                # The column is NULL for an expression.
                indexes.setdefault(index, []).append((column or "", prefix))
            triggers = [Trigger(name, when, text) for name, when, text in ask(_TRIGGERS)]
            cursor.execute(_MAY_SEE_TRIGGERS, (schema, schema, table))
            seen = bool(triggers) or bool(cursor.fetchall())
        return Catalogue(
            kind="view" if kinds and "VIEW" in str(kinds[0][0]) else "table",
            columns=tuple(tuple(map(str, column)) for column in columns),
            loose=frozenset(
                str(name)
                for name, collation, *_ in columns
                if collation is not None
                and not str(collation).endswith(("nopad_bin", "0900_bin"))
                and str(collation) != "binary"
            ),
            uniques=tuple(
                UniqueIndex(tuple(c for c, _ in parts), prefix=any(p is not None for _, p in parts))
                for parts in indexes.values()
                if all(c for c, _ in parts)
            ),
            triggers=tuple(trigger for trigger in triggers if trigger.foreign) if seen else None,
            generated=frozenset(
                str(name)
                for name, _, kind, extra, nullable, *_ in columns
                if "on update" in str(extra).lower()
                or (str(kind).startswith("timestamp") and nullable == "NO")
                or "auto_increment" in str(extra).lower()
            ),
        )

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
            return ColumnComparison(operand, ordered=False, exact=not _is_loose(kind))
        return None

    def upsert_sql(self, target: Target) -> str:
        # MySQL's newer way, a row alias, is unknown to MariaDB.
        sets = [f"{column} = VALUES({column})" for column in target.changed or target.keys[:1]]
        # ON DUPLICATE KEY also overwrites a row that has another key and the same value in any
        # other unique index. The subquery returns two rows, which is an error, and it is evaluated
        # only if the keys differ. The index may be younger than what is known of the table.
        first = target.keys[0]
        if not target.sole:
            same = " AND ".join(f"BINARY {key} <=> BINARY VALUES({key})" for key in target.keys)
            sets.insert(0, f"{first} = IF({same}, {first}, (SELECT 1 UNION SELECT 2))")
        return f"{self.insert_sql(target)} ON DUPLICATE KEY UPDATE {', '.join(sets)}"


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _is_loose(kind: sa.types.TypeEngine[Any]) -> bool:
    # A column that does not name its collation has the table's, whichever that is.
    return not str(getattr(kind, "collation", "") or "").endswith(("nopad_bin", "0900_bin"))


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
