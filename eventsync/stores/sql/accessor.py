"""The SQL accessor: records of one type as rows of a table.

It owns the statements on rows. It knows nothing of what differs between databases.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import cached_property
from itertools import chain
from typing import Any, ClassVar, TypeVar

import sqlalchemy as sa

from eventsync.engine.accessor import Accessor, Puts, Write
from eventsync.errors import ConfigError, DependencyError, EventSyncError, RejectedError
from eventsync.index import Entry, Index, IndexTransaction
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.sql.condition import Clause, clause_of
from eventsync.stores.sql.dialect import Statement
from eventsync.stores.sql.engine import UniqueError, dialect_of, errors, open_engine
from eventsync.stores.sql.index import SqlIndex
from eventsync.stores.sql.reference import Dependents
from eventsync.stores.sql.table import Table, new_table
from eventsync.stores.sql.transaction import SqlTransaction

__all__ = ["SqlAccessor"]

R = TypeVar("R", bound=Record)
T = TypeVar("T")
_PAGE = 1000
_IN = 500


class SqlAccessor(Accessor[R]):
    """Records of one type as rows of a table.

    ``database``: an SQLAlchemy engine or URL; accessors of one store share one. ``table``: its
    name, by default the record type's; ``schema`` where the database has such. ``create``: create
    the table from the record's fields when it does not exist. Nothing is connected to before first
    use. Of several processes that write at once none overwrites what another one wrote later.
    """

    atomic: ClassVar[bool] = True

    def __init__(
        self,
        record_type: type[R],
        database: str | sa.Engine,
        *,
        table: str | None = None,
        schema: str | None = None,
        create: bool = False,
        view: View | None = None,
    ) -> None:
        super().__init__(record_type, view=view)
        self.engine = open_engine(database)
        self.dialect = dialect_of(self.engine)
        self._table_name = table or self.type.name
        self._schema = schema
        self._create = create

    def __repr__(self) -> str:
        return f"SqlAccessor({self.type.name}, {self._table_name!r})"

    def default_index(self) -> Index:
        return SqlIndex(self.engine)

    def bind(self, index: Index) -> None:
        if not isinstance(index, SqlIndex) or index.engine.url != self.engine.url:
            raise ConfigError(
                f"the SQL accessor of {self.type.name} keeps versions in its own database",
                hint="leave the store's index out, and give all its accessors one engine",
            )
        self.engine = index.engine  # one pool of connections for the whole store
        super().bind(index)

    def depends_on(self, other: Accessor[Any]) -> bool:
        return isinstance(other, SqlAccessor) and self._table.refers_to(other._table)

    # -- the six --------------------------------------------------

    def add(self, record: R) -> None:
        self._directly([Write(record.key, record.raw(), whole=True)], [])

    def update(self, record: R) -> None:
        self._directly([Write(record.key, record.changes(), whole=False)], [])

    def get(self, key: str) -> R | None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            rows = self._select(connection, [key])
        return self.make(rows[key]) if key in rows else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.read(self._pages(self._clause(query)), query))

    def count(self, query: Query) -> int:
        clause = self._clause(query)
        if query.where.fields and (clause is None or not clause.exact):
            return super().count(query)
        where, parameters = (f" WHERE {clause.sql}", clause.parameters) if clause else ("", ())
        with self._errors(), self.dialect.connected(self.engine) as connection:
            statement = f"SELECT COUNT(*) FROM {self._table.name}{where}"
            return int(connection.exec_driver_sql(statement, parameters).scalar_one())

    def _clause(self, query: Query) -> Clause | None:
        """What the database can judge of a query; the rest is judged in Python."""
        return clause_of(query.where.tree, self._table, self.dialect)

    def remove(self, key: str) -> None:
        self._directly([], [key])

    def _directly(self, writes: Sequence[Write], removals: Sequence[str]) -> None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            self.dialect.begin(connection)
            self._write(connection, writes, removals)
            connection.commit()

    # -- many at once --------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        assert isinstance(transaction, SqlTransaction)
        with self._errors():
            return self._found(transaction.ask(self._reading(keys)))

    def read_with_entries(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Entry], dict[str, Mapping[str, Any]]]:
        assert isinstance(transaction, SqlTransaction)
        name = self.type.name
        entries = transaction.reading(name, keys)
        with self._errors():
            answers = transaction.ask([*entries, *self._reading(keys)])
            held = transaction.entries(name, keys, *answers[: len(entries)])
            return held, self._found(answers[len(entries) :])

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        assert isinstance(transaction, SqlTransaction)
        with self._rivals_named(transaction.connection, writes), self._errors():
            self._write(transaction.connection, writes, removals)

    def update_rows(
        self, writes: Sequence[Write], transaction: IndexTransaction
    ) -> Collection[str]:
        assert isinstance(transaction, SqlTransaction)
        connection = transaction.connection
        with self._rivals_named(connection, writes), self._errors():
            keys = [write.key for write in writes]
            # Of those that have no row nothing is changed.
            return keys if self._change(connection, writes) else self._present(connection, keys)

    @cached_property
    def plain(self) -> bool:
        table = self._table
        return table.faithful and table.verbatim and self._whole and self.type.rule == "record"

    @cached_property
    def patchable(self) -> bool:
        table = self._table
        # A subclass with a ``write_rows`` of its own means to see all that is written.
        own = type(self).write_rows is not SqlAccessor.write_rows
        by_field = self.type.rule == "field" and not own
        return by_field and table.faithful and table.exact_key and self._whole

    @property
    def _whole(self) -> bool:
        """Whether all of every record is in the table."""
        return not self.view.partial and self.view.where is None

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        return {} if self._table.faithful else self.read_rows(list(writes), transaction)

    def waiting(
        self,
        rows: Mapping[str, Mapping[str, Any]],
        removals: Sequence[str],
        transaction: IndexTransaction,
    ) -> Mapping[str, DependencyError]:
        assert isinstance(transaction, SqlTransaction)
        with self._errors():
            return self._dependents.waiting(transaction.connection, rows, removals)

    @property
    def verbatim(self) -> bool:
        return self._table.verbatim

    def ensure(self) -> None:
        if self._create:
            with (
                self._errors(),
                self.dialect.connected(self.engine) as connection,
                self.dialect.alone(connection),
            ):
                made = new_table(self.view, self.dialect, self._table_name, self._schema)
                made.create(connection, checkfirst=True)
        if isinstance(self._index, SqlIndex):
            self._index.prepare()  # now, while no transaction of a caller's is in the way
        _ = self._table  # reads the schema, and so finds what does not fit

    def ping(self) -> None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            connection.exec_driver_sql(f"SELECT 1 FROM {self._table.name} LIMIT 1").all()

    def close(self) -> None:
        self.engine.dispose()

    # -- inside --------------------------------------------------

    @cached_property
    def _table(self) -> Table:
        with self._errors():
            return Table(self.view, self.engine, self.dialect, self._table_name, self._schema)

    @cached_property
    def _dependents(self) -> Dependents:
        return Dependents(self._table, self.engine, self.dialect)

    def _errors(self) -> Any:
        return errors(self._table_name, self.dialect)

    def _write(
        self, connection: sa.Connection, writes: Sequence[Write], removals: Sequence[str]
    ) -> None:
        table, dialect = self._table, self.dialect
        if isinstance(writes, Puts) and not table.guarded:
            whole = table.rows_of(writes.rows, self.reader.names)
            dialect.upsert(connection, table.target, self._dependents.parents_first(whole))
            writes = ()
        if dialect.concurrent:
            # All processes in one order, so that they do not wait for one another in a circle.
            writes, removals = sorted(writes, key=lambda write: write.key), sorted(removals)
        if table.guarded:
            present = self._present(connection, [*(w.key for w in writes), *removals])
            removals = [key for key in removals if key in present]
            writes = [w for w in writes if w.whole or w.key in present]
            added = [w for w in writes if w.whole and w.key not in present]
            dialect.insert(
                connection,
                table.target,
                self._dependents.parents_first(table.rows([write.values for write in added])),
            )
            changed = [w for w in writes if w.key in present]
        else:
            whole = table.rows([write.values for write in writes if write.whole])
            if whole:
                dialect.upsert(connection, table.target, self._dependents.parents_first(whole))
            changed = [write for write in writes if not write.whole]
        self._change(connection, changed)
        for wave in self._dependents.children_first(connection, removals):
            for start in range(0, len(wave), _IN):
                among, parameters = self._among(wave[start : start + _IN])
                connection.exec_driver_sql(f"DELETE FROM {table.name} WHERE {among}", parameters)

    def _change(self, connection: sa.Connection, writes: Sequence[Write]) -> bool:
        """Write changed fields; whether each had its row."""
        alike: dict[tuple[str, ...], list[Write]] = {}
        for write in writes:
            alike.setdefault(tuple(write.values), []).append(write)
        found = 0
        for some in alike.values():
            keys, values = [write.key for write in some], [write.values for write in some]
            target, rows = self._table.changes(keys, values)
            if target.changed:
                found += self.dialect.update(connection, target, rows)
        return found == len(writes)

    def _present(self, connection: sa.Connection, keys: Sequence[str]) -> set[str]:
        """Those of ``keys`` that have a row, compared character by character."""
        try:
            return set(self._select(connection, keys))
        except RejectedError:
            if len(keys) == 1:
                raise
            return {key for key in keys if self._present(connection, [key])}

    @contextmanager
    def _rivals_named(self, connection: sa.Connection, writes: Sequence[Write]) -> Iterator[None]:
        """Say of a record that is refused by itself which other one is in its way."""
        try:
            yield
        except UniqueError as error:
            other = self._rival(connection, writes[0]) if len(writes) == 1 else None
            if other is None:
                raise
            raise UniqueError(f"{error.message}; {other}", hint=error.hint) from error

    def _rival(self, connection: sa.Connection, write: Write) -> str | None:
        """What to say of the record that has a value which ``write`` may not have too."""
        table, dialect = self._table, self.dialect
        # What cannot be looked up now leaves the refusal as the database put it.
        with (
            suppress(EventSyncError, sa.exc.SQLAlchemyError),
            dialect.beside(self.engine, connection) as beside,
        ):
            held = self._select(beside, [write.key]).get(write.key, {})
            stored = table.stored({**held, **write.values})
            for columns in (table.keys, *table.uniques):
                parts = tuple(stored.get(column) for column in columns)
                if None in parts:
                    continue
                quoted = [table.quoted[column] for column in columns]
                rows = beside.exec_driver_sql(
                    f"SELECT {table.selected} FROM {table.name} WHERE {dialect.keys_in(quoted, 1)}",
                    parts,
                )
                for row in rows:
                    other = self.type.key_text(self.view.to_record(table.loaded(row)))
                    if other != write.key:
                        shared = " and ".join(columns)
                        return f"{self.type.name} {other!r} has the same {shared}"
        return None

    def _among(self, keys: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
        """The condition that a row is of one of ``keys``, and its parameters."""
        table, dialect = self._table, self.dialect
        rows = table.key_rows(keys)
        if table.key_kinds == ("",) or len(table.key_names) > 1:
            return dialect.keys_in(table.key_names, len(rows)), tuple(chain.from_iterable(rows))
        return dialect.among(table.key_names[0], [part for (part,) in rows])

    def _select(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, Any]:
        return self._found(self.dialect.fetch(connection, *one) for one in self._reading(keys))

    def _reading(self, keys: Sequence[str]) -> list[Statement]:
        """What to ask for the rows of ``keys``."""
        table = self._table
        statements: list[Statement] = []
        for start in range(0, len(keys), _IN):
            among, parameters = self._among(keys[start : start + _IN])
            statement = f"SELECT {table.selected} FROM {table.name} WHERE {among}"
            statements.append((statement, parameters))
        return statements

    def _found(self, answers: Iterable[Iterable[Sequence[Any]]]) -> dict[str, Any]:
        """By key, the field values in the answers to ``_reading``."""
        found = {}
        for row in chain.from_iterable(answers):
            values = self.view.to_record(self._table.loaded(row))
            found[self.type.key_text(values)] = values
        return found

    def _pages(self, clause: Clause | None) -> Iterator[dict[str, Any]]:
        """The rows in the order of the key, page by page, so that nothing is locked in between."""
        table, mark = self._table, self.dialect.mark
        keys = ", ".join(table.key_names)
        marks = ", ".join([mark] * len(table.key_names))
        select = f"SELECT {table.selected} FROM {table.name}"
        # The first part is implied by the second; MySQL finds its way by it.
        after = f"{table.key_names[0]} >= {mark} AND ({keys}) > ({marks})"
        wanted, parameters = (clause.sql, clause.parameters) if clause else ("", ())
        last: tuple[Any, ...] = ()
        while True:
            with self._errors(), self.dialect.connected(self.engine) as connection:
                where = " AND ".join(filter(None, (wanted, after if last else "")))
                rows = connection.exec_driver_sql(
                    f"{select}{' WHERE ' if where else ''}{where} ORDER BY {keys} LIMIT {_PAGE}",
                    (*parameters, last[0], *last) if last else parameters,
                ).all()
            for row in rows:
                yield table.loaded(row)
            if len(rows) < _PAGE:
                return
            last = table.key_of(rows[-1])
