"""The dialect of PostgreSQL: many rows as arrays or through COPY."""

from __future__ import annotations

import datetime as dt
import json
import re
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from decimal import Decimal
from typing import Any, ClassVar, Final
from uuid import UUID

import psycopg
import sqlalchemy as sa
from psycopg.adapt import Loader, Transformer
from sqlalchemy.dialects import postgresql as pg

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

__all__ = ["Postgresql"]

_FEW = 8  # fewer rows of known types go in a statement with all their values: see ``write``
_SOME = 30
"""Fewer rows of other types go in a statement with all their values: see ``write``."""
_IN_ARRAYS = 2000
"""Up to so many values go in arrays, more go through COPY: see ``write``."""
_KNOWN = (
    sa.String,
    sa.Integer,
    sa.Numeric,
    sa.Boolean,
    sa.Date,
    sa.DateTime,
    sa.Time,
    sa.LargeBinary,
    sa.Uuid,
    sa.JSON,
    sa.ARRAY,
)
_COMPILER: sa.Dialect = pg.dialect()  # type: ignore[no-untyped-call]
_NO_TEXT = (sa.CHAR, sa.Enum, pg.CITEXT)
_COMPARED: dict[Any, tuple[Any, ...]] = {
    bool: (sa.Boolean,),
    bytes: (sa.LargeBinary,),
    dt.date: (sa.Date,),
    UUID: (sa.Uuid,),
}
_FAITHFUL: dict[Any, tuple[Any, ...]] = {
    bool: (sa.Boolean,),
    int: (sa.Integer, sa.Numeric),
    float: (sa.Double, pg.DOUBLE_PRECISION),
    Decimal: (sa.Numeric, sa.Text, sa.VARCHAR),
    str: (sa.String,),
    bytes: (sa.LargeBinary,),
    dt.date: (sa.Date, sa.Text),
    dt.time: (sa.Time, sa.Text),
    dt.datetime: (sa.DateTime, sa.Text),
    UUID: (sa.Uuid, sa.Text, sa.VARCHAR),
}

# The database's name for the type whose binary form the driver makes of a value ...
_KINDS: dict[Any, str] = {
    bool: "bool",
    int: "int8",
    float: "float8",
    Decimal: "numeric",
    str: "text",
    bytes: "bytea",
    dt.date: "date",
    UUID: "uuid",
}
# ... and the columns that accept that form.
_BINARY: dict[Any, tuple[Any, ...]] = {
    bool: (sa.Boolean,),
    int: (sa.BigInteger,),
    float: (sa.Double, pg.DOUBLE_PRECISION),
    Decimal: (sa.Numeric,),
    str: (sa.String,),
    bytes: (sa.LargeBinary,),
    dt.date: (sa.Date,),
    dt.datetime: (sa.DateTime,),
    UUID: (sa.Uuid,),
}


_RELATION = """
SELECT relkind::text, relrowsecurity AND row_security_active(oid),
    relhassubclass AND relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = oid)
FROM pg_class WHERE oid = %s
"""
_COLUMNS = """
WITH RECURSIVE base(number, type) AS (
    SELECT attnum, atttypid FROM pg_attribute WHERE attrelid = %(table)s
    UNION ALL SELECT number, typbasetype FROM base JOIN pg_type t ON t.oid = type
    WHERE typtype = 'd')
SELECT attname::text, NOT coalesce(collisdeterministic, true) OR typname IN ('bpchar', 'citext'),
    format_type(atttypid, atttypmod), attnotnull, attidentity::text, attgenerated::text, atthasdef
FROM base JOIN pg_type t ON t.oid = type AND typtype <> 'd'
JOIN pg_attribute a ON attnum = number LEFT JOIN pg_collation c ON c.oid = attcollation
WHERE attrelid = %(table)s AND attnum > 0 AND NOT attisdropped ORDER BY attnum
"""
_UNIQUES = """
SELECT array_agg(attname::text ORDER BY place), indpred IS NULL AND indisvalid AND bool_and(
        p.coll = attcollation
        OR coalesce(o.collisdeterministic AND c.collisdeterministic, false)),
    indimmediate
FROM pg_index i CROSS JOIN LATERAL
    unnest(indkey::int2[], indcollation::oid[]) WITH ORDINALITY p (number, coll, place)
LEFT JOIN pg_attribute a ON attrelid = indrelid AND attnum = number AND number <> 0
LEFT JOIN pg_collation o ON o.oid = p.coll LEFT JOIN pg_collation c ON c.oid = attcollation
WHERE indrelid = %s AND indisunique AND place <= indnkeyatts
GROUP BY indexrelid, indpred IS NULL, indisvalid, indimmediate
HAVING bool_and(attname IS NOT NULL) ORDER BY indexrelid
"""
_TRIGGERS = """
SELECT DISTINCT tgname::text, tgtype, prosrc FROM pg_trigger JOIN pg_proc p ON p.oid = tgfoid
WHERE NOT tgisinternal AND tgenabled <> 'D'
    AND tgrelid IN (
        SELECT inhrelid FROM pg_inherits WHERE inhparent = %(table)s UNION SELECT %(table)s)
ORDER BY 1
"""
_RULES = """
SELECT rulename::text, pg_get_ruledef(oid) FROM pg_rewrite
WHERE ev_class = %s AND rulename <> '_RETURN' AND ev_enabled <> 'D' ORDER BY 1
"""
_CONSTRAINTS = """
SELECT conname::text, pg_get_constraintdef(oid) FROM pg_constraint WHERE conrelid = %s ORDER BY 1
"""


_CASCADES = """
SELECT EXISTS (
    SELECT FROM pg_constraint WHERE contype = 'f' AND confrelid = %s::regclass
    AND (confdeltype IN ('c', 'n', 'd') OR confupdtype IN ('c', 'n', 'd')))
"""
_FOREIGN_KEYS = """
SELECT r.relname::text,
    ARRAY(SELECT attname::text FROM unnest(conkey) WITH ORDINALITY k (number, place)
        JOIN pg_attribute ON attrelid = conrelid AND attnum = number ORDER BY place),
    CASE WHEN f.relnamespace = r.relnamespace THEN %(schema)s::text
        WHEN %(schema)s::text IS NULL AND pg_table_is_visible(f.oid) THEN NULL
        ELSE o.nspname::text END,
    f.relname::text,
    ARRAY(SELECT attname::text FROM unnest(confkey) WITH ORDINALITY k (number, place)
        JOIN pg_attribute ON attrelid = confrelid AND attnum = number ORDER BY place),
    confdeltype::text, condeferrable
FROM pg_constraint JOIN pg_class r ON r.oid = conrelid JOIN pg_class f ON f.oid = confrelid
JOIN pg_namespace n ON n.oid = r.relnamespace JOIN pg_namespace o ON o.oid = f.relnamespace
WHERE contype = 'f' AND CASE WHEN %(schema)s::text IS NULL THEN pg_table_is_visible(r.oid)
    ELSE n.nspname = %(schema)s::text END
ORDER BY conrelid, conname
"""


def _alias(target: Target) -> tuple[str, str]:
    """Return what to replace in an INSERT into a table that is named like ``excluded``."""
    clash = target.name.rpartition(".")[2] in ("excluded", '"excluded"')
    start = f"INSERT INTO {target.name}"
    return (start, f"{start} AS eventsync_target") if clash else ("", "")


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _when(bits: int) -> str:
    """Return when a trigger runs, of the bits of ``pg_trigger.tgtype``."""
    moment = "INSTEAD OF" if bits & 64 else "BEFORE" if bits & 2 else "AFTER"
    events = ((4, "INSERT"), (16, "UPDATE"), (8, "DELETE"), (32, "TRUNCATE"))
    return f"{moment} {' OR '.join(event for bit, event in events if bits & bit)}"


# What errors mean, by SQLSTATE, or by its first two characters (its class).
FAULTS: Final[Mapping[str, Fault]] = {
    "08": Fault.UNREACHABLE,  # connection
    "09": Fault.REJECTED,  # raised by a trigger
    "0A": Fault.CONFIG,  # not supported, as for a foreign table
    "0B": Fault.UNREACHABLE,
    "0L": Fault.ACCESS,  # invalid grantor
    "0P": Fault.ACCESS,  # invalid role
    "20": Fault.REJECTED,  # no case in a function
    "21": Fault.REJECTED,  # two rows of a batch are one for the database
    "22": Fault.REJECTED,  # the value does not fit
    "23": Fault.REJECTED,  # a constraint
    "23503": Fault.DEPENDENCY,
    "23505": Fault.UNIQUE,
    "23P01": Fault.UNIQUE,  # an exclusion constraint
    "24": Fault.UNREACHABLE,
    "25": Fault.UNREACHABLE,  # read-only, as on a standby; idle for too long
    "26": Fault.UNDONE,  # the prepared statement is gone
    "27": Fault.REJECTED,  # a trigger has changed the same row
    "28": Fault.ACCESS,  # user or password
    "2B": Fault.ACCESS,
    "2D": Fault.UNREACHABLE,
    "2F": Fault.REJECTED,
    "34": Fault.UNREACHABLE,
    "38": Fault.REJECTED,  # raised by a function
    "39": Fault.REJECTED,
    "3B": Fault.UNREACHABLE,
    "3D": Fault.ACCESS,  # no such database
    "3F": Fault.CONFIG,  # no such schema
    "40": Fault.UNREACHABLE,
    "40001": Fault.UNDONE,
    "40002": Fault.REJECTED,  # a constraint at the commit
    "40P01": Fault.UNDONE,
    "42": Fault.CONFIG,  # what a statement names is missing, or has another type
    "42501": Fault.ACCESS,
    "42P05": Fault.UNDONE,  # another session has prepared the same statement
    "44": Fault.REJECTED,  # the check option of a view
    "53": Fault.UNREACHABLE,  # disk, memory or connections are exhausted
    "54": Fault.REJECTED,  # too large, as for an index
    "55": Fault.CONFIG,
    "55006": Fault.UNREACHABLE,
    "55P03": Fault.LOCKED,
    "57": Fault.UNREACHABLE,  # shut down, starting, cancelled
    "58": Fault.UNREACHABLE,
    "72": Fault.UNREACHABLE,
    "F0": Fault.UNREACHABLE,
    "HV": Fault.UNREACHABLE,  # the server behind a foreign table
    "P0": Fault.REJECTED,  # RAISE EXCEPTION in a trigger
    "XX": Fault.UNREACHABLE,
}
_LOGIN: Final = re.compile(
    r"password authentication failed|no password supplied|authentication failed for user"
    r"|(?:database|role) \".*\" does not exist|no such (?:database|user)"
    r"|no pg_hba.conf entry|permission denied for database|not permitted to log in"
    r"|certificate verify failed|root certificate file|server certificate for|SSL was required"
)
_CAUSES: Final = 10
"""How many causes of an error are looked at; they can form a circle."""
_POOLED: Final = "eventsync behind a pooler"
# 5 s, unless the user or the database sets another time.
_LOCK_TIMEOUT: Final = (
    "SELECT set_config('lock_timeout', '5s', {}) WHERE current_setting('lock_timeout') = '0'"
)

# The sequences that number the rows of a table, by column.
_NUMBERED = r"""
FROM (
    SELECT a.attname, coalesce(
        pg_get_serial_sequence(%s, a.attname),
        substring(pg_get_expr(d.adbin, d.adrelid) FROM $$^nextval\('(.*)'::regclass\)$$)) AS name
    FROM pg_attribute a
    LEFT JOIN pg_attrdef d ON d.adrelid = a.attrelid AND d.adnum = a.attnum
    WHERE a.attrelid = %s::regclass AND a.attname = ANY(%s)) AS numbered
JOIN pg_sequence ON seqrelid = name::regclass"""
# Whether this user may advance a sequence.
_MAY_ADVANCE = (
    "(has_sequence_privilege(seqrelid, 'UPDATE') AND has_sequence_privilege(seqrelid, 'SELECT'))"
)
_SEQUENCES = f"SELECT attname, name {_NUMBERED} WHERE {_MAY_ADVANCE}"
_STUCK = (
    f"SELECT attname, name, seqincrement > 0 {_NUMBERED}"
    f" WHERE seqincrement <= 0 OR NOT {_MAY_ADVANCE}"
)
_ADVANCE = (
    "SELECT setval(s.seqrelid::regclass, least(n.top, s.seqmax)) FROM pg_sequence s, {} q,"
    " (SELECT %s::bigint AS top) n WHERE s.seqrelid = %s::regclass AND s.seqincrement > 0"
    " AND least(n.top, s.seqmax) - q.last_value >= q.is_called::int"
)


def _is_stale(error: BaseException | None) -> bool:
    """Return whether an error says that a prepared statement of the connection is of no use.

    Another client of a pooler prepared or removed it, or the table was altered.
    """
    for _ in range(_CAUSES):
        if error is None:
            return False
        state = getattr(error, "sqlstate", None)
        if state in ("42P05", "26000"):
            return True
        if state == "0A000" and isinstance(error, psycopg.Error):
            # "cached plan must not change result type", in the language of the server
            return error.diag.source_function == "RevalidateCachedQuery"
        error = getattr(error, "orig", None) or error.__cause__
    return False


def _base(kind: Any) -> Any:
    """Return the type behind a domain."""
    while isinstance(kind, pg.DOMAIN):
        kind = kind.data_type
    return kind


def _is_native(kind: Any) -> bool:
    """Return whether the driver reads and writes arrays of a type as lists."""
    known = isinstance(kind, _KNOWN) and not isinstance(kind, pg.DOMAIN | pg.INTERVAL)
    return known and not isinstance(kind, sa.Enum | pg.CITEXT | sa.JSON)


def _has_array(kind: sa.ARRAY[Any]) -> bool:
    return _is_native(kind.item_type)


# A value in the message of an error of class 22, for example "invalid input syntax for type
# integer: "..."". It may contain quotes itself.
_QUOTED = re.compile(r'(?s)".*"')


class Postgresql(Dialect):
    """PostgreSQL, with psycopg 3."""

    conditional: ClassVar[bool] = True
    relaxed_commit: ClassVar[tuple[Statement, ...]] = (("SET LOCAL synchronous_commit TO off", ()),)
    unmark: ClassVar[tuple[Statement, ...]] = (
        ("SELECT set_config('eventsync.own', '', true)", ()),
    )
    log_own: ClassVar[tuple[Statement, ...]] = (
        ("SELECT pg_logical_emit_message(true, 'eventsync', '')", ()),
    )
    sees_nested: ClassVar[bool] = True
    error = psycopg.Error

    def fault(self, error: Exception) -> Fault:
        state = getattr(error, "sqlstate", None) or ""
        if not state:
            # The driver's own errors, and those of connecting, of which it keeps only the text.
            if _LOGIN.search(str(error)):
                return Fault.ACCESS
            rejecting = (psycopg.DataError, psycopg.ProgrammingError, psycopg.NotSupportedError)
            return Fault.REJECTED if isinstance(error, rejecting) else Fault.UNREACHABLE
        if _is_stale(error):
            return Fault.UNDONE
        # PostgreSQL has no other classes: a trigger has raised the error with a state of its own.
        return FAULTS.get(state) or FAULTS.get(state[:2], Fault.REJECTED)

    def said(self, error: Exception, *, values: bool = True) -> str:
        diagnosis = getattr(error, "diag", None)
        primary = getattr(diagnosis, "message_primary", None)
        if values or not primary:
            return super().said(error, values=values)
        # Only the details quote values, and, of data errors, the message itself.
        state = getattr(error, "sqlstate", None) or ""
        return _QUOTED.sub('"***"', primary) if state.startswith("22") else str(primary)

    def set_up(self, connection: sa.Connection) -> None:
        raw = self.raw(connection)
        raw.isolation_level = psycopg.IsolationLevel.READ_COMMITTED
        (server,) = raw.execute(
            "SELECT pg_backend_pid() FROM set_config('TimeZone', 'UTC', false)"
        ).fetchone()
        # A pooler gives its clients process numbers of its own. Its server sessions are shared:
        # prepared statements and settings of one client would meet those of another.
        connection.info[_POOLED] = server != raw.info.backend_pid
        if connection.info[_POOLED]:
            raw.prepare_threshold = None
        else:
            raw.execute(_LOCK_TIMEOUT.format("false"))
        raw.commit()

    def begin(self, connection: sa.Connection) -> None:
        super().begin(connection)
        if connection.info.get(_POOLED):
            self.raw(connection).execute(_LOCK_TIMEOUT.format("true"))

    @contextmanager
    def connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with super().connected(engine) as connection:
            try:
                yield connection
            except Exception as error:
                if _is_stale(error):
                    connection.invalidate()  # the next attempt uses a new connection
                raise

    @contextmanager
    def reading(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        with self.connected(engine) as connection:
            raw = self.raw(connection)
            # Beginning and ending a transaction takes longer than most reads.
            raw.autocommit = True
            try:
                yield connection
            finally:
                if not raw.closed:
                    raw.autocommit = False

    @contextmanager
    def beside(self, engine: sa.Engine, connection: sa.Connection) -> Iterator[sa.Connection]:
        # A transaction in which a statement failed takes no further statement.
        with self.connected(engine) as other:
            yield other

    def skip_locked(self, connection: sa.Connection) -> str:
        return " FOR NO KEY UPDATE SKIP LOCKED"

    def reach(self, connection: sa.Connection, table: str) -> None:
        self.raw(connection).execute(f"LOCK TABLE {table} IN ROW EXCLUSIVE MODE", ())

    @contextmanager
    def alone(self, connection: sa.Connection) -> Iterator[None]:
        self.begin(connection)
        connection.exec_driver_sql("SELECT pg_advisory_xact_lock(7311146936)")
        yield
        connection.commit()

    def text_key(self, length: int) -> sa.types.TypeEngine[Any]:
        return sa.Text(collation="C")

    def column_type(self, field: Field, *, keys: int) -> sa.types.TypeEngine[Any]:
        kind: Any = field.type
        if kind in (dt.datetime, dt.time):
            if field.zoned is None:
                return sa.Text()  # other columns confuse values with and without a zone
            return (sa.DateTime if kind is dt.datetime else sa.Time)(timezone=field.zoned)
        made: dict[Any, sa.types.TypeEngine[Any]] = {
            bool: sa.Boolean(),
            int: sa.BigInteger(),
            float: pg.DOUBLE_PRECISION(),
            Decimal: sa.Numeric(),
            str: sa.Text(collation="C" if keys else None),
            bytes: sa.LargeBinary(),
            dt.date: sa.Date(),
            UUID: sa.Uuid(),
        }
        # Not JSONB, which changes numbers: 1e16 would come back as an integer.
        return made.get(kind) or pg.JSON()

    def catalogue(self, connection: sa.Connection, table: str, schema: str | None) -> Catalogue:
        raw = self.raw(connection)
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        place = raw.execute("SELECT %s::regclass::oid", (name,)).fetchone()[0]
        kind, secured, split = raw.execute(_RELATION, (place,)).fetchone()
        columns = raw.execute(_COLUMNS, {"table": place}).fetchall()
        uniques = [
            # Rows of other tables that inherit from this one are not compared with its own.
            UniqueIndex(tuple(names), sound and not split, sound and not split and immediate)
            for names, sound, immediate in raw.execute(_UNIQUES, (place,))
        ]
        triggers = [
            Trigger(name, _when(bits), text)
            for name, bits, text in raw.execute(_TRIGGERS, {"table": place})
        ]
        triggers = [trigger for trigger in triggers if trigger.foreign]
        rules = [Trigger(name, "RULE", text) for name, text in raw.execute(_RULES, (place,))]
        constraints = raw.execute(_CONSTRAINTS, (place,)).fetchall()
        return Catalogue(
            kind={"v": "view", "m": "materialized view", "f": "foreign table"}.get(kind, "table"),
            columns=tuple(tuple(column) for column in columns),
            loose=frozenset(column[0] for column in columns if column[1]),
            uniques=tuple(uniques),
            triggers=(*triggers, *rules),
            secured=secured,
            constraints=tuple(constraints),
        )

    def may_create(self, connection: sa.Connection, schema: str | None) -> bool:
        row = (
            self.raw(connection)
            .execute(
                "SELECT has_schema_privilege(coalesce(%s, current_schema()), 'CREATE')", (schema,)
            )
            .fetchone()
        )
        return bool(row[0])

    def lacking_rights(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[str]:
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        lacking = []
        for right in ("SELECT", "INSERT", "UPDATE", "DELETE"):
            statement, parameters = "SELECT has_table_privilege(%s, %s)", [name, right]
            if right != "DELETE":
                statement = (
                    "SELECT bool_and(has_column_privilege(%s, name, %s))"
                    " FROM unnest(%s::text[]) name"
                )
                parameters.append(list(columns))  # type: ignore[arg-type]
            if not self.raw(connection).execute(statement, parameters).fetchone()[0]:
                lacking.append(right)
        return lacking

    def lacking_sequences(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[str]:
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        found = self.raw(connection).execute(
            "SELECT sequence FROM pg_attribute,"
            " LATERAL pg_get_serial_sequence(%(table)s, attname) sequence"
            " WHERE attrelid = %(table)s::regclass AND attnum > 0 AND NOT attisdropped"
            " AND attidentity = '' AND sequence IS NOT NULL AND attname <> ALL(%(columns)s)"
            " AND NOT has_sequence_privilege(sequence, 'USAGE')",
            {"table": name, "columns": list(columns)},
        )
        return [str(sequence) for (sequence,) in found]

    def stuck_sequences(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[tuple[str, str, bool]]:
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        found = self.raw(connection).execute(_STUCK, (name, name, list(columns)))
        return [(column, sequence, upward) for column, sequence, upward in found]

    def user(self, connection: sa.Connection) -> str:
        return _quoted(self.raw(connection).execute("SELECT current_user").fetchone()[0])

    def foreign_keys(
        self, engine: sa.Engine, schema: str | None
    ) -> Mapping[tuple[str | None, str], Sequence[Mapping[str, Any]]]:
        # SQLAlchemy parses their definitions, and fails at names with line breaks.
        found: dict[tuple[str | None, str], list[Mapping[str, Any]]] = {}
        with self.connected(engine) as connection:
            for (
                table,
                columns,
                other_schema,
                other,
                referred,
                rule,
                deferrable,
            ) in self.raw(connection).execute(_FOREIGN_KEYS, {"schema": schema}):
                found.setdefault((schema, table), []).append(
                    {
                        "constrained_columns": columns,
                        "referred_schema": other_schema,
                        "referred_table": other,
                        "referred_columns": referred,
                        "options": {
                            "ondelete": {"a": "", "r": "RESTRICT"}.get(rule, "OTHER"),
                            "deferrable": deferrable,
                        },
                    }
                )
        return found

    def defer_constraints(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET CONSTRAINTS ALL DEFERRED")

    def mark_own(self, connection: sa.Connection) -> tuple[Statement, ...]:
        return (("SELECT set_config('eventsync.own', '1', true)", ()),)

    def cascades(self, connection: sa.Connection, table: str, schema: str | None) -> bool:
        name = ".".join(_quoted(part) for part in (schema, table) if part)
        found = self.raw(connection).execute(_CASCADES, (name,))
        return bool(found.fetchone()[0])

    def check_constraints(self, connection: sa.Connection) -> None:
        connection.exec_driver_sql("SET CONSTRAINTS ALL IMMEDIATE")

    def insert_sql(self, target: Target) -> str:
        return super().insert_sql(target).replace(*_alias(target), 1)

    def select_expression(self, quoted: str, kind: sa.types.TypeEngine[Any]) -> str:
        # Types unknown to Python (intervals, networks, ranges) are read as text, as is JSON, whose
        # numbers the driver would round. The driver does not split arrays of types that it lacks.
        base = _base(kind)
        if isinstance(base, sa.ARRAY) and not _has_array(base):
            item = _base(base.item_type)
            native = _is_native(item) and not isinstance(item, sa.String)
            return f"{quoted}::{item.compile(dialect=_COMPILER) if native else 'text'}[]"
        known = isinstance(base, _KNOWN) and not isinstance(kind, pg.INTERVAL)
        return quoted if known and not isinstance(base, sa.JSON) else f"{quoted}::text"

    def codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        codec = self._codec(kind, field)
        if field is None or not field.scalar or not isinstance(kind, _BINARY.get(field.type, ())):
            return codec
        if isinstance(kind, sa.DateTime):
            binary = "timestamptz" if kind.timezone else "timestamp"
            return replace(codec, kind=binary) if kind.timezone is field.zoned else codec
        if isinstance(kind, _NO_TEXT):
            return codec
        return replace(codec, kind=_KINDS[field.type])

    def kind(self, kind: sa.types.TypeEngine[Any]) -> str:
        if isinstance(kind, sa.LargeBinary):
            return "bytea"
        return "int2" if isinstance(kind, sa.SmallInteger) else "text"

    def _codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        kind = _base(kind)
        if field is None:
            read_json = from_json(None, always=True) if isinstance(kind, sa.JSON) else None
            return ColumnCodec(read=read_json, faithful=False)
        if isinstance(kind, sa.JSON):
            write_json = to_json(field, always=True)
            return ColumnCodec(write_json, from_json(field, always=True), faithful=False)
        if isinstance(kind, sa.ARRAY):
            return ColumnCodec(None if _has_array(kind) else _array, faithful=False)
        if not field.scalar and not isinstance(kind, sa.String):
            # As text, which the database converts, because the type of a value would not fit.
            return ColumnCodec(_literal, faithful=False)
        faithful = isinstance(kind, _FAITHFUL.get(field.type, ())) and field.scalar
        if isinstance(kind, sa.DateTime | sa.Time):
            precision = getattr(kind, "precision", None)
            write = moment(
                column_zoned=kind.timezone,
                field_zoned=field.zoned,
                digits=6 if precision is None else precision,
                utc=False,
            )
            read = _in_utc if field.zoned and not kind.timezone else None
            return ColumnCodec(write, read, faithful=faithful)
        if isinstance(kind, sa.Float):
            return ColumnCodec(faithful=faithful)
        if isinstance(kind, sa.Numeric):
            native = field.type is Decimal and kind.scale is None
            write = exact_decimal(kind.scale, lambda number: number)
            return ColumnCodec(
                None if native else write, faithful=faithful, verbatim=kind.scale is None
            )
        if isinstance(kind, sa.Integer) and field.type is bool:
            return ColumnCodec(lambda value: value if value is None else int(value), faithful=False)
        if isinstance(kind, sa.String):
            if not field.scalar:
                return ColumnCodec(to_json(field), from_json(field), faithful=False)
            if isinstance(kind, sa.CHAR):
                # The database pads the value with blanks.
                return ColumnCodec(to_text, _stripped, faithful=False)
            return ColumnCodec(None if field.type is str else to_text, faithful=faithful)
        return ColumnCodec(faithful=faithful)

    def comparison(self, kind: sa.types.TypeEngine[Any], field: Field) -> ColumnComparison | None:
        kind = _base(kind)
        if isinstance(kind, _COMPARED.get(field.type, ())):
            return ColumnComparison()
        if field.type is int and isinstance(kind, sa.Integer):
            return ColumnComparison(number_operand)
        if field.type is float and isinstance(kind, sa.Double):
            return ColumnComparison(
                number_operand, exact=False
            )  # NaN is greater than all others here
        numeric = isinstance(kind, sa.Numeric) and not isinstance(kind, sa.Float)
        if field.type is Decimal and numeric:
            return ColumnComparison(number_operand, exact=False)
        if field.type is dt.datetime and isinstance(kind, sa.DateTime):
            alike = field.zoned is kind.timezone
            return ColumnComparison(time_operand(zoned=kind.timezone, utc=False)) if alike else None
        if field.type is str and isinstance(kind, sa.String) and not isinstance(kind, _NO_TEXT):
            # With another collation, only the database knows which texts are equal.
            return ColumnComparison(
                text_operand, ordered=False, exact=kind.collation in (None, "C")
            )
        return None

    def among(self, column: str, values: list[Any]) -> tuple[str, tuple[Any, ...]]:
        return f"{column} = ANY({self.mark})", (values,)

    def fetch(
        self, connection: sa.Connection, statement: str, parameters: tuple[Any, ...]
    ) -> Iterable[Sequence[Any]]:
        # Past SQLAlchemy, which would make its own objects of the rows.
        raw = self.raw(connection)
        return _rows(raw, raw.execute(statement, parameters))

    def execute_all(
        self, connection: sa.Connection, statements: Sequence[Statement]
    ) -> list[list[Sequence[Any]]]:
        raw = self.raw(connection)
        if len(statements) == 1:
            cursor = raw.execute(*statements[0])  # a single statement may be prepared
        else:
            # The server takes several statements at once only if the client inserts the parameters.
            cursor = psycopg.ClientCursor(raw)
            text = "; ".join(statement for statement, _ in statements)
            cursor.execute(text, [part for _, parameters in statements for part in parameters])
        return [_rows(raw, result) if result.description else [] for result in cursor.results()]

    def statement(
        self, target: Target, rows: list[tuple[Any, ...]], *, upsert: bool = False
    ) -> Statement | None:
        return None if len(rows) >= _SOME else self._with_values(target, rows, upsert=upsert)

    def _with_values(
        self, target: Target, rows: list[tuple[Any, ...]], *, upsert: bool
    ) -> Statement:
        # Not executemany: its pipeline has to be torn down when a row is rejected.
        more = f", ({', '.join([self.mark] * len(target.columns))})" * (len(rows) - 1)
        clause = self._clause(target, upsert=upsert)
        return f"{self.insert_sql(target)}{more}{clause}", tuple(
            part for row in rows for part in row
        )

    def is_untouched(self, connection: sa.Connection) -> bool:
        status = self.raw(connection).info.transaction_status
        return bool(status is not psycopg.pq.TransactionStatus.INERROR)

    def upsert_if(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        condition: str,
        returning: str,
    ) -> list[Any]:
        if not rows:
            return []
        clause = f"{self._clause(target, upsert=True)} WHERE {condition} RETURNING {returning}"
        # Entries have few columns, so arrays are fast for any number of them.
        return [row[0] for row in self._from_arrays(connection, target, rows, clause).fetchall()]

    def _insert_into(self, target: Target) -> str:
        overriding = " OVERRIDING SYSTEM VALUE" if target.overriding else ""
        statement = f"INSERT INTO {target.name} ({', '.join(target.columns)}){overriding}"
        return statement.replace(*_alias(target), 1)

    def _clause(self, target: Target, *, upsert: bool) -> str:
        return f" {self.on_conflict(target)}" if upsert else ""

    def insert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        super().insert(connection, target, rows)
        self._advance(connection, target, rows)

    def upsert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        super().upsert(connection, target, rows)
        self._advance(connection, target, rows)

    def sequences(
        self, engine: sa.Engine, table: sa.Table, columns: Sequence[str]
    ) -> tuple[tuple[int, str], ...]:
        whole = [c for c in columns if isinstance(_base(table.c[c].type), sa.Integer)]
        # Quoted here, because SQLAlchemy doubles percent signs for statements with parameters.
        name = ".".join(_quoted(part) for part in (table.schema, table.name) if part)
        with self.connected(engine) as connection:
            found = self.raw(connection).execute(_SEQUENCES, (name, name, whole)).fetchall()
        return tuple((columns.index(column), sequence) for column, sequence in found)

    def _advance(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        """Advance the sequences of columns past the numbers written to them."""
        for place, sequence in target.sequences:
            numbers = [row[place] for row in rows if isinstance(row[place], int)]
            if numbers:
                self.raw(connection).execute(
                    _ADVANCE.format(sequence.replace("%", "%%")), (max(numbers), sequence)
                )

    def write(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        *,
        upsert: bool,
    ) -> None:
        # A statement with all values takes long to parse. Arrays cost the driver more than COPY,
        # which costs four more round trips. Arrays need known types.
        if len(rows) < (_FEW if target.types else _SOME):
            if rows:
                self.raw(connection).execute(*self._with_values(target, rows, upsert=upsert))
            return
        clause = self._clause(target, upsert=upsert)
        if target.types and len(rows) * len(target.columns) <= _IN_ARRAYS:
            self._from_arrays(connection, target, rows, clause)
            return
        cursor, names = self.raw(connection).cursor(), ", ".join(target.columns)
        temporary = self._staged(cursor, target, rows)
        cursor.execute(f"{self._insert_into(target)} SELECT {names} FROM {temporary}{clause}", ())

    def _from_arrays(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]], clause: str
    ) -> Any:
        """Insert rows with a conflict clause; return the cursor."""
        arrays = ", ".join(f"%b::{kind}[]" for kind in target.types)
        return self.raw(connection).execute(
            f"{self._insert_into(target)} SELECT * FROM unnest({arrays}){clause}",
            list(map(list, zip(*rows, strict=True))),
        )

    def update(self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]) -> int:
        if len(rows) < _SOME:
            return super().update(connection, target, rows)
        cursor = self.raw(connection).cursor()
        temporary = self._staged(cursor, target, rows)
        sets = ", ".join(f"{column} = i.{column}" for column in target.changed)
        same = " AND ".join(f"t.{column} = i.{column}" for column in target.keys)
        cursor.execute(f"UPDATE {target.name} t SET {sets} FROM {temporary} i WHERE {same}", ())
        return int(cursor.rowcount)

    def _staged(self, cursor: Any, target: Target, rows: list[tuple[Any, ...]]) -> str:
        """Fill a temporary table with these rows; return its name.

        ``%`` is doubled in quoted names, as statements with parameters need it, hence the empty
        parameters here. COPY takes none.
        """
        # One table for all sets of columns that patches may change; unused columns stay empty.
        staged = ", ".join(target.staging or target.columns)
        layout = f"{target.name} {staged} {target.shape}".encode()
        temporary = f"pg_temp.eventsync_{zlib.crc32(layout):08x}_{len(layout)}"
        cursor.execute(
            f"CREATE TEMPORARY TABLE IF NOT EXISTS {temporary} ON COMMIT DELETE ROWS AS"
            f" SELECT {staged} FROM {target.name} WITH NO DATA",
            (),
        )
        cursor.execute(f"DELETE FROM {temporary}")
        binary = " (FORMAT BINARY)" if target.types else ""
        columns = ", ".join(target.columns).replace("%%", "%")
        with cursor.copy(f"COPY {temporary} ({columns}) FROM STDIN{binary}") as copy:
            if target.types:
                copy.set_types(target.types)
            write = copy.write_row
            for row in rows:
                write(row)
        return temporary


def _rows(raw: Any, cursor: Any) -> list[Sequence[Any]]:
    """Return the rows of a result. A time that Python cannot hold is returned as its text.

    Examples are infinity and years before Christ. The field rejects the text of its record only.
    """
    try:
        return list(cursor.fetchall())
    except psycopg.DataError:
        context = raw.cursor()
        for name in ("date", "time", "timetz", "timestamp", "timestamptz"):
            loader = raw.adapters.get_loader(raw.adapters.types[name].oid, psycopg.pq.Format.TEXT)
            context.adapters.register_loader(name, _or_text(loader))
        transformer = Transformer.from_context(context)
        transformer.set_pgresult(cursor.pgresult)
        return list(transformer.load_rows(0, cursor.pgresult.ntuples, tuple))


def _or_text(loader: Any) -> Any:
    """Return a loader that returns the text of values which ``loader`` refuses."""

    class OrText(Loader):
        def __init__(self, oid: int, context: Any = None) -> None:
            super().__init__(oid, context)
            self._load = loader(oid, context).load

        def load(self, data: Any) -> Any:
            try:
                return self._load(data)
            except psycopg.DataError:
                return bytes(data).decode()

    return OrText


def _in_utc(value: Any) -> Any:
    return value.replace(tzinfo=dt.UTC) if isinstance(value, dt.datetime) else value


def _stripped(value: Any) -> Any:
    return value.rstrip(" ") if isinstance(value, str) else value


def _array(value: Any) -> Any:
    """Return a list in the text form of PostgreSQL's arrays, for elements of any type."""
    if not isinstance(value, list):
        return _literal(value)
    return f"{{{', '.join(map(_element, value))}}}"


def _element(value: Any) -> str:
    if value is None:
        return "NULL"
    if isinstance(value, list):
        return str(_array(value))
    text = str(_literal(value)).replace("\\", "\\\\").replace('"', '\\"')
    return f'"{text}"'


def _literal(value: Any) -> Any:
    """Return a value in the text form that columns of its type take; bytes unchanged."""
    if value is None or isinstance(value, bytes | str):
        return value
    if isinstance(value, dict | list | bool):
        return json.dumps(value, ensure_ascii=False, default=to_text)
    return str(to_text(value))
