"""The version index of an SQL store, in the database that holds its data.

It owns the tables that eventsync adds to a database. It knows nothing of the tables of records, nor
of what happens within a transaction.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import sqlalchemy as sa

from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import Entry, Index, IndexTransaction, Outgoing, Presence, UndoneError
from eventsync.stores.sql.dialect import Dialect, Target
from eventsync.stores.sql.engine import connection_of, dialect_of, errors, open_engine
from eventsync.stores.sql.transaction import SqlTransaction

__all__ = ["SqlIndex"]

_CHUNK = 1000
_USUAL = 4  # columns of an entry of which nothing more is to be kept than that it is here


class _Tables:
    """eventsync's own tables in one database."""

    def __init__(self, dialect: Dialect, schema: str | None) -> None:
        self.metadata = sa.MetaData(schema=schema)
        blob = sa.LargeBinary
        self.version = sa.Table(
            "eventsync_version",
            self.metadata,
            sa.Column("type", dialect.text_key(128), primary_key=True),
            sa.Column("key", dialect.text_key(512), primary_key=True),
            sa.Column("stamp", blob(49), nullable=False),
            sa.Column("presence", sa.SmallInteger, nullable=False),
            sa.Column("detail", blob),
            sa.Column("echo", blob),
            sqlite_with_rowid=False,
        )
        columns = self.version.c
        sa.Index(
            "eventsync_version_elsewhere",
            columns.type,
            columns.presence,
            columns.key,
            sqlite_where=columns.presence != 1,
            postgresql_where=columns.presence != 1,
        )
        self.outbox = sa.Table(
            "eventsync_outbox",
            self.metadata,
            sa.Column(
                "number",
                sa.BigInteger().with_variant(sa.Integer(), "sqlite"),
                primary_key=True,
                autoincrement=True,
            ),
            sa.Column("type", dialect.text_key(128), nullable=False),
            sa.Column("body", blob(2**24 - 1), nullable=False),
            sqlite_autoincrement=True,
        )
        self.mark = sa.Table(
            "eventsync_mark",
            self.metadata,
            sa.Column("name", dialect.text_key(128), primary_key=True),
            sa.Column("text", sa.Text, nullable=False),
        )


class SqlIndex(Index):
    """The version index of an SQL store, in the database that holds its data.

    ``schema``: where its tables are, if not in the default one.
    """

    attempts: ClassVar[int] = 5

    def __init__(self, database: str | sa.Engine, *, schema: str | None = None) -> None:
        self.engine = open_engine(database)
        self.dialect = dialect_of(self.engine)
        self.tables = _Tables(self.dialect, schema)
        quote = self.engine.dialect.identifier_preparer
        self.name = quote.format_table(self.tables.version)
        columns = tuple(quote.quote(column.name) for column in self.tables.version.columns)
        self.columns = columns
        kinds = tuple(self.dialect.kind(column.type) for column in self.tables.version.columns)
        self.targets = tuple(
            Target(self.name, columns[:count], columns[:2], columns[2:], types=kinds[:count])
            for count in (_USUAL, len(columns))
        )
        """Where entries go: those without detail and echo, as most are, and the others."""
        outbox = self.tables.outbox
        sent = (outbox.c.type, outbox.c.body)
        self.outbox = Target(
            quote.format_table(outbox),
            tuple(quote.quote(column.name) for column in sent),
            keys=(),
            changed=(),
            types=tuple(self.dialect.kind(column.type) for column in sent),
        )
        """Where envelopes go, which the database numbers."""
        stamp = columns[2]
        self.newer = f"substr(excluded.{stamp}, 1, 16) > substr({self.name}.{stamp}, 1, 16)"
        """The condition that an entry is of a later version than the one that is there."""
        self._ready = False

    def __repr__(self) -> str:
        return f"SqlIndex({self.engine.url!r})"

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        self.prepare()
        with self._errors(), self.dialect.connected(self.engine) as connection:
            self.dialect.begin(connection)
            try:
                transaction = SqlTransaction(connection, self)
                yield transaction
                transaction.finish()
                connection.commit()
            except BaseException:
                connection.rollback()
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
                        f"the transaction is one of {connection.engine.url!r}, "
                        f"the store is in {self.engine.url!r}",
                        hint="begin it on an engine of the store's own URL",
                    )
                if not connection.in_transaction():
                    connection.begin()  # what SQLAlchemy has not seen begin it does not commit
                # Before anything is read other writers have to wait, as in ``transaction``.
                self.dialect.join(connection, self.outbox.name)
                # An edit that fails leaves no trace, whatever the caller makes of its error.
                part = SqlTransaction(connection, self, part=True)
                try:
                    yield part
                    part.finish()
                except BaseException:
                    part.undo()
                    raise
        except UndoneError as error:
            # Not to be done again here: the caller's own work may be undone too.
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
        with self.transaction() as transaction:
            assert isinstance(transaction, SqlTransaction)
            for start in range(0, len(numbers), _CHUNK):
                chunk = list(numbers[start : start + _CHUNK])
                among, parameters = self.dialect.among("number", chunk)
                statement = f"DELETE FROM {self.outbox.name} WHERE {among}"
                transaction.ask([*self.dialect.carefree, (statement, parameters)])

    def load_mark(self, name: str) -> str:
        table = self.tables.mark.c
        rows = self._rows(sa.select(table.text).where(table.name == name))
        return str(rows[0][0]) if rows else ""

    def save_mark(self, name: str, text: str) -> None:
        quote = self.engine.dialect.identifier_preparer
        target = Target(
            quote.format_table(self.tables.mark),
            ("name", quote.quote("text")),
            ("name",),
            (quote.quote("text"),),
        )
        with self.transaction() as transaction:
            assert isinstance(transaction, SqlTransaction)
            self.dialect.upsert(transaction.connection, target, [(name, text)])

    def close(self) -> None:
        self.engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        self.prepare()
        with self._errors(), self.dialect.reading(self.engine) as connection:
            return connection.execute(query).all()

    def _errors(self) -> Any:
        return errors("version index", self.dialect)

    def prepare(self) -> None:
        """Make the tables of the index. Idempotent."""
        if not self._ready:
            with (
                self._errors(),
                self.dialect.connected(self.engine) as connection,
                self.dialect.alone(connection),
            ):
                self.tables.metadata.create_all(connection)
            self._ready = True
