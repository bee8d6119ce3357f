"""Record types derived from existing tables."""

from __future__ import annotations

import datetime as dt
import re
import warnings
from decimal import Decimal
from typing import Any
from uuid import UUID

import sqlalchemy as sa
from sqlalchemy.dialects import mysql, postgresql

from eventsync.errors import ConfigError
from eventsync.records.record import Field, Record, Rule
from eventsync.stores.sql.engine import dialect_of, errors, open_engine

__all__ = ["derive", "field_type", "reflect"]


def reflect(engine: sa.Engine, table: str, schema: str | None) -> sa.Table:
    """Return the table as the database describes it. Raises ``ConfigError`` if there is none."""
    dialect = dialect_of(engine)
    with errors(table, dialect, engine.url), warnings.catch_warnings():
        # SQLAlchemy warns of types it does not know; their values are read as text.
        warnings.simplefilter("ignore", sa.exc.SAWarning)
        try:
            found = sa.Table(
                table, sa.MetaData(), schema=schema, autoload_with=engine, resolve_fks=False
            )
            return dialect.reflected(engine, found)
        except AttributeError:
            # SQLAlchemy cannot parse the text of CREATE TABLE, as with a line break in a name.
            raise ConfigError(
                f"SQLAlchemy cannot read the description of table {table!r}",
                hint="rename columns with line breaks or backticks in their names",
            ) from None
        except sa.exc.NoSuchTableError:
            raise ConfigError(
                f"there is no table {table!r} in {engine.url!r}",
                hint="create it, correct the name, or pass create=True",
            ) from None


def derive(
    database: str | sa.Engine,
    table: str,
    *,
    name: str | None = None,
    schema: str | None = None,
    rule: Rule = "record",
) -> type[Record]:
    """Derive a record type from a table: a field for each column, the primary key as its key.

    Generated columns are left out. So are columns that number rows (identity, AUTO_INCREMENT)
    unless they are in the key, because the database fills them. ``name``: of the record type; by
    default the table's name, with ``_`` for characters that a record type's name cannot have.

    Connects to the database. Raises ``ConfigError`` if the table is missing or has no primary key.
    """
    engine = open_engine(database)
    found = reflect(engine, table, schema)
    if not found.primary_key.columns:
        raise ConfigError(
            f"table {table!r} has no primary key, so its records cannot be told apart",
            hint="add a primary key; or declare a record type whose key fields a unique constraint"
            " of the table covers",
        )
    fields = {}
    for column in found.columns:
        key = column.primary_key
        numbered = column.identity is not None or column.autoincrement is True
        if column.computed is not None or (numbered and not key):
            continue
        optional = bool(column.nullable) and not key
        kind, zoned = field_type(column.type, engine.dialect.name)
        # SQLAlchemy's names are a subclass of str, which an envelope cannot carry.
        fields[str(column.name)] = Field(
            type=kind | None if optional else kind, key=key, zoned=zoned
        )
    # A table's name may have characters that a record type's name cannot have.
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", table)
    if plain[0] in "0123456789.-":
        plain = f"_{plain}"
    return Record.derive(name or plain, fields, rule=rule)


def field_type(kind: sa.types.TypeEngine[Any], database: str) -> tuple[Any, bool | None]:
    """Return the type of a field for a column, and whether its times have a zone."""
    while isinstance(kind, postgresql.DOMAIN):
        kind = kind.data_type
    if isinstance(kind, mysql.TINYINT) and kind.display_width == 1:
        return bool, None
    if isinstance(kind, mysql.YEAR | mysql.BIT):
        return int, None
    if isinstance(kind, sa.ARRAY):
        return list, None
    if isinstance(kind, sa.JSON):
        return Any, None
    for sql_type, python_type in (
        (sa.Boolean, bool),
        (sa.Integer, int),
        (sa.Float, float),
        (sa.Numeric, Decimal),
        (sa.DateTime, dt.datetime),
        (sa.Date, dt.date),
        (sa.Time, dt.time),
        (sa.LargeBinary, bytes),
        (sa.Uuid, UUID),
        (sa.String, str),
    ):
        if isinstance(kind, sql_type):
            zoned = None
            if database != "sqlite" and isinstance(kind, sa.DateTime | sa.Time):
                zoned = kind.timezone or isinstance(kind, mysql.TIMESTAMP)
            return python_type, zoned
    return (Any if database == "sqlite" else str), None
