"""The version index of an SQL store, in the database that holds its data.

It owns the tables that eventsync adds to a database, and how their rows are locked. It knows
nothing of the tables of records.

Where several processes write at once, a transaction locks the entries it reads, in the order of
their keys. Of a key without an entry there is nothing to lock: its entry is then inserted, and if
another transaction was quicker the whole transaction is undone and done again.
"""

from __future__ import annotations

from collections.abc import Collection, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import repeat
from typing import Any, ClassVar

import sqlalchemy as sa

from eventsync.change import Stamp
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.index import (
    Entry,
    Index,
    IndexTransaction,
    Intent,
    Outgoing,
    Presence,
    UndoneError,
)
from eventsync.stores.sql.dialect import Dialect, Target
from eventsync.stores.sql.engine import (
    UniqueError,
    connection_of,
    dialect_of,
    errors,
    open_engine,
)

__all__ = ["SqlIndex", "SqlTransaction"]

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
                yield SqlTransaction(connection, self)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    @contextmanager
    def join(self, transaction: Any) -> Iterator[IndexTransaction]:
        try:
            with self._errors():
                connection = connection_of(transaction)
                if connection.engine.url != self.engine.url:
                    raise ConfigError(
                        f"the transaction is one of {connection.engine.url!r}, "
                        f"the store is in {self.engine.url!r}",
                        hint="begin it on an engine of the store's own URL",
                    )
                # Before anything is read other writers have to wait, as in ``transaction``.
                self.dialect.join(connection, self.tables.outbox)
                # An edit that fails leaves no trace, whatever the caller makes of its error.
                with connection.begin_nested():
                    yield SqlTransaction(connection, self)
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
        table = self.tables.outbox
        with self.transaction() as transaction:
            assert isinstance(transaction, SqlTransaction)
            for start in range(0, len(numbers), _CHUNK):
                chunk = numbers[start : start + _CHUNK]
                transaction.connection.execute(sa.delete(table).where(table.c.number.in_(chunk)))

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
        with self._errors(), self.dialect.connected(self.engine) as connection:
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


class SqlTransaction(IndexTransaction):
    """A transaction of the database: entries, data and outbox commit together."""

    intents: ClassVar[bool] = False

    def __init__(self, connection: sa.Connection, index: SqlIndex) -> None:
        self.connection = connection
        self._index = index
        # Keys without an entry, by type: of these there was nothing to lock.
        self._absent: dict[str, set[str]] = {}

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        for key, stamp, presence, detail, echo in self._locked(type, keys, slice(1, None)):
            found[key] = Entry.unpack(stamp, presence, detail, echo)
        self._note_absent(type, keys, found)
        return found

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        found = {key: Stamp(stamp) for key, stamp in self._locked(type, keys, slice(1, 3))}
        self._note_absent(type, keys, found)
        return found

    def _locked(self, type: str, keys: Sequence[str], columns: slice) -> Iterator[Any]:
        """These columns of the entries of ``keys``, locked where others may write at once."""
        index, dialect = self._index, self._index.dialect
        lock = f" ORDER BY {index.columns[1]} FOR UPDATE" if dialect.concurrent else ""
        ordered = sorted(set(keys))
        for start in range(0, len(ordered), _CHUNK):
            chunk = ordered[start : start + _CHUNK]
            among, values = dialect.among(index.columns[1], chunk)
            yield from dialect.fetch(
                self.connection,
                f"SELECT {', '.join(index.columns[columns])} FROM {index.name}"
                f" WHERE {index.columns[0]} = {dialect.mark} AND {among}{lock}",
                (type, *values),
            )

    def _note_absent(self, type: str, keys: Sequence[str], found: Container[str]) -> None:
        if self._index.dialect.concurrent:
            self._absent.setdefault(type, set()).update(key for key in keys if key not in found)

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        # By target.
        rows: tuple[list[tuple[Any, ...]], ...] = ([], [])
        for key in sorted(entries):
            entry = entries[key]
            detail, echo = entry.pack_detail(), entry.echo
            row = (type, key, entry.stamp, int(entry.presence))
            if detail is None and echo is None:
                rows[0].append(row)
            else:
                rows[1].append((*row, detail, echo))
        for target, of_target in zip(self._index.targets, rows, strict=True):
            self._write(target, type, of_target)

    def claim(self, type: str, keys: Sequence[str], stamps: Sequence[Stamp]) -> Collection[str]:
        index, dialect = self._index, self._index.dialect
        if not dialect.conditional:
            return super().claim(type, keys, stamps)
        here, gone = int(Presence.HERE), int(Presence.GONE)
        # As ``Stamp.deleted``, without a call for each.
        presences = [gone if stamp[16] == 2 else here for stamp in stamps]
        rows = list(zip(repeat(type), keys, stamps, presences))
        # An entry that had more to say loses it: of a record put whole there is no more.
        target = index.targets[0]
        return set(dialect.upsert_if(self.connection, target, rows, index.newer, index.columns[1]))

    def _write(self, target: Target, type: str, rows: list[tuple[Any, ...]]) -> None:
        """Write entries, in the order of their keys."""
        absent = self._absent.get(type)
        if absent:
            new = [row for row in rows if row[1] in absent]
            rows = [row for row in rows if row[1] not in absent]
            if new:
                self._insert(target, new)
                absent.difference_update(row[1] for row in new)
        if rows:
            self._index.dialect.upsert(self.connection, target, rows)

    def _insert(self, target: Target, rows: list[tuple[Any, ...]]) -> None:
        try:
            with errors("version index", self._index.dialect):
                self._index.dialect.insert(self.connection, target, rows)
        except UniqueError as error:
            raise UndoneError(f"another process was quicker: {error.message}") from error

    def forget(self, type: str, keys: Sequence[str]) -> None:
        table = self._index.tables.version
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            self.connection.execute(
                sa.delete(table).where(table.c.type == type, table.c.key.in_(chunk))
            )

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        if bodies:
            self.connection.execute(
                sa.insert(self._index.tables.outbox),
                [{"type": type, "body": body} for body in bodies],
            )

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self.intend(type, {}, bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Nothing: the database's own transaction undoes what did not commit."""

    def keep(self) -> None:
        """Nothing, as ``settle``."""
