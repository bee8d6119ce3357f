"""What a check says about constraints that leave no order in which rows can be written."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import sqlalchemy as sa

from eventsync.engine.finding import Finding, Level
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.member import Member
from eventsync.stores.sql.reference import Place
from eventsync.stores.sql.table import Reference, Table

__all__ = ["inspect_order"]


def inspect_order(
    table: Table, engine: sa.Engine, dialect: Dialect, about: str
) -> Iterator[Finding]:
    """Yield circles of foreign keys that cannot be written and values that cannot be exchanged.

    Reads the catalogue only.
    """
    member = Member(table, {}, (), ())
    circle = _circle(table, engine, dialect)
    if circle:
        named = "; ".join(
            f"{place[1]}.{', '.join(r.columns)} refers to {r.table}" for place, r in circle
        )
        alone = len(circle) == 1
        yield Finding(
            Level.NOTE if alone else Level.RISK,
            about,
            f"{'rows' if alone else 'tables'} refer to each other by columns that take no NULL"
            f" ({named}): new records that refer to each other are held and become dead letters;"
            f" let one of the columns take NULL{_or_deferrable(engine, 'foreign key')}",
        )
    for index in table.catalogue.uniques:
        named = ", ".join(index.columns)
        if (
            index.enforced
            and not index.deferrable
            and set(index.columns) != set(table.keys)
            and {*index.columns} <= {*table.columns}
            and not member.empties(index.columns)
        ):
            yield Finding(
                Level.NOTE,
                about,
                f"two records that exchange their values of {named} become dead letters, because"
                f" {named} takes no NULL; let the column take NULL"
                f"{_or_deferrable(engine, 'unique constraint')}",
            )


def _or_deferrable(engine: sa.Engine, what: str) -> str:
    return f", or make the {what} DEFERRABLE" if engine.dialect.name == "postgresql" else ""


def _circle(
    table: Table, engine: sa.Engine, dialect: Dialect
) -> list[tuple[Place, Reference]] | None:
    """Return the shortest circle of firm foreign keys through ``table``, ``None`` if there is none.

    A foreign key is firm if a row cannot be written before the row that it refers to.
    """
    found = dialect.foreign_keys(engine, table.found.schema)
    inspector = sa.inspect(engine)
    own: Place = (table.found.schema, str(table.found.name))
    member = Member(table, {}, (), ())

    def firm(place: Place) -> Iterator[Reference]:
        references = [r for r in map(Reference.of, found.get(place, ())) if not r.deferrable]
        if place == own:
            held = [r for r in references if member.fields(r.columns) is not None]
            yield from (r for r in held if not member.empties(r.columns))
        elif references:
            columns = inspector.get_columns(place[1], schema=place[0])
            nullable = {column["name"] for column in columns if column["nullable"]}
            yield from (r for r in references if nullable.isdisjoint(r.columns))

    ways: deque[list[tuple[Place, Reference]]] = deque([(own, r)] for r in firm(own))
    seen: set[Place] = set()
    while ways:
        way = ways.popleft()
        last = way[-1][1]
        place: Place = (last.schema, last.table)
        if place == own:
            return way
        if place not in seen:
            seen.add(place)
            ways.extend([*way, (place, r)] for r in firm(place))
    return None
