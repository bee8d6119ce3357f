"""Rows that depend on others by foreign keys: which must wait, and in which order to write.

The database judges. This is asked only after the database has refused.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeAlias

import sqlalchemy as sa

from eventsync.errors import DependencyError
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.member import Member
from eventsync.stores.sql.order import Link, Node
from eventsync.stores.sql.table import Reference, Table
from eventsync.values.chunk import chunked

__all__ = ["Dependents", "Place", "Wait", "loosely"]

Place: TypeAlias = tuple[str | None, str]
"""The schema and the name of a table."""
Wait: TypeAlias = tuple[Node, DependencyError]
"""A row that must wait for a row outside the joint write."""

_IN = 500
_HINT = "it is retried when the other record has been written or removed"


class Dependents:
    """The foreign keys of one table, and those that refer to it. Immutable."""

    def __init__(self, table: Table, engine: sa.Engine, dialect: Dialect) -> None:
        self._table, self._engine, self._dialect = table, engine, dialect
        self._quote = engine.dialect.identifier_preparer
        fields = set(table.view.names.values())
        # Only the database can judge a foreign key whose columns are not all in the view.
        self._references = [r for r in table.references if fields >= {*r.columns}]
        self._own = [r for r in table.references if r.is_to(table.found)]

    # -- records that must wait --------------------------------------------------------------------

    def links(
        self, connection: sa.Connection, member: Member, members: Mapping[Place, Sequence[Member]]
    ) -> Iterator[Link | Wait]:
        """Yield what the rows of ``member`` wait for, in the joint write of ``members``, by table.

        A parent may be written, and a child removed or changed, in the same joint write.
        """
        yield from self._orphans(connection, member, members)
        yield from self._parents(connection, member, members)

    def _orphans(
        self, connection: sa.Connection, member: Member, members: Mapping[Place, Sequence[Member]]
    ) -> Iterator[Link | Wait]:
        """Yield the rows whose parents are not in the database, or are to be removed."""
        for reference in self._references:
            wanted: dict[tuple[Any, ...], list[str]] = {}
            for key in member.rows:
                parts = member.stored(key, reference.columns)
                if parts is not None:
                    wanted.setdefault(parts, []).append(key)
            parents = members.get((reference.schema, reference.table), ())
            absent = self._absent(connection, reference, wanted)
            offered = {
                parts: parent.node(key)
                for parent in parents
                for key in (parent.rows if absent else ())
                if (parts := parent.stored(key, reference.referred)) is not None
            }
            for parts in absent:
                named = ", ".join(map(str, parts))
                for key in wanted[parts]:
                    node = member.node(key)
                    error = DependencyError(
                        f"{self._table.type.name} {key!r} refers to {reference.table} {named!r}"
                        f" by {', '.join(reference.columns)}, which does not exist",
                        hint=_HINT,
                    )
                    if parts not in offered:
                        yield node, error
                    elif offered[parts] != node:
                        yield Link(
                            offered[parts],
                            node,
                            error,
                            postpone=member.postpones(key, reference.columns),
                            ordered=not reference.deferrable,
                        )
            for parent in parents:
                if tuple(reference.referred) == parent.table.keys:
                    for key in parent.removals:
                        children = wanted.get(parent.table.key_row(key), ())
                        if children and reference.guarded:
                            yield self._still(
                                parent, key, f"{self._table.type.name} {children[0]!r}"
                            )

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
        for chunk in chunked(wanted, _IN):
            found = connection.exec_driver_sql(
                f"SELECT {names} FROM {target} WHERE {self._dialect.keys_in(columns, len(chunk))}",
                tuple(part for parts in chunk for part in parts),
            )
            there.update(loosely(tuple(row)) for row in found)
        if not there <= {loosely(parts) for parts in wanted}:
            return []  # the database compares by rules of its own, so let it judge
        return [parts for parts in wanted if loosely(parts) not in there]

    def _parents(
        self, connection: sa.Connection, member: Member, members: Mapping[Place, Sequence[Member]]
    ) -> Iterator[Link | Wait]:
        """Yield the rows to remove that are still referred to."""
        if not member.removals:
            return
        for child, reference in self._children:
            others = members.get((child.schema, str(child.name)), ())
            other = others[0] if others else None
            known = other.table if other is not None else None
            for parent, key in self._referring(
                connection, child, reference, list(member.removals), known
            ):
                what = f"{other.table.type.name} {key!r}" if other else str(child.name)
                wait = self._still(member, parent, what)
                if other is None or not self._leaves(other, key, reference, parent):
                    yield wait
                elif other.node(key) != wait[0] or not self._dialect.removes_own_parent:
                    yield Link(
                        other.node(key),
                        *wait,
                        clear=other.empties(reference.columns),
                        ordered=not reference.deferrable or reference.restricts,
                    )

    def _leaves(self, child: Member, key: str, reference: Reference, parent: str) -> bool:
        """Return whether a child will not refer to its parent any more after the joint write."""
        if key in child.removals:
            return True
        if key not in child.rows or child.fields(reference.columns) is None:
            return False
        parts = child.stored(key, reference.columns)
        return parts is None or (
            tuple(reference.referred) == self._table.keys and parts != self._table.key_row(parent)
        )

    def _still(self, member: Member, key: str, what: str) -> Wait:
        error = DependencyError(
            f"{what} still refers to {self._table.type.name} {key!r}, which is to be removed",
            hint=_HINT,
        )
        return member.node(key), error

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
        known: Table | None,
    ) -> Iterator[tuple[str, str]]:
        """Yield each of ``keys`` that has children, with the child's key if its table is known."""
        table, quote = self._table, self._quote.quote
        sides = [("p", table)] if known is None else [("p", table), ("c", known)]
        selected = ", ".join(
            self._dialect.select_expression(f"{side}.{quote(c)}", of.found.c[c].type)
            for side, of in sides
            for c in of.keys
        )
        joined = " AND ".join(
            f"c.{quote(ours)} = p.{quote(theirs)}"
            for ours, theirs in zip(reference.columns, reference.referred, strict=True)
        )
        names = [f"p.{name}" for name in table.key_names]
        for chunk in chunked(keys, _IN):
            found = connection.exec_driver_sql(
                f"SELECT DISTINCT {selected} FROM {table.name} p"
                f" JOIN {self._quote.format_table(child)} c ON {joined}"
                f" WHERE {self._dialect.keys_in(names, len(chunk))}",
                tuple(part for key in chunk for part in table.key_row(key)),
            )
            for row in found:
                count = len(table.keys)
                parent = table.key_text(row[:count])
                yield parent, known.key_text(row[count:]) if known is not None else ""

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
            for parent, child in self._referring(
                connection, self._table.found, reference, keys, self._table
            ):
                if child in left and child != parent:
                    below.setdefault(parent, set()).add(child)
        while left:
            part = [key for key in left if below.get(key, set()).isdisjoint(left)]
            part = part or list(left)  # rows that refer to each other have no order
            yield part
            for key in part:
                del left[key]


def loosely(parts: tuple[Any, ...]) -> tuple[Any, ...]:
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
