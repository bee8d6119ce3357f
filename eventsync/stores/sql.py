"""Records in the tables of an SQL database, through SQLAlchemy Core; here: SQLite.

It owns the SQL accessor and the version index that lives beside the data, so that both change in
one transaction. It knows nothing of other stores.

An existing table is used as it stands: its columns are mapped to fields by name or by the view, and
no column is added to it. Versions are kept in tables of their own (``eventsync_version``,
``eventsync_outbox``, ``eventsync_mark``) in the same database.
"""

from __future__ import annotations

import datetime as dt
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import cached_property
from operator import itemgetter
from typing import Any, ClassVar, TypeVar
from uuid import UUID

from eventsync.accessor import Accessor, Write
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.index import Entry, Index, IndexTransaction, Intent, Outgoing, Presence
from eventsync.query import Query
from eventsync.record import Field, Record, Rule
from eventsync.schema import same
from eventsync.view import View

try:
    import sqlalchemy as sa
    from sqlalchemy import orm
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError(
        "the SQL store needs SQLAlchemy", hint="pip install 'eventsync[sql]'"
    ) from error

__all__ = ["SqlAccessor", "SqlIndex", "derive"]

R = TypeVar("R", bound=Record)
_PAGE = 1000
_IN = 500
_metadata = sa.MetaData()
_VERSION = sa.Table(
    "eventsync_version",
    _metadata,
    sa.Column("type", sa.String(128), primary_key=True),
    sa.Column("key", sa.String(512), primary_key=True),
    sa.Column("stamp", sa.LargeBinary(49), nullable=False),
    sa.Column("presence", sa.SmallInteger, nullable=False),
    sa.Column("detail", sa.LargeBinary),
    sa.Column("echo", sa.LargeBinary),
    sqlite_with_rowid=False,
)
sa.Index(
    "eventsync_version_elsewhere",
    _VERSION.c.type,
    _VERSION.c.presence,
    _VERSION.c.key,
    sqlite_where=_VERSION.c.presence != 1,
)
_OUTBOX = sa.Table(
    "eventsync_outbox",
    _metadata,
    sa.Column("number", sa.Integer, primary_key=True, autoincrement=True),
    sa.Column("type", sa.String(128), nullable=False),
    sa.Column("body", sa.LargeBinary, nullable=False),
    sqlite_autoincrement=True,
)
_MARK = sa.Table(
    "eventsync_mark",
    _metadata,
    sa.Column("name", sa.String(128), primary_key=True),
    sa.Column("text", sa.Text, nullable=False),
)
_WRITE_ENTRY = (
    "INSERT INTO eventsync_version (type, key, stamp, presence, detail, echo)"
    " VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (type, key) DO UPDATE SET stamp = excluded.stamp,"
    " presence = excluded.presence, detail = excluded.detail, echo = excluded.echo"
)


def _engine(database: str | sa.Engine) -> sa.Engine:
    engine = database
    if isinstance(database, str):
        try:
            engine = sa.create_engine(database)
        except sa.exc.ArgumentError as error:
            raise ConfigError(
                f"not a database URL: {error}", hint="as in sqlite:////srv/data/crm.db"
            ) from None
    assert isinstance(engine, sa.Engine)
    if engine.dialect.name != "sqlite":
        raise ConfigError(
            f"the SQL store does not work on {engine.dialect.name} yet", hint="it does on SQLite"
        )
    return engine


@contextmanager
def _errors(what: str) -> Iterator[None]:
    """Turn the driver's errors into eventsync's: what may work later, and what never will."""
    try:
        yield
    except (sa.exc.IntegrityError, sa.exc.DataError) as error:
        raise RejectedError(f"{what}: {error.orig}") from error
    except (sa.exc.OperationalError, sa.exc.TimeoutError) as error:
        cause = getattr(error, "orig", None) or error
        text = str(cause)
        if "no such table" in text or "no such column" in text:
            raise ConfigError(
                f"{what}: {text}", hint="was the table altered while the worker ran? restart it"
            ) from error
        raise StoreUnavailableError(f"{what}: {text}") from error
    except (sa.exc.InterfaceError, sa.exc.ProgrammingError, OverflowError) as error:
        raise RejectedError(f"{what}: {getattr(error, 'orig', None) or error}") from error
    except sa.exc.DatabaseError as error:
        raise StoreUnavailableError(
            f"{what}: {error.orig}", hint="check the database file"
        ) from error


def _connection_of(transaction: Any) -> sa.Connection:
    """The connection of a caller's own transaction; what waits in a session is written first."""
    if isinstance(transaction, orm.Session | orm.scoped_session):
        transaction.flush()
        return transaction.connection()
    if isinstance(transaction, sa.Connection):
        return transaction
    raise ConfigError(
        f"{type(transaction).__name__} is neither an SQLAlchemy session nor a connection",
        hint="pass the one whose transaction the change shall be part of",
    )


class SqlIndex(Index):
    """The version index of an SQL store, in the database that holds its data."""

    def __init__(self, database: str | sa.Engine) -> None:
        self.engine = _engine(database)
        self._ready = False

    def __repr__(self) -> str:
        return f"SqlIndex({self.engine.url!r})"

    @contextmanager
    def transaction(self) -> Iterator[IndexTransaction]:
        self.prepare()
        with _errors("version index"), self.engine.connect() as connection:
            # Readers go on; other writers wait from here on, before anything is read.
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            try:
                yield _SqlTransaction(connection)
                connection.commit()
            except BaseException:
                connection.rollback()
                raise

    @contextmanager
    def join(self, transaction: Any) -> Iterator[IndexTransaction]:
        with _errors("version index"):
            connection = _connection_of(transaction)
            if connection.engine.url != self.engine.url:
                raise ConfigError(
                    f"the transaction is one of {connection.engine.url!r}, "
                    f"the store is in {self.engine.url!r}",
                    hint="begin it on an engine of the store's own URL",
                )
            # Before anything is read other writers have to wait, as in ``transaction``.
            begun = connection.connection.dbapi_connection.in_transaction  # type: ignore[union-attr]
            if not begun:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
            if not self._ready:
                _metadata.create_all(connection)  # on this connection: the others wait for it
            if begun:
                connection.exec_driver_sql("DELETE FROM eventsync_outbox WHERE number < 0")
            # So that an edit that fails leaves no trace, whatever the caller makes of its error.
            with connection.begin_nested():
                yield _SqlTransaction(connection)

    def waiting(self) -> int:
        return int(self._rows(sa.select(sa.func.count()).select_from(_OUTBOX))[0][0])

    def scan(
        self, type: str, *, after: str = "", limit: int = 1000, presence: Presence | None = None
    ) -> list[tuple[str, Entry]]:
        table = _VERSION.c
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
        query = (
            sa.select(_VERSION.c.presence, sa.func.count())
            .where(_VERSION.c.type == type)
            .group_by(_VERSION.c.presence)
        )
        found = {Presence(code): count for code, count in self._rows(query)}
        return dict.fromkeys(Presence, 0) | found

    def outgoing(self, limit: int = 1000) -> list[Outgoing]:
        table = _OUTBOX.c
        query = sa.select(table.number, table.type, table.body).order_by(table.number).limit(limit)
        return [Outgoing(*row) for row in self._rows(query)]

    def sent(self, numbers: Sequence[int]) -> None:
        with self.transaction() as transaction:
            assert isinstance(transaction, _SqlTransaction)
            transaction.run(
                "DELETE FROM eventsync_outbox WHERE number = ?", [(n,) for n in numbers]
            )

    def load_mark(self, name: str) -> str:
        rows = self._rows(sa.select(_MARK.c.text).where(_MARK.c.name == name))
        return str(rows[0][0]) if rows else ""

    def save_mark(self, name: str, text: str) -> None:
        with self.transaction() as transaction:
            assert isinstance(transaction, _SqlTransaction)
            transaction.run(
                "INSERT INTO eventsync_mark (name, text) VALUES (?, ?)"
                " ON CONFLICT (name) DO UPDATE SET text = excluded.text",
                [(name, text)],
            )

    def close(self) -> None:
        self.engine.dispose()

    def _rows(self, query: sa.Select[Any]) -> Sequence[Any]:
        self.prepare()
        with _errors("version index"), self.engine.connect() as connection:
            return connection.execute(query).all()

    def prepare(self) -> None:
        """Make the tables of the index. Idempotent."""
        if not self._ready:
            with _errors("version index"), self.engine.connect() as connection:
                connection.exec_driver_sql("BEGIN IMMEDIATE")
                _metadata.create_all(connection)
                connection.commit()
            self._ready = True


class _SqlTransaction(IndexTransaction):
    """A transaction of the database: entries, data and outbox commit together."""

    intents: ClassVar[bool] = False

    def __init__(self, connection: sa.Connection) -> None:
        self.connection = connection

    def run(self, statement: str, rows: Sequence[tuple[Any, ...]]) -> None:
        """One statement for many rows."""
        if rows:
            self.connection.exec_driver_sql(statement, rows if len(rows) > 1 else rows[0])

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        found = {}
        for start in range(0, len(keys), _IN):
            chunk = keys[start : start + _IN]
            marks = ",".join("?" * len(chunk))
            for key, *columns in self.connection.exec_driver_sql(
                "SELECT key, stamp, presence, detail, echo FROM eventsync_version"
                f" WHERE type = ? AND key IN ({marks})",
                (type, *chunk),
            ):
                found[key] = Entry.unpack(*columns)
        return found

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        self.run(
            _WRITE_ENTRY,
            [
                (type, key, entry.stamp, int(entry.presence), entry.pack_detail(), entry.echo)
                for key, entry in entries.items()
            ],
        )

    def forget(self, type: str, keys: Sequence[str]) -> None:
        self.run(
            "DELETE FROM eventsync_version WHERE type = ? AND key = ?",
            [(type, key) for key in keys],
        )

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        self.run(
            "INSERT INTO eventsync_outbox (type, body) VALUES (?, ?)",
            [(type, body) for body in bodies],
        )

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self.intend(type, {}, bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Nothing: the database's own transaction undoes what did not commit."""

    def keep(self) -> None:
        """Nothing, as ``settle``."""


# -- values --------------------------------------------------


def _decimal_to_number(held: Any) -> Any:
    """For a column that SQLite keeps as a number: exact, or not at all."""
    if type(held) is Decimal:
        if Decimal(repr(float(held))) != held:
            raise RejectedError(
                f"{held} has more digits than SQLite keeps in a numeric column",
                hint="make it a TEXT column",
            )
        return str(held)
    return held


def _to_text(held: Any) -> Any:
    kind = type(held)
    if kind is dt.datetime:
        if held.tzinfo is not None:
            held = held.astimezone(dt.UTC)
        return held.isoformat(sep=" ")
    if kind is dt.date or kind is dt.time:
        return held.isoformat()
    if kind is Decimal or kind is UUID:
        return str(held)
    return held


def _to_json(field: Field) -> Callable[[Any], Any]:
    """What makes JSON text of the lists and dicts of a field; of others as ``_to_text``.

    JSON has no dates or decimals: as text they come back only where the field says what they are.
    """

    def adapt(held: Any) -> Any:
        if type(held) is not list and type(held) is not dict:
            return _to_text(held)
        foreign = False

        def text_of(scalar: Any) -> Any:
            nonlocal foreign
            foreign = True
            return scalar.hex() if isinstance(scalar, bytes) else _to_text(scalar)

        text = json.dumps(held, ensure_ascii=False, default=text_of)
        if foreign and not same(field.coerce(json.loads(text)), held):
            raise RejectedError(
                f"{field.record}.{field.name} holds a value that JSON text cannot keep",
                hint="declare what is in it, as in dict[str, Decimal]",
            )
        return text

    return adapt


def _from_json(held: Any) -> Any:
    return json.loads(held) if isinstance(held, str) else held


# -- accessor --------------------------------------------------


class SqlAccessor(Accessor[R]):
    """Records of one type as rows of a table.

    ``database``: an SQLAlchemy engine or URL; accessors of one store share one. ``table``: its
    name, by default the record type's; ``schema`` where the database has such. ``create``: create
    the table from the record's fields when it does not exist. Nothing is connected to before first
    use.
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
        self.engine = _engine(database)
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
        super().bind(index)

    # -- the six --------------------------------------------------

    def add(self, record: R) -> None:
        self._directly([Write(record.key, record.raw(), whole=True)], [])

    def update(self, record: R) -> None:
        self._directly([Write(record.key, record.changes(), whole=False)], [])

    def get(self, key: str) -> R | None:
        with _errors(self._table_name), self.engine.connect() as connection:
            rows = self._select(connection, [key])
        return self.make(rows[key]) if key in rows else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.read(self._pages(query), query))

    def count(self, query: Query) -> int:
        if query.where.fields:
            return super().count(query)
        with _errors(self._table_name), self.engine.connect() as connection:
            statement = sa.select(sa.func.count()).select_from(self._table)
            return int(connection.execute(statement).scalar_one())

    def remove(self, key: str) -> None:
        self._directly([], [key])

    def _directly(self, writes: Sequence[Write], removals: Sequence[str]) -> None:
        with _errors(self._table_name), self.engine.connect() as connection:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
            self.write_rows(writes, removals, _SqlTransaction(connection))
            connection.commit()

    # -- many at once --------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        assert isinstance(transaction, _SqlTransaction)
        with _errors(self._table_name):
            return self._select(transaction.connection, keys)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        assert isinstance(transaction, _SqlTransaction)
        with _errors(self._table_name):
            whole = [self._whole_row(write.values) for write in writes if write.whole]
            if whole:
                self._upsert(whole, transaction)
            partial: dict[tuple[str, ...], list[tuple[Any, ...]]] = {}
            for write in writes:
                if not write.whole:
                    stored = self._stored(write.values)
                    key = self._key_row(write.key)
                    partial.setdefault(tuple(stored), []).append((*stored.values(), *key))
            for columns, rows in partial.items():
                sets = ", ".join(f"{self._quote(column)} = ?" for column in columns)
                transaction.run(f"UPDATE {self._sql_name} SET {sets} WHERE {self._key_is}", rows)
            transaction.run(
                f"DELETE FROM {self._sql_name} WHERE {self._key_is}",
                [self._key_row(key) for key in removals],
            )

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        # SQLite keeps what it is given, except where a conversion or a column's affinity alters it.
        return {} if self._faithful else self.read_rows(list(writes), transaction)

    def ensure(self) -> None:
        with _errors(self._table_name):
            if self._create and not sa.inspect(self.engine).has_table(
                self._table_name, schema=self._schema
            ):
                self._new_table().create(self.engine, checkfirst=True)
        if isinstance(self._index, SqlIndex):
            self._index.prepare()  # now, while no transaction of a caller's is in the way
        _ = self._upsert_sql  # reads the schema, and so finds what does not fit

    def ping(self) -> None:
        with _errors(self._table_name), self.engine.connect() as connection:
            connection.execute(sa.select(sa.literal(1)).select_from(self._table).limit(1))

    def close(self) -> None:
        self.engine.dispose()

    # -- the table --------------------------------------------------

    @cached_property
    def _table(self) -> sa.Table:
        with _errors(self._table_name):
            try:
                table = sa.Table(
                    self._table_name,
                    sa.MetaData(),
                    schema=self._schema,
                    autoload_with=self.engine,
                    resolve_fks=False,
                )
            except sa.exc.NoSuchTableError:
                raise ConfigError(
                    f"there is no table {self._table_name!r} in {self.engine.url!r}",
                    hint="create it, correct the name, or pass create=True",
                ) from None
        for field, column in [*self.view.names.items(), *((c, c) for c in self.view.constant)]:
            if column not in table.c:
                raise ConfigError(
                    f"table {self._table_name!r} has no column {column!r} for {field!r}",
                    hint=f"it has {', '.join(table.c.keys())}; map or leave out the field",
                )
        return table

    def _new_table(self) -> sa.Table:
        constants = [
            sa.Column(name, _column_type(type(v))) for name, v in self.view.constant.items()
        ]
        columns = [
            sa.Column(
                column,
                _column_type(self.type.fields[field].type),
                primary_key=field in self.type.keys,
                nullable=self.type.fields[field].optional,
                unique=self.type.fields[field].unique or None,
                autoincrement=False,
            )
            for field, column in self.view.names.items()
        ]
        return sa.Table(self._table_name, sa.MetaData(), *columns, *constants, schema=self._schema)

    def _quote(self, name: str) -> str:
        return str(self.engine.dialect.identifier_preparer.quote(name))

    @cached_property
    def _sql_name(self) -> str:
        return str(self.engine.dialect.identifier_preparer.format_table(self._table))

    @cached_property
    def _key_columns(self) -> list[str]:
        return [self.view.names[name] for name in self.type.keys]

    @cached_property
    def _key_is(self) -> str:
        return " AND ".join(f"{self._quote(column)} = ?" for column in self._key_columns)

    @cached_property
    def _columns(self) -> list[str]:
        return [*self.view.names.values(), *self.view.constant]

    @cached_property
    def _unique_key(self) -> bool:
        """Whether the database itself holds the key columns unique, so that an upsert can."""
        keys = set(self._key_columns)
        inspector = sa.inspect(self.engine)
        primary = inspector.get_pk_constraint(self._table_name, schema=self._schema)
        unique = inspector.get_unique_constraints(self._table_name, schema=self._schema)
        indexes = inspector.get_indexes(self._table_name, schema=self._schema)
        return (
            set(primary["constrained_columns"]) == keys
            or any(set(constraint["column_names"]) == keys for constraint in unique)
            or any(i["unique"] and set(i["column_names"]) == keys for i in indexes)
        )

    @cached_property
    def _upsert_sql(self) -> str:
        columns = self._columns
        names = ", ".join(map(self._quote, columns))
        marks = ", ".join("?" * len(columns))
        insert = f"INSERT INTO {self._sql_name} ({names}) VALUES ({marks})"
        if not self._unique_key:
            return insert
        keys = ", ".join(map(self._quote, self._key_columns))
        # An update leaves constants alone, which only say how a row begins.
        changed = [c for c in self.view.names.values() if c not in self._key_columns]
        sets = ", ".join(f"{self._quote(c)} = excluded.{self._quote(c)}" for c in changed)
        action = f"UPDATE SET {sets}" if sets else "NOTHING"
        return f"{insert} ON CONFLICT ({keys}) DO {action}"

    def _upsert(self, rows: list[tuple[Any, ...]], transaction: _SqlTransaction) -> None:
        if not self._unique_key:
            held = list(self.view.names.values())
            positions = [held.index(column) for column in self._key_columns]
            sets = ", ".join(f"{self._quote(column)} = ?" for column in held)
            update = f"UPDATE {self._sql_name} SET {sets} WHERE {self._key_is}"
            for row in rows:
                arguments = (*row[: len(held)], *(row[p] for p in positions))
                if not transaction.connection.exec_driver_sql(update, arguments).rowcount:
                    transaction.run(self._upsert_sql, [row])
            return
        transaction.run(self._upsert_sql, rows)

    # -- rows --------------------------------------------------

    @cached_property
    def _adapters(self) -> dict[str, Callable[[Any], Any]]:
        """By column, what makes a value one that SQLite takes; none for those it takes as it is."""
        adapters: dict[str, Callable[[Any], Any]] = {}
        for column in self._columns:
            kind = self._table.c[column].type
            numeric = isinstance(kind, sa.Numeric | sa.Integer)
            adapters[column] = _decimal_to_number if numeric else _to_text
        for name, column in self.view.names.items():
            field = self.type.fields[name]
            if not field.scalar:
                adapters[column] = _to_json(field)
            elif name not in self.view.convert and field.type in _NATIVE:
                del adapters[column]
        return adapters

    @cached_property
    def _faithful(self) -> bool:
        """Whether every value reads back as it was written, without a look.

        So it is when no conversion stands between and each field's type suits its column's.
        """
        if self.view.convert:
            return False
        for field, column in self.view.names.items():
            declared = self.type.fields[field].type
            kind = self._table.c[column].type
            if declared is float and not isinstance(kind, sa.Float | sa.Numeric):
                return False
            if declared is str and isinstance(kind, sa.Numeric | sa.Integer | sa.types.NullType):
                return False
            if declared not in _FAITHFUL:
                return False
        return True

    @cached_property
    def _pick(self) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
        names = list(self.view.names)
        if len(names) == 1:
            return lambda values: (values[names[0]],)
        return itemgetter(*names)

    @cached_property
    def _plain_row(self) -> tuple[tuple[int, Callable[[Any], Any]], ...] | None:
        """Where the adapters stand in a row, if fields go to columns just as they are."""
        if self.view.convert or self.view.constant:
            return None
        order = {column: place for place, column in enumerate(self._columns)}
        return tuple((order[column], adapt) for column, adapt in self._adapters.items())

    def _whole_row(self, values: Mapping[str, Any]) -> tuple[Any, ...]:
        plain = self._plain_row
        if plain is None:
            stored = dict(self.view.constant) | self._stored(values)
            return tuple(stored[column] for column in self._columns)
        row = self._pick(values)
        if not plain:
            return row
        adapted = list(row)
        for place, adapt in plain:
            adapted[place] = adapt(adapted[place])
        return tuple(adapted)

    def _stored(self, values: Mapping[str, Any]) -> dict[str, Any]:
        stored = self.view.to_store(values)
        for column, held in stored.items():
            adapt = self._adapters.get(column)
            if adapt is not None:
                stored[column] = adapt(held)
        return stored

    def _key_row(self, key: str) -> tuple[Any, ...]:
        stored = self._stored(self.type.key_values(key))
        return tuple(stored[column] for column in self._key_columns)

    def _select(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, Any]:
        found = {}
        step = max(1, _IN // len(self._key_columns))
        for start in range(0, len(keys), step):
            chunk = [self._key_row(key) for key in keys[start : start + step]]
            match = f"({self._key_is})"
            where = " OR ".join([match] * len(chunk))
            if len(self._key_columns) == 1:
                where = f"{self._quote(self._key_columns[0])} IN ({','.join('?' * len(chunk))})"
            rows = connection.exec_driver_sql(
                f"SELECT {', '.join(map(self._quote, self._columns))} FROM {self._sql_name}"
                f" WHERE {where}",
                tuple(part for key in chunk for part in key),
            )
            for row in rows:
                values = self.view.to_record(self._loaded(row))
                found[self.type.key_text(values)] = values
        return found

    def _loaded(self, row: Sequence[Any]) -> dict[str, Any]:
        data = dict(zip(self._columns, row, strict=True))
        for column in self._json_columns:
            data[column] = _from_json(data[column])
        return data

    @cached_property
    def _json_columns(self) -> list[str]:
        return [
            column
            for field, column in self.view.names.items()
            if field not in self.view.convert and self.type.fields[field].type in (list, dict)
        ]

    def _pages(self, query: Query) -> Iterator[dict[str, Any]]:
        """All rows in the order of the key, page by page, so that nothing is locked in between."""
        keys = ", ".join(map(self._quote, self._key_columns))
        marks = ", ".join("?" * len(self._key_columns))
        columns = ", ".join(map(self._quote, self._columns))
        select = f"SELECT {columns} FROM {self._sql_name}"
        order = f" ORDER BY {keys} LIMIT {_PAGE}"
        places = [self._columns.index(column) for column in self._key_columns]
        last: tuple[Any, ...] = ()
        while True:
            where = f" WHERE ({keys}) > ({marks})" if last else ""
            with _errors(self._table_name), self.engine.connect() as connection:
                rows = connection.exec_driver_sql(select + where + order, last).all()
            for row in rows:
                yield self._loaded(row)
            if len(rows) < _PAGE:
                return
            last = tuple(rows[-1][place] for place in places)


_NATIVE = frozenset({str, int, float, bool, bytes})
_FAITHFUL = frozenset({str, int, float, bool, bytes, dt.date, dt.time, dt.datetime, UUID, Decimal})


def _column_type(kind: Any) -> sa.types.TypeEngine[Any]:
    """The column for a field's type, in a table that eventsync creates: nothing is rounded."""
    if kind is bool or kind is int:
        return sa.BigInteger()
    if kind is float:
        return sa.REAL()
    if kind is bytes:
        return sa.LargeBinary()
    return sa.Text()


def derive(
    database: str | sa.Engine,
    table: str,
    *,
    name: str | None = None,
    schema: str | None = None,
    rule: Rule = "record",
) -> type[Record]:
    """A record type for a table as it stands: a field for each column, the primary key as key.

    ``name``: of the record type; by default the table's, with ``_`` for what cannot be in one.

    Connects to the database. Raises ``ConfigError`` for a table that is not there or has no
    primary key.
    """
    engine = _engine(database)
    with _errors(table):
        try:
            found = sa.Table(
                table, sa.MetaData(), schema=schema, autoload_with=engine, resolve_fks=False
            )
        except sa.exc.NoSuchTableError:
            raise ConfigError(f"there is no table {table!r} in {engine.url!r}") from None
    if not found.primary_key.columns:
        raise ConfigError(
            f"table {table!r} has no primary key, so its records cannot be told apart",
            hint="declare a record type with key=True on the fields that identify one",
        )
    fields = {}
    for column in found.columns:
        key = column.primary_key
        optional = bool(column.nullable) and not key
        kind = _field_type(column.type)
        # SQLAlchemy's names are of a class of their own, which cannot travel.
        fields[str(column.name)] = Field(type=kind | None if optional else kind, key=key)
    # A table's name may hold what a record type's may not.
    plain = re.sub(r"[^A-Za-z0-9_.-]", "_", table)
    if plain[0] in "0123456789.-":
        plain = f"_{plain}"
    return Record.derive(name or plain, fields, rule=rule)


def _field_type(kind: sa.types.TypeEngine[Any]) -> Any:
    for sql_type, python_type in (
        (sa.Boolean, bool),
        (sa.Integer, int),
        (sa.Float, float),
        (sa.Numeric, Decimal),
        (sa.DateTime, dt.datetime),
        (sa.Date, dt.date),
        (sa.Time, dt.time),
        (sa.LargeBinary, bytes),
        (sa.String, str),
    ):
        if isinstance(kind, sql_type):
            return python_type
    return Any
