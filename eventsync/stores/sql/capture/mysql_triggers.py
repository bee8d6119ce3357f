"""The change table and triggers of MySQL and MariaDB."""

from __future__ import annotations

import datetime as dt
import json
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, ClassVar, Final

import sqlalchemy as sa
from pymysql import converters

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
from eventsync.stores.sql.catalogue import OWN_TRIGGER
from eventsync.stores.sql.dialect import Statement

__all__ = ["MysqlTriggers"]

_TABLE: Final = """
SELECT table_type, create_time, engine FROM information_schema.tables
WHERE table_schema = %s AND table_name = %s
"""
_TYPES: Final = """
SELECT column_name, data_type FROM information_schema.columns
WHERE table_schema = %s AND table_name = %s
"""
_TRIGGERS: Final = """
SELECT trigger_schema, trigger_name, created, action_statement FROM information_schema.triggers
WHERE trigger_name LIKE 'eventsync\\_%'
"""
_RIGHTS: Final = """
SELECT 1 FROM information_schema.user_privileges WHERE privilege_type = %(right)s
UNION SELECT 1 FROM information_schema.schema_privileges
    WHERE privilege_type = %(right)s AND %(schema)s LIKE table_schema
UNION SELECT 1 FROM information_schema.table_privileges
    WHERE privilege_type = %(right)s AND table_schema = %(schema)s AND table_name = %(table)s
"""
_CASCADES: Final = """
SELECT constraint_name, referenced_table_name FROM information_schema.referential_constraints
WHERE constraint_schema = %s AND table_name = %s
    AND (delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
        OR update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
ORDER BY constraint_name
"""
_EVENTS: Final = ("insert", "update", "delete")
_CAUGHT: Final = "1054, 1142, 1143, 1146"
"""Errors of a trigger that must not fail the application's statement: a column or the change table
is missing, or may not be used. Others, like a deadlock, have undone the transaction."""
_BINARY: Final = frozenset(
    {"binary", "varbinary", "tinyblob", "blob", "mediumblob", "longblob", "geometry"}
)
_NUMBERS: Final = frozenset({"tinyint", "smallint", "mediumint", "int", "bigint", "year", "bit"})
_LOADERS: Final[Mapping[str, Callable[[str], Any]]] = {
    **dict.fromkeys(_BINARY, bytes.fromhex),
    **dict.fromkeys(_NUMBERS, int),
    "decimal": Decimal,
    "float": float,
    "double": float,
    "date": converters.convert_date,
    "datetime": converters.convert_datetime,
    "time": converters.convert_timedelta,
    "timestamp": lambda text: _moment(text),
}


class MysqlTriggers(ChangeTable):
    """MySQL and MariaDB. Triggers run for each row. The key is a JSON array of texts.

    No trigger runs for TRUNCATE, which is a DDL statement, nor for rows that a foreign key of
    InnoDB deletes or changes. A table that was truncated has another number inside InnoDB, if this
    user may see it, or another time of creation.
    """

    begin: ClassVar[tuple[Statement, ...]] = (("START TRANSACTION", ()),)
    commit: ClassVar[tuple[Statement, ...]] = (("COMMIT", ()),)

    def __init__(self, dialect: Any, places: Sequence[Place]) -> None:
        super().__init__(dialect, places)
        self._database = ""
        self._name = NAME
        self._loaders: dict[str, list[Callable[[str], Any]]] = {}

    @property
    def name(self) -> str:
        return self._name

    def prepare(self, connection: sa.Connection) -> None:
        self.dialect.raw(connection).autocommit(True)
        self._read_database(connection)
        for place in self.places:
            types = self._types(connection, place)
            self._loaders[place.id] = [
                _LOADERS.get(types[key], str) for key in place.keys if key in types
            ]

    # -- what is there -----------------------------------------------------------------------------

    def inspect(self, connection: sa.Connection) -> Installed:
        self._read_database(connection)
        found = Installed()
        noted: dict[str, str] = {}
        if self._ask(connection, _TABLE, self._database, NAME):
            noted = dict(
                self._ask(connection, f"SELECT place, `key` FROM {self._name} WHERE number < 0")
            )
            found.identity = str(noted.get("installed", ""))
        elif not self._may(connection, "CREATE", self._database, NAME):
            found.findings.append(
                self._lacks(connection, "the database", f"CREATE ON {self._name}")
            )
        there = {
            (str(schema), str(name)): str(created)
            for schema, name, created in self._own_triggers(connection)
        }
        for place in self.places:
            self._inspect_place(connection, place, there, noted, found)
        return found

    def _inspect_place(
        self,
        connection: sa.Connection,
        place: Place,
        there: Mapping[tuple[str, str], str],
        noted: Mapping[str, str],
        found: Installed,
    ) -> None:
        schema = place.schema or self._database
        tables = self._ask(connection, _TABLE, schema, place.name)
        if tables and "VIEW" in str(tables[0][0]):
            raise ConfigError(
                f"{place.name!r} is a view, which has no triggers", hint="name the table itself"
            )
        names = [place.trigger(event) for event in _EVENTS]
        missing = [name for name in names if (schema, name) not in there]
        may = not missing or self._may(connection, "TRIGGER", schema, place.name)
        # Without the right, this user does not see triggers that an administrator has made.
        if missing and (may or place.id not in noted):
            found.missing[place.id] = [f"trigger {name}" for name in missing]
            if not may:
                right = f"TRIGGER ON {_quoted(schema)}.{_quoted(place.name)}"
                found.findings.append(self._lacks(connection, place.about, right))
        parts = [there.get((schema, name), "") for name in names]
        found.shapes[place.id] = " ".join([*parts, self._incarnation(connection, schema, place)])
        for constraint, other in self._ask(connection, _CASCADES, schema, place.name):
            found.findings.append(
                Finding(
                    Level.RISK,
                    place.about,
                    f"rows that the foreign key {constraint!r} changes or deletes together with"
                    f" their row of {other!r} are not captured by triggers; a capture of all"
                    " records finds them: capture_every",
                )
            )

    def _incarnation(self, connection: sa.Connection, schema: str, place: Place) -> str:
        """Return a text that differs after TRUNCATE, as far as this user may know."""
        if place.name.isalnum() and schema.replace("_", "").isalnum() and place.name.isascii():
            for view in ("innodb_sys_tables", "innodb_tables"):
                try:
                    rows = self._ask(
                        connection,
                        f"SELECT table_id FROM information_schema.{view}"
                        " WHERE name = %s OR name LIKE %s ORDER BY 1",
                        f"{schema}/{place.name}",
                        f"{_like(f'{schema}/{place.name}')}#%",
                    )
                except self.dialect.error:
                    continue  # it has another name, or needs the right PROCESS
                except sa.exc.DBAPIError:
                    continue
                if rows:
                    return " ".join(str(number) for (number,) in rows)
        table = f"{_quoted(schema)}.{_quoted(place.name)}"
        empty = not self._ask(connection, f"SELECT 1 FROM {table} LIMIT 1")
        created = self._ask(connection, _TABLE, schema, place.name)[0][1]
        return f"{created} {'empty' if empty else ''}"

    def _lacks(self, connection: sa.Connection, about: str, right: str) -> Finding:
        return Finding(
            Level.WRONG,
            about,
            f"this user lacks the right {right.split()[0]}, which capturing by triggers needs",
            (f"GRANT {right} TO {self.dialect.user(connection)}",),
        )

    def _may(self, connection: sa.Connection, right: str, schema: str, table: str) -> bool:
        """Return whether this user has a right, as far as it does not come from a role."""
        role = self._ask(connection, "SELECT CURRENT_ROLE()")[0][0]
        named = {"right": right, "schema": schema, "table": table}
        with self.dialect.raw(connection).cursor() as cursor:
            cursor.execute(_RIGHTS, named)
            return bool(cursor.fetchall()) or role not in (None, "NONE", "")

    def _own_triggers(self, connection: sa.Connection) -> list[tuple[str, str, Any]]:
        """Return schema, name and time of creation of the triggers that fill the change table."""
        return [
            (schema, name, created)
            for schema, name, created, text in self._ask(connection, _TRIGGERS)
            if OWN_TRIGGER.match(name) and self._name in str(text)
        ]

    # -- the statements ----------------------------------------------------------------------------

    def statements(self, connection: sa.Connection) -> list[str]:
        self._read_database(connection)
        made = [
            f"CREATE TABLE IF NOT EXISTS {self._name} (\n"
            "    number BIGINT NOT NULL AUTO_INCREMENT PRIMARY KEY,\n"
            "    place VARCHAR(100) NOT NULL, `key` LONGTEXT, at DATETIME(6) NOT NULL)\n"
            "ENGINE = InnoDB CHARACTER SET utf8mb4 COLLATE utf8mb4_bin",
            f"INSERT IGNORE INTO {self._name} (number, place, `key`, at)\n"
            "VALUES (-1, 'installed', MD5(CONCAT(UUID(), RAND())), UTC_TIMESTAMP(6))",
        ]
        if not all(
            self._may(connection, right, self._database, NAME) for right in ("SELECT", "DELETE")
        ):
            made.append(f"GRANT SELECT, DELETE ON {self._name} TO {self.dialect.user(connection)}")
        wanted = {
            (place.schema or self._database, place.trigger(event))
            for place in self.places
            for event in _EVENTS
        }
        made += [
            f"DROP TRIGGER IF EXISTS {_quoted(schema)}.{_quoted(name)}"
            for schema, name, _ in self._own_triggers(connection)
            if (schema, name) not in wanted
        ]
        for place in self.places:
            made += self._triggers_sql(connection, place)
        return made

    def _triggers_sql(self, connection: sa.Connection, place: Place) -> list[str]:
        schema, types = place.schema or self._database, self._types(connection, place)
        if missing := [key for key in place.keys if key not in types]:
            raise ConfigError(
                f"table {place.name!r} has no column {missing[0]!r}, which is in the key",
                hint="rename the field in the view, or give the column back its name",
            )
        columns = [(_quoted(key), types[key]) for key in place.keys]
        insert = f"INSERT INTO {self._name} (place, `key`, at) VALUES ({_literal(place.id)},"

        def told(row: str) -> str:
            key = ", ".join(_text(f"{row}.{name}", kind) for name, kind in columns)
            return f"{insert} JSON_ARRAY({key}), UTC_TIMESTAMP(6));"

        same = " AND ".join(
            f"CAST(NEW.{name} AS BINARY) <=> CAST(OLD.{name} AS BINARY)" for name, _ in columns
        )
        bodies = {
            "insert": told("NEW"),
            "update": f"{told('NEW')}\n        IF NOT ({same}) THEN {told('OLD')} END IF;",
            "delete": told("OLD"),
        }
        can_wait = self._has_if_not_exists(connection)
        made = []
        for event, body in bodies.items():
            name = f"{_quoted(schema)}.{_quoted(place.trigger(event))}"
            if not can_wait:
                made.append(f"DROP TRIGGER IF EXISTS {name}")
            made.append(
                f"CREATE TRIGGER {'IF NOT EXISTS ' if can_wait else ''}{name} AFTER"
                f" {event.upper()} ON {_quoted(schema)}.{_quoted(place.name)} FOR EACH ROW\n"
                "BEGIN\n"
                f"    DECLARE EXIT HANDLER FOR {_CAUGHT}\n"
                "    BEGIN\n"
                f"        DECLARE CONTINUE HANDLER FOR {_CAUGHT} BEGIN END;\n"
                f"        {insert} NULL, UTC_TIMESTAMP(6));\n"
                "    END;\n"
                "    IF @eventsync_own IS NULL THEN\n"
                f"        {body}\n"
                "    END IF;\n"
                "END"
            )
        made.append(
            f"REPLACE INTO {self._name} (number, place, `key`, at)\n"
            f"VALUES ({-2 - int(place.code, 16)}, {_literal(place.id)}, '', UTC_TIMESTAMP(6))"
        )
        return made

    def _has_if_not_exists(self, connection: sa.Connection) -> bool:
        """Return whether CREATE TRIGGER knows IF NOT EXISTS."""
        version = getattr(connection.dialect, "server_version_info", None) or ()
        return bool(getattr(connection.dialect, "is_mariadb", False)) or version >= (8, 0, 29)

    def removal(self, connection: sa.Connection) -> list[str]:
        self._read_database(connection)
        return [
            *(
                f"DROP TRIGGER IF EXISTS {_quoted(schema)}.{_quoted(name)}"
                for schema, name, _ in self._own_triggers(connection)
            ),
            f"DROP TABLE IF EXISTS {self._name}",
        ]

    def script(self, statements: Sequence[str]) -> str:
        return (
            "SET NAMES utf8mb4;\nDELIMITER //\n"
            + "".join(f"{statement} //\n" for statement in statements)
            + "DELIMITER ;\n"
        )

    # -- reading -----------------------------------------------------------------------------------

    def look(self, connection: sa.Connection, after: int, limit: int) -> Look:
        marks = ", ".join(["%s"] * len(self.ids))
        (_, _, _, now), *rows = self._ask(
            connection,
            "(SELECT 0 AS number, NULL AS place, NULL AS `key`, UTC_TIMESTAMP(6) AS at)"
            f" UNION ALL (SELECT number, place, `key`, at FROM {self._name}"
            f" WHERE number > %s AND place IN ({marks}) ORDER BY number LIMIT %s)",
            after,
            *self.ids,
            limit,
        )
        return Look(
            _seconds(now),
            [
                Row(number, place, None if key is None else (tuple(json.loads(key)),), _seconds(at))
                for number, place, key, at in rows
            ],
        )

    def values(self, place: Place, parts: Parts) -> Sequence[Any]:
        loaders = self._loaders[place.id]
        return [
            part if part is None else load(part) for load, part in zip(loaders, parts, strict=True)
        ]

    def _types(self, connection: sa.Connection, place: Place) -> dict[str, str]:
        schema = place.schema or self._database
        found = self._ask(connection, _TYPES, schema, place.name)
        return {str(name): str(kind).lower() for name, kind in found}

    def _read_database(self, connection: sa.Connection) -> None:
        self._database = str(self._ask(connection, "SELECT DATABASE()")[0][0])
        self._name = f"{_quoted(self._database)}.{_quoted(NAME)}"

    def _ask(
        self, connection: sa.Connection, statement: str, *parameters: Any
    ) -> list[tuple[Any, ...]]:
        with self.dialect.raw(connection).cursor() as cursor:
            cursor.execute(statement, parameters or None)
            return list(cursor.fetchall())


def _text(column: str, kind: str) -> str:
    """Return the expression of a column as text that does not depend on the session."""
    if kind in _BINARY:
        return f"HEX({column})"
    if kind == "timestamp":
        column = f"UNIX_TIMESTAMP({column})"
    elif kind == "bit":
        column = f"{column} + 0"
    return f"CONVERT({column} USING utf8mb4)"


def _moment(text: str) -> dt.datetime:
    """Return seconds since the epoch as the driver returns a timestamp in UTC."""
    whole, _, part = text.partition(".")
    moment = dt.datetime.fromtimestamp(int(whole), dt.UTC).replace(tzinfo=None)
    return moment.replace(microsecond=int(f"{part:0<6}"[:6] or 0))


def _seconds(moment: dt.datetime) -> float:
    return moment.replace(tzinfo=dt.UTC).timestamp()


def _like(text: str) -> str:
    return text.replace("\\", "\\\\").replace("_", "\\_").replace("%", "\\%")


def _quoted(name: str) -> str:
    return "`" + name.replace("`", "``") + "`"


def _literal(text: str) -> str:
    if text.isascii() and not {"\\", "'"} & {*text}:
        return f"'{text}'"
    return f"CONVERT(X'{text.encode().hex()}' USING utf8mb4)"
