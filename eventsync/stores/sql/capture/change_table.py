"""The change table: triggers write into it which rows of the captured tables were changed.

The tables and the triggers differ between databases, so each database has a class of its own.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, NamedTuple, TypeAlias

import sqlalchemy as sa

from eventsync.engine.finding import Finding
from eventsync.stores.sql.capture.source import CapturedTable
from eventsync.stores.sql.dialect import Dialect, Statement
from eventsync.values.chunk import chunked

__all__ = [
    "NAME",
    "PAGE",
    "ChangeTable",
    "Installed",
    "Look",
    "Parts",
    "Place",
    "Row",
    "places_of",
]

NAME: Final = "eventsync_change"
"""The name of the change table."""

PAGE: Final = 2000
"""How many rows of the change table one statement reads at most."""
_SPANS: Final = 100
"""How many spans of numbers one statement deletes."""
_VERSION: Final = 1
"""Counts up when the triggers change, so that those of earlier versions are replaced."""

Parts: TypeAlias = tuple[Any, ...]
"""The values of the key columns of a row, as the change table has them."""


@dataclass(slots=True, frozen=True)
class Place:
    """A table with the key columns that its triggers tell.

    - ``id``: what the triggers write into the change table.
    - ``code``: eight hexadecimal digits, a part of the names of the triggers.
    - ``tables``: what the store knows of it, for each record type that it holds.
    """

    id: str
    code: str
    schema: str | None
    name: str
    keys: tuple[str, ...]
    tables: tuple[CapturedTable, ...]

    @property
    def about(self) -> str:
        """The table and its record types, for findings."""
        return f"{', '.join(table.type for table in self.tables)} in {self.name}"

    def trigger(self, moment: str) -> str:
        """Return the name of a trigger."""
        return f"eventsync_{self.code}_{moment}"


def places_of(tables: Iterable[CapturedTable]) -> list[Place]:
    """Return the places of captured tables. Two types may share one."""
    found: dict[tuple[str | None, str, tuple[str, ...]], list[CapturedTable]] = {}
    for table in tables:
        found.setdefault((table.schema, table.name, table.keys), []).append(table)
    places = []
    for (schema, name, keys), them in found.items():
        text = repr((_VERSION, schema, name, keys))
        code = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
        places.append(Place(f"{name[:80]}/{code}", code, schema, name, keys, tuple(them)))
    return places


class Row(NamedTuple):
    """A row of the change table: the rows that one statement changed.

    ``keys``: their keys; ``None`` if all rows of the table may have changed. ``at``: when the row
    was written, in seconds since the epoch.
    """

    number: int
    place: str
    keys: Sequence[Parts] | None
    at: float


@dataclass(slots=True)
class Look:
    """What one look at the change table finds. ``now``: when it began, by the database's clock."""

    now: float
    rows: list[Row]


@dataclass(slots=True)
class Installed:
    """What of the change table and the triggers is there.

    - ``identity``: differs if the change table was made anew; empty if it is missing.
    - ``missing``: the ids of the places that lack a trigger, with the names of what they lack.
    - ``shapes``: by the id of a place, a text that differs when rows may have come or gone
      without a trigger, or the triggers were made anew.
    - ``findings``: what an operator should know.
    """

    identity: str = ""
    missing: dict[str, list[str]] = field(default_factory=dict)
    shapes: dict[str, str] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)

    @property
    def complete(self) -> bool:
        """Whether nothing is missing."""
        return bool(self.identity) and not self.missing


class ChangeTable(ABC):
    """The change table of one database, and the triggers of the captured tables.

    The methods take a connection, and raise the driver's errors.
    """

    begin: ClassVar[tuple[Statement, ...]] = ()
    """The statements before a delete that consists of several statements."""
    commit: ClassVar[tuple[Statement, ...]] = ()
    """The statements after it."""

    def __init__(self, dialect: Dialect, places: Sequence[Place]) -> None:
        self.dialect = dialect
        self.places = list(places)
        self.ids = [place.id for place in places]

    counted: ClassVar[str] = "count(*)"
    """The expression that counts the keys in the change table."""

    @abstractmethod
    def prepare(self, connection: sa.Connection) -> None:
        """Let each statement on a connection be a transaction of its own."""

    @abstractmethod
    def inspect(self, connection: sa.Connection) -> Installed:
        """Return what is there. Changes nothing."""

    @abstractmethod
    def statements(self, connection: sa.Connection) -> list[str]:
        """Return the statements that create what is missing. They may be run again."""

    @abstractmethod
    def removal(self, connection: sa.Connection) -> list[str]:
        """Return the statements that remove everything. They may be run again."""

    def script(self, statements: Sequence[str]) -> str:
        """Return statements as the command-line client of the database reads them."""
        return "".join(f"{statement};\n" for statement in statements)

    @abstractmethod
    def look(self, connection: sa.Connection, after: int, limit: int) -> Look:
        """Return the rows with greater numbers than ``after``, at most ``limit``, by number."""

    @abstractmethod
    def values(self, place: Place, parts: Parts) -> Sequence[Any]:
        """Return the values of key columns as the driver returns them from the captured table."""

    def delete(self, connection: sa.Connection, numbers: Sequence[int]) -> None:
        """Delete the rows with these numbers, on a connection in autocommit mode."""
        mark, statements = self.dialect.mark, list(self.begin)
        for some in chunked(spans(numbers), _SPANS):
            condition = " OR ".join([f"number BETWEEN {mark} AND {mark}"] * len(some))
            parameters = tuple(number for span in some for number in span)
            statements.append((f"DELETE FROM {self.name} WHERE {condition}", parameters))
        self.dialect.execute_all(connection, [*statements, *self.commit])

    def waiting(self, connection: sa.Connection) -> int:
        """Return how many changes wait."""
        found = self.dialect.execute_all(
            connection, [(f"SELECT {self.counted} FROM {self.name} WHERE number > 0", ())]
        )
        return int(found[0][0][0] or 0)

    @property
    @abstractmethod
    def name(self) -> str:
        """The quoted name of the change table."""

    def has_changed(self, connection: sa.Connection) -> bool:
        """Return whether a look may find more than the last one did, if that is cheap to know."""
        return True


def spans(numbers: Sequence[int]) -> list[tuple[int, int]]:
    """Return sorted numbers as spans of numbers that follow each other, first and last of each."""
    found: list[tuple[int, int]] = []
    for number in sorted(numbers):
        if found and number == found[-1][1] + 1:
            found[-1] = (found[-1][0], number)
        else:
            found.append((number, number))
    return found
