"""A transaction of an SQL store: entries, data and outbox of one database commit together.

Where several processes write at once, a transaction locks the entries that it reads, in the order
of their keys. A key without an entry has nothing to lock. Its entry is inserted later; if another
transaction inserted it first, the whole transaction is undone and tried again.

An edit mostly waits for the database. So where the database takes several statements in one round
trip, a statement without an answer is deferred until one with an answer is sent, or until the end.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import Any, ClassVar, Final

import sqlalchemy as sa

from eventsync.changes.stamp import Stamp
from eventsync.errors import UniqueError
from eventsync.index import Entry, IndexTransaction, Intent, Presence, UndoneError
from eventsync.stores.sql.dialect import Dialect, Statement, Target
from eventsync.stores.sql.engine import errors
from eventsync.stores.sql.index_table import IndexTables

__all__ = ["SqlTransaction"]

_CHUNK: Final = 1000
_SAVEPOINT: Final = "SAVEPOINT eventsync"
_RELEASE: Final = "RELEASE SAVEPOINT eventsync"
_UNDO: Final = "ROLLBACK TO SAVEPOINT eventsync"


class SqlTransaction(IndexTransaction):
    """A transaction of the database, or a ``part`` of a caller's, which ``undo`` reverts."""

    intents: ClassVar[bool] = False

    def __init__(
        self,
        connection: sa.Connection,
        tables: IndexTables,
        *,
        part: bool = False,
        marks_own: bool = False,
    ) -> None:
        self._connection = connection
        self._tables = tables
        self._dialect = tables.dialect
        self._part = part
        # Keys that were read and have no entry, by type: there was nothing to lock.
        self._absent: dict[str, set[str]] = {}
        self._deferred: list[Statement] = [(_SAVEPOINT, ())] if part else []
        self._marks_own = marks_own
        self._marked = False
        # Whether rows were written, and only by eventsync itself.
        self._own = False
        self._entailed = False
        if marks_own and tables.dialect.sees_nested:
            self._mark()  # now, because it then takes no round trip
        self._least = len(self._deferred)
        self._begun = False
        # Written at the end, because nobody reads them earlier.
        self._bodies: list[tuple[str, bytes]] = []

    # -- when statements are sent ------------------------------------------------------------------

    @property
    def connection(self) -> sa.Connection:
        """The connection, after the deferred statements have run."""
        if self._deferred:
            self.ask([])
        return self._connection

    @property
    def dialect(self) -> Dialect:
        """The dialect of the database."""
        return self._dialect

    @property
    def plain_connection(self) -> sa.Connection:
        """The connection, while deferred statements may still wait."""
        return self._connection

    def ask(self, statements: Sequence[Statement]) -> list[list[Sequence[Any]]]:
        """Run the deferred statements, then these; return the rows that each of these finds.

        All are sent in one round trip where the database can do that.
        """
        before, self._deferred = self._deferred, []
        found = self._dialect.execute_all(self._connection, [*before, *statements])
        self._begun = True
        return found[len(before) :]

    def finish(self) -> None:
        """Run all deferred statements. Called at the end, before the commit."""
        if self._bodies:
            bodies, self._bodies = self._bodies, []
            self._add(self._tables.envelopes, bodies)
        if self._begun or len(self._deferred) > self._least:
            if self._part:
                self._deferred.append((_RELEASE, ()))
            elif self._own and not self._entailed:
                # Not in a part: the rest of the transaction is not eventsync's.
                self._deferred += self._dialect.log_own
            if self._marked and (self._part or not self._dialect.sees_nested):
                self._unmark()
        else:
            # Nothing but the savepoint and the mark, so there is nothing to undo.
            self._deferred.clear()
        if self._deferred:
            self._first_to_insert(lambda: self.ask([]))

    def undo(self) -> None:
        """Revert the part."""
        if not self._begun and self._dialect.is_untouched(self._connection):
            return
        # Where this fails, the whole transaction is undone already or the connection is lost.
        with suppress(sa.exc.SQLAlchemyError, self._dialect.error):
            self._dialect.execute_all(self._connection, [(_UNDO, ()), (_RELEASE, ())])
        self.forget_mark()

    # -- which writes are eventsync's own ----------------------------------------------------------

    @property
    def marks_own(self) -> bool:
        """Whether the transaction marks its writes as eventsync's own, for a change source."""
        return self._marks_own

    def will_write(self, *, entails: bool, hidden: bool) -> None:
        """Mark the next writes to rows as eventsync's own, where that hides no other write.

        ``entails``: the database may write to other rows at once, by a trigger or a foreign key.
        Those are foreign writes. ``hidden``: triggers would take them for eventsync's own.
        """
        if not self._marks_own:
            return
        self._own = True
        self._entailed = self._entailed or entails
        if hidden == self._marked:
            if hidden:
                self._unmark()
            else:
                self._mark()

    def _mark(self) -> None:
        statements = self._dialect.mark_own(self._connection)
        self._deferred += statements
        self._marked = bool(statements)

    def _unmark(self) -> None:
        self._deferred += self._dialect.unmark
        self._marked = False

    def forget_mark(self) -> None:
        """Unmark the connection after the transaction was undone, if that did not do it."""
        if self._dialect.mark_lasts and self._marks_own:
            try:
                self._dialect.execute_all(self._connection, self._dialect.unmark)
            except (sa.exc.SQLAlchemyError, self._dialect.error):
                self._connection.invalidate()

    def _add(self, target: Target, rows: list[tuple[Any, ...]]) -> None:
        """Insert rows into one of eventsync's own tables."""
        statement = self._dialect.statement(target, rows)
        if statement is not None:
            self._deferred.append(statement)
            return
        connection = self.connection
        self._first_to_insert(lambda: self._dialect.insert(connection, target, rows))

    def _first_to_insert(self, write: Callable[[], object]) -> None:
        """Call ``write``. Raise ``UndoneError`` if another process has inserted the same key."""
        try:
            with errors("version index", self._dialect, values=False):
                write()
        except UniqueError as error:
            raise UndoneError(
                f"another process has inserted the same entry: {error.message}"
            ) from error

    # -- the contract ------------------------------------------------------------------------------

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        return self.entries(type, keys, *self.ask(self.entry_queries(type, keys)))

    def entry_queries(self, type: str, keys: Sequence[str]) -> list[Statement]:
        """Return the statements that read the entries of ``keys``, and lock them if needed."""
        return self._locking(type, keys, slice(1, None))

    def entries(
        self, type: str, keys: Sequence[str], *answers: Sequence[Sequence[Any]]
    ) -> dict[str, Entry]:
        """Return the entries in the answers to ``entry_queries``."""
        found = {}
        for key, stamp, presence, detail, echo in chain.from_iterable(answers):
            found[key] = Entry.unpack(stamp, presence, detail, echo)
        self._note_absent(type, keys, found)
        return found

    def stamps(self, type: str, keys: Sequence[str]) -> dict[str, Stamp]:
        answers = self.ask(self._locking(type, keys, slice(1, 3)))
        found = {key: Stamp(stamp) for key, stamp in chain.from_iterable(answers)}
        self._note_absent(type, keys, found)
        return found

    def _locking(self, type: str, keys: Sequence[str], columns: slice) -> list[Statement]:
        """Return the statements that read these columns of entries, and lock them if needed."""
        tables, dialect = self._tables, self._dialect
        lock = f" ORDER BY {tables.columns[1]} FOR UPDATE" if dialect.concurrent else ""
        ordered = sorted(set(keys))
        statements: list[Statement] = []
        for start in range(0, len(ordered), _CHUNK):
            condition, values = dialect.among(tables.columns[1], ordered[start : start + _CHUNK])
            statement = (
                f"SELECT {', '.join(tables.columns[columns])} FROM {tables.name}"
                f" WHERE {tables.columns[0]} = {dialect.mark} AND {condition}{lock}"
            )
            statements.append((statement, (type, *values)))
        return statements

    def _note_absent(self, type: str, keys: Sequence[str], found: Container[str]) -> None:
        if self._dialect.concurrent:
            self._absent.setdefault(type, set()).update(key for key in keys if key not in found)

    def write(self, type: str, entries: Mapping[str, Entry]) -> None:
        short: list[tuple[Any, ...]] = []
        full: list[tuple[Any, ...]] = []
        for key in sorted(entries):
            entry = entries[key]
            detail, echo = entry.pack_detail(), entry.echo
            row = (type, key, entry.stamp, int(entry.presence))
            if detail is None and echo is None:
                short.append(row)
            else:
                full.append((*row, detail, echo))
        self._write(self._tables.short_entries, type, short)
        self._write(self._tables.entries, type, full)

    def claim(self, type: str, keys: Sequence[str], stamps: Sequence[Stamp]) -> Collection[str]:
        tables, dialect = self._tables, self._dialect
        if not dialect.conditional:
            return super().claim(type, keys, stamps)
        present, deleted = int(Presence.PRESENT), int(Presence.DELETED)
        # Byte 16 is the kind of stamp: ``Stamp.deleted`` without a call for each.
        presences = [deleted if stamp[16] == 2 else present for stamp in stamps]
        rows = list(zip(repeat(type), keys, stamps, presences))
        # The upsert clears detail and echo: the entry of a whole record has neither.
        return set(
            dialect.upsert_if(
                self.connection, tables.short_entries, rows, tables.newer, tables.columns[1]
            )
        )

    def _write(self, target: Target, type: str, rows: list[tuple[Any, ...]]) -> None:
        """Write entries, in the order of their keys."""
        absent = self._absent.get(type)
        if absent:
            new = [row for row in rows if row[1] in absent]
            rows = [row for row in rows if row[1] not in absent]
            if new:
                self._add(target, new)
                absent.difference_update(row[1] for row in new)
        if not rows:
            return
        statement = self._dialect.statement(target, rows, upsert=True)
        if statement is not None:
            self._deferred.append(statement)
        else:
            self._dialect.upsert(self.connection, target, rows)

    def forget(self, type: str, keys: Sequence[str]) -> None:
        table = self._tables.version
        for start in range(0, len(keys), _CHUNK):
            chunk = keys[start : start + _CHUNK]
            self.connection.execute(
                sa.delete(table).where(table.c.type == type, table.c.key.in_(chunk))
            )

    def intend(
        self, type: str, intents: Mapping[str, Intent], bodies: Sequence[bytes] = ()
    ) -> None:
        self._bodies += [(type, body) for body in bodies]

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self.intend(type, {}, bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Do nothing: the database itself undoes a transaction that did not commit."""

    def keep(self) -> None:
        """Do nothing, for the same reason."""
