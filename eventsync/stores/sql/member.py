"""A member of a joint write: the rows of one record type that are written and removed."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventsync.stores.sql.order import Node
from eventsync.stores.sql.table import Table

__all__ = ["Member"]


@dataclass(slots=True, frozen=True)
class Member:
    """The rows of one table in a joint write.

    ``rows``: all values of each written record, by key, as far as they are known. ``removals``: the
    keys of the rows to remove. ``present``: those of all these keys that have a row.
    """

    table: Table
    rows: Mapping[str, Mapping[str, Any]]
    removals: Collection[str]
    present: Collection[str]

    def node(self, key: str) -> Node:
        """Return the node of the record with this key."""
        return (self.table.type.name, key)

    def fields(self, columns: Sequence[str]) -> list[str] | None:
        """Return the fields that the view keeps in ``columns``; ``None`` if it lacks one."""
        names = {column: field for field, column in self.table.view.names.items()}
        return [names[c] for c in columns] if names.keys() >= {*columns} else None

    def stored(self, key: str, columns: Sequence[str]) -> tuple[Any, ...] | None:
        """Return what the database gets for ``columns`` of a written row.

        Return ``None`` if one of them is not known, or is NULL.
        """
        view, values = self.table.view, self.rows[key]
        fields = {column: field for field, column in view.names.items() if column in columns}
        if any(values.get(field) is None for field in fields.values()):
            return None
        stored = {**view.constant, **self.table.stored({f: values[f] for f in fields.values()})}
        parts = tuple(stored.get(column) for column in columns)
        return None if None in parts else parts

    def empties(self, columns: Sequence[str]) -> tuple[str, ...]:
        """Return one field of ``columns`` that may be NULL for a moment; nothing if none may."""
        for field in self.fields(columns) or ():
            declared, column = self.table.type.fields[field], self.table.view.names[field]
            if (
                declared.optional
                and declared.scalar
                and not declared.key
                and field not in self.table.view.convert
                and self.table.found.c[column].nullable
            ):
                return (field,)
        return ()

    def postpones(self, key: str, columns: Sequence[str]) -> tuple[str, ...]:
        """Return the fields of ``columns`` that may be written after the rest of the row.

        An existing row keeps the value that it has; a new row is NULL there for a moment.
        """
        if key not in self.present:
            return self.empties(columns)
        fields = self.fields(columns) or []
        return () if any(self.table.type.fields[f].key for f in fields) else tuple(fields)
