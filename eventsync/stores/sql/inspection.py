"""What fits and what does not between a record type and an existing table. Changes nothing."""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any, Final

import sqlalchemy as sa
from sqlalchemy.schema import CreateIndex, CreateTable

from eventsync.engine.finding import Finding, Level
from eventsync.records.field import Field
from eventsync.records.view import BoundView
from eventsync.stores.sql.derive import field_type
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.index_table import IndexTables
from eventsync.stores.sql.order_check import inspect_order
from eventsync.stores.sql.table import Table, new_table

__all__ = ["inspect_index", "inspect_table", "is_reachable"]

_RIGHTS: Final = ("SELECT", "INSERT", "UPDATE", "DELETE")
# Types of fields that a column of another type holds as they are.
_ALSO: Final[dict[Any, tuple[Any, ...]]] = {
    bool: (int,),
    int: (Decimal, bool),
    Decimal: (str,),
    dt.date: (str,),
    dt.time: (str,),
    dt.datetime: (str,),
    list: (str,),
    dict: (str,),
}


def is_reachable(engine: sa.Engine) -> bool:
    """Return false for an SQLite file that does not exist, which a connection would create."""
    place = engine.url.database
    if engine.dialect.name != "sqlite" or not place or place == ":memory:" or "mode=" in place:
        return True
    return Path(place.removeprefix("file:").partition("?")[0]).exists()


def create_statements(engine: sa.Engine, *tables: sa.Table) -> tuple[str, ...]:
    """Return the statements that create these tables with their indexes."""
    made: list[str] = []
    for table in tables:
        parts: list[sa.schema.DDLElement] = [CreateTable(table)]
        parts += map(CreateIndex, table.indexes)
        for part in parts:
            text = str(part.compile(engine)).strip()
            made.append(f"{text.replace('%%', '%')};")
    return tuple(made)


def inspect_index(
    tables: IndexTables, engine: sa.Engine, dialect: Dialect, about: str
) -> Iterator[Finding]:
    """Yield what is missing of eventsync's own tables: the tables and the rights to use them."""
    wanted = (tables.version, tables.outbox, tables.mark)
    with dialect.connected(engine) as connection:
        inspector = sa.inspect(connection)
        absent = [t for t in wanted if not inspector.has_table(t.name, schema=t.schema)]
        if absent:
            names = ", ".join(table.name for table in absent)
            made = create_statements(engine, *absent)
            if dialect.may_create(connection, tables.version.schema):
                text = (
                    f"{names} do not exist yet; a worker or `eventsync check --create` makes them"
                )
                yield Finding(Level.OK, about, text, made, absent=True)
            else:
                text = f"{names} do not exist, and this user may not create tables"
                rights = tuple(_grant(dialect, connection, engine, table) for table in absent)
                yield Finding(Level.WRONG, about, text, (*made, *rights))
        for table in wanted:
            if table not in absent:
                # The database numbers the rows of the outbox.
                columns = [c.name for c in table.columns if c.name != "number"]
                yield from _rights(dialect, connection, engine, table, columns, about)


def inspect_table(
    view: BoundView,
    engine: sa.Engine,
    dialect: Dialect,
    name: str,
    schema: str | None,
    about: str,
    *,
    create: bool,
) -> Iterator[Finding]:
    """Yield what does not fit between a record type and its table.

    Raises ``ConfigError`` for a table that the store refuses.
    """
    with dialect.connected(engine) as connection:
        if not sa.inspect(connection).has_table(name, schema=schema) and not _is_view(
            connection, name, schema
        ):
            made = create_statements(engine, new_table(view, dialect, name, schema))
            if create and dialect.may_create(connection, schema):
                text = (
                    f"the table {name!r} does not exist yet; a worker or `eventsync check --create`"
                    " makes it"
                )
                yield Finding(Level.OK, about, text, made, absent=True)
            else:
                why = "this user may not create it" if create else "it was not declared create=True"
                yield Finding(
                    Level.WRONG, about, f"the table {name!r} does not exist, and {why}", made
                )
            return
    table = Table(view, engine, dialect, name, schema)
    with dialect.connected(engine) as connection:
        yield from _rights(dialect, connection, engine, table.found, list(table.columns), about)
        yield from _numbering(dialect, connection, table, about)
    yield from _columns(table, name, about)
    yield from _behaviour(table, name, about)
    yield from inspect_order(table, engine, dialect, about)


def _is_view(connection: sa.Connection, name: str, schema: str | None) -> bool:
    return name in sa.inspect(connection).get_view_names(schema=schema)


def _rights(
    dialect: Dialect,
    connection: sa.Connection,
    engine: sa.Engine,
    table: sa.Table,
    columns: list[str],
    about: str,
) -> Iterator[Finding]:
    lacking = dialect.lacking_rights(connection, str(table.name), table.schema, columns)
    if lacking:
        yield Finding(
            Level.WRONG,
            about,
            f"this user lacks {', '.join(lacking)} on the table {table.name!r}",
            (_grant(dialect, connection, engine, table, lacking),),
        )

    sequences = dialect.lacking_sequences(connection, str(table.name), table.schema, columns)
    if sequences:
        user = dialect.user(connection)
        yield Finding(
            Level.WRONG,
            about,
            f"this user lacks USAGE on {', '.join(sequences)}, which numbers rows of"
            f" {table.name!r}",
            tuple(f"GRANT USAGE ON SEQUENCE {one} TO {user};" for one in sequences),
        )


def _numbering(
    dialect: Dialect, connection: sa.Connection, table: Table, about: str
) -> Iterator[Finding]:
    """Find sequences that stay behind the numbers which eventsync writes."""
    name, schema = str(table.found.name), table.found.schema
    for column, sequence, grantable in dialect.stuck_sequences(
        connection, name, schema, list(table.columns)
    ):
        user = dialect.user(connection)
        remedy = "grant SELECT and UPDATE on it" if grantable else "advance it yourself"
        yield Finding(
            Level.RISK,
            about,
            f"eventsync cannot advance the sequence {sequence}, which numbers {name}.{column}:"
            " after a record of another store the application's own INSERT may take a number that"
            f" is in use, and fail; {remedy}",
            (f"GRANT SELECT, UPDATE ON SEQUENCE {sequence} TO {user};",) if grantable else (),
        )


def _grant(
    dialect: Dialect,
    connection: sa.Connection,
    engine: sa.Engine,
    table: sa.Table,
    rights: tuple[str, ...] | list[str] = _RIGHTS,
) -> str:
    name = engine.dialect.identifier_preparer.format_table(table).replace("%%", "%")
    return f"GRANT {', '.join(rights)} ON {name} TO {dialect.user(connection)};"


def _columns(table: Table, name: str, about: str) -> Iterator[Finding]:
    """Compare the declared fields with their columns, and find columns that nobody fills."""
    limits = []
    for field_name, column_name in table.view.names.items():
        field, column = table.type.fields[field_name], table.found.c[column_name]
        if field_name in table.view.convert:
            continue
        what = f"{table.type.name}.{field_name} is declared {_named(field)}, but the column"
        if not _fits(field, column.type, table.dialect_name):
            yield Finding(
                Level.RISK,
                about,
                f"{what} {name}.{column_name} is {column.type}: a value may be rejected, or a row"
                " may not be readable; declare the column's type, or convert it in the view",
            )
        if field.optional and not column.nullable and not column.primary_key:
            yield Finding(
                Level.RISK,
                about,
                f"{what} {name}.{column_name} takes no NULL: a record without a value is rejected",
            )
        if not field.optional and column.nullable and not field.key:
            yield Finding(
                Level.NOTE,
                about,
                f"{what} {name}.{column_name} may be NULL: a row with NULL there cannot be read",
            )
        length = getattr(column.type, "length", None)
        if field.type is str and length and (field.length is None or field.length > length):
            limits.append(f"{column_name} ({length})")
    if limits:
        yield Finding(
            Level.NOTE,
            about,
            f"longer texts are rejected by columns of {name}: {', '.join(limits)}",
        )
    for column in table.found.columns:
        filled = column.server_default or column.identity or column.computed
        numbered = column.autoincrement is True or column.name in table.catalogue.generated
        if column.name not in table.columns and not (column.nullable or filled or numbered):
            yield Finding(
                Level.WRONG,
                about,
                f"the column {name}.{column.name} takes no NULL, has no default, and no field or"
                " constant of the view fills it: every new record is rejected",
            )


def _behaviour(table: Table, name: str, about: str) -> Iterator[Finding]:
    """Say what the table does to keys and values."""
    catalogue = table.catalogue
    if table.loose_keys:
        yield Finding(
            Level.NOTE,
            about,
            f"the key column {', '.join(table.loose_keys)} of {name} takes some different keys for"
            " one, or gives them back in another form: the later one of two such records is"
            " held until the other one is removed",
        )
    for column in sorted(table.free_keys):
        field = table.field_of(column)
        text = (
            f"the key field {table.type.name}.{field} is declared "
            f"{_named(table.type.fields[field])}, but the column {name}.{column} is text: a row "
            "whose key does not stand there in one form, that of eventsync, is refused; "
            "declare the field as str, or give the column the field's type"
        )
        # SQLite has no type for these.
        native = table.dialect_name == "sqlite" and table.type.fields[field].type is not int
        yield Finding(Level.NOTE if native else Level.RISK, about, text)
    columns = list(table.view.names.values())
    for trigger in catalogue.triggers or ():
        sets = trigger.sets(columns)
        yield Finding(
            Level.RISK if sets else Level.NOTE,
            about,
            f"the trigger {trigger.name} ({trigger.when}) of {name} sets {', '.join(sets)} itself:"
            " other stores do not get these values until somebody edits the row; leave them out of"
            " the view if they belong to this store"
            if sets
            else f"the trigger {trigger.name} ({trigger.when}) of {name} may alter what is written;"
            " every row is read back",
        )
    if catalogue.triggers is None:
        yield Finding(
            Level.NOTE,
            about,
            f"this user may not see whether {name} has triggers, so every row is read back;"
            " grant TRIGGER to avoid that",
        )
    for column in sorted(catalogue.generated & set(columns)):
        yield Finding(
            Level.NOTE, about, f"the database may fill {name}.{column} itself; rows are read back"
        )
    if catalogue.secured:
        yield Finding(
            Level.RISK,
            about,
            f"row security of {name} may hide rows from this user: records that it hides look"
            " deleted; give the user BYPASSRLS or a policy for all rows",
        )


def _named(field: Field) -> str:
    return getattr(field.type, "__name__", str(field.type))


def _fits(field: Field, kind: sa.types.TypeEngine[Any], database: str) -> bool:
    held, zoned = field_type(kind, database)
    if field.type is Any or held is Any:
        return True
    if database == "sqlite" and held in (str, int, Decimal) and field.type is not str:
        return field.type in (held, bool, int, float, Decimal) or held is str
    if field.type is dt.datetime and held is dt.datetime and zoned is not None:
        return field.zoned is zoned
    return held is field.type or held in _ALSO.get(field.type, ())
