"""Rows that depend on others by foreign keys: which must wait, and in which order to write.

The database judges. This is asked only after the database has refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

import sqlalchemy as sa

from eventsync.errors import DependencyError
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.table import Reference, Table

__all__ = ["Dependents"]

_IN = 500
_HINT = "it is retried when the other record has been written or removed"


class Dependents:
    """The foreign keys of one table, and those that refer to it. Immutable."""

    def __init__(self, table: Table, engine: sa.Engine, dialect: Dialect) -> None:
        self._table, self._engine, self._dialect = table, engine, dialect
        self._quote = engine.dialect.identifier_preparer
        fields = {column: field for field, column in table.view.names.items()}
        # Only the database can judge a foreign key whose columns are not all in the view.
        self._references = [r for r in table.references if fields.keys() >= {*r.columns}]
        self._own = [r for r in table.references if r.is_to(table.found)]
        self._fields = {r: [fields[c] for c in r.columns] for r in self._references}
        self._referred = {
            r: [fields[c] for c in r.referred] for r in self._own if fields.keys() >= {*r.referred}
        }

    # -- records that must wait --------------------------------------------------------------------

    def waiting(
        self,
        connection: sa.Connection,
        rows: Mapping[str, Mapping[str, Any]],
        removals: Sequence[str],
    ) -> dict[str, DependencyError]:
        """Return the errors of records that must wait, by key, as ``Accessor.waiting`` does.

        A parent may be written, and a child removed, in the same batch.
        """
        return self._orphans(connection, rows) | self._parents(connection, removals)

    def _orphans(
        self, connection: sa.Connection, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[str, DependencyError]:
        """Return the rows whose parents are neither in the database nor written by this batch."""
        waiting: dict[str, DependencyError] = {}
        followers: dict[str, list[tuple[str, DependencyError]]] = {}
        for reference in self._references:
            wanted: dict[tuple[Any, ...], list[str]] = {}
            for key, values in rows.items():
                parts = self._stored(values, self._fields[reference])
                if parts is not None:
                    wanted.setdefault(parts, []).append(key)
            absent = self._absent(connection, reference, wanted)
            offered = self._offered(reference, rows) if absent else {}
            for parts in absent:
                named = ", ".join(map(str, parts))
                for key in wanted[parts]:
                    error = DependencyError(
                        f"{self._table.type.name} {key!r} refers to {reference.table} {named!r}"
                        f" by {', '.join(reference.columns)}, which does not exist",
                        hint=_HINT,
                    )
                    if parts in offered:
                        followers.setdefault(offered[parts], []).append((key, error))
                    else:
                        waiting.setdefault(key, error)
        # A row whose parent in this batch waits has to wait too.
        late = list(waiting)
        while late:
            for key, error in followers.get(late.pop(), ()):
                if key not in waiting:
                    waiting[key] = error
                    late.append(key)
        return waiting

    def _stored(self, values: Mapping[str, Any], fields: Sequence[str]) -> tuple[Any, ...] | None:
        """Return the values to write to the columns of ``fields``.

        Return ``None`` if any of the fields has no value.
        """
        if any(values.get(field) is None for field in fields):
            return None
        stored = self._table.stored({field: values[field] for field in fields})
        parts = tuple(stored[self._table.view.names[field]] for field in fields)
        return None if None in parts else parts

    def _offered(
        self, reference: Reference, rows: Mapping[str, Mapping[str, Any]]
    ) -> dict[tuple[Any, ...], str]:
        """Return the keys of rows that others of the same table can refer to, by what they hold."""
        fields = self._referred.get(reference)
        if fields is None:
            return {}
        offered = {}
        for key, values in rows.items():
            parts = self._stored(values, fields)
            if parts is not None:
                offered[parts] = key
        return offered

    def _absent(
        self, connection: sa.Connection, reference: Reference, wanted: Collection[tuple[Any, ...]]
    ) -> list[tuple[Any, ...]]:
        """Return those of ``wanted`` that no parent holds, as far as that is certain."""
        columns = [str(self._quote.quote(column)) for column in reference.referred]
        names = ", ".join(columns)
        target = self._quote.format_table(
            sa.Table(reference.table, sa.MetaData(), schema=reference.schema)
        )
        there: set[tuple[Any, ...]] = set()
        for chunk in _chunks(list(wanted)):
            found = connection.exec_driver_sql(
                f"SELECT {names} FROM {target} WHERE {self._dialect.keys_in(columns, len(chunk))}",
                tuple(part for parts in chunk for part in parts),
            )
            there.update(_loosely(tuple(row)) for row in found)
        if not there <= {_loosely(parts) for parts in wanted}:
            return []  # the database compares by rules of its own, so let it judge
        return [parts for parts in wanted if _loosely(parts) not in there]

    def _parents(
        self, connection: sa.Connection, removals: Sequence[str]
    ) -> dict[str, DependencyError]:
        """Return the rows to remove that are still referred to by rows that stay."""
        if not removals:
            return {}
        waiting: dict[str, DependencyError] = {}
        above: dict[str, list[str]] = {}
        gone = set(removals)
        for child, reference in self._children:
            own = child is self._table.found
            for parent, row in self._referring(connection, child, reference, removals):
                if own and row in gone:
                    above.setdefault(row, []).append(parent)
                    continue
                what = f"{child.name} {row!r}" if own else child.name
                waiting.setdefault(parent, self._still(parent, what))
        late = list(waiting)
        while late:
            child_key = late.pop()
            for parent in above.get(child_key, ()):
                if parent not in waiting:
                    waiting[parent] = self._still(parent, f"{self._table.type.name} {child_key!r}")
                    late.append(parent)
        return waiting

    def _still(self, key: str, what: str) -> DependencyError:
        return DependencyError(
            f"{what} still refers to {self._table.type.name} {key!r}, which is to be removed",
            hint=_HINT,
        )

    @cached_property
    def _children(self) -> list[tuple[sa.Table, Reference]]:
        """The foreign keys of the schema's tables that forbid to remove rows of this table."""
        table = self._table.found
        found = self._dialect.foreign_keys(self._engine, table.schema)
        children = []
        for (schema, name), keys in found.items():
            own = (name, schema) == (table.name, table.schema)
            child = table if own else sa.Table(name, sa.MetaData(), schema=schema)
            references = [Reference.of(one) for one in keys]
            children += [(child, r) for r in references if r.guarded and r.is_to(table)]
        return children

    def _referring(
        self,
        connection: sa.Connection,
        child: sa.Table,
        reference: Reference,
        keys: Sequence[str],
    ) -> Iterator[tuple[str, str]]:
        """Yield each of ``keys`` that has children, with the child's key if it is in this table."""
        table, quote = self._table, self._quote.quote
        own = child is table.found
        sides = ("p", "c") if own else ("p",)
        selected = ", ".join(
            self._dialect.select_expression(f"{side}.{quote(c)}", table.found.c[c].type)
            for side in sides
            for c in table.keys
        )
        joined = " AND ".join(
            f"c.{quote(ours)} = p.{quote(theirs)}"
            for ours, theirs in zip(reference.columns, reference.referred, strict=True)
        )
        names = [f"p.{name}" for name in table.key_names]
        for chunk in _chunks(keys):
            found = connection.exec_driver_sql(
                f"SELECT DISTINCT {selected} FROM {table.name} p"
                f" JOIN {self._quote.format_table(child)} c ON {joined}"
                f" WHERE {self._dialect.keys_in(names, len(chunk))}",
                tuple(part for key in chunk for part in table.key_row(key)),
            )
            for row in found:
                count = len(table.keys)
                parent = table.key_text(row[:count])
                yield parent, table.key_text(row[count:]) if own else ""

    # -- the order of writes -----------------------------------------------------------------------

    def parents_first(self, rows: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
        """Return the rows of a table that refers to itself, each after the row it refers to."""
        order = {column: place for place, column in enumerate(self._table.columns)}
        for reference in self._own:
            ours, theirs = reference.columns, reference.referred
            if not {*ours, *theirs} <= order.keys():
                continue
            by_key = {tuple(row[order[c]] for c in theirs): row for row in rows}
            placed: dict[int, tuple[Any, ...]] = {}
            for row in rows:
                chain: list[tuple[Any, ...]] = []
                seen: set[int] = set()
                above: tuple[Any, ...] | None = row
                while above is not None and id(above) not in placed and id(above) not in seen:
                    seen.add(id(above))
                    chain.append(above)
                    above = by_key.get(tuple(above[order[c]] for c in ours))
                for link in reversed(chain):
                    placed[id(link)] = link
            rows = list(placed.values())
        return rows

    def children_first(
        self, connection: sa.Connection, keys: Sequence[str]
    ) -> Iterator[Sequence[str]]:
        """Yield the rows to remove in parts; no later part refers to a row of an earlier one."""
        guarded = [reference for reference in self._own if reference.guarded]
        if not guarded or len(keys) < 2:
            yield keys
            return
        left = dict.fromkeys(keys)
        below: dict[str, set[str]] = {}
        for reference in guarded:
            for parent, child in self._referring(connection, self._table.found, reference, keys):
                if child in left and child != parent:
                    below.setdefault(parent, set()).add(child)
        while left:
            part = [key for key in left if below.get(key, set()).isdisjoint(left)]
            part = part or list(left)  # rows that refer to each other have no order
            yield part
            for key in part:
                del left[key]


def _chunks(whole: Sequence[Any]) -> Iterator[Sequence[Any]]:
    for start in range(0, len(whole), _IN):
        yield whole[start : start + _IN]


def _loosely(parts: tuple[Any, ...]) -> tuple[Any, ...]:
    """Return values without case, accents and blanks at the end, as some databases compare them."""
    return tuple(
        "".join(
            c
            for c in unicodedata.normalize("NFKD", part).casefold()
            if not unicodedata.combining(c)
        ).rstrip(" ")
        if isinstance(part, str)
        else part
        for part in parts
    )
