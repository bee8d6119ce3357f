"""Values that must be unique: which rows must wait until another row releases a value.

The database judges. This is asked only after the database has refused.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import sqlalchemy as sa

from eventsync.errors import RecordError, UniqueError
from eventsync.stores.sql.catalogue import UniqueIndex
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.engine import UNIQUE_HINT
from eventsync.stores.sql.member import Member
from eventsync.stores.sql.order import Link
from eventsync.stores.sql.reference import Wait, loosely
from eventsync.values.chunk import chunked

__all__ = ["unique_links"]

_IN = 500


def unique_links(
    connection: sa.Connection, dialect: Dialect, member: Member
) -> Iterator[Link | Wait]:
    """Yield what the written rows of ``member`` wait for, because another row has their value.

    The other row may release the value, or be removed, in the same joint write. Only the database
    can judge indexes of expressions, of a part of the rows or of a part of a value, and exclusion
    constraints.
    """
    table = member.table
    for index in table.catalogue.uniques:
        own = set(index.columns) == set(table.keys)
        if not index.enforced or index.prefix or (own and not table.loose_keys):
            continue
        if {*index.columns} <= {*table.columns}:
            yield from _Taking(connection, dialect, member, index).links()


class _Taking:
    """The values of one unique index that written rows take."""

    def __init__(
        self, connection: sa.Connection, dialect: Dialect, member: Member, index: UniqueIndex
    ) -> None:
        self._connection, self._dialect, self._member = connection, dialect, member
        self._columns, self._index = index.columns, index
        self._takers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
        for key in member.rows:
            parts = member.stored(key, index.columns)
            if parts is not None:
                self._takers[parts].append(key)

    def links(self) -> Iterator[Link | Wait]:
        waiting: set[str] = set()
        for taker, holder in self._holders():
            if taker == holder:
                continue
            error = self._error(taker, holder)
            if not self._releases(holder, taker):
                waiting.add(taker)
                yield self._member.node(taker), error
            else:
                yield Link(
                    self._member.node(holder),
                    self._member.node(taker),
                    error,
                    clear=self._member.empties(self._columns),
                    ordered=not self._index.deferrable,
                )
        loose = any(column in self._member.table.catalogue.loose for column in self._columns)
        alike: dict[tuple[Any, ...], str] = {}
        for parts, takers in self._takers.items():
            for taker in takers:
                if taker in waiting:
                    continue
                first = alike.setdefault(loosely(parts) if loose else parts, taker)
                if first != taker:
                    yield self._member.node(taker), self._error(taker, first)

    def _holders(self) -> Iterator[tuple[str, str]]:
        """Yield the keys of each written row and of the row that has its value now."""
        for chunk in chunked(self._takers, _IN):
            takers: dict[tuple[Any, ...], list[str]] = defaultdict(list)
            for parts in chunk:
                takers[loosely(parts)] += self._takers[parts]
            found = [(loosely(values), holder) for values, holder in self._held(chunk)]
            if all(values in takers for values, _ in found):
                for values, holder in found:
                    for taker in takers[values]:
                        yield taker, holder
                continue
            # The database compares by rules of its own, so ask it about each value alone.
            for parts in chunk:
                for _, holder in self._held([parts]):
                    for taker in self._takers[parts]:
                        yield taker, holder

    def _held(self, wanted: Sequence[tuple[Any, ...]]) -> Iterator[tuple[tuple[Any, ...], str]]:
        """Yield the values and the key of each row that has one of the values ``wanted``."""
        table, dialect = self._member.table, self._dialect
        columns = [table.quoted[column] for column in self._columns]
        selected = [
            dialect.select_expression(table.quoted[c], table.found.c[c].type) for c in self._columns
        ]
        rows = self._connection.exec_driver_sql(
            f"SELECT {table.selected_keys}, {', '.join(selected)} FROM {table.name}"
            f" WHERE {dialect.keys_in(columns, len(wanted))}",
            tuple(part for parts in wanted for part in parts),
        )
        count = len(table.keys)
        for row in rows:
            try:
                yield tuple(row[count:]), table.key_text(row[:count])
            except RecordError:
                continue  # a row that eventsync cannot read does not release its value

    def _releases(self, holder: str, taker: str) -> bool:
        """Return whether the row that has the value now loses it in the joint write."""
        member = self._member
        if holder in member.removals:
            return True
        if holder not in member.rows:
            return False
        held, taken = (member.stored(key, self._columns) for key in (holder, taker))
        return held is None or taken is None or loosely(held) != loosely(taken)

    def _error(self, taker: str, holder: str) -> UniqueError:
        table = self._member.table
        shared = " and ".join(self._columns)
        return UniqueError(
            f"{table.type.name} {taker!r} cannot be written to table {table.found.name!r}:"
            f" {table.type.name} {holder!r} has the same {shared}",
            hint=UNIQUE_HINT,
        )
