"""Key columns of text that hold one key in several forms, as ``7`` and ``007`` for a number.

eventsync finds a row by the form in which it writes the key. A row with another form would be read
by ``find``, but missed by a write, which would add a second row of the same record. Therefore such
a record is refused.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, Final
from uuid import UUID

import sqlalchemy as sa

from eventsync.engine.isolation import concerns_all
from eventsync.errors import RecordError, shown
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.table import Table

__all__ = ["KeyForms"]

# The texts that the database has to return, by the type of the field. For other types, all.
_ODD: Final[dict[Any, tuple[str, tuple[str, ...]]]] = {
    int: (
        "{0} LIKE {1} OR {0} LIKE {1} OR {0} LIKE {1} OR {0} LIKE {1} OR {0} LIKE {1}",
        ("0_%", "-0%", "+%", " %", "% "),
    ),
    UUID: ("{0} <> lower({0}) OR length({0}) <> 36", ()),
}


class KeyForms:
    """The keys of one table that stand there in another form than eventsync writes."""

    def __init__(self, table: Table, dialect: Dialect, engine: sa.Engine) -> None:
        self._table, self._dialect, self._engine = table, dialect, engine
        self._found: dict[str, str] = {}
        self._alike: dict[tuple[bool, ...], bool] = {}

    @property
    def vary(self) -> bool:
        """Whether the table can hold a key in several forms at all."""
        return bool(self._table.free_keys)

    def look(self, connection: sa.Connection) -> None:
        """Read which keys stand in another form now."""
        if not self.vary:
            return
        table, mark = self._table, self._dialect.mark
        conditions, parameters = [], list[str]()
        for column in table.free_keys:
            field = table.type.fields[table.field_of(column)]
            condition, patterns = _ODD.get(field.type, ("1 = 1", ()))
            conditions.append(f"({condition.format(table.quoted[column], mark)})")
            parameters += patterns
        statement = (
            f"SELECT {table.selected_keys} FROM {table.name} WHERE {' OR '.join(conditions)}"
        )
        self._found = {}
        self._alike.clear()
        for parts in self._dialect.fetch(connection, statement, tuple(parameters)):
            self.note(parts)

    def note(self, parts: Sequence[Any]) -> str | None:
        """Return the key whose columns hold ``parts``, and note it, if its form is another one.

        Return ``None`` for the form that eventsync writes, and for a text that is no key.
        """
        try:
            key = self._table.key_text(parts)
            written = self._table.key_row(key)
        except Exception as error:
            if concerns_all(error):
                raise
            return None  # reading the row raises this error
        if self._is_written(parts, written):
            return None
        self._found[key] = "/".join(map(shown, parts))
        return key

    def refuse(self, keys: Iterable[str]) -> None:
        """Raise ``RecordError`` for the first of ``keys`` that stands in another form."""
        for key in keys if self._found else ():
            if key in self._found:
                raise self.error(key)

    def error(self, key: str) -> RecordError:
        """Return the error of a key that ``note`` has returned."""
        table = self._table
        written = "/".join(map(shown, table.key_row(key)))
        return RecordError(
            f"{table.type.name} {key!r} stands in {table.name} under the key {self._found[key]}, "
            f"but eventsync writes {written}: it would add a second row",
            hint=f"update the key column to {written}, or declare the key field as str",
        )

    def _is_written(self, parts: Sequence[Any], written: Sequence[Any]) -> bool:
        """Return whether a condition on the values ``written`` finds the row with ``parts``."""
        table = self._table
        differing = [
            (column, str(held), str(value))
            for column, held, value in zip(table.keys, parts, written, strict=True)
            if column in table.free_keys and held != str(value)
        ]
        if not table.catalogue.loose.issuperset(column for column, _, _ in differing):
            return False
        # The database may ignore case or the blanks at the end. Ask it once for each.
        kind = tuple(
            same
            for _, held, value in differing
            for same in (held.rstrip() == value, held.casefold() == value.casefold())
        )
        if differing and kind not in self._alike:
            condition = self._dialect.keys_in(table.key_names, 1)
            statement = f"SELECT {table.selected_keys} FROM {table.name} WHERE {condition}"
            with self._dialect.connected(self._engine) as connection:
                found = self._dialect.fetch(connection, statement, tuple(written))
                self._alike[kind] = tuple(parts) in map(tuple, found)
        return not differing or self._alike[kind]
