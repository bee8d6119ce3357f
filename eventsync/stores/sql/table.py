"""A table as one view of a record type sees it: columns, keys, references and their values."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import repeat
from operator import itemgetter
from typing import Any, Final

import sqlalchemy as sa

from eventsync.errors import ConfigError, EventSyncError
from eventsync.records.view import BoundView
from eventsync.stores.sql.derive import reflect
from eventsync.stores.sql.dialect import ColumnCodec, Dialect, Target
from eventsync.stores.sql.value import null_as_json

__all__ = ["Reference", "Table", "new_table"]


def new_table(view: BoundView, dialect: Dialect, name: str, schema: str | None) -> sa.Table:
    """Return the table that a view needs, with columns that lose nothing, to be created."""
    type, columns = view.record_type, []
    for field_name, column in view.names.items():
        field = type.fields[field_name]
        key = field_name in type.keys
        keys = len(type.keys) if key else int(field.unique)
        columns.append(
            sa.Column(
                column,
                dialect.column_type(field, keys=keys),
                primary_key=key,
                nullable=field.optional,
                unique=field.unique or None,
                autoincrement=False,
            )
        )
    for column, value in view.constant.items():
        columns.append(
            sa.Column(column, sa.BigInteger() if isinstance(value, int) else dialect.text_key(255))
        )
    return sa.Table(name, sa.MetaData(), *columns, schema=schema)


_LITERAL: Final = re.compile(
    r"\(?(?:(?P<bare>[+-]?[0-9.]+|true|false)|'(?P<quoted>(?:[^']|'')*)')\)?(?:::[\w\s\"().,\[\]]+)?",
    re.IGNORECASE,
)
"""A constant as databases state the default of a column, with PostgreSQL's type after it."""


@dataclass(slots=True, frozen=True)
class Reference:
    """A foreign key: ``columns`` refer to the ``referred`` columns of ``table``.

    ``guarded``: the database refuses to remove a row that is referred to, rather than cascade.
    ``restricts``: it does so at once, even if the constraint is ``deferrable``: checked only at the
    commit if a transaction asks for that.
    """

    table: str
    schema: str | None
    columns: tuple[str, ...]
    referred: tuple[str, ...]
    guarded: bool
    restricts: bool = False
    deferrable: bool = False

    @classmethod
    def of(cls, found: Mapping[str, Any]) -> Reference:
        """Return the reference that SQLAlchemy describes."""
        action = str(found.get("options", {}).get("ondelete") or "").upper()
        return cls(
            found["referred_table"],
            found["referred_schema"],
            tuple(found["constrained_columns"]),
            tuple(found["referred_columns"]),
            action in ("", "NO ACTION", "RESTRICT"),
            action == "RESTRICT",
            bool(found.get("options", {}).get("deferrable")),
        )

    def is_to(self, table: sa.Table) -> bool:
        """Return whether the foreign key refers to that table."""
        return (self.table, self.schema) == (table.name, table.schema)


class Table:
    """An existing table, checked against a view. Immutable, hence thread-safe.

    Raises ``ConfigError`` when the two do not fit.
    """

    def __init__(
        self, view: BoundView, engine: sa.Engine, dialect: Dialect, name: str, schema: str | None
    ) -> None:
        self.view, self.type = view, view.record_type
        self.found = reflect(engine, name, schema)
        self.dialect_name = engine.dialect.name
        self.columns = (*view.names.values(), *view.constant)
        self.keys = tuple(view.names[field] for field in self.type.keys)
        for field, column in [*view.names.items(), *((c, c) for c in view.constant)]:
            if column not in self.found.c:
                raise ConfigError(
                    f"table {name!r} has no column {column!r} for the field {field!r}",
                    hint=f"it has {', '.join(self.found.c.keys())}; rename the field in the view, "
                    "or leave it out",
                )
            if self.found.c[column].computed is not None:
                raise ConfigError(
                    f"table {name!r} generates the column {column!r} itself",
                    hint=f"leave {field!r} out of the view",
                )
        preparer = engine.dialect.identifier_preparer
        self.name = str(preparer.format_table(self.found))
        self.quoted = {column: str(preparer.quote(column)) for column in self.columns}
        self.key_names = tuple(self.quoted[column] for column in self.keys)
        # An update leaves constants alone: they only apply to a new row.
        changed = [c for c in view.names.values() if c not in self.keys]
        identities = [c.identity for c in (self.found.c[k] for k in self.keys) if c.identity]
        self.target = Target(
            self.name,
            tuple(self.quoted[column] for column in self.columns),
            self.key_names,
            tuple(self.quoted[column] for column in changed),
            overriding=any(identity.always for identity in identities),
            sequences=dialect.sequences(engine, self.found, self.columns),
        )
        expressions = {
            column: dialect.select_expression(quoted, self.found.c[column].type)
            for column, quoted in self.quoted.items()
        }
        self.selected = ", ".join(expressions[column] for column in self.columns)
        self.selected_keys = ", ".join(expressions[column] for column in self.keys)
        with dialect.connected(engine) as connection:
            self.catalogue = dialect.catalogue(connection, name, schema)
            """What the database's catalogue said when the table was read."""
        shape = zlib.crc32(repr(self.catalogue.columns).encode())
        self.target = replace(self.target, shape=shape)
        self._make_codecs(dialect)
        view.fills = self._column_defaults()
        self._read_constraints(engine, dialect, name, schema)

    def _read_constraints(
        self, engine: sa.Engine, dialect: Dialect, name: str, schema: str | None
    ) -> None:
        catalogue = self.catalogue
        self.uniques = list(dict.fromkeys(index.columns for index in catalogue.uniques))
        """The columns of each unique index and constraint."""
        own = catalogue.key_indexes(self.keys)
        if not own:
            columns = ", ".join(self.key_names)
            raise ConfigError(
                f"no unique constraint of {catalogue.kind} {name!r} covers exactly the key of"
                f" {self.type.name} ({', '.join(self.keys)}), so two of its rows can be one record",
                hint=f"run ALTER TABLE {self.name} ADD UNIQUE ({columns}), or declare a key that"
                " is unique"
                if catalogue.kind == "table"
                else "name the table itself; a view of the record type selects its fields",
            )
        self.loose_keys = [column for column in self.keys if self._is_loose(column)]
        """The key columns that take different values for equal or give back other values."""
        others = any(set(index.columns) != set(self.keys) for index in catalogue.uniques)
        anywhere = dialect.upsert_sql(self.target).find("ON CONFLICT") < 0
        arbiter = any(index.arbiter and not index.prefix for index in own)
        self.exact_key = not self.loose_keys and arbiter and not catalogue.alters
        """Whether a condition on the key columns matches the row of one record only, and what is
        written there is there afterwards."""
        self.guarded = not self.exact_key or (anywhere and others)
        """Whether an upsert could overwrite the row of another record, or not be able to tell
        whether it has written one."""
        self.references = list(
            map(Reference.of, dialect.foreign_keys(engine, schema).get((schema, name), ()))
        )
        """The foreign keys of the table."""

    def _make_codecs(self, dialect: Dialect) -> None:
        codecs: dict[str, ColumnCodec] = {}
        for name, column in self.view.names.items():
            field = None if name in self.view.convert else self.type.fields[name]
            codec = dialect.codec(self.found.c[column].type, field)
            if column in self.keys and self._is_free(column) and self.type.fields[name].type is int:
                # Compared with a number, PostgreSQL fails, and MySQL takes '7 days' for 7.
                codec = replace(codec, write=str)
            if isinstance(self.found.c[column].type, sa.JSON) and codec.write:
                not_null = not self.found.c[column].nullable
                codec = replace(codec, write=null_as_json(codec.write)) if not_null else codec
            codecs[column] = codec
        generated = self.catalogue.generated & codecs.keys()
        self.faithful = (
            all(codec.faithful for codec in codecs.values())
            and not self.catalogue.alters
            and not generated
        )
        """Whether every value reads back equal, without a look."""
        self.verbatim = all(codec.verbatim for codec in codecs.values())
        """Whether every value also reads back in the same form."""
        self._exact_columns = {column for column, codec in codecs.items() if codec.faithful}
        for column in self.view.constant:
            codecs[column] = dialect.codec(self.found.c[column].type, None)
        self._kinds = {column: codec.kind for column, codec in codecs.items()}
        kinds = tuple(self._kinds[column] for column in self.columns)
        self.target = replace(self.target, types=kinds if all(kinds) else ())
        self._writers = {c: codec.write for c, codec in codecs.items() if codec.write}
        self._readers = [
            (c, codec.read) for c, codec in codecs.items() if codec.read and c in self.columns
        ]
        names = list(self.view.names.values() if self.view.convert else self.view.names)
        self._pick: Callable[[Mapping[str, Any]], tuple[Any, ...]] = (
            itemgetter(*names) if len(names) > 1 else lambda values: (values[names[0]],)
        )
        order = {column: place for place, column in enumerate(self.columns)}
        self._places = [(order[column], write) for column, write in self._writers.items()]
        self._key_places = [order[column] for column in self.keys]
        self._converts_key = not self.view.convert.keys().isdisjoint(self.type.keys)
        self.free_keys = frozenset(filter(self._is_free, self.keys))
        """The key columns of text whose values may stand in several forms for one key."""
        self.key_kinds = tuple(self._kinds[column] for column in self.keys)
        """The database's name for the type of each key column; empty where it is not known."""

    def _column_defaults(self) -> dict[str, Any]:
        """Return the constant defaults of the columns as field values, by field name.

        Defaults that are expressions are left out.
        """
        readers = dict(self._readers)
        found: dict[str, Any] = {}
        for column in self.view.names.values():
            default = getattr(self.found.c[column].server_default, "arg", None)
            literal = _LITERAL.fullmatch("" if default is None else str(default))
            if literal is None:
                continue
            text, quoted = literal.group("bare"), literal.group("quoted")
            if text is None:
                text = quoted.replace("''", "'")
            # Not every reader takes text, and a default need not fit the field.
            with suppress(EventSyncError, ValueError, TypeError, ArithmeticError, LookupError):
                value = readers[column](text) if column in readers else text
                found |= self.view.to_record({column: value})
        return found

    def field_of(self, column: str) -> str:
        """Return the name of the field that a column holds."""
        return next(name for name, held in self.view.names.items() if held == column)

    def _is_free(self, column: str) -> bool:
        name = self.field_of(column)
        textual = isinstance(self.found.c[column].type, sa.String) or (
            self.dialect_name == "sqlite"
            and isinstance(self.found.c[column].type, sa.types.NullType)
        )
        return textual and name not in self.view.convert and self.type.fields[name].type is not str

    def _is_loose(self, column: str) -> bool:
        return column in self.catalogue.loose or column not in self._exact_columns

    def rows(self, records: Iterable[Mapping[str, Any]]) -> list[tuple[Any, ...]]:
        """Return the rows of whole records, in the order of ``columns``.

        Converts column by column, which takes a fraction of the calls that row by row would.
        """
        if self.view.convert:
            records = map(self.view.to_store, records)
        rows = list(map(self._pick, records))
        if self.view.constant:
            constants = tuple(self.view.constant.values())
            rows = [row + constants for row in rows]
        if not self._places or not rows:
            return rows
        return self._written_all(list(zip(*rows, strict=True)))

    def rows_of(
        self, records: Sequence[tuple[Any, ...]], names: Sequence[str]
    ) -> list[tuple[Any, ...]]:
        """Return the same rows as ``rows``, from values in the order of the fields ``names``.

        Must not be called where the view converts values.
        """
        if not records:
            return []
        columns: list[Iterable[Any]] = list(zip(*records, strict=True))
        constants = [repeat(value, len(records)) for value in self.view.constant.values()]
        return self._written_all([*(columns[names.index(n)] for n in self.view.names), *constants])

    def _written_all(self, columns: list[Iterable[Any]]) -> list[tuple[Any, ...]]:
        """Return rows as the database gets them, from these columns."""
        for place, write in self._places:
            columns[place] = map(write, columns[place])
        return list(zip(*columns, strict=True))

    def changes(
        self, keys: Sequence[str], records: Sequence[Mapping[str, Any]]
    ) -> tuple[Target, list[tuple[Any, ...]]]:
        """Return what an update of records takes: for each its changed columns, then its key.

        ``records``: the changed values, all of the same fields. Key columns do not change.
        """
        names = self.view.names
        fields = [name for name in records[0] if name in names and name not in self.type.keys]
        columns = [names[name] for name in fields]
        if self.view.convert:
            records = list(map(self.view.to_store, records))
            fields = columns
        written: list[Iterable[Any]] = []
        for field, column in zip(fields, columns, strict=True):
            column_values, write = map(itemgetter(field), records), self._writers.get(column)
            written.append(column_values if write is None else map(write, column_values))
        changed = tuple(self.quoted[column] for column in columns)
        kinds = (*(self._kinds[column] for column in columns), *self.key_kinds)
        target = Target(
            self.name,
            (*changed, *self.key_names),
            self.key_names,
            changed,
            types=kinds if all(kinds) else (),
            staging=self.target.columns,
            shape=self.target.shape,
        )
        whole = zip(*written, *zip(*self.key_rows(keys), strict=True), strict=True)
        return target, list(whole)

    def stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Return what the database gets for these field values, by column."""
        stored = self.view.to_store(values)
        return {column: self._written(column, value) for column, value in stored.items()}

    def _written(self, column: str, value: Any) -> Any:
        write = self._writers.get(column)
        return value if write is None else write(value)

    def key_row(self, key: str) -> tuple[Any, ...]:
        """Return the values of the key columns of the record of that key."""
        stored = self.stored(self.type.key_values(key))
        return tuple(stored[column] for column in self.keys)

    def key_rows(self, keys: Sequence[str]) -> list[tuple[Any, ...]]:
        """Return ``key_row`` of each key, in less time."""
        columns = None if self._converts_key else self.type.key_columns(keys)
        if columns is None:
            return list(map(self.key_row, keys))
        written = [
            column if (write := self._writers.get(name)) is None else map(write, column)
            for name, column in zip(self.keys, columns, strict=True)
        ]
        return list(zip(*written, strict=True))

    def key_of(self, row: Sequence[Any]) -> tuple[Any, ...]:
        """Return the values of the key columns in a row, as it was selected."""
        return tuple(row[place] for place in self._key_places)

    def loaded(self, row: Sequence[Any]) -> dict[str, Any]:
        """Return the values of a row, as it was selected, by column."""
        data = dict(zip(self.columns, row, strict=True))
        for column, read in self._readers:
            data[column] = read(data[column])
        return data

    def column_of(self, field: str) -> str | None:
        """Return the column that holds a field's values unconverted, ``None`` if there is none."""
        return None if field in self.view.convert else self.view.names.get(field)

    def key_text(self, parts: Sequence[Any]) -> str:
        """Return the key of the record whose key columns hold ``parts``, as they were selected."""
        data = dict(zip(self.keys, parts, strict=True))
        for column, read in self._readers:
            if column in data:
                data[column] = read(data[column])
        return self.type.key_text(self.view.to_record(data))

    def refers_to(self, other: Table) -> bool:
        """Return whether a foreign key of this table refers to the other one, or to itself."""
        return any(reference.is_to(other.found) for reference in self.references)
