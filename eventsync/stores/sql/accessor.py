"""The SQL accessor: the records of one type as rows of a table."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import chain
from typing import Any, ClassVar, Self, TypeVar

import sqlalchemy as sa

from eventsync.engine.accessor import Accessor, Puts, Write
from eventsync.engine.change_source import ChangeSource
from eventsync.engine.finding import Finding, Level
from eventsync.engine.isolation import concerns_all, item_error
from eventsync.engine.plan import Part, Plan
from eventsync.engine.replica import MOST_DELETES
from eventsync.errors import (
    ConfigError,
    DependencyError,
    EventSyncError,
    RecordError,
    RejectedError,
    StoreUnavailableError,
    UniqueError,
    shown,
)
from eventsync.index import Entry, Index, IndexTransaction, Presence, UndoneError
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.stores.sql.capture import sources_of
from eventsync.stores.sql.capture.source import CapturedTable
from eventsync.stores.sql.condition import Clause, clause_of
from eventsync.stores.sql.dialect import Statement
from eventsync.stores.sql.engine import LockedError, dialect_of, errors, open_engine
from eventsync.stores.sql.index import SqlIndex
from eventsync.stores.sql.inspection import inspect_index, inspect_table, is_reachable
from eventsync.stores.sql.joint_write import JointWrite, Participant
from eventsync.stores.sql.key_form import KeyForms
from eventsync.stores.sql.member import Member
from eventsync.stores.sql.reference import Dependents
from eventsync.stores.sql.table import Table, new_table
from eventsync.stores.sql.transaction import SqlTransaction

__all__ = ["SqlAccessor"]

R = TypeVar("R", bound=Record)
T = TypeVar("T")
_PAGE = 1000
_IN = 500
_LOOK_EVERY = 10.0
"""After so many seconds, look whether the table has changed, even if no error says so."""


@dataclass(slots=True)
class _Known:
    """What an accessor knows of its table, and when it last looked, in seconds.

    ``cascades``: whether a write to the table can change rows of others by their foreign keys.
    """

    table: Table
    dependents: Dependents
    plain: bool
    patchable: bool
    forms: KeyForms
    cascades: bool | None = None
    looked: float = field(default_factory=time.monotonic)


_LOCKED_HINT = "it is retried; end the session that holds the lock if it does not end by itself"


class SqlAccessor(Accessor[R]):
    """Records of one type as rows of a table.

    ``database``: an SQLAlchemy engine or URL; the accessors of one store share one. ``table``: the
    table's name, by default the record type's. ``schema``: the table's database schema. ``create``:
    create a missing table from the record's fields. Connects on first use. Several processes may
    write at once; none overwrites a later change of another one.
    """

    atomic: ClassVar[bool] = True
    joint: ClassVar[bool] = True
    resumable: ClassVar[bool] = True

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
        # A list that the accessors of callers' transactions share (``joined``).
        self._knowledge: list[_Known] = []
        self._met_lock = False
        """Whether the last write met a lock, so that ``plan`` has to look for locked rows."""

    def __repr__(self) -> str:
        return f"SqlAccessor({self.type.name}, {self._table_name!r})"

    def default_index(self) -> Index:
        return SqlIndex(self.engine)

    def bind(self, index: Index) -> None:
        if not isinstance(index, SqlIndex) or index.engine.url != self.engine.url:
            raise ConfigError(
                f"the SQL accessor of {self.type.name} needs a version index in its own database",
                hint="leave out the store's index, and give all its accessors one engine",
            )
        self.engine = index.engine  # one pool of connections for the whole store
        super().bind(index)

    def depends_on(self, other: Accessor[Any]) -> bool:
        return isinstance(other, SqlAccessor) and self._table.refers_to(other._table)

    @classmethod
    def sources(cls, accessors: Sequence[Self], store: str) -> Sequence[ChangeSource]:
        return sources_of(accessors, store)

    def captured_table(self) -> CapturedTable:
        """Return what a change source needs to know of the table. Connects to the database."""
        table = self._table
        return CapturedTable(
            self.type.name, self._schema, self._table_name, tuple(table.keys), table.key_text
        )

    # -- the six methods of the contract -----------------------------------------------------------

    def add(self, record: R) -> None:
        self._write_now([Write(record.key, record.raw(), whole=True)], [])

    def update(self, record: R) -> None:
        self._write_now([Write(record.key, record.changes(), whole=False)], [])

    def get(self, key: str) -> R | None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            self._known.forms.refuse([key])
            rows = self._select(connection, [key])
        return self.make(rows[key]) if key in rows else None

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._readable(self._pages(self._clause(query)), query))

    def list_keys(self, query: Query, *, after: str = "") -> Iterator[str]:
        pages = self._pages(self._clause(query), after)
        return (record.key for record in self._readable(pages, query))

    def count(self, query: Query) -> int:
        clause = self._clause(query)
        if query.where.fields and (clause is None or not clause.exact):
            return super().count(query)
        where, parameters = (f" WHERE {clause.sql}", clause.parameters) if clause else ("", ())
        with self._errors(), self.dialect.connected(self.engine) as connection:
            statement = f"SELECT COUNT(*) FROM {self._table.name}{where}"
            return int(connection.exec_driver_sql(statement, parameters).scalar_one())

    def _clause(self, query: Query) -> Clause | None:
        """Return what the database can judge of a query; Python judges the rest."""
        return clause_of(query.where.tree, self._table, self.dialect)

    def remove(self, key: str) -> None:
        self._write_now([], [key])

    def _write_now(self, writes: Sequence[Write], removals: Sequence[str]) -> None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            self.dialect.begin(connection)
            self._write(connection, writes, removals)
            connection.commit()

    # -- many records at once ----------------------------------------------------------------------

    def read_rows(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> dict[str, Mapping[str, Any]]:
        assert isinstance(transaction, SqlTransaction)
        with self._watched(transaction.plain_connection):
            self._known.forms.refuse(keys)
            return self._found(transaction.ask(self._queries(keys)))

    def read_with_entries(
        self, keys: Sequence[str], transaction: IndexTransaction
    ) -> tuple[dict[str, Entry], dict[str, Mapping[str, Any]]]:
        assert isinstance(transaction, SqlTransaction)
        name = self.type.name
        queries = transaction.entry_queries(name, keys)
        with self._watched(transaction.plain_connection):
            answers = transaction.ask([*queries, *self._queries(keys)])
            entries = transaction.entries(name, keys, *answers[: len(queries)])
            found = self._found(answers[len(queries) :])
            forms = self._known.forms
            if forms.vary and any(
                entry.presence is Presence.PRESENT and key not in found
                for key, entry in entries.items()
            ):
                forms.look(transaction.plain_connection)  # a missing row may have another form
            forms.refuse(keys)
            return entries, found

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        assert isinstance(transaction, SqlTransaction)
        self._mark(transaction)
        connection = transaction.connection
        with self._conflict_named(connection, writes), self._watched(connection):
            if self._known.forms.vary:
                self._known.forms.refuse([*(write.key for write in writes), *removals])
            self._write(connection, writes, removals)

    def update_rows(
        self, writes: Sequence[Write], transaction: IndexTransaction
    ) -> Collection[str]:
        assert isinstance(transaction, SqlTransaction)
        self._mark(transaction)
        connection = transaction.connection
        with self._conflict_named(connection, writes), self._watched(connection):
            keys = [write.key for write in writes]
            # An update of a missing row changes nothing, so only its key is left out.
            return keys if self._change(connection, writes) else self._present(connection, keys)

    def _mark(self, transaction: SqlTransaction) -> None:
        """Mark what is written next as eventsync's own, if the index wants that."""
        if not transaction.marks_own:
            return
        known = self._known
        if known.cascades is None:
            connection = transaction.plain_connection
            with self._errors(), self.dialect.beside(self.engine, connection) as one:
                known.cascades = self.dialect.cascades(one, self._table_name, self._schema)
        catalogue = known.table.catalogue
        rules = any(one.when == "RULE" for one in catalogue.triggers or ())
        transaction.will_write(
            entails=catalogue.alters or known.cascades,
            hidden=known.cascades or rules or (catalogue.alters and not self.dialect.sees_nested),
        )

    @property
    def plain(self) -> bool:
        return self._known.plain

    @property
    def patchable(self) -> bool:
        return self._known.patchable

    @property
    def _whole(self) -> bool:
        """Whether the table holds all fields of every record."""
        return not self.view.partial and self.view.where is None

    def read_back(
        self, writes: Mapping[str, Mapping[str, Any]], transaction: IndexTransaction
    ) -> Mapping[str, Mapping[str, Any]]:
        return {} if self._table.faithful else self.read_rows(list(writes), transaction)

    def plan(self, parts: Sequence[Part], transaction: IndexTransaction) -> Plan:
        assert isinstance(transaction, SqlTransaction)
        with self._errors():
            found = [part.accessor._participant(part, transaction) for part in parts]
            return JointWrite(found, transaction)

    def _participant(self, part: Part, transaction: SqlTransaction) -> Participant:
        """Return this accessor as a participant of a joint write."""
        connection, keys = transaction.connection, [*part.rows, *part.removals]
        locked: Mapping[str, DependencyError] = {}
        if self._met_lock:
            self._met_lock = False
            locked = self._locked(connection, keys)
        removals = dict.fromkeys(part.removals)
        member = Member(self._table, part.rows, removals, self._present(connection, keys))

        def write(writes: Sequence[Write], removals: Sequence[str]) -> None:
            self.write_rows(writes, removals, transaction)

        return Participant(part, member, self._dependents, write, locked)

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
        self._knowledge.clear()
        _ = self._table  # reads the table's description, so that a misfit is found now
        if isinstance(self._index, SqlIndex):
            self._index.prepare()  # now, while no transaction of a caller is open

    def findings(self) -> Iterator[Finding]:
        about = f"{self.type.name} in {self._table_name}"
        if not is_reachable(self.engine):
            text = (
                f"{self.engine.url.database} does not exist yet; a worker or `eventsync check"
                " --create` makes it"
            )
            yield Finding(Level.OK, about, text, absent=True)
            return
        with self._errors():
            if isinstance(self._index, SqlIndex):
                yield from inspect_index(self._index.tables, self.engine, self.dialect, about)
            yield from inspect_table(
                self.view,
                self.engine,
                self.dialect,
                self._table_name,
                self._schema,
                about,
                create=self._create,
            )

    def loss(self) -> str | None:
        known = self.index.scan(self.type.name, presence=Presence.PRESENT, limit=MOST_DELETES + 1)
        if len(known) <= MOST_DELETES:
            return None
        with self._errors(), self.dialect.connected(self.engine) as connection:
            statement = f"SELECT 1 FROM {self._table.name} LIMIT 1"
            if connection.exec_driver_sql(statement).first() is not None:
                return None
        return f"the table {self._table_name} is empty, which held records of {self.type.name}"

    def ping(self) -> None:
        with self._errors(), self.dialect.connected(self.engine) as connection:
            connection.exec_driver_sql(f"SELECT 1 FROM {self._table.name} LIMIT 1").all()

    def close(self) -> None:
        self.engine.dispose()

    # -- rows --------------------------------------------------------------------------------------

    @property
    def _known(self) -> _Known:
        """What is known of the table; read at the first use and after the table has changed."""
        if not self._knowledge:
            with self._errors():
                table = Table(self.view, self.engine, self.dialect, self._table_name, self._schema)
            exact = table.faithful and self._whole
            # A subclass that overrides ``write_rows`` must see everything that is written.
            own = type(self).write_rows is not SqlAccessor.write_rows
            self._knowledge.append(
                _Known(
                    table,
                    Dependents(table, self.engine, self.dialect),
                    plain=exact and table.verbatim and self.type.rule == "record",
                    patchable=exact and table.exact_key and self.type.rule == "field" and not own,
                    forms=KeyForms(table, self.dialect, self.engine),
                )
            )
            if table.free_keys:
                with self._errors(), self.dialect.connected(self.engine) as connection:
                    self._knowledge[0].forms.look(connection)
        return self._knowledge[0]

    @property
    def _table(self) -> Table:
        return self._known.table

    @property
    def _dependents(self) -> Dependents:
        return self._known.dependents

    def _is_changed(self, connection: sa.Connection, *, failed: bool) -> bool:
        """Look the table up; if it has changed, forget what was known of it and return true.

        ``failed``: a statement on the connection has failed. Its transaction stays as it is.
        """
        if not self._knowledge:
            return True
        known = self._known
        known.looked, known.cascades = time.monotonic(), None
        where = self.dialect.beside(self.engine, connection) if failed else nullcontext(connection)
        # If the look-up fails too, the first error has to do.
        with suppress(EventSyncError, sa.exc.SQLAlchemyError, self.dialect.error), where as one:
            found = self.dialect.catalogue(one, self._table_name, self._schema)
            if found != known.table.catalogue:
                self._knowledge.clear()
                return True
            known.forms.look(one)
        return False

    @contextmanager
    def _watched(self, connection: sa.Connection) -> Iterator[None]:
        """Raise errors as ``_errors`` does, but ``UndoneError`` if the table has been altered.

        The transaction is then repeated with what the table is now.
        """
        # If the table no longer fits the view, this error says what has changed.
        looked = self._known.looked
        try:
            if time.monotonic() - looked > _LOOK_EVERY:
                with self._errors():
                    altered = self._is_changed(connection, failed=False)
                if altered:
                    raise self._altered()
            with self._errors():
                yield
        except UndoneError:
            raise
        except (RejectedError, ConfigError, StoreUnavailableError) as error:
            # Servers say what is wrong with a statement; SQLite's errors do not tell that apart.
            lost = isinstance(error, StoreUnavailableError) and self.dialect.concurrent
            if lost or not self._is_changed(connection, failed=True):
                raise
            raise self._altered() from error

    def _altered(self) -> UndoneError:
        return UndoneError(f"the table {self._table_name} was altered while the store was open")

    def _errors(self) -> Any:
        return errors(
            self._table_name, self.dialect, self.engine.url, values=not self.secret_fields
        )

    def _write(
        self, connection: sa.Connection, writes: Sequence[Write], removals: Sequence[str]
    ) -> None:
        """Write whole rows, then changed fields, then remove rows."""
        table = self._table
        if isinstance(writes, Puts) and not table.guarded:
            # Whole records whose values are rows already.
            self._upsert(connection, table.rows_of(writes.rows, self.reader.names))
            writes = ()
        if self.dialect.concurrent:
            # All processes lock rows in the same order, so that they do not deadlock.
            writes, removals = sorted(writes, key=lambda write: write.key), sorted(removals)
        if not table.guarded:
            self._upsert(connection, table.rows([w.values for w in writes if w.whole]))
            self._change_all(connection, [write for write in writes if not write.whole])
            self._delete(connection, removals)
            return
        # An upsert could overwrite another record, so look first which rows are there.
        present = self._present(connection, [*(write.key for write in writes), *removals])
        new = [write for write in writes if write.key not in present]
        if lost := [write.key for write in new if not write.whole]:
            raise self._vanished(lost[0])
        self._insert(connection, [write.values for write in new])
        self._change_all(connection, [write for write in writes if write.key in present])
        removals = [key for key in removals if key in present]
        self._delete(connection, removals)
        self._check_written(connection, [write.key for write in new], removals)

    def _change_all(self, connection: sa.Connection, writes: Sequence[Write]) -> None:
        """Write changed fields. Raise an error if one of the records has no row to change."""
        if self._change(connection, writes):
            return
        keys = [write.key for write in writes]
        present = self._present(connection, keys)
        if lost := [key for key in keys if key not in present]:
            raise self._vanished(lost[0])
        if self._table.catalogue.alters and self.dialect.skipping:
            raise RejectedError(
                f"a trigger of table {self._table_name!r} skipped the update of"
                f" {self.type.name} {keys[0]!r}",
                hint=f"the triggers are {self._trigger_names()}",
            )

    def _vanished(self, key: str) -> UndoneError:
        return UndoneError(f"{self.type.name} {key!r} vanished while it was being updated")

    def _check_written(
        self, connection: sa.Connection, written: Sequence[str], removed: Sequence[str]
    ) -> None:
        """Raise ``RejectedError`` if a record has no row under its key, or a removed one has."""
        table = self._table
        if not table.loose_keys and not table.catalogue.alters:
            return
        present = self._present(connection, [*written, *removed])
        for key in written:
            if key not in present:
                cause = (
                    f"the column {', '.join(table.loose_keys)} gives back another value"
                    if table.loose_keys
                    else "a trigger skipped the row or altered its key"
                )
                raise RejectedError(
                    f"{self.type.name} {key!r} is not in table {self._table_name!r} after it was"
                    f" written: {cause}",
                    hint=f"write the key as the database keeps it{self._trigger_hint()}",
                )
        for key in removed:
            if key in present:
                raise RejectedError(
                    f"{self.type.name} {key!r} is still in table {self._table_name!r} after it was"
                    " deleted: a trigger kept the row",
                    hint=f"the triggers are {self._trigger_names()}",
                )

    def _trigger_names(self) -> str:
        return ", ".join(one.name for one in self._table.catalogue.triggers or ()) or "not visible"

    def _trigger_hint(self) -> str:
        return f"; the triggers are {self._trigger_names()}" if self._table.catalogue.alters else ""

    def _upsert(self, connection: sa.Connection, rows: list[tuple[Any, ...]]) -> None:
        if rows:
            ordered = self._dependents.parents_first(rows)
            self.dialect.upsert(connection, self._table.target, ordered)

    def _insert(self, connection: sa.Connection, records: Sequence[Mapping[str, Any]]) -> None:
        if records:
            ordered = self._dependents.parents_first(self._table.rows(records))
            self.dialect.insert(connection, self._table.target, ordered)

    def _delete(self, connection: sa.Connection, keys: Sequence[str]) -> None:
        for part in self._dependents.children_first(connection, keys):
            for start in range(0, len(part), _IN):
                condition, parameters = self._key_condition(part[start : start + _IN])
                connection.exec_driver_sql(
                    f"DELETE FROM {self._table.name} WHERE {condition}", parameters
                )

    def _change(self, connection: sa.Connection, writes: Sequence[Write]) -> bool:
        """Write changed fields; return whether every record has a row."""
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

    def _present(
        self, connection: sa.Connection, keys: Sequence[str], locking: str = ""
    ) -> set[str]:
        """Return those of ``keys`` that have a row, compared character by character.

        ``locking``: the clause with which their rows are locked.
        """
        answers = (
            self.dialect.fetch(connection, statement + locking, parameters)
            for statement, parameters in self._queries(keys, self._table.selected_keys)
        )
        return {self._table.key_text(row) for row in chain.from_iterable(answers)}

    @contextmanager
    def _conflict_named(self, connection: sa.Connection, writes: Sequence[Write]) -> Iterator[None]:
        """Name the conflicting record when a unique constraint rejects a single record."""
        try:
            yield
        except LockedError as error:
            # Most likely a lock on a row, which concerns its record only. See ``plan``.
            self._met_lock = True
            raise DependencyError(error.message, reason=error.reason, hint=_LOCKED_HINT) from error
        except UniqueError as error:
            other = self._conflict(connection, writes[0]) if len(writes) == 1 else None
            if other is None:
                raise
            raise UniqueError(f"{error.message}; {other}", hint=error.hint) from error

    def _locked(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, DependencyError]:
        """Return the errors of records whose rows another session has locked, and lock the others.

        Raise ``LockedError`` if the whole table is locked.
        """
        skip_locked = self.dialect.skip_locked(connection)
        if not skip_locked or not keys:
            return {}
        self.dialect.reach(connection, self._table.name)
        present = self._present(connection, keys)
        free = self._present(connection, keys, skip_locked)
        return {
            key: DependencyError(
                f"another session has locked {self.type.name} {key!r}",
                reason=LockedError.reason,
                hint=_LOCKED_HINT,
            )
            for key in present - free
        }

    def _conflict(self, connection: sa.Connection, write: Write) -> str | None:
        """Describe the record that has a value which ``write`` needs to be unique."""
        table, dialect = self._table, self.dialect
        # If the look-up fails, the database's own message has to do.
        with (
            suppress(EventSyncError, sa.exc.SQLAlchemyError),
            dialect.beside(self.engine, connection) as beside,
        ):
            current = self._select(beside, [write.key]).get(write.key, {})
            stored = table.stored({**current, **write.values})
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

    def _key_condition(self, keys: Sequence[str]) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that a row belongs to one of ``keys``, and its parameters."""
        table, dialect = self._table, self.dialect
        rows = table.key_rows(keys)
        if table.key_kinds == ("",) or len(table.key_names) > 1:
            return dialect.keys_in(table.key_names, len(rows)), tuple(chain.from_iterable(rows))
        return dialect.among(table.key_names[0], [part for (part,) in rows])

    def _select(self, connection: sa.Connection, keys: Sequence[str]) -> dict[str, Any]:
        return self._found(self.dialect.fetch(connection, *one) for one in self._queries(keys))

    def _queries(self, keys: Sequence[str], selected: str = "") -> list[Statement]:
        """Return the statements that select the rows of ``keys``; all columns by default."""
        table = self._table
        statements: list[Statement] = []
        for start in range(0, len(keys), _IN):
            condition, parameters = self._key_condition(keys[start : start + _IN])
            select = f"SELECT {selected or table.selected} FROM {table.name}"
            statements.append((f"{select} WHERE {condition}", parameters))
        return statements

    def _found(self, answers: Iterable[Iterable[Sequence[Any]]]) -> dict[str, Any]:
        """Return the field values in the answers to ``_queries``, by key."""
        found = {}
        for row in chain.from_iterable(answers):
            try:
                values = self.view.to_record(self._table.loaded(row))
                found[self.type.key_text(values)] = values
            except Exception as error:
                unreadable = self._unreadable(row, error)
                raise unreadable from unreadable.__cause__
        return found

    def _readable(self, rows: Iterable[Sequence[Any]], query: Query) -> Iterator[R]:
        """Yield the records of rows. Report the unreadable ones to ``query.unreadable``."""
        forms = self._known.forms
        for row in rows:
            try:
                record = self.data_to_record(self._table.loaded(row))
                _ = record.key  # a key can be too long, or absent
                other = forms.note(self._table.key_of(row)) if forms.vary else None
                unreadable = None if other is None else forms.error(other)
            except Exception as error:
                unreadable = self._unreadable(row, error)
            if unreadable is None:
                yield record
            elif query.unreadable is None:
                raise unreadable from unreadable.__cause__
            else:
                query.unreadable(unreadable)

    def _unreadable(self, row: Sequence[Any], error: Exception) -> RecordError:
        """Return the error of a row that cannot be read, with the type and key of the record.

        Raise ``error`` if it concerns more than this row.
        """
        if concerns_all(error):
            raise error
        parts = self._table.key_of(row)
        key, place = None, ""
        try:
            key = self._table.key_text(parts)
            about = repr(key)
        except EventSyncError:
            place = "/".join(map(str, parts))
            about = "/".join(map(shown, parts))
        cause = item_error(error)
        message = f"{self.type.name} {about} cannot be read: {cause.message}"
        if isinstance(cause, RecordError):
            cause.message = message
            cause.args = (message,)
        else:
            cause = RecordError(message, hint=cause.hint)
            cause.__cause__ = error
        cause.key, cause.place = key, place
        return cause

    def _pages(self, clause: Clause | None, after: str = "") -> Iterator[Sequence[Any]]:
        """Yield all rows in key order, page by page, so that nothing is locked between pages.

        ``after``: leave out the rows up to that of this key.
        """
        if time.monotonic() - self._known.looked > _LOOK_EVERY:
            with self._errors(), self.dialect.connected(self.engine) as connection:
                self._is_changed(connection, failed=False)
        table, mark = self._table, self.dialect.mark
        keys = ", ".join(table.key_names)
        marks = ", ".join([mark] * len(table.key_names))
        select = f"SELECT {table.selected} FROM {table.name}"
        # The second part implies the first, which lets MySQL use the index.
        beyond = f"{table.key_names[0]} >= {mark} AND ({keys}) > ({marks})"
        condition, parameters = (clause.sql, clause.parameters) if clause else ("", ())
        last: tuple[Any, ...] = tuple(table.key_rows([after])[0]) if after else ()
        while True:
            with self._errors(), self.dialect.connected(self.engine) as connection:
                where = " AND ".join(filter(None, (condition, beyond if last else "")))
                found = self.dialect.fetch(
                    connection,
                    f"{select}{' WHERE ' if where else ''}{where} ORDER BY {keys} LIMIT {_PAGE}",
                    (*parameters, last[0], *last) if last else parameters,
                )
                rows = list(found)
            yield from rows
            if len(rows) < _PAGE:
                return
            last = table.key_of(rows[-1])
