"""The version index of an SQL store, in the database that holds its data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import sqlalchemy as sa

from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import Entry, Index, IndexTransaction, Outgoing, Presence, UndoneError
from eventsync.index.contract import after_all
from eventsync.stores.sql.engine import connection_of, dialect_of, errors, open_engine
from eventsync.stores.sql.index_table import IndexTables
from eventsync.stores.sql.transaction import SqlTransaction
from eventsync.values.chunk import chunked

__all__ = ["SqlIndex"]

_CHUNK = 1000


class SqlIndex(Index):
    """The version index of an SQL store, in the database that holds its data.

    ``schema``: the database schema of eventsync's own tables, if not the default one.
    """

    attempts: ClassVar[int] = 5

    def __init__(self, database: str | sa.Engine, *, schema: str | None = None) -> None:
        self.engine = open_engine(database)
        self.dialect = dialect_of(self.engine)
        self.tables = IndexTables(self.engine, self.dialect, schema)
        self._ready = False

    def __repr__(self) -> str:
        return f"SqlIndex({self.engine.url!r})"

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        with self._transaction(marks_own=self.marks_own) as transaction:
            yield transaction

    @contextmanager
    def _transaction(self, *, marks_own: bool = False) -> Iterator[SqlTransaction]:
        """Return the context manager of a transaction, by default one that writes no records."""
        self.prepare()
        with self._errors(), self.dialect.connected(self.engine) as connection:
            self.dialect.begin(connection)
            transaction = SqlTransaction(connection, self.tables, marks_own=marks_own)
            try:
                yield transaction
                transaction.finish()
                connection.commit()
            except BaseException:
                connection.rollback()
                transaction.forget_mark()
                raise

    @contextmanager
    def join(self, transaction: Any) -> Iterator[IndexTransaction]:
        try:
            with self._errors():
                connection = connection_of(transaction)
                if (
                    connection.engine is not self.engine
                    and connection.engine.url != self.engine.url
                ):
                    raise ConfigError(
                        f"the transaction belongs to {connection.engine.url!r}, but the store is "
                        f"in {self.engine.url!r}",
                        hint="begin it on an engine of the store's own URL",
                    )
                if not connection.in_transaction():
                    # SQLAlchemy only commits transactions that it has seen begin.
                    connection.begin()
                # Other writers have to wait before anything is read, as in ``transaction``.
                self.dialect.join(connection, self.tables.envelopes.name)
                # An edit that fails leaves no trace, even if the caller ignores its error.
                part = SqlTransaction(connection, self.tables, part=True, marks_own=self.marks_own)
                try:
                    yield part
                    part.finish()
                except BaseException:
                    part.undo()
                    raise
        except UndoneError as error:
            # Not retried here: the database may have undone the caller's own work too.
            raise StoreUnavailableError(
                error.message, hint="roll your transaction back, and begin it again"
            ) from error

    def waiting(self) -> int:
        counted = sa.select(sa.func.count()).select_from(self.tables.outbox)
        return int(self._rows(counted)[0][0])

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        table = self.tables.version.c
        query = (
            sa.select(table.key, table.stamp, table.presence, table.detail, table.echo)
            .where(table.type == type, table.key > after)
            .order_by(table.key)
            .limit(limit)
        )
        if presence is not None:
            query = query.where(table.presence == int(presence))
        return [(key, Entry.unpack(*columns)) for key, *columns in self._rows(query)]

    def counts(self, type: str) -> dict[Presence, int]:
        table = self.tables.version.c
        query = (
            sa.select(table.presence, sa.func.count())
            .where(table.type == type)
            .group_by(table.presence)
        )
        found = {Presence(code): count for code, count in self._rows(query)}
        return dict.fromkeys(Presence, 0) | found

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        table = self.tables.outbox.c
        query = sa.select(table.number, table.type, table.body).order_by(table.number).limit(limit)
        return [Outgoing(*row) for row in self._rows(query)]

    def sent(self, numbers: Sequence[int]) -> None:
        with self._transaction() as transaction:
            for start in range(0, len(numbers), _CHUNK):
                chunk = list(numbers[start : start + _CHUNK])
                condition, parameters = self.dialect.among("number", chunk)
                statement = f"DELETE FROM {self.tables.envelopes.name} WHERE {condition}"
                transaction.ask([*self.dialect.relaxed_commit, (statement, parameters)])

    def load_mark(self, name: str) -> str:
        table = self.tables.mark.c
        rows = self._rows(sa.select(table.text).where(table.name == name))
        return str(rows[0][0]) if rows else ""

    def marks(self, prefix: str) -> dict[str, str]:
        table = self.tables.mark.c
        named = (table.name > prefix, table.name < after_all(prefix))
        return dict(self._rows(sa.select(table.name, table.text).where(*named)))

    def save_marks(self, marks: Mapping[str, str]) -> None:
        saved = [mark for mark in marks.items() if mark[1]]
        removed = [name for name, text in marks.items() if not text]
        with self._transaction() as transaction:
            if saved:
                self.dialect.upsert(transaction.connection, self.tables.marks, saved)
            for names in chunked(removed, _CHUNK):
                named = self.tables.mark.c.name.in_(names)
                transaction.connection.execute(sa.delete(self.tables.mark).where(named))

    def close(self) -> None:
        self.engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        self.prepare()
        with self._errors(), self.dialect.reading(self.engine) as connection:
            return connection.execute(query).all()

    def _errors(self) -> Any:
        # A transaction also covers the rows of records, which may have secret fields.
        return errors("version index", self.dialect, self.engine.url, values=False)

    def prepare(self) -> None:
        """Create the tables of the index where they are missing. Idempotent."""
        if not self._ready:
            with (
                self._errors(),
                self.dialect.connected(self.engine) as connection,
                self.dialect.alone(connection),
            ):
                self.tables.metadata.create_all(connection)
            self._ready = True
