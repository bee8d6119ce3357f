"""What differs between databases, as an abstract class that each database fills in."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, ClassVar, TypeAlias, cast

import sqlalchemy as sa

from eventsync.records.field import Field
from eventsync.stores.sql.catalogue import Catalogue

__all__ = ["ColumnCodec", "ColumnComparison", "Dialect", "Fault", "Statement", "Target"]

Statement: TypeAlias = tuple[str, tuple[Any, ...]]
"""A statement and its parameters."""


class Fault(Enum):
    """The meaning of a driver's error."""

    UNREACHABLE = auto()
    """The database does not answer, or is busy."""
    UNDONE = auto()
    """The database undid the transaction because of a conflict with another one."""
    DEPENDENCY = auto()
    """A foreign key: the parent record is missing, or child records still exist."""
    UNIQUE = auto()
    """A unique constraint of the key or of other columns."""
    REJECTED = auto()
    """The database will never take this record."""
    LOCKED = auto()
    """Another session has locked a row or a table for longer than the lock timeout."""
    CONFIG = auto()
    """A table or column is missing, or has another type than before."""
    ACCESS = auto()
    """The user, the password or the database is wrong, or the user lacks a right."""


@dataclass(slots=True, frozen=True)
class ColumnCodec:
    """How values of one column are written and read; ``None`` where they pass unchanged.

    ``faithful``: every value that is accepted reads back equal. ``verbatim``: it also reads back in
    the same form, including the zeros at the end of a decimal. ``kind``: the database's name for
    the type of the column, if its values can be sent in the database's own binary form.
    """

    write: Callable[[Any], Any] | None = None
    read: Callable[[Any], Any] | None = None
    faithful: bool = True
    verbatim: bool = True
    kind: str = ""


@dataclass(slots=True, frozen=True)
class ColumnComparison:
    """How values of one column are compared with an operand of a query.

    The database finds at least all rows that Python would find. ``operand`` returns the value to
    send for an operand, or ``None`` if the database cannot be asked. ``column`` and ``value`` are
    the SQL of the two sides, with braces for the column's name and the parameter. ``ordered``: less
    and greater work too. ``exact``: the database finds no other rows.
    """

    operand: Callable[[Any], Any] = lambda value: value
    column: str = "{}"
    value: str = "{}"
    ordered: bool = True
    exact: bool = True


@dataclass(slots=True, frozen=True)
class Target:
    """A table to write rows to. All names are quoted already.

    ``columns``: the columns of each row, in its order. ``keys``: those that identify a row.
    ``changed``: those that a later row overwrites. ``overriding``: the database numbers the rows
    unless the statement overrides that. ``types``: the database's name for the type of each column,
    if rows can be sent in binary form. ``staging``: the columns of the temporary table that this
    target shares with others. ``shape``: differs once a column of the table has been altered.
    ``sole``: the table has no unique index but that of its keys, and nobody adds one.
    ``sequences``: the places in a row that the database would number, each with the sequence that
    an insert advances.
    """

    name: str
    columns: tuple[str, ...]
    keys: tuple[str, ...]
    changed: tuple[str, ...]
    overriding: bool = False
    types: tuple[str, ...] = ()
    staging: tuple[str, ...] = ()
    shape: int = 0
    sole: bool = False
    sequences: tuple[tuple[int, str], ...] = ()


class Dialect(ABC):
    """One kind of database. Immutable, hence thread-safe."""

    mark: ClassVar[str] = "%s"
    """The placeholder of a parameter."""
    concurrent: ClassVar[bool] = True
    """Whether several transactions can write at once."""
    conditional: ClassVar[bool] = False
    """Whether ``upsert_if`` is implemented."""
    skipping: ClassVar[bool] = True
    """Whether a trigger can skip a row, so that it is neither written nor an error."""
    removes_own_parent: ClassVar[bool] = True
    """Whether a row that refers to itself can be deleted."""
    relaxed_commit: ClassVar[tuple[Statement, ...]] = ()
    """Statements for a transaction that a crash of the database may undo without harm."""
    unmark: ClassVar[tuple[Statement, ...]] = ()
    """Statements after which triggers capture the writes of this connection again."""
    mark_lasts: ClassVar[bool] = False
    """Whether ``mark_own`` outlives the transaction, even one that is rolled back."""
    log_own: ClassVar[tuple[Statement, ...]] = ()
    """Statements that mark the transaction as eventsync's own in the log of the database."""
    sees_nested: ClassVar[bool] = False
    """Whether triggers capture what another trigger writes, in a marked transaction too."""
    error: type[Exception]
    """The base class of the driver's errors."""

    @abstractmethod
    def fault(self, error: Exception) -> Fault:
        """Return the meaning of a driver's error."""

    def said(self, error: Exception, *, values: bool = True) -> str:
        """Return the text of a driver's error.

        ``values``: whether the text may quote values of rows; if not, it names only tables, columns
        and constraints, as far as the server lets one tell these apart.
        """
        return str(error).strip()

    def set_up(self, connection: sa.Connection) -> None:  # noqa: B027  # optional
        """Prepare a new connection: isolation, time zone, strictness."""

    def begin(self, connection: sa.Connection) -> None:
        """Begin a transaction that will write."""
        connection.begin()

    def join(  # noqa: B027  # where rows are locked one by one, no writer has to wait
        self, connection: sa.Connection, outbox: str
    ) -> None:
        """Make other writers wait as ``begin`` does, in a transaction that may have begun already.

        ``outbox``: the name of a table that can be written to for this purpose.
        """

    @contextmanager
    def beside(self, engine: sa.Engine, connection: sa.Connection) -> Iterator[sa.Connection]:
        """Yield a connection for a query after a statement on ``connection`` has failed."""
        yield connection

    def skip_locked(self, connection: sa.Connection) -> str:
        """Return the clause of a query that locks rows and leaves out those that others locked.

        Empty where the database has none.
        """
        return ""

    def reach(self, connection: sa.Connection, table: str) -> None:  # noqa: B027  # optional
        """Fail with ``Fault.LOCKED`` if another session keeps all writers from a table."""

    @abstractmethod
    def alone(self, connection: sa.Connection) -> AbstractContextManager[None]:
        """Keep other processes from creating tables while the block runs."""

    @abstractmethod
    def text_key(self, length: int) -> sa.types.TypeEngine[Any]:
        """Return a text column that compares and sorts as its bytes."""

    @abstractmethod
    def column_type(self, field: Field, *, keys: int) -> sa.types.TypeEngine[Any]:
        """Return the column for a field, in a table that eventsync creates. It rounds nothing.

        ``keys``: how many columns the key has, if the field is in the key or unique; otherwise 0.
        """

    @abstractmethod
    def codec(self, kind: sa.types.TypeEngine[Any], field: Field | None) -> ColumnCodec:
        """Return the codec of a column; ``field`` is ``None`` for a conversion or a constant."""

    def kind(self, kind: sa.types.TypeEngine[Any]) -> str:
        """Return ``ColumnCodec.kind`` of a column of eventsync's own tables."""
        return ""

    @abstractmethod
    def comparison(self, kind: sa.types.TypeEngine[Any], field: Field) -> ColumnComparison | None:
        """Return how a column is compared; ``None`` if it differs from how Python compares."""

    def upsert_if(
        self,
        connection: sa.Connection,
        target: Target,
        rows: list[tuple[Any, ...]],
        condition: str,
        returning: str,
    ) -> list[Any]:
        """Upsert rows, but overwrite an existing row only on a condition.

        The condition refers to the incoming row as ``excluded`` and to the existing one by the
        table's name. Return one column of the rows that were written.
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
        """Insert or upsert rows."""
        statement = self.upsert_sql(target) if upsert else self.insert_sql(target)
        self.run(connection, statement, rows)

    def update(self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]) -> int:
        """Write the changed columns of existing rows; return how many rows exist.

        ``rows``: the values of ``target.changed``, then those of ``target.keys``.
        """
        statement = self.update_sql(target)
        return connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0]).rowcount

    def update_sql(self, target: Target) -> str:
        """Return the statement that updates one row."""
        sets = ", ".join(f"{column} = {self.mark}" for column in target.changed)
        same_key = " AND ".join(f"{column} = {self.mark}" for column in target.keys)
        return f"UPDATE {target.name} SET {sets} WHERE {same_key}"

    @abstractmethod
    def catalogue(self, connection: sa.Connection, table: str, schema: str | None) -> Catalogue:
        """Return what the database's catalogue says of a table that exists."""

    def may_create(self, connection: sa.Connection, schema: str | None) -> bool:
        """Return whether this user may create tables, as far as the database says so."""
        return True

    def lacking_rights(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[str]:
        """Return which of SELECT, INSERT, UPDATE and DELETE this user lacks. Changes nothing."""
        return []

    def lacking_sequences(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[str]:
        """Return the sequences that number other columns than these and that this user lacks."""
        return []

    def stuck_sequences(
        self, connection: sa.Connection, table: str, schema: str | None, columns: Sequence[str]
    ) -> list[tuple[str, str, bool]]:
        """Return the sequences of these columns that eventsync cannot advance.

        Each with its column, and whether a right is all that this user lacks.
        """
        return []

    def user(self, connection: sa.Connection) -> str:
        """Return this user's name as GRANT takes it."""
        return "CURRENT_USER"

    def reflected(self, engine: sa.Engine, found: sa.Table) -> sa.Table:
        """Return a table that SQLAlchemy has described, with what it has read wrongly corrected."""
        return found

    def foreign_keys(
        self, engine: sa.Engine, schema: str | None
    ) -> Mapping[tuple[str | None, str], Sequence[Mapping[str, Any]]]:
        """Return the foreign keys of all tables of a schema, as SQLAlchemy describes them."""
        found: Any = sa.inspect(engine).get_multi_foreign_keys(schema=schema)
        return cast(Mapping[tuple[str | None, str], Sequence[Mapping[str, Any]]], found)

    def checks_references(self, connection: sa.Connection) -> bool:
        """Return whether the database checks foreign keys on this connection."""
        return True

    def defer_constraints(self, connection: sa.Connection) -> None:  # noqa: B027  # optional
        """Check those constraints only at the commit for which the database can do that."""

    def mark_own(self, connection: sa.Connection) -> tuple[Statement, ...]:
        """Return statements after which triggers do not capture the writes of this connection.

        Until ``unmark``, or the end of the transaction. See ``eventsync.stores.sql.capture``.
        """
        return ()

    def cascades(self, connection: sa.Connection, table: str, schema: str | None) -> bool:
        """Return whether a write to a table can change rows of others, by their foreign keys."""
        return False

    def check_constraints(self, connection: sa.Connection) -> None:  # noqa: B027  # optional
        """Check the deferred constraints now, if the database can do that."""

    def sequences(
        self, engine: sa.Engine, table: sa.Table, columns: Sequence[str]
    ) -> tuple[tuple[int, str], ...]:
        """Return ``Target.sequences``: empty where the database advances its numbers by itself."""
        return ()

    def select_expression(self, quoted: str, kind: sa.types.TypeEngine[Any]) -> str:
        """Return the SQL expression that reads a column."""
        return quoted

    # -- shared by most databases ------------------------------------------------------------------

    def insert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        """Insert rows. Raise the driver's error if one of their keys exists already."""
        self.write(connection, target, rows, upsert=False)

    def upsert(
        self, connection: sa.Connection, target: Target, rows: list[tuple[Any, ...]]
    ) -> None:
        """Insert rows, or overwrite those that have the same key."""
        self.write(connection, target, rows, upsert=True)

    def upsert_sql(self, target: Target) -> str:
        """Return the statement that upserts one row."""
        return f"{self.insert_sql(target)} {self.on_conflict(target)}"

    def insert_sql(self, target: Target) -> str:
        """Return the statement that inserts one row."""
        marks = ", ".join([self.mark] * len(target.columns))
        overriding = " OVERRIDING SYSTEM VALUE" if target.overriding else ""
        return (
            f"INSERT INTO {target.name} ({', '.join(target.columns)}){overriding} VALUES ({marks})"
        )

    def on_conflict(self, target: Target) -> str:
        """Return the clause that makes an upsert of an insert."""
        sets = ", ".join(f"{column} = excluded.{column}" for column in target.changed)
        action = f"UPDATE SET {sets}" if sets else "NOTHING"
        return f"ON CONFLICT ({', '.join(target.keys)}) DO {action}"

    def run(self, connection: sa.Connection, statement: str, rows: list[tuple[Any, ...]]) -> None:
        """Run one statement once for each row."""
        if rows:
            connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])

    def fetch(
        self, connection: sa.Connection, statement: str, parameters: tuple[Any, ...]
    ) -> Iterable[Sequence[Any]]:
        """Return the rows that a statement finds."""
        return connection.exec_driver_sql(statement, parameters)

    def execute_all(
        self, connection: sa.Connection, statements: Sequence[Statement]
    ) -> list[list[Sequence[Any]]]:
        """Run statements in their order; return the rows that each of them finds.

        All are sent in one round trip where the database can do that.
        """
        found: list[list[Sequence[Any]]] = []
        for statement, parameters in statements:
            result = connection.exec_driver_sql(statement, parameters)
            found.append(list(result) if result.returns_rows else [])
        return found

    def statement(
        self, target: Target, rows: list[tuple[Any, ...]], *, upsert: bool = False
    ) -> Statement | None:
        """Return one statement that writes all rows, to be sent together with others.

        Return ``None`` where ``insert`` and ``upsert`` are as fast, or faster for so many rows.
        """
        return None

    def is_untouched(self, connection: sa.Connection) -> bool:
        """Return whether statements that were sent together and failed have had no effect."""
        return False

    def keys_in(self, keys: Sequence[str], count: int) -> str:
        """Return the condition that a row's key is one of ``count`` keys."""
        if len(keys) == 1:
            return f"{keys[0]} IN ({', '.join([self.mark] * count)})"
        one = f"({', '.join([self.mark] * len(keys))})"
        return f"({', '.join(keys)}) IN ({', '.join([one] * count)})"

    def among(self, column: str, values: list[Any]) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that a column holds one of ``values``, and its parameters.

        The column's ``ColumnCodec.kind`` must be known.
        """
        return self.keys_in((column,), len(values)), tuple(values)

    @contextmanager
    def connected(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """Yield a connection from the pool, after ``set_up``."""
        with engine.connect() as connection:
            if "eventsync" not in connection.info:
                self.set_up(connection)
                connection.info["eventsync"] = True
            yield connection

    @contextmanager
    def reading(self, engine: sa.Engine) -> Iterator[sa.Connection]:
        """Yield a connection for one statement that only reads."""
        with self.connected(engine) as connection:
            yield connection

    def raw(self, connection: sa.Connection) -> Any:
        """Return the driver's own connection."""
        return connection.connection.driver_connection
