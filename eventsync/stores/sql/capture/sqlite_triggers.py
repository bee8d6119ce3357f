"""The change table and triggers of SQLite."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar, Final

import sqlalchemy as sa

from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError
from eventsync.stores.sql.capture.change_table import (
    NAME,
    ChangeTable,
    Installed,
    Look,
    Parts,
    Place,
    Row,
)
from eventsync.stores.sql.dialect import Statement

__all__ = ["SqliteTriggers"]

_NOW: Final = "(julianday('now') - 2440587.5) * 86400.0"
_ALL: Final = " *"
"""Ends the place of a row that tells that all rows of a table may have changed."""
_FOREIGN: Final = f"NOT EXISTS (SELECT 1 FROM {NAME} WHERE number = 0)"
"""The condition of the triggers: eventsync's own transaction has a row with this number."""


class SqliteTriggers(ChangeTable):
    """SQLite. Triggers run for each row; the change table keeps key values as they are.

    REPLACE removes the rows that are in the way of a new row, and runs no trigger for them. So a
    trigger before each write tells the rows that have a value of another unique index.
    """

    begin: ClassVar[tuple[Statement, ...]] = (("BEGIN IMMEDIATE", ()),)
    commit: ClassVar[tuple[Statement, ...]] = (("COMMIT", ()),)

    def __init__(self, dialect: Any, places: Sequence[Place]) -> None:
        super().__init__(dialect, places)
        self._columns = [f"k{number + 1}" for number in range(max(len(p.keys) for p in places))]
        self._lengths = {place.id: len(place.keys) for place in places}
        self._told = [told for place in places for told in (place.id, place.id + _ALL)]
        self._version = -1

    @property
    def name(self) -> str:
        return NAME

    def prepare(self, connection: sa.Connection) -> None:
        self.dialect.raw(connection).isolation_level = None

    # -- what is there -----------------------------------------------------------------------------

    def inspect(self, connection: sa.Connection) -> Installed:
        raw = self.dialect.raw(connection)
        found = Installed()
        there = {
            str(name)
            for (name,) in raw.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'")
        }
        columns = self._found_columns(raw)
        if columns:
            row = raw.execute(f"SELECT k1 FROM {NAME} WHERE number = -1").fetchone()
            found.identity = str(row[0]) if row and {*self._columns} <= columns else ""
        for place in self.places:
            self._refuse(raw, place)
            missing = [n for n in self._triggers(connection, place) if n not in there]
            if missing:
                found.missing[place.id] = [f"trigger {name}" for name in missing]
            # Triggers that are made anew write a row that says so.
            found.shapes[place.id] = ""
            if hidden := self._hidden_indexes(raw, place):
                found.findings.append(
                    Finding(
                        Level.RISK,
                        place.about,
                        f"a row that REPLACE removes because of the index {hidden[0]!r} on an"
                        " expression is not captured",
                    )
                )
        return found

    def _refuse(self, raw: Any, place: Place) -> None:
        if place.schema not in (None, "main"):
            raise ConfigError(
                f"capture by triggers does not work in the attached database {place.schema!r}",
                hint="give the table's own file as the database of the store",
            )
        (kind, text) = raw.execute(
            "SELECT type, sql FROM sqlite_master WHERE lower(name) = lower(?)"
            " AND type IN ('table', 'view')",
            (place.name,),
        ).fetchone() or ("table", "")
        if kind == "view" or str(text).lstrip().upper().startswith("CREATE VIRTUAL"):
            raise ConfigError(
                f"{place.name!r} is a {kind if kind == 'view' else 'virtual table'}, which has no"
                " triggers after a write",
                hint="name the table itself",
            )

    @staticmethod
    def _found_columns(raw: Any) -> set[str]:
        return {str(row[1]) for row in raw.execute(f"PRAGMA table_info({NAME})")}

    def _triggers(self, connection: sa.Connection, place: Place) -> list[str]:
        """Return the names of the triggers that a table needs."""
        moments = ["insert", "update", "delete"]
        if self._replaced(connection, place):
            moments += ["insert_before", "update_before"]
        return [place.trigger(moment) for moment in moments]

    def _replaced(self, connection: sa.Connection, place: Place) -> list[str]:
        """Return, for each unique index, the condition that a row is in the way of a new one."""
        catalogue = self.dialect.catalogue(connection, place.name, None)
        primary = [str(c[1]) for c in catalogue.columns if c[5] and str(c[2]).upper() == "INTEGER"]
        conditions = []
        for index in catalogue.uniques:
            # The collation of the row's number is not known, but it has none.
            exact = not catalogue.loose.intersection(index.columns) or [*index.columns] == primary
            if set(index.columns) == set(place.keys) and exact:
                continue  # the row in the way has the key of the new one
            conditions.append(
                " AND ".join(f"t.{_quoted(c)} = NEW.{_quoted(c)}" for c in index.columns)
            )
        return conditions

    @staticmethod
    def _hidden_indexes(raw: Any, place: Place) -> list[str]:
        """Return the unique indexes on expressions."""
        return [
            str(index)
            for _, index, unique, _, _ in raw.execute(
                f"PRAGMA index_list({_quoted(place.name)})"
            ).fetchall()
            if unique
            and any(
                row[1] == -2
                for row in raw.execute(f"PRAGMA index_info({_quoted(index)})").fetchall()
            )
        ]

    # -- the statements ----------------------------------------------------------------------------

    def statements(self, connection: sa.Connection) -> list[str]:
        raw = self.dialect.raw(connection)
        there = self._found_columns(raw)
        columns = ", ".join(self._columns)
        made = [
            f"CREATE TABLE IF NOT EXISTS {NAME} (number INTEGER PRIMARY KEY AUTOINCREMENT,"
            f" place TEXT NOT NULL, at REAL NOT NULL, {columns})",
        ]
        made += [
            f"ALTER TABLE {NAME} ADD COLUMN {column}"
            for column in self._columns
            if there and column not in there
        ]
        made.append(
            f"INSERT OR IGNORE INTO {NAME} (number, place, at, k1)"
            f" VALUES (-1, 'installed', {_NOW}, lower(hex(randomblob(16))))"
        )
        wanted = {name for place in self.places for name in self._triggers(connection, place)}
        made += [f"DROP TRIGGER {name}" for name in self._own_triggers(raw) if name not in wanted]
        for place in self.places:
            sql = self._trigger_sql(connection, place)
            names = ", ".join(_literal(name) for name in sql)
            # Rows may have changed before the triggers were there.
            made.append(
                f"INSERT INTO {NAME} (place, at) SELECT {_literal(place.id + _ALL)}, {_NOW}"
                f" WHERE (SELECT count(*) FROM sqlite_master WHERE type = 'trigger'"
                f" AND name IN ({names})) < {len(sql)}"
            )
            made += sql.values()
        return made

    def _trigger_sql(self, connection: sa.Connection, place: Place) -> dict[str, str]:
        """Return the statements that create the triggers of a table, by the names of these."""
        columns = ", ".join(self._columns[: len(place.keys)])
        keys = [_quoted(key) for key in place.keys]
        insert = f"INSERT INTO {NAME} (place, at, {columns}) SELECT {_literal(place.id)}, {_NOW},"

        def told(row: str, condition: str = "") -> str:
            values = ", ".join(f"{row}.{key}" for key in keys)
            return f"{insert} {values}{condition};"

        def differs(one: str, other: str) -> str:
            same = " AND ".join(f"{one}.{k} COLLATE BINARY IS {other}.{k}" for k in keys)
            return f"NOT ({same})"

        bodies = {
            "insert": told("NEW"),
            "update": f"{told('NEW')} {told('OLD', ' WHERE ' + differs('OLD', 'NEW'))}",
            "delete": told("OLD"),
        }
        table = _quoted(place.name)
        if conditions := self._replaced(connection, place):
            for moment, others in (
                ("insert_before", (differs("t", "NEW"),)),
                ("update_before", (differs("t", "NEW"), differs("t", "OLD"))),
            ):
                bodies[moment] = " ".join(
                    told("t", f" FROM {table} t WHERE {condition} AND {' AND '.join(others)}")
                    for condition in conditions
                )
        made = {}
        for moment, body in bodies.items():
            event, _, before = moment.partition("_")
            when = "BEFORE" if before else "AFTER"
            name = place.trigger(moment)
            made[name] = (
                f"CREATE TRIGGER IF NOT EXISTS {name} {when} {event.upper()} ON {table}"
                f" WHEN {_FOREIGN} BEGIN {body} END"
            )
        return made

    @staticmethod
    def _own_triggers(raw: Any) -> list[str]:
        return [
            str(name)
            for (name,) in raw.execute(
                "SELECT name FROM sqlite_master WHERE type = 'trigger'"
                " AND name GLOB 'eventsync_[0-9a-f][0-9a-f][0-9a-f][0-9a-f]*' ORDER BY name"
            ).fetchall()
        ]

    def removal(self, connection: sa.Connection) -> list[str]:
        return [
            *(
                f"DROP TRIGGER IF EXISTS {name}"
                for name in self._own_triggers(self.dialect.raw(connection))
            ),
            f"DROP TABLE IF EXISTS {NAME}",
        ]

    def script(self, statements: Sequence[str]) -> str:
        return f"BEGIN IMMEDIATE;\n{super().script(statements)}COMMIT;\n"

    # -- reading -----------------------------------------------------------------------------------

    def has_changed(self, connection: sa.Connection) -> bool:
        (version,) = self.dialect.raw(connection).execute("PRAGMA data_version").fetchone()
        before, self._version = self._version, version
        return bool(before != version)

    def look(self, connection: sa.Connection, after: int, limit: int) -> Look:
        marks = ", ".join("?" * len(self._told))
        (now,) = self.dialect.raw(connection).execute(f"SELECT {_NOW}").fetchone()
        rows = self.dialect.fetch(
            connection,
            f"SELECT number, place, at, {', '.join(self._columns)} FROM {NAME}"
            f" WHERE number > ? AND place IN ({marks}) ORDER BY number LIMIT ?",
            (after, *self._told, limit),
        )
        return Look(now, [Row(n, *self._change(place, k), at) for n, place, at, *k in rows])

    def _change(self, place: str, columns: Sequence[Any]) -> tuple[str, Sequence[Parts] | None]:
        """Return the id of a place and the key that was told, of the columns of a row."""
        length = self._lengths.get(place)
        return (place, (tuple(columns[:length]),)) if length else (place.removesuffix(_ALL), None)

    def values(self, place: Place, parts: Parts) -> Sequence[Any]:
        return parts


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    return "'" + text.replace("'", "''") + "'"
