"""What logical decoding asks a PostgreSQL server: its settings, rights, slots and tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Final

from eventsync.engine.finding import Finding, Level
from eventsync.stores.sql.capture.replication import lsn_value
from eventsync.stores.sql.capture.source import CapturedTable

__all__ = ["Ask", "LogServer", "LoggedTable", "Publication", "quoted"]

Ask = Callable[..., list[Any]]
"""A function that runs a statement with parameters, and returns the rows that it finds."""

_OLDEST: Final = 140000
_PARTS_SINCE: Final = 150000
_FAILOVER_SINCE: Final = 170000

_SERVER: Final = """
SELECT (SELECT system_identifier::text FROM pg_control_system()), rolname::text,
    rolsuper OR rolreplication OR EXISTS (SELECT FROM pg_roles r
        WHERE r.rolname = 'rds_replication' AND pg_has_role(current_user, r.oid, 'MEMBER')),
    current_setting('server_version_num')::int,
    has_database_privilege(current_database(), 'CREATE'), pg_is_in_recovery()
FROM pg_roles WHERE rolname = current_user
"""
_TABLE: Final = """
SELECT c.oid::bigint, n.nspname::text, c.relname::text, c.relkind::text, c.relpersistence::text,
    c.relnamespace::bigint, pg_has_role(c.relowner, 'USAGE'),
    c.relkind = 'r' AND EXISTS (SELECT FROM pg_inherits WHERE inhparent = c.oid)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace WHERE c.oid = to_regclass(%s)
"""
# The server looks at the identities of the partitions, not at that of the partitioned table. A
# deferrable primary key is no identity.
_IDENTITIES: Final = """
SELECT n.nspname::text, c.relname::text, c.relreplident::text,
    (SELECT array_agg(a.attname::text) FROM pg_index i JOIN pg_attribute a
        ON a.attrelid = i.indrelid AND a.attnum = ANY(i.indkey[0:i.indnkeyatts - 1])
        WHERE i.indrelid = c.oid AND i.indisvalid AND i.indimmediate
        AND CASE c.relreplident WHEN 'i' THEN i.indisreplident ELSE i.indisprimary END)
FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace
WHERE c.relkind <> 'p' AND (c.oid = %s::oid
    OR c.oid IN (SELECT relid FROM pg_partition_tree(%s::oid) WHERE isleaf))
ORDER BY 1, 2
"""


@dataclass(slots=True, frozen=True)
class LoggedTable:
    """A captured table as the server knows it.

    - ``oid``: its id, which stays the same if the table is renamed.
    - ``kind``, ``persistence``: as in ``pg_class``. ``namespace``: the id of its schema.
    - ``owned``: whether the role has the rights of its owner.
    - ``inherited``: whether other tables inherit from it.
    """

    captured: CapturedTable
    oid: int
    schema: str
    name: str
    kind: str
    persistence: str
    namespace: int
    owned: bool
    inherited: bool

    @property
    def quoted(self) -> str:
        """The name as SQL takes it."""
        return f"{quoted(self.schema)}.{quoted(self.name)}"


@dataclass(slots=True, frozen=True)
class Publication:
    """A publication.

    - ``oid``: its id, which is another one if it is made anew.
    - ``complete``: whether it contains inserts, updates, deletes and truncates.
    - ``by_root``: whether a change of a partition counts as one of the partitioned table.
    - ``members``: by the id of the table, or of the schema, the id of its membership.
    - ``limited``: the ids of the tables of which it has not all rows or columns.
    """

    oid: int
    complete: bool
    by_root: bool
    all_tables: bool
    members: Mapping[int, int]
    limited: frozenset[int]

    def membership(self, table: LoggedTable) -> int | None:
        """Return what says that a table is in the publication; another one if it was put in anew.

        Returns ``None`` if it is not in it.
        """
        if self.all_tables:
            return self.oid
        return self.members.get(table.oid, self.members.get(table.namespace))


class LogServer:
    """One server, asked by an ordinary connection. ``ask``: runs a statement."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        system, self.role, replication, version, create, standby = ask(_SERVER)[0]
        self.system: str = system
        """The identity of the server: that of its data directory."""
        self.may_replicate: bool = replication
        self.may_create: bool = create
        """Whether the role may create a publication in the database."""
        self.version: int = version
        self.is_standby: bool = standby

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

    def table(self, table: CapturedTable) -> LoggedTable | None:
        """Return a table as the server knows it; ``None`` if there is none of this name."""
        place = ".".join(quoted(part) for part in (table.schema, table.name) if part)
        rows = self._ask(_TABLE, place)
        if not rows:
            return None
        oid, schema, name, kind, persistence, namespace, owned, inherited = rows[0]
        return LoggedTable(
            captured=table,
            oid=oid,
            schema=schema,
            name=name,
            kind=kind,
            persistence=persistence,
            namespace=namespace,
            owned=owned,
            inherited=inherited,
        )

    # -- slots -------------------------------------------------------------------------------------

    def slot(self, name: str) -> Mapping[str, Any] | None:
        """Return the state of a replication slot; ``None`` if there is none.

        ``here``: whether it is one of this database and for ``pgoutput``.
        """
        columns = {
            "confirmed_flush_lsn": "confirmed_flush_lsn::text",
            "restart_lsn": "restart_lsn::text",
            "wal_status": "wal_status",
            "safe_wal_size": "safe_wal_size",
            "active_pid": "active_pid",
            "here": "coalesce(database = current_database() AND plugin = 'pgoutput', false)",
        }
        rows = self._ask(
            f"SELECT {', '.join(columns.values())} FROM pg_replication_slots WHERE slot_name = %s",
            name,
        )
        return dict(zip(columns, rows[0], strict=True)) if rows else None

    def slot_statement(self, name: str) -> str:
        """Return the statement that creates a replication slot."""
        # A standby that takes over then has the slot, too.
        failover = ", failover => true" if self.version >= _FAILOVER_SINCE else ""
        return f"SELECT pg_create_logical_replication_slot('{name}', 'pgoutput'{failover})"

    def advance(self, name: str) -> None:
        """Move a slot to the present end of the log, without decoding what is before."""
        self._ask(
            "SELECT pg_replication_slot_advance(slot_name,"
            " greatest(pg_current_wal_lsn(), confirmed_flush_lsn))"
            " FROM pg_replication_slots WHERE slot_name = %s",
            name,
        )

    def silence(self, process: int) -> float | None:
        """Return for how many seconds the reader of a slot has said nothing.

        ``process``: the number of the server's process. Returns ``None`` if it has ended.
        """
        rows = self._ask(
            "SELECT extract(epoch FROM clock_timestamp() - coalesce(reply_time, backend_start))"
            "::float8 FROM pg_stat_replication WHERE pid = %s",
            process,
        )
        return rows[0][0] if rows else None

    # -- publications ------------------------------------------------------------------------------

    def publication(self, name: str) -> Publication | None:
        """Return a publication; ``None`` if there is none of this name."""
        rows = self._ask(
            "SELECT oid::bigint, pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot,"
            " puballtables FROM pg_publication WHERE pubname = %s",
            name,
        )
        if not rows:
            return None
        oid, complete, by_root, all_tables = rows[0]
        has_parts = self.version >= _PARTS_SINCE
        limited = "prqual IS NOT NULL OR prattrs IS NOT NULL" if has_parts else "false"
        tables = self._ask(
            f"SELECT prrelid::bigint, oid::bigint, {limited} FROM pg_publication_rel"
            " WHERE prpubid = %s",
            oid,
        )
        members = {table: member for table, member, _ in tables}
        if has_parts:
            members |= dict(
                self._ask(
                    "SELECT pnnspid::bigint, oid::bigint FROM pg_publication_namespace"
                    " WHERE pnpubid = %s",
                    oid,
                )
            )
        parts = frozenset(table for table, _, is_limited in tables if is_limited)
        return Publication(oid, complete, by_root, all_tables, members, parts)

    published: Final = (
        "publish = 'insert, update, delete, truncate', publish_via_partition_root = true"
    )
    """The options of a publication."""

    def options(self, publication: str) -> str:
        """Return the options of ``pgoutput`` for ``START_REPLICATION``."""
        names = quoted(publication).replace("'", "''")
        options = {
            "proto_version": "2",
            "streaming": "on",
            "messages": "true",
            "publication_names": names,
        }
        return ", ".join(f"{name} '{value}'" for name, value in options.items())

    # -- what is wrong -----------------------------------------------------------------------------

    def settings(self) -> Iterator[Finding]:
        """Yield what is wrong with the settings of the server and the rights of the role."""
        if self.version < _OLDEST:
            yield _wrong("the server is older than PostgreSQL 14; capture by triggers")
        if self.is_standby:
            yield _wrong("the server is a standby; the URL must lead to the primary server")
        if self.setting("wal_level") != "logical":
            yield _wrong(
                "wal_level is not logical; the server must be restarted after the change",
                "ALTER SYSTEM SET wal_level = logical",
            )
        for name in ("max_replication_slots", "max_wal_senders"):
            if self.setting(name) == "0":
                yield _wrong(
                    f"{name} is 0; the server must be restarted after the change",
                    f"ALTER SYSTEM SET {name} = 10",
                )
        if not self.may_replicate:
            yield _wrong(
                f"the role {self.role} may not replicate",
                f"ALTER ROLE {quoted(self.role)} REPLICATION",
            )
        if self.setting("max_slot_wal_keep_size") == "-1":
            yield Finding(
                Level.NOTE,
                "log",
                "max_slot_wal_keep_size is not set: while nobody captures, the log fills the "
                "disk; a limit makes eventsync read all records instead",
                ("ALTER SYSTEM SET max_slot_wal_keep_size = '10GB'",),
            )

    def identity(self, captured: CapturedTable, table: LoggedTable | None) -> Iterator[Finding]:
        """Yield why the log cannot tell the changes of a table.

        The log contains only the columns of the identity of deleted rows, and of the old key of
        updated ones. In a publication, a table without an identity refuses updates and deletes.
        """
        about, type = f"table {captured.name}", captured.type
        if table is None:
            place = ".".join(part for part in (captured.schema, captured.name) if part)
            yield Finding(Level.WRONG, about, f"the table {place} does not exist")
            return
        reason = ""
        if table.kind not in ("r", "p"):
            reason = "the log contains only tables, and this is something else, such as a view"
        elif table.persistence != "p":
            reason = "the log does not contain unlogged and temporary tables"
        elif table.inherited:
            reason = "other tables inherit from it, and the log tells their rows as rows of others"
        if reason:
            yield Finding(Level.WRONG, about, f"{type}: {reason}; capture by triggers")
            return
        for schema, name, kind, columns in self._ask(_IDENTITIES, table.oid, table.oid):
            if kind == "f":
                continue
            where = f"{quoted(schema)}.{quoted(name)}"
            full = (f"ALTER TABLE {where} REPLICA IDENTITY FULL",)
            part = "the table" if (schema, name) == (table.schema, table.name) else f"{where}"
            if kind == "n" or not columns:
                yield Finding(
                    Level.WRONG,
                    about,
                    f"{type}: {part} has no primary key and no replica identity; the server "
                    "would refuse its updates and deletes if it were published",
                    full,
                )
            elif not set(captured.keys) <= set(columns):
                yield Finding(
                    Level.WRONG,
                    about,
                    f"{type}: the replica identity of {part} is ({', '.join(columns)}), without "
                    f"the key ({', '.join(captured.keys)}), so the log does not name deleted "
                    "records",
                    full,
                )


def _wrong(text: str, *statements: str) -> Finding:
    return Finding(Level.WRONG, "log", text, statements)


def quoted(name: str) -> str:
    """Return a name in the quotes of SQL."""
    doubled = name.replace('"', '""')
    return f'"{doubled}"'
