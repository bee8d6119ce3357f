"""A transaction of an SQL store: entries, data and outbox of one database commit together.

It owns how entries are locked, and what is sent to the database when. It knows nothing of the
tables of records.

Where several processes write at once, a transaction locks the entries it reads, in the order of
their keys. Of a key without an entry there is nothing to lock: its entry is then inserted, and if
another transaction was quicker the whole transaction is undone and done again.

A statement that has no answer is put off, where the database takes several in one round trip, until
one that has is sent, or to the end: an edit is mostly time spent waiting for the database.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Container, Mapping, Sequence
from contextlib import suppress
from itertools import chain, repeat
from typing import TYPE_CHECKING, Any, ClassVar, Final

import sqlalchemy as sa

from eventsync.changes.stamp import Stamp
from eventsync.index import Entry, IndexTransaction, Intent, Presence, UndoneError
from eventsync.stores.sql.dialect import Statement, Target
from eventsync.stores.sql.engine import UniqueError, errors

if TYPE_CHECKING:
    from eventsync.stores.sql.index import SqlIndex

__all__ = ["SqlTransaction"]

_CHUNK: Final = 1000
_SAVEPOINT: Final = "SAVEPOINT eventsync"
_RELEASE: Final = "RELEASE SAVEPOINT eventsync"
_UNDO: Final = "ROLLBACK TO SAVEPOINT eventsync"


class SqlTransaction(IndexTransaction):
    """A transaction of the database; ``part``: a part of one, of which ``undo`` leaves nothing."""

    intents: ClassVar[bool] = False

    def __init__(self, connection: sa.Connection, index: SqlIndex, *, part: bool = False) -> None:
        self._connection = connection
        self._index = index
        self._part = part
        # Keys without an entry, by type: of these there was nothing to lock.
        self._absent: dict[str, set[str]] = {}
        self._put_off: list[Statement] = [(_SAVEPOINT, ())] if part else []
        self._begun = False
        # Nobody looks for them before the end.
        self._bodies: list[tuple[str, bytes]] = []

    # -- what is sent when -----------------------------------------------------------------------

    @property
    def connection(self) -> sa.Connection:
        """The connection, once what was put off has been done."""
        if self._put_off:
            self.ask([])
        return self._connection

    def ask(self, statements: Sequence[Statement]) -> list[list[Sequence[Any]]]:
        """What each of these finds, after all that was put off; one round trip if that can be."""
        before, self._put_off = self._put_off, []
        found = self._index.dialect.execute_all(self._connection, [*before, *statements])
        self._begun = True
        return found[len(before) :]

    def finish(self) -> None:
        """Do all that was put off. Called at the end, before the commit."""
        if self._bodies:
            bodies, self._bodies = self._bodies, []
            self._add(self._index.outbox, bodies)
        if self._part and (self._begun or len(self._put_off) > 1):
            self._put_off.append((_RELEASE, ()))
        elif self._part:
            self._put_off.clear()  # nothing was done that could be undone
        if self._put_off:
            self._quicker_than_others(lambda: self.ask([]))

    def undo(self) -> None:
        """Leave nothing of the part."""
        dialect = self._index.dialect
        if not self._begun and dialect.is_untouched(self._connection):
            return
        # Where that fails, the whole transaction is undone already or the connection is gone.
        with suppress(sa.exc.SQLAlchemyError, dialect.error):
            dialect.execute_all(self._connection, [(_UNDO, ()), (_RELEASE, ())])

    def _add(self, target: Target, rows: list[tuple[Any, ...]]) -> None:
        """Add rows to a table of eventsync's own."""
        dialect = self._index.dialect
        statement = dialect.statement(target, rows)
        if statement is not None:
            self._put_off.append(statement)
            return
        connection = self.connection
        self._quicker_than_others(lambda: dialect.insert(connection, target, rows))

    def _quicker_than_others(self, write: Callable[[], object]) -> None:
        try:
            with errors("version index", self._index.dialect):
                write()
        except UniqueError as error:
            raise UndoneError(f"another process was quicker: {error.message}") from error

    # -- the contract ----------------------------------------------------------------------------

    def read(self, type: str, keys: Sequence[str]) -> dict[str, Entry]:
        return self.entries(type, keys, *self.ask(self.reading(type, keys)))

    def reading(self, type: str, keys: Sequence[str]) -> list[Statement]:
        """What to ask for the entries of ``keys``; they are locked where others may write."""
        return self._locking(type, keys, slice(1, None))

    def entries(
        self, type: str, keys: Sequence[str], *answers: Sequence[Sequence[Any]]
    ) -> dict[str, Entry]:
        """The entries that are in the answers to ``reading``."""
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
        index, dialect = self._index, self._index.dialect
        lock = f" ORDER BY {index.columns[1]} FOR UPDATE" if dialect.concurrent else ""
        ordered = sorted(set(keys))
        statements: list[Statement] = []
        for start in range(0, len(ordered), _CHUNK):
            among, values = dialect.among(index.columns[1], ordered[start : start + _CHUNK])
            statement = (
                f"SELECT {', '.join(index.columns[columns])} FROM {index.name}"
                f" WHERE {index.columns[0]} = {dialect.mark} AND {among}{lock}"
            )
            statements.append((statement, (type, *values)))
        return statements

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
        here, gone = int(Presence.PRESENT), int(Presence.DELETED)
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
                self._add(target, new)
                absent.difference_update(row[1] for row in new)
        if not rows:
            return
        statement = self._index.dialect.statement(target, rows, upsert=True)
        if statement is not None:
            self._put_off.append(statement)
        else:
            self._index.dialect.upsert(self.connection, target, rows)

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
        self._bodies += [(type, body) for body in bodies]

    def send(self, type: str, bodies: Sequence[bytes]) -> None:
        self.intend(type, {}, bodies)

    def open_intents(self, type: str) -> dict[str, Intent]:
        return {}

    def settle(self, type: str, keys: Sequence[str], *, send: bool) -> None:
        """Nothing: the database's own transaction undoes what did not commit."""

    def keep(self) -> None:
        """Nothing, as ``settle``."""
