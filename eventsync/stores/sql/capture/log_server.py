"""What logical decoding asks a PostgreSQL server: its settings, rights, slots and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any, Final

from eventsync.engine.finding import Finding, Level
from eventsync.stores.sql.capture.replication import lsn_value
from eventsync.stores.sql.capture.source import CapturedTable

__all__ = ["Ask", "LogServer", "quoted"]

Ask = Callable[..., list[Any]]
"""A function that runs a statement with parameters, and returns the rows that it finds."""

_FAILOVER_SINCE: Final = 170000
_IDENTITY_OF: Final = """
SELECT c.relreplident, c.oid::bigint,
    (SELECT array_agg(a.attname::text) FROM pg_index i
        JOIN pg_attribute a ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey)
        WHERE i.indrelid = c.oid AND (CASE c.relreplident WHEN 'i' THEN i.indisreplident
            ELSE i.indisprimary END))
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE n.nspname = %s AND c.relname = %s
"""


class LogServer:
    """One server, asked by an ordinary connection. ``ask``: runs a statement."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        system, self.schema, self.role, superuser, replication, version = ask(
            "SELECT (SELECT system_identifier::text FROM pg_control_system()), current_schema(),"
            " rolname::text, rolsuper, rolreplication, current_setting('server_version_num')::int"
            " FROM pg_roles WHERE rolname = current_user"
        )[0]
        self.system: str = system
        """The identity of the server: that of its data directory."""
        self.may_replicate: bool = superuser or replication
        self.version: int = version

    def setting(self, name: str) -> str:
        """Return a setting of the server; empty if it has no such setting."""
        found = self._ask("SELECT current_setting(%s, true)", name)[0][0]
        return str(found or "")

    def position(self) -> int:
        """Return the present end of the log."""
        return lsn_value(
            self._ask(
                "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn()"
                " ELSE pg_current_wal_lsn() END::text"
            )[0][0]
        )

    def slot(self, name: str) -> Mapping[str, Any] | None:
        """Return the state of a replication slot; ``None`` if there is none."""
        columns = (
            *("confirmed_flush_lsn", "restart_lsn", "wal_status", "safe_wal_size", "active_pid"),
            "plugin",
        )
        listed = ", ".join(
            f"{one}::text" if one in ("confirmed_flush_lsn", "restart_lsn", "plugin") else one
            for one in columns
        )
        rows = self._ask(f"SELECT {listed} FROM pg_replication_slots WHERE slot_name = %s", name)
        return dict(zip(columns, rows[0], strict=True)) if rows else None

    def slot_statement(self, name: str) -> str:
        """Return the statement that creates a replication slot."""
        # A standby that takes over then has the slot, too.
        failover = ", failover => true" if self.version >= _FAILOVER_SINCE else ""
        return f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput'{failover})"

    def publication(self, name: str) -> set[tuple[str, str]] | None:
        """Return the schemas and names of a publication's tables; ``None`` if there is none."""
        if not self._ask("SELECT 1 FROM pg_publication WHERE pubname = %s", name):
            return None
        rows = self._ask(
            "SELECT n.nspname::text, c.relname::text FROM pg_publication p"
            " JOIN pg_publication_rel r ON r.prpubid = p.oid JOIN pg_class c ON c.oid = r.prrelid"
            " JOIN pg_namespace n ON n.oid = c.relnamespace WHERE p.pubname = %s",
            name,
        )
        return {(schema, table) for schema, table in rows}

    @property
    def published(self) -> str:
        """The options of a publication."""
        return "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"

    def options(self, publication: str) -> str:
        """Return the options of ``pgoutput`` for ``START_REPLICATION``."""
        options = {
            "proto_version": "2",
            "streaming": "on",
            "messages": "true",
            "publication_names": f'"{publication}"',
        }
        return ", ".join(f"{name} '{value}'" for name, value in options.items())

    def identity(self, table: CapturedTable) -> Iterator[Finding]:
        """Yield what is wrong with the replica identity of a table.

        The log contains only the columns of the identity of deleted rows, and of the old key of
        updated ones. In a publication, a table without an identity refuses updates and deletes.
        """
        schema = table.schema or self.schema
        rows = self._ask(_IDENTITY_OF, schema, table.name)
        about, quoted_name = f"table {table.name}", f"{quoted(schema)}.{quoted(table.name)}"
        if not rows:
            yield Finding(Level.WRONG, about, f"the table {schema}.{table.name} does not exist")
            return
        kind, _, columns = rows[0]
        full = (f"ALTER TABLE {quoted_name} REPLICA IDENTITY FULL",)
        if kind == "f":
            return
        if kind == "n" or not columns:
            yield Finding(
                Level.WRONG,
                about,
                f"{table.type}: the table has no primary key and no replica identity; the server "
                "would refuse its updates and deletes if it were published",
                full,
            )
        elif not set(table.keys) <= set(columns):
            yield Finding(
                Level.WRONG,
                about,
                f"{table.type}: the replica identity is ({', '.join(columns)}), without the key "
                f"({', '.join(table.keys)}), so the log does not name deleted records",
                full,
            )


def quoted(name: str) -> str:
    """Return a name in the quotes of SQL."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
