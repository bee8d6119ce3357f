"""The change table and triggers of PostgreSQL: one trigger for each statement, where possible."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Final

import psycopg
import sqlalchemy as sa
from psycopg.adapt import Transformer

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

__all__ = ["PostgresqlTriggers"]

_TREE: Final = """
WITH RECURSIVE tree(place) AS (
    SELECT %s::regclass::oid
    UNION SELECT inhrelid FROM tree JOIN pg_inherits ON inhparent = place)
SELECT place::bigint, format('%%I.%%I', nspname, relname), relkind::text,
    EXISTS (SELECT FROM pg_subscription_rel WHERE srrelid = place),
    has_table_privilege(place, 'TRIGGER'), pg_has_role(relowner, 'USAGE'),
    ARRAY(SELECT array[tgname::text, tgenabled::text, t.oid::text, (tgparentid <> 0)::text]
        FROM pg_trigger t WHERE tgrelid = place AND tgname ~ '^eventsync_[0-9a-f]{8}_' ORDER BY 1)
FROM tree JOIN pg_class c ON c.oid = place JOIN pg_namespace n ON n.oid = relnamespace
ORDER BY place <> %s::regclass::oid, place
"""
_TYPES: Final = """
WITH RECURSIVE base(number, type) AS (
    SELECT attnum, atttypid FROM pg_attribute
    WHERE attrelid = %s::regclass AND attnum > 0 AND NOT attisdropped
    UNION ALL SELECT number, typbasetype FROM base JOIN pg_type t ON t.oid = type
    WHERE typtype = 'd')
SELECT attname::text, typname::text, t.oid::bigint
FROM base JOIN pg_type t ON t.oid = type AND typtype <> 'd'
JOIN pg_attribute ON attrelid = %s::regclass AND attnum = number
"""
_LOOK: Final = """
SELECT 0::bigint, NULL::text, NULL::text, extract(epoch FROM statement_timestamp())::float8
UNION ALL (
    SELECT number, place, keys, extract(epoch FROM at)::float8 FROM {}
    WHERE number > %s AND place = ANY(%s) ORDER BY number LIMIT %s)
"""
_FUNCTIONS: Final = """
SELECT proname::text FROM pg_proc
WHERE pronamespace = current_schema()::regnamespace AND proname ~ '^eventsync_[0-9a-f]{8}$'
ORDER BY 1
"""
_EVENTS: Final = (
    ("insert", "INSERT", "REFERENCING NEW TABLE AS eventsync_new"),
    ("update", "UPDATE", "REFERENCING OLD TABLE AS eventsync_old NEW TABLE AS eventsync_new"),
    ("delete", "DELETE", "REFERENCING OLD TABLE AS eventsync_old"),
)
_OWN: Final = "pg_trigger_depth() = 1 AND current_setting('eventsync.own', true) = '1'"
"""The condition of own writes: what another trigger writes is none."""
_EXACT: Final = frozenset({"bool", "int2", "int4", "int8", "oid", "uuid", "numeric"})
"""Types whose equal values make the same key, and whose text does not depend on settings."""
_TEXTS: Final = frozenset({"text", "varchar", "bpchar", "name", "citext"})
_LOADED: Final = frozenset(
    {*_EXACT, "float4", "float8", "date", "time", "timetz", "timestamp", "timestamptz"}
)
"""Types that the driver makes values of; other ones are read as text."""
_TOGETHER: Final = 1000
"""How many keys of one statement are told in one row of the change table at most."""
_SETTINGS: Final = (
    "SET datestyle = 'ISO, MDY'",
    "SET timezone = 'UTC'",
    "SET intervalstyle = 'postgres'",
    "SET extra_float_digits = 1",
)


@dataclass(slots=True, frozen=True)
class _Relation:
    """A table, or one of its partitions or heirs."""

    number: int
    name: str
    kind: str
    subscribed: bool
    may_trigger: bool
    is_owner: bool
    triggers: tuple[tuple[str, str, str, str], ...]


class PostgresqlTriggers(ChangeTable):
    """PostgreSQL. A trigger runs once for each statement, and gets the changed rows as tables.

    A partitioned table has a trigger for each row, because future partitions inherit only such a
    trigger. So has a table that a subscription of logical replication fills, which runs no trigger
    for statements.
    """

    counted: ClassVar[str] = "sum(count)"
    begin: ClassVar[tuple[Statement, ...]] = (("SET LOCAL synchronous_commit TO off", ()),)

    def __init__(self, dialect: Any, places: Sequence[Place]) -> None:
        super().__init__(dialect, places)
        self._name = NAME
        self._loaders: dict[str, list[Callable[[str], Any]]] = {}

    @property
    def name(self) -> str:
        return self._name

    def prepare(self, connection: sa.Connection) -> None:
        raw = self.dialect.raw(connection)
        raw.autocommit = True
        self._read_schema(raw)
        for place in self.places:
            self._loaders[place.id] = self._loaders_of(raw, place)

    # -- what is there -----------------------------------------------------------------------------

    def inspect(self, connection: sa.Connection) -> Installed:
        raw = self.dialect.raw(connection)
        self._read_schema(raw)
        found = Installed()
        if raw.execute("SELECT to_regclass(%s)", (self._name,)).fetchone()[0] is not None:
            row = raw.execute(f"SELECT keys FROM {self._name} WHERE number = -1").fetchone()
            found.identity = str(row[0]) if row else ""
        elif not raw.execute("SELECT has_schema_privilege(current_schema(), 'CREATE')").fetchone()[
            0
        ]:
            found.findings.append(
                self._lacks(raw, "the schema", f"CREATE ON SCHEMA {self._schema}")
            )
        functions = {name for (name,) in raw.execute(_FUNCTIONS)}
        for place in self.places:
            self._inspect_place(raw, place, functions, found)
        return found

    def _inspect_place(self, raw: Any, place: Place, functions: set[str], found: Installed) -> None:
        tree = self._tree(raw, place)
        root = tree[0]
        rows = self._by_rows(root)
        missing: list[str] = []
        parts = [str(root.number)]
        if self._function(place) not in functions:
            missing.append(f"function {self._function(place)}")
        for one in tree:
            there = {name: (enabled, number, copy) for name, enabled, number, copy in one.triggers}
            for name in self._triggers(place, one, rows=rows, is_root=one is root):
                enabled, number, copy = there.get(name, ("", "", ""))
                parts.append(f"{one.number} {number}{enabled}")
                if not number or enabled in ("D", "R"):
                    missing.append(f"trigger {name} of {one.name}")
                elif enabled != "A" and copy != "true" and one.is_owner:
                    missing.append(f"trigger {name} of {one.name}, which is not ALWAYS enabled")
            if not one.may_trigger and any(one.name in name for name in missing):
                found.findings.append(self._lacks(raw, place.about, f"TRIGGER ON {one.name}"))
        if missing:
            found.missing[place.id] = missing
        found.shapes[place.id] = " ".join(parts)
        if root.kind == "f":
            found.findings.append(
                Finding(
                    Level.RISK,
                    place.about,
                    "is a foreign table: triggers do not see what is written on its own server",
                )
            )
        if any(one.triggers and not one.is_owner for one in tree) and not missing:
            self._note_replicas(place, tree, found)

    def _note_replicas(self, place: Place, tree: list[_Relation], found: Installed) -> None:
        statements = [
            f"ALTER TABLE {one.name} ENABLE ALWAYS TRIGGER {name}"
            for one in tree
            for name, enabled, _, copy in one.triggers
            if enabled == "O" and copy != "true"
        ]
        if statements:
            found.findings.append(
                Finding(
                    Level.NOTE,
                    place.about,
                    "writes with session_replication_role = replica are not captured;"
                    " the owner of the table can change that",
                    tuple(statements),
                )
            )

    def _lacks(self, raw: Any, about: str, right: str) -> Finding:
        (user,) = raw.execute("SELECT quote_ident(current_user)").fetchone()
        return Finding(
            Level.WRONG,
            about,
            f"this user lacks the right {right.split()[0]}, which capturing by triggers needs",
            (f"GRANT {right} TO {user}",),
        )

    def _tree(self, raw: Any, place: Place) -> list[_Relation]:
        table = _table_of(place)
        rows = raw.execute(_TREE, (table, table))
        return [
            _Relation(number, name, kind, subscribed, may, owner, tuple(map(tuple, triggers)))
            for number, name, kind, subscribed, may, owner, triggers in rows
        ]

    @staticmethod
    def _by_rows(root: _Relation) -> bool:
        """Return whether a trigger runs for each row."""
        return root.kind in ("p", "f") or root.subscribed

    @staticmethod
    def _function(place: Place) -> str:
        return f"eventsync_{place.code}"

    @staticmethod
    def _triggers(place: Place, one: _Relation, *, rows: bool, is_root: bool) -> list[str]:
        """Return the names of the triggers that a relation needs."""
        moments = [] if one.kind == "f" else ["truncate"]
        if not rows:
            moments += [name for name, _, _ in _EVENTS]
        elif is_root or one.kind != "f":
            moments.append("row")
        return [place.trigger(moment) for moment in moments]

    # -- the statements ----------------------------------------------------------------------------

    def statements(self, connection: sa.Connection) -> list[str]:
        raw = self.dialect.raw(connection)
        self._read_schema(raw)
        (user,) = raw.execute("SELECT quote_ident(current_user)").fetchone()
        made = [
            f"CREATE TABLE IF NOT EXISTS {self._name} (\n"
            "    number bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,\n"
            "    place text NOT NULL, keys text, count integer NOT NULL,\n"
            "    at timestamptz NOT NULL)\n"
            "WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 2000)",
            f"INSERT INTO {self._name} (number, place, keys, count, at)"
            " OVERRIDING SYSTEM VALUE\n"
            "SELECT -1, 'installed', md5(random()::text || clock_timestamp()::text), 0, now()\n"
            "ON CONFLICT DO NOTHING",
            f"GRANT SELECT, DELETE ON {self._name} TO {user}",
        ]
        wanted = {self._function(place) for place in self.places}
        made += [
            f"DROP FUNCTION {self._schema}.{name}() CASCADE"
            for (name,) in raw.execute(_FUNCTIONS).fetchall()
            if name not in wanted
        ]
        for place in self.places:
            tree = self._tree(raw, place)
            rows = self._by_rows(tree[0])
            made += self._function_sql(raw, place, rows=rows)
            made += [
                _once(made_of)
                for one in tree
                if (made_of := list(self._triggers_sql(place, one, tree[0], rows=rows)))
            ]
        return made

    def _triggers_sql(
        self, place: Place, one: _Relation, root: _Relation, *, rows: bool
    ) -> Iterator[tuple[str, str, str]]:
        """Yield relation, name and statement of each trigger that a relation needs."""
        function = f"{self._schema}.{self._function(place)}()"
        for name in self._triggers(place, one, rows=rows, is_root=one is root):
            moment = name.rpartition("_")[2]
            if moment == "row":
                if one is not root and root.kind == "p":
                    continue  # made by the database itself
                event, tables, each = "INSERT OR UPDATE OR DELETE", "", "ROW"
            elif moment == "truncate":
                event, tables, each = "TRUNCATE", "", "STATEMENT"
            else:
                event, tables = next((e, t) for key, e, t in _EVENTS if key == moment)
                each = "STATEMENT"
            yield (
                one.name,
                name,
                f"CREATE TRIGGER {name} AFTER {event} ON {one.name} {tables}"
                f" FOR EACH {each} EXECUTE FUNCTION {function}",
            )

    def _function_sql(self, raw: Any, place: Place, *, rows: bool) -> list[str]:
        function = f"{self._schema}.{self._function(place)}()"
        types = self._types(raw, place)
        if missing := [key for key in place.keys if key not in types]:
            raise ConfigError(
                f"table {place.name!r} has no column {missing[0]!r}, which is in the key",
                hint="rename the field in the view, or give the column back its name",
            )
        kinds = [types[key][0] for key in place.keys]
        plain = all(kind in _EXACT or kind in _TEXTS for kind in kinds)
        settings = "" if plain else "\n    " + " ".join(_SETTINGS)
        columns = list(zip(map(_quoted, place.keys), kinds, strict=True))
        columns_exist = " AND ".join(
            "EXISTS (SELECT FROM pg_attribute WHERE attrelid = TG_RELID"
            f" AND attname = {_literal(key)})"
            for key in place.keys
        )
        insert = f"INSERT INTO {self._name} (place, keys, count, at)"
        id, part = _literal(place.id), f"(row_number() OVER () - 1) / {_TOGETHER}"

        def key(row: str) -> str:
            texts = ", ".join(_text(row, name, kind) for name, kind in columns)
            return texts if len(columns) == 1 else f"json_build_array({texts})"

        def told(table: str) -> str:
            """Return the statements that tell the rows of a table."""
            return (
                f"{insert} SELECT {id}, json_agg(k)::text, count(*), moment\n"
                f"            FROM (SELECT {key('r')} AS k FROM {table} r LIMIT {_TOGETHER}) t\n"
                "            HAVING count(*) > 0 RETURNING count INTO told;\n"
                f"        IF told = {_TOGETHER} THEN\n"
                f"            {insert} SELECT {id}, json_agg(k)::text, count(*), moment\n"
                f"            FROM (SELECT {key('r')} AS k, {part} AS p\n"
                f"                FROM {table} r OFFSET {_TOGETHER}) t GROUP BY p;\n"
                "        END IF;\n"
            )

        if rows:
            new, old = (f"json_build_array({key(row)})::text" for row in ("NEW", "OLD"))
            body = (
                "    IF TG_OP <> 'DELETE' THEN\n"
                f"        {insert} VALUES ({id}, {new}, 1, moment);\n"
                "    END IF;\n"
                f"    IF TG_OP = 'DELETE' OR (TG_OP = 'UPDATE' AND {new} <> {old}) THEN\n"
                f"        {insert} VALUES ({id}, {old}, 1, moment);\n"
                "    END IF;\n"
            )
        else:
            same = " AND ".join(_same("n", "o", name, kind) for name, kind in columns)
            body = (
                "    IF TG_OP = 'DELETE' THEN\n"
                f"        {told('eventsync_old')}"
                "    ELSE\n"
                f"        {told('eventsync_new')}"
                "    END IF;\n"
                "    IF TG_OP = 'UPDATE' THEN\n"
                f"        {insert} SELECT {id}, json_agg(k)::text, count(*), moment\n"
                f"        FROM (SELECT {key('o')} AS k, {part} AS p\n"
                "            FROM eventsync_old o WHERE NOT EXISTS (\n"
                f"                SELECT FROM eventsync_new n WHERE {same})) t GROUP BY p;\n"
                "    END IF;\n"
            )
        text = (
            "\nDECLARE\n"
            "    moment CONSTANT timestamptz := clock_timestamp();\n"
            "    told integer;\n"
            "BEGIN\n"
            f"    IF {_OWN} THEN\n"
            "        RETURN NULL;\n"
            "    END IF;\n"
            "    -- After TRUNCATE, or if a column of the key was renamed, all rows are told.\n"
            f"    IF TG_OP = 'TRUNCATE' OR to_regclass({_literal(self._name)}) IS NULL\n"
            f"        OR NOT ({columns_exist})\n"
            "    THEN\n"
            "        BEGIN\n"
            f"            {insert} VALUES ({id}, NULL, 0, moment);\n"
            "        EXCEPTION WHEN OTHERS THEN\n"
            "            NULL; -- The application's own statement must not fail.\n"
            "        END;\n"
            "        RETURN NULL;\n"
            "    END IF;\n"
            f"{body}"
            "    RETURN NULL;\n"
            "END "
        )
        return [
            f"CREATE OR REPLACE FUNCTION {function} RETURNS trigger\n"
            "    LANGUAGE plpgsql SECURITY DEFINER"
            f" SET search_path = pg_catalog, pg_temp{settings}\n"
            f"    AS {_dollars(text)}",
            f"REVOKE ALL ON FUNCTION {function} FROM PUBLIC",
        ]

    def removal(self, connection: sa.Connection) -> list[str]:
        raw = self.dialect.raw(connection)
        self._read_schema(raw)
        return [
            *(
                f"DROP FUNCTION IF EXISTS {self._schema}.{name}() CASCADE"
                for (name,) in raw.execute(_FUNCTIONS).fetchall()
            ),
            f"DROP TABLE IF EXISTS {self._name}",
        ]

    # -- reading -----------------------------------------------------------------------------------

    def look(self, connection: sa.Connection, after: int, limit: int) -> Look:
        statement = _LOOK.format(self._name)
        found = self.dialect.raw(connection).execute(statement, (after, self.ids, limit))
        (_, _, _, now), *rows = found.fetchall()
        return Look(
            now,
            [Row(n, place, _keys(texts), at) for n, place, texts, at in rows],
        )

    def values(self, place: Place, parts: Parts) -> Sequence[Any]:
        loaders = self._loaders[place.id]
        return [
            part if part is None else load(part) for load, part in zip(loaders, parts, strict=True)
        ]

    def _loaders_of(self, raw: Any, place: Place) -> list[Callable[[str], Any]]:
        """Return what makes values of the texts of key columns, as the driver does."""
        transformer, types = Transformer(), self._types(raw, place)
        return [_loader(transformer, *types[key]) for key in place.keys if key in types]

    def _types(self, raw: Any, place: Place) -> dict[str, tuple[str, int]]:
        table = _table_of(place)
        return {name: (kind, number) for name, kind, number in raw.execute(_TYPES, (table, table))}

    def _read_schema(self, raw: Any) -> None:
        (schema,) = raw.execute("SELECT quote_ident(current_schema())").fetchone()
        self._schema = schema
        self._name = f"{schema}.{NAME}"


def _keys(text: str | None) -> Sequence[Parts] | None:
    if text is None:
        return None
    keys = json.loads(text)
    return [tuple(key) if isinstance(key, list) else (key,) for key in keys]


def _loader(transformer: Any, kind: str, number: int) -> Callable[[str], Any]:
    if kind == "bytea":
        return bytes.fromhex
    if kind not in _LOADED:
        return str
    load = transformer.get_loader(number, psycopg.pq.Format.TEXT).load

    def loaded(text: str) -> Any:
        try:
            return load(text.encode())
        except psycopg.DataError:
            return text  # a time that Python cannot hold

    return loaded


def _text(row: str, name: str, kind: str) -> str:
    """Return the expression of a column as text that does not depend on the session."""
    return f"encode({row}.{name}, 'hex')" if kind == "bytea" else f"{row}.{name}::text"


def _same(one: str, other: str, name: str, kind: str) -> str:
    """Return the condition that a column has the same value in two rows, sign by sign."""
    if kind in _EXACT:
        return f"{one}.{name} = {other}.{name}"
    first, second = _text(one, name, kind), _text(other, name, kind)
    return f'{first} COLLATE "C" = {second} COLLATE "C"'


def _once(triggers: Sequence[tuple[str, str, str]]) -> str:
    """Return a statement that creates triggers of one relation that are missing."""
    lines = []
    for relation, name, statement in triggers:
        place = f"tgrelid = {_literal(relation)}::regclass AND tgname = {_literal(name)}"
        owner = f"SELECT relowner FROM pg_class WHERE oid = {_literal(relation)}::regclass"
        lines.append(
            f"    IF NOT EXISTS (SELECT FROM pg_trigger WHERE {place}) THEN\n"
            f"        {statement};\n"
            "    END IF;\n"
            f"    IF EXISTS (SELECT FROM pg_trigger WHERE {place} AND tgenabled <> 'A')\n"
            f"        AND pg_has_role(({owner}), 'USAGE') THEN\n"
            f"        ALTER TABLE {relation} ENABLE ALWAYS TRIGGER {name};\n"
            "    END IF;\n"
        )
    return f"DO {_dollars(chr(10) + 'BEGIN' + chr(10) + ''.join(lines) + 'END ')}"


def _dollars(text: str) -> str:
    """Return a text in dollar quotes that do not occur in it."""
    tag = "$eventsync$"
    while tag in text:
        tag = f"{tag[:-1]}_$"
    return f"{tag}{text}{tag}"


def _table_of(place: Place) -> str:
    return ".".join(_quoted(part) for part in (place.schema, place.name) if part)


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


def _literal(text: str) -> str:
    quoted = "'" + text.replace("'", "''") + "'"
    return f" E{quoted.replace(chr(92), chr(92) * 2)}" if "\\" in text else quoted
