"""The change source by triggers: they write the keys of changed rows into a change table."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final

import sqlalchemy as sa

from eventsync.engine.change_source import Changes, MarkLostError, SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError, EventSyncError
from eventsync.stores.sql.capture.change_table import (
    PAGE,
    ChangeTable,
    Installed,
    Look,
    Parts,
    Place,
    places_of,
)
from eventsync.stores.sql.capture.source import Captured, SqlSource
from eventsync.stores.sql.dialect import Dialect
from eventsync.stores.sql.engine import errors

__all__ = ["TriggerSource"]

_LIMIT: Final = 100_000
"""About how many keys one call tells at most."""
_SHORTEST: Final = 0.004
"""The pause between two looks after one that found changes."""
_LONGEST: Final = 0.04
"""The pause between two looks after many that found none."""
_GROWTH: Final = 1.2
_CHECK_EVERY: Final = 5.0
"""After so many seconds, look whether all triggers are there."""
_LOOK_EVERY: Final = 1.0
"""After so many seconds, look even if nothing seems to have changed."""
_FULL_SHARE: Final = 20.0
"""Slow looks at all rows take about this part of the time: one in so many."""
_SLOW: Final = 0.1
"""A look that takes longer is slow, unless it finds more than ``_FEW`` rows."""
_FEW: Final = 1000


@dataclass(slots=True)
class _Told:
    """What a mark says: the identity of the change table, and the shapes of the places."""

    identity: str
    shapes: dict[str, str] = field(default_factory=dict)

    def text(self) -> str:
        return json.dumps({"identity": self.identity, "shapes": self.shapes}, sort_keys=True)

    @classmethod
    def parse(cls, mark: str) -> _Told:
        try:
            found = json.loads(mark)
            return cls(str(found["identity"]), dict(found["shapes"]))
        except (ValueError, TypeError, KeyError):
            return cls("")


class TriggerSource(SqlSource):
    """Tells the changes that triggers have written into a change table.

    The rows of the change table are told at each call until ``settle`` deletes them. Their numbers
    are not in the order of the commits, so no number is a mark. The mark only identifies the change
    table, and the states of the tables in which rows come and go without a trigger.

    A change was committed after the last look that did not see it. So its moment is the later one
    of the time of that look and the time at which the trigger ran.
    """

    kind: ClassVar[str] = "triggers"
    settle_every: ClassVar[float] = 0.0

    def __init__(
        self,
        accessors: Sequence[Captured],
        change_table: Callable[[Dialect, Sequence[Place]], ChangeTable],
        *,
        limit: int = _LIMIT,
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__(accessors)
        self._make = change_table
        self._limit = limit
        self._monotonic = monotonic
        self._sleep = sleep
        self._connection: sa.Connection | None = None
        self._table_: ChangeTable | None = None
        self._told = _Told("")
        self._wholes: dict[str, str] = {}
        self._pause = _SHORTEST
        self._checked_at = self._looked_at = 0.0
        # The time of the last look that saw all changes, by the database's clock.
        self._seen_until: float | None = None
        self._highest = 0
        self._full_due = 0.0
        self._behind = False

    # -- the contract ------------------------------------------------------------------------------

    def open(self, mark: str) -> str:
        self.close()
        with self._errors():
            connection = self._connected()
            before, found = self._ready(connection)
            if not mark:
                # All records are going to be read.
                rows = self._read(connection, 0)[0].rows
                if numbers := [row.number for row in rows if row.keys is None]:
                    self._change_table.delete(connection, numbers)
        told = _Told.parse(mark)
        if mark and told.identity != found.identity:
            raise MarkLostError("the change table was made anew")
        self._wholes = self._altered(told.shapes, before, found) if mark else {}
        self._told = _Told(found.identity, found.shapes)
        self._seen_until, self._highest, self._full_due = None, 0, 0.0
        self._looked_at, self._behind = 0.0, False
        self._checked_at = self._monotonic()
        return self._told.text()

    def changes(self, mark: str, *, wait: float) -> Changes:
        deadline = self._monotonic() + wait
        with self._errors():
            connection = self._connected()
            while True:
                if self._monotonic() - self._checked_at >= _CHECK_EVERY:
                    self._check(connection)
                found = self._look(connection)
                if found is not None:
                    self._pause = _SHORTEST
                    return found
                left = deadline - self._monotonic()
                if left <= 0:
                    return Changes(self._told.text())
                self._sleep(min(self._pause, left))
                self._pause = min(self._pause * _GROWTH, _LONGEST)

    def settle(self, changes: Changes) -> None:
        if not changes.receipt:
            return
        with self._errors():
            self._change_table.delete(self._connected(), changes.receipt)

    def close(self) -> None:
        connection, self._connection = self._connection, None
        self._table_ = None
        if connection is not None:
            with suppress(sa.exc.SQLAlchemyError, self.dialect.error):
                # Its settings must not come back to the pool.
                connection.invalidate()
                connection.close()

    # -- what an operator does ---------------------------------------------------------------------

    def install(self) -> None:
        with self._errors(), self._beside() as (connection, table):
            if not table.inspect(connection).complete:
                self._run(connection, table.statements(connection))

    def remove(self) -> None:
        with self._errors(), self._beside() as (connection, table):
            self._run(connection, table.removal(connection))

    def statements(self) -> tuple[str, ...]:
        with self._errors(), self._beside() as (connection, table):
            return tuple(table.statements(connection))

    def script(self) -> str:
        with self._errors(), self._beside() as (connection, table):
            return table.script(table.statements(connection))

    def findings(self) -> Iterable[Finding]:
        with self._errors(), self._beside() as (connection, table):
            found = table.inspect(connection)
            lacking = any(finding.level is Level.WRONG for finding in found.findings)
            if not found.complete:
                missing = [f"{p.about}: {', '.join(found.missing[p.id])}" for p in table.places
                           if p.id in found.missing]  # fmt: skip
                text = "; ".join(missing) or "the change table is missing"
                found.findings.append(
                    Finding(
                        Level.WRONG if lacking else Level.NOTE,
                        "capture by triggers",
                        f"not installed ({text}); "
                        + (
                            "an administrator has to run the statements"
                            if lacking
                            else "the capture installs it when it starts"
                        ),
                        tuple(table.statements(connection)),
                        absent=not lacking,
                    )
                )
            return found.findings

    def state(self) -> SourceState:
        with self._errors(), self._beside() as (connection, table):
            found = table.inspect(connection)
            waiting = table.waiting(connection) if found.identity else None
        details = {"change table": table.name}
        for place in table.places:
            missing = found.missing.get(place.id)
            details[place.name] = f"missing: {', '.join(missing)}" if missing else "triggers"
        return SourceState(found.complete, waiting, details=details)

    # -- looking -----------------------------------------------------------------------------------

    def _look(self, connection: sa.Connection) -> Changes | None:
        """Return what waits in the change table; ``None`` if nothing does."""
        table, began = self._change_table, self._monotonic()
        hurried = began - self._looked_at < _LOOK_EVERY
        changed = table.has_changed(connection)  # asked each time, because it counts from the last
        if hurried and not changed and not self._behind and not self._wholes:
            return None
        # Rows that were deleted may still be in the way until the database has cleaned up. Where
        # that takes long, most looks begin after the greatest number that was seen.
        full = began >= self._full_due
        look, behind = self._read(connection, 0 if full else self._highest)
        self._looked_at = self._monotonic()
        took = self._looked_at - began
        if full and took > _SLOW and len(look.rows) < _FEW:
            self._full_due = self._looked_at + took * _FULL_SHARE
        self._behind = behind
        found = self._merged(connection, look, behind=behind)
        if full:
            self._seen_until = None if behind else look.now
        if look.rows:
            self._highest = max(self._highest, look.rows[-1].number)
        return found

    def _read(self, connection: sa.Connection, after: int) -> tuple[Look, bool]:
        """Return the rows that wait, up to the limit, and whether more wait."""
        table, count = self._change_table, 0
        look = table.look(connection, after, PAGE)
        page, rows = look.rows, []
        while True:
            for row in page:
                rows.append(row)
                count += len(row.keys or ())
                if count >= self._limit:
                    return Look(look.now, rows), True
            if len(page) < PAGE:
                return Look(look.now, rows), False
            page = table.look(connection, page[-1].number, PAGE).rows

    def _merged(self, connection: sa.Connection, look: Look, *, behind: bool) -> Changes | None:
        """Return rows of the change table as changes, each key once with its last moment."""
        if not look.rows and not self._wholes:
            return None
        table = self._change_table
        moments: dict[tuple[str, Parts | None], float] = {}
        for _, place, keys_of, at in look.rows:
            for parts in (None,) if keys_of is None else keys_of:
                if moments.get((place, parts), 0.0) < at:
                    moments[place, parts] = at
        if behind:
            # What is told now is read now, so it has the moment of the last change that waits.
            page = look.rows
            while page := table.look(connection, page[-1].number, PAGE).rows:
                for _, place, keys_of, at in page:
                    for parts in keys_of or ():
                        if moments.get((place, parts), at) < at:
                            moments[place, parts] = at
        whole, self._wholes = self._wholes, {}
        places = {place.id: place for place in table.places}
        keys: dict[str, dict[str, float | None]] = {}
        earliest = self._seen_until or 0.0
        for (id, parts), at in moments.items():
            if parts is None:
                reason = "TRUNCATE, new triggers, or a trigger that could not tell the rows"
                whole |= {one.type: reason for one in places[id].tables}
                continue
            for one in places[id].tables:
                try:
                    key = one.key_text(table.values(places[id], parts))
                except EventSyncError:
                    continue  # no record has such a key; a read of all records reports the row
                except Exception as error:
                    # Most likely, the type of a column was altered.
                    whole[one.type] = f"a key that a trigger told cannot be read: {error}"
                    continue
                keys.setdefault(one.type, {})[key] = max(at, earliest)
        return Changes(
            self._told.text(),
            keys,
            whole,
            behind=behind,
            receipt=[row.number for row in look.rows],
        )

    # -- whether all is there ----------------------------------------------------------------------

    def _ready(self, connection: sa.Connection) -> tuple[Installed, Installed]:
        """Install what is missing. Return what was there before, and what is there now.

        Raise ``ConfigError`` if it cannot be installed.
        """
        table = self._change_table
        before = table.inspect(connection)
        if before.complete:
            return before, before
        try:
            self.install()
        except ConfigError as error:
            raise ConfigError(
                f"the triggers that capture foreign writes cannot be installed: {error.message}",
                hint="let an administrator run the statements that"
                " eventsync capture print-sql shows",
            ) from error
        found = table.inspect(connection)
        if not found.complete:
            named = [f"{place}: {', '.join(names)}" for place, names in found.missing.items()]
            raise ConfigError(
                f"the triggers that capture foreign writes are missing: {'; '.join(named)}",
                hint="run: eventsync check",
            )
        return before, found

    def _check(self, connection: sa.Connection) -> None:
        """Install triggers that have vanished. Note where rows may have changed without one."""
        before, found = self._ready(connection)
        self._checked_at = self._monotonic()
        if found.identity != self._told.identity:
            raise MarkLostError("the change table was made anew")
        self._change_table.prepare(connection)
        self._wholes |= self._altered(self._told.shapes, before, found)
        self._told = _Told(found.identity, found.shapes)

    def _altered(self, told: dict[str, str], before: Installed, now: Installed) -> dict[str, str]:
        """Return the record types of the tables whose shapes differ, with the reason."""
        reason = "the table, its partitions or its triggers were altered"
        return {
            one.type: reason
            for place in self._change_table.places
            if {before.shapes.get(place.id), now.shapes.get(place.id)} != {told.get(place.id)}
            for one in place.tables
        }

    def _run(self, connection: sa.Connection, statements: Sequence[str]) -> None:
        connection.rollback()  # ends the transaction that the inspection has begun
        if not statements:
            return
        with self.dialect.alone(connection):
            cursor = self.dialect.raw(connection).cursor()
            try:
                for statement in statements:
                    cursor.execute(statement)
            finally:
                cursor.close()

    # -- connections -------------------------------------------------------------------------------

    @property
    def _change_table(self) -> ChangeTable:
        if self._table_ is None:
            self._table_ = self._make(self.dialect, places_of(self.tables()))
        return self._table_

    def _connected(self) -> sa.Connection:
        """Return the connection of this source, on which each statement is a transaction."""
        if self._connection is None:
            connection = self._connection = self.engine.connect()
            self.dialect.set_up(connection)
            self._change_table.prepare(connection)
        return self._connection

    @contextmanager
    def _beside(self) -> Iterator[tuple[sa.Connection, ChangeTable]]:
        """Yield a connection for an operator, and the change table."""
        table = self._make(self.dialect, places_of(self.tables()))
        with self.dialect.connected(self.engine) as connection:
            yield connection, table

    def _errors(self) -> Any:
        return errors("the capture by triggers", self.dialect, self.engine.url)
