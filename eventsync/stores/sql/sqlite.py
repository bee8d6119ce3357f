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
_CASCADING: Final = frozenset({"CASCADE", "SET NULL", "SET DEFAULT"})
_MISFIT: Final = re.compile(
    "^no such (?:table|column)|has no column named|^ON CONFLICT clause does not match"
    "|^cannot modify|syntax error|values for [0-9]+ columns"
)


class Sqlite(Dialect):
    """SQLite, with the standard library's driver."""

    mark: ClassVar[str] = "?"
    concurrent: ClassVar[bool] = False
    conditional: ClassVar[bool] = sqlite3.sqlite_version_info >= (3, 35)  # has RETURNING
    # A row that other connections never see, because it is removed before the commit.
    unmark: ClassVar[tuple[Statement, ...]] = (
        ("DELETE FROM eventsync_change WHERE number = 0", ()),
    )
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

    def catalogue(self, connection: sa.Connection, table: str, schema: str | None) -> Catalogue:
        raw = self.raw(connection)
        where = _quoted(schema or "main")
        name = f"{where}.{_quoted(table)}"
        columns = [
            tuple(row) for row in raw.execute(f"PRAGMA {where}.table_xinfo({_quoted(table)})")
        ]
        collations = {c[1]: self._collation(raw, name, c[1]) for c in columns}
        loose = frozenset(c for c, collation in collations.items() if collation != "BINARY")
        uniques, primary = [], False
        for _, index, unique, origin, partial in raw.execute(
            f"PRAGMA {where}.index_list({_quoted(table)})"
        ).fetchall():
            primary |= origin == "pk"
            parts = [
                (number, column, collation)
                for _, number, column, _, collation, is_key in raw.execute(
                    f"PRAGMA {where}.index_xinfo({_quoted(index)})"
                )
                if is_key
            ]
            if not unique or any(number < 0 for number, _, _ in parts):
                continue  # -1 is the row's number, -2 an expression
            sound = not partial and all(collations[c] == coll for _, c, coll in parts)
            uniques.append(UniqueIndex(tuple(c for _, c, _ in parts), sound, sound))
        keys = tuple(c[1] for c in sorted(columns, key=lambda c: c[5]) if c[5])
        (kind,) = raw.execute(
            f"SELECT type FROM {where}.sqlite_master WHERE lower(name) = lower(?)"
            " AND type IN ('table', 'view')",
            (table,),
        ).fetchone() or ("table",)
        if keys and not primary:
            uniques.append(UniqueIndex(keys))  # the row's number, which has no index of its own
        triggers = [
            Trigger(name, _moment(text), text)
            for name, text in raw.execute(
                f"SELECT name, sql FROM {where}.sqlite_master"
                " WHERE type = 'trigger' AND lower(tbl_name) = lower(?) ORDER BY name",
                (table,),
            )
        ]
        return Catalogue(
            kind,
            tuple(columns),
            loose,
            tuple(uniques),
            tuple(trigger for trigger in triggers if trigger.foreign),
        )

    def foreign_keys(
        self, engine: sa.Engine, schema: str | None
    ) -> Mapping[tuple[str | None, str], Sequence[Mapping[str, Any]]]:
        # SQLAlchemy also parses CREATE TABLE, and misses names with quotes.
        where = _quoted(schema or "main")
        found: dict[tuple[str | None, str], list[Mapping[str, Any]]] = {}
        with self.connected(engine) as connection:
            raw = self.raw(connection)
            tables = [
                str(name)
                for (name,) in raw.execute(
                    f"SELECT name FROM {where}.sqlite_master WHERE type = 'table'"
                )
            ]
            for table in tables:
                keys: dict[int, dict[str, Any]] = {}
                for number, _, other, column, referred, _, rule, _ in raw.execute(
                    f"PRAGMA {where}.foreign_key_list({_quoted(table)})"
                ).fetchall():
                    if referred is None:  # the other table's primary key
                        info = raw.execute(
                            f"PRAGMA {where}.table_info({_quoted(other)})"
                        ).fetchall()
                        primary = [one[1] for one in sorted(info, key=lambda one: one[5]) if one[5]]
                    key = keys.setdefault(
                        number,
                        {
                            "constrained_columns": [],
                            "referred_schema": schema,
                            "referred_table": other,
                            "referred_columns": primary if referred is None else [],
                            # A pragma defers the check of any foreign key.
                            "options": {"ondelete": rule, "deferrable": True},
                        },
                    )
                    key["constrained_columns"].append(column)
                    if referred is not None:
                        key["referred_columns"].append(referred)
                found[schema, table] = list(keys.values())
        return found

    def checks_references(self, connection: sa.Connection) -> bool:
        return bool(self.raw(connection).execute("PRAGMA foreign_keys").fetchone()[0])

    def mark_own(self, connection: sa.Connection) -> tuple[Statement, ...]:
        installed = self.raw(connection).execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'eventsync_change'"
        )
        if installed.fetchone() is None:
            return ()
        return (("INSERT INTO eventsync_change (number, place, at) VALUES (0, 'own', 0)", ()),)

    def cascades(self, connection: sa.Connection, table: str, schema: str | None) -> bool:
        raw, where = self.raw(connection), _quoted(schema or "main")
        others = raw.execute(f"SELECT name FROM {where}.sqlite_master WHERE type = 'table'")
        return any(
            other.casefold() == table.casefold() and {on_update, on_delete} & _CASCADING
            for (name,) in others.fetchall()
            for _, _, other, _, _, on_update, on_delete, _ in raw.execute(
                f"PRAGMA {where}.foreign_key_list({_quoted(name)})"
            ).fetchall()
        )

    def defer_constraints(self, connection: sa.Connection) -> None:
        # Until the end of the transaction. Only foreign keys, not unique constraints.
        self.raw(connection).execute("PRAGMA defer_foreign_keys = ON")

    def _collation(self, raw: Any, table: str, column: str) -> str:
        """Return the collation by which a column compares; empty if it is not known.

        The plan of a comparison names it. No other query does.
        """
        plan = raw.execute(f"EXPLAIN SELECT 1 FROM {table} WHERE +{_quoted(column)} = 'a'")
        found = {str(step[5] or "") for step in plan if step[1] in ("Eq", "Ne")}
        return found.pop().rpartition("-")[0] if len(found) == 1 else ""

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

    def insert_sql(self, target: Target) -> str:
        # A table may declare ON CONFLICT REPLACE, which would remove other rows, or IGNORE.
        return super().insert_sql(target).replace("INSERT INTO", "INSERT OR ABORT INTO", 1)

    def update_sql(self, target: Target) -> str:
        return super().update_sql(target).replace("UPDATE", "UPDATE OR ABORT", 1)

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


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _moment(text: str) -> str:
    """Return when a trigger runs, of its CREATE TRIGGER statement."""
    words = re.findall(r"\b(BEFORE|AFTER|INSTEAD\s+OF|INSERT|UPDATE|DELETE)\b", text.upper())
    first = next((n for n, word in enumerate(words) if word in ("INSERT", "UPDATE", "DELETE")), 0)
    return " ".join(" ".join(words[max(0, first - 1) : first + 1]).split())
