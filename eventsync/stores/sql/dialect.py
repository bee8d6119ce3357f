"""What differs between databases, as one class that each of them fills in.

It owns the contract and what most databases share. It knows nothing of records or versions.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, TypeAlias

import sqlalchemy as sa

from eventsync.records.field import Field

__all__ = ["ColumnCodec", "ColumnComparison", "Dialect", "Fault", "Statement", "Target"]

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
"""A statement and its parameters."""


class Fault(Enum):
    """What an error of the driver means."""

    UNREACHABLE = auto()
    """The database cannot be reached, or is busy."""
    UNDONE = auto()
    """The database undid the transaction for the sake of another one."""
    DEPENDENCY = auto()
    """A foreign key: the parent is missing, or children are still there."""
    UNIQUE = auto()
    """A unique constraint, the key's or another."""
    REJECTED = auto()
    """The record does not fit."""
    CONFIG = auto()
    """A table or column is missing, or may not be used."""


@dataclass(slots=True, frozen=True)
class ColumnCodec:
    """How the values of one column go there and back; ``None`` where they go as they are.

    ``faithful``: whether every value that is taken reads back the same. ``verbatim``: and in the
    same form, the zeros at the end of a decimal included. ``kind``: what the database calls the
    type of the column, where values of it can be sent in the database's own binary form.
    """

    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    faithful: bool = True
    verbatim: bool = True
    kind: str = ""


@dataclass(slots=True, frozen=True)
class ColumnComparison:
    """How the values of one column are compared with an operand, so that all are found that Python
    finds equal.

    ``operand``: what the database gets for one, ``None`` if it cannot be asked. ``column`` and
    ``value``: what stands for the two, in braces. ``ordered``: less and greater are judged too.
    ``exact``: no others are found.
    """

    operand: Callable[[Any], Any] = lambda held: held
    column: str = "{}"
    value: str = "{}"
    ordered: bool = True
    exact: bool = True


@dataclass(slots=True, frozen=True)
class Target:
    """A table to write rows to. Names are quoted already.

    ``columns``: of each row, in its order; ``keys``: those that identify a row; ``changed``: those
    that a later row overwrites. ``overriding``: the database numbers the rows, unless told not to.
    ``types``: what the database calls the type of each column, if rows can be sent in binary form.
    ``beside``: the columns of other targets that can have a temporary table in common with this.
    """

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    changed: tuple[str, ...]
    overriding: bool = False
    types: tuple[str, ...] = ()
    beside: tuple[str, ...] = ()


class Dialect(ABC):
    """One kind of database. Immutable, hence thread-safe."""

    mark: ClassVar[str] = "%s"
    """What stands for a parameter."""
    concurrent: ClassVar[bool] = True
    """Whether several transactions write at once."""
    conditional: ClassVar[bool] = False
    """Whether there is ``upsert_if``."""
    relaxed_commit: ClassVar[tuple[Statement, ...]] = ()
    """What is to be said in a transaction that a crash of the database may undo without harm."""
    error: type[Exception]
    """The base of the driver's errors."""

    @abstractmethod
    def fault(self, error: Exception) -> Fault:
        """What an error of the driver means."""

    def set_up(self, connection: sa.Connection) -> None:  # noqa: B027  # not all need it
        """Prepare a new connection: isolation, time zone, strictness."""

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write."""
        connection.begin()

    def join(  # noqa: B027  # where rows are locked one by one, nobody has to wait
        self, connection: sa.Connection, outbox: str
    ) -> None:
        """Have other writers wait as ``begin`` does, in a transaction that may have begun.

        ``outbox``: the name of a table to do that with where it takes one.
        """

    @contextmanager
    def beside(self, engine: sa.Engine, connection: sa.Connection) -> Iterator[sa.Connection]:
        """A connection to look something up by, once a statement on ``connection`` has failed."""
        yield connection

    @abstractmethod
    def alone(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """While it lasts no other process creates tables."""

    @abstractmethod
    def text_key(self, length: int) -> sa.types.TypeEngine[Any]:
        """A column of text that compares and sorts as its bytes."""

    @abstractmethod
    def column_type(self, field: Field, *, keys: int) -> sa.types.TypeEngine[Any]:
        """The column for a field, in a table that eventsync creates: nothing is rounded.

        ``keys``: of how many columns the key is, if the field is of the key or unique; otherwise 0.
        """

    @abstractmethod
    def codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        """For a column of that type and its field; ``None`` for a conversion or a constant."""

    def kind(self, kind: sa.types.TypeEngine[Any]) -> str:
        """``ColumnCodec.kind`` of a column of eventsync's own tables."""
        return ""

    @abstractmethod
    def comparison(self, kind: sa.types.TypeEngine[Any], field: Field) -> ColumnComparison | None:
        """How a column of that type is compared; ``None`` if not as Python compares its field."""

    def upsert_if(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        condition: str,
        returning: str,
    ) -> list[Any]:
        """As ``upsert``, but a row that is there is overwritten only on a condition.

        ``condition``: of ``excluded``, the row that came, and the table's name. Returns a column
        of the rows that were written.
        """
        raise NotImplementedError

    def write(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        *,
        upsert: bool,
    ) -> None:
        """What ``insert`` and ``upsert`` do."""
        statement = self.upsert_sql(target) if upsert else self.insert_sql(target)
        self.run(connection, statement, rows)

    def update(self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]) -> int:
        """Write the changed columns of rows that are there; how many of them are.

        ``rows``: of each ``target.changed``, then ``target.keys``.
        """
        sets = ", ".join(f"{column} = {self.mark}" for column in target.changed)
        one = " AND ".join(f"{column} = {self.mark}" for column in target.keys)
        statement = f"UPDATE {target.name} SET {sets} WHERE {one}"
        return connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0]).rowcount

    def loose(self, kind: sa.types.TypeEngine[Any]) -> bool:
        """Whether a column's text is compared by something looser than its characters."""
        return False

    def hidden_uniques(
        self, inspector: sa.Inspector, table: str, schema: str | None
    ) -> list[tuple[str, ...]]:
        """The columns of unique constraints that SQLAlchemy does not find with the table."""
        return []

    def select_expression(self, quoted: str, kind: sa.types.TypeEngine[Any]) -> str:
        """What to select to read a column."""
        return quoted

    # -- what most share ---------------------------------------------------------------------------

    def insert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        """Add rows. Fails if one of their keys is there already."""
        self.write(connection, target, rows, upsert=False)

    def upsert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        """Write rows, each in place of the one of the same key if there is one."""
        self.write(connection, target, rows, upsert=True)

    def upsert_sql(self, target: Target) -> str:
        """The statement that writes one row."""
        return f"{self.insert_sql(target)} {self.on_conflict(target)}"

    def insert_sql(self, target: Target) -> str:
        """The statement that adds one row."""
        marks = ", ".join([self.mark] * len(target.columns))
        overriding = " OVERRIDING SYSTEM VALUE" if target.overriding else ""
        return (
            f"INSERT INTO {target.name} ({', '.join(target.columns)}){overriding} VALUES ({marks})"
        )

    def on_conflict(self, target: Target) -> str:
        """The clause that makes an upsert of an insert."""
        sets = ", ".join(f"{column} = excluded.{column}" for column in target.changed)
        action = f"UPDATE SET {sets}" if sets else "NOTHING"
        return f"ON CONFLICT ({', '.join(target.keys)}) DO {action}"

    def run(self, connection: sa.Connection, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """One statement for many rows."""
        if rows:
            connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])

    def fetch(
        self, connection: sa.Connection, statement: str, parameters: tuple[Any, ...]
    ) -> Iterable[Sequence[Any]]:
        """The rows that a statement finds."""
        return connection.exec_driver_sql(statement, parameters)

    def execute_all(
        self, connection: sa.Connection, statements: Sequence[Statement]
    ) -> list[list[Sequence[Any]]]:
        """Run statements in their order; the rows that each of them finds.

        In one round trip where the database can do that.
        """
        found: list[list[Sequence[Any]]] = []
        for statement, parameters in statements:
            result = connection.exec_driver_sql(statement, parameters)
            found.append(list(result) if result.returns_rows else [])
        return found

    def statement(
        self, target: Target, rows: list[tuple[Any, ...]], *, upsert: bool = False
    ) -> Statement | None:
        """What adds rows, or upserts them, and is worth being sent together with others.

        ``None`` where ``insert`` and ``upsert`` do as well, or better with so many.
        """
        return None

    def is_untouched(self, connection: sa.Connection) -> bool:
        """Whether nothing has been done of what was sent together and has failed."""
        return False

    def keys_in(self, keys: Sequence[str], count: int) -> str:
        """The condition that a row's key is one of ``count``."""
        if len(keys) == 1:
            return f"{keys[0]} IN ({', '.join([self.mark] * count)})"
        one = f"({', '.join([self.mark] * len(keys))})"
        return f"({', '.join(keys)}) IN ({', '.join([one] * count)})"

    def among(self, column: str, values: list[Any]) -> tuple[str, tuple[Any, ...]]:
        """The condition that a column holds one of ``values``, and its parameters.

        For a column of which ``ColumnCodec.kind`` says what the database calls its type.
        """
        return self.keys_in((column,), len(values)), tuple(values)

    @contextmanager
    def connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """A connection from the pool, set up."""
        with engine.connect() as connection:
            if "eventsync" not in connection.info:
                self.set_up(connection)
                connection.info["eventsync"] = True
            yield connection

    @contextmanager
    def reading(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """As ``connected``, for one statement that only reads."""
        with self.connected(engine) as connection:
            yield connection

    def raw(self, connection: sa.Connection) -> Any:
        """The driver's own connection."""
        return connection.connection.driver_connection
