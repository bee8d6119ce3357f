"""What the capture by MariaDB's binary log asks the server."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Final, TypeAlias

import sqlalchemy as sa

from eventsync.engine.finding import Finding, Level
from eventsync.errors import StoreUnavailableError
from eventsync.stores.sql.capture.source import CapturedTable

__all__ = ["Ask", "BinlogServer", "Gtids", "gtids_of"]

Gtids: TypeAlias = dict[int, tuple[int, int]]
"""The last transaction of each domain: the id of its server, and its number."""

_TYPES: Final = """
SELECT column_name, data_type, character_octet_length, column_key
FROM information_schema.columns WHERE table_schema = %s AND table_name = %s
"""
_CASCADES: Final = """
SELECT constraint_name, referenced_table_name FROM information_schema.referential_constraints
WHERE constraint_schema = %s AND table_name = %s
    AND (delete_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT')
        OR update_rule IN ('CASCADE', 'SET NULL', 'SET DEFAULT'))
ORDER BY constraint_name
"""
# Their values in the log differ from those that the driver returns.
_NOT_READ: Final = frozenset(
    {"set", "json", "geometry", "point", "uuid", "inet4", "inet6", "float", "xmltype"}
)
_ABOUT: Final = "capture by the log"


class Ask:
    """Asks the server on one connection."""

    def __init__(self, raw: Any, connection: sa.Connection) -> None:
        self.raw = raw
        self.connection = connection

    def __call__(self, statement: str, *values: Any) -> list[Any]:
        with self.raw.cursor() as cursor:
            cursor.execute(statement, values or None)
            return list(cursor.fetchall())


class BinlogServer:
    """A MariaDB server and its binary log."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask

    @property
    def database(self) -> str:
        """The default database of the connection."""
        return str(self._ask("SELECT DATABASE()")[0][0])

    def setting(self, name: str) -> str:
        """Return the value of a global setting; empty if the server has no such setting."""
        rows = self._ask("SHOW GLOBAL VARIABLES LIKE %s", name.replace("_", "\\_"))
        return str(rows[0][1]) if rows else ""

    # -- positions ---------------------------------------------------------------------------------

    def end(self) -> tuple[str, int, str]:
        """Return file, position and transactions at the end of the log."""
        for _ in range(100):
            rows = self._ask("SHOW MASTER STATUS")
            file, position = str(rows[0][0]), int(rows[0][1])
            at = self._ask("SELECT BINLOG_GTID_POS(%s, %s)", file, position)[0][0]
            if at is not None:
                return file, position, str(at)
            time.sleep(0.01)  # a file that was just begun
        raise StoreUnavailableError("the server does not say where its binary log ends")

    def now(self) -> tuple[Gtids, float]:
        """Return the last transactions of the log, and the time of the server."""
        ((gtids, now),) = self._ask("SELECT @@GLOBAL.gtid_binlog_pos, UNIX_TIMESTAMP(SYSDATE(6))")
        return gtids_of(gtids), float(now)

    def gtids_at(self, file: str, position: int) -> Gtids | None:
        """Return the transactions before a position; ``None`` if the log has no such position."""
        found = self._ask("SELECT BINLOG_GTID_POS(%s, %s)", file, position)[0][0]
        return None if found is None else gtids_of(found)

    def shows(self, file: str, position: int) -> bool:
        """Return whether a reader sees everything up to a position of the log."""
        self._ask("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ")
        self._ask("START TRANSACTION WITH CONSISTENT SNAPSHOT")
        try:
            found = dict(self._ask("SHOW STATUS LIKE 'binlog\\_snapshot\\_%'"))
        finally:
            self._ask("COMMIT")
        named = {name.lower(): value for name, value in found.items()}
        shown = (named["binlog_snapshot_file"], int(named["binlog_snapshot_position"]))
        return _order(*shown) >= _order(file, position)

    def bytes_between(self, file: str, position: int) -> int:
        """Return how many bytes of the log come after a position."""
        sizes = {str(row[0]): int(row[1]) for row in self._ask("SHOW BINARY LOGS")}
        after = [size for name, size in sizes.items() if _order(name, 0) > _order(file, 1 << 60)]
        return max(0, sizes.get(file, position) - position) + sum(after)

    def types(self, table: CapturedTable) -> dict[str, tuple[str, int | None]]:
        """Return type and length of the columns of a table."""
        rows = self._ask(_TYPES, table.schema or self.database, table.name)
        return {str(name): (str(kind).lower(), length) for name, kind, length, _ in rows}

    # -- what is missing ---------------------------------------------------------------------------

    def findings(
        self, user: Callable[[sa.Connection], str], tables: Sequence[CapturedTable]
    ) -> Iterator[Finding]:
        """Yield what a check should say."""
        if "mariadb" not in str(self._ask("SELECT VERSION()")[0][0]).lower():
            yield Finding(
                Level.WRONG,
                _ABOUT,
                "the binary log of MySQL is not supported, only that of MariaDB",
            )
            return
        if self.setting("log_bin") != "ON":
            yield Finding(
                Level.WRONG,
                _ABOUT,
                "the server writes no binary log; set log_bin and server_id in its configuration"
                " and restart it",
            )
            return
        wanted = {"binlog_format": ("ROW",), "binlog_row_metadata": ("FULL",)}
        for name, values in {**wanted, "log_bin_compress": ("OFF",)}.items():
            if (value := self.setting(name)) not in values:
                yield Finding(
                    Level.WRONG,
                    _ABOUT,
                    f"{name} is {value or 'unknown to this server'}, not {values[0]}; set it in the"
                    " configuration, too",
                    (f"SET GLOBAL {name} = {values[0]}",),
                )
        yield from self._rights(user)
        image = self.setting("binlog_row_image")
        for table in tables:
            yield from self._table(table, image)
        if self.setting("log_slave_updates") != "ON" and self.setting("gtid_slave_pos"):
            yield Finding(
                Level.WRONG,
                _ABOUT,
                "the server is a replica whose log lacks what it replicates: log_slave_updates",
            )

    def _rights(self, user: Callable[[sa.Connection], str]) -> Iterator[Finding]:
        granted = {
            str(right)
            for grantee, right in self._ask(
                "SELECT grantee, privilege_type FROM information_schema.user_privileges"
            )
            if grantee == user(self._ask.connection)
        }
        has_role = self._ask("SELECT CURRENT_ROLE()")[0][0] not in (None, "NONE", "")
        for right in ("REPLICATION SLAVE", "BINLOG MONITOR"):
            if right not in granted and not has_role:
                yield Finding(
                    Level.WRONG,
                    _ABOUT,
                    f"this user lacks the right {right}",
                    (f"GRANT {right} ON *.* TO {user(self._ask.connection)}",),
                )
        if "BINLOG MONITOR" in granted or has_role:
            rows = self._ask("SHOW MASTER STATUS")
            if rows and (rows[0][2] or rows[0][3]):
                yield Finding(
                    Level.RISK,
                    _ABOUT,
                    "binlog_do_db or binlog_ignore_db keeps writes out of the log",
                )

    def _table(self, table: CapturedTable, image: str) -> Iterator[Finding]:
        schema = table.schema or self.database
        about = f"{table.type} in {table.name}"
        columns = {str(row[0]): row for row in self._ask(_TYPES, schema, table.name)}
        for name in table.keys:
            kind = str(columns[name][1]).lower() if name in columns else ""
            if kind in _NOT_READ:
                yield Finding(
                    Level.WRONG,
                    about,
                    f"the key column {name!r} has the type {kind}, which is not read from the log;"
                    ' use Store(capture="triggers")',
                )
            if image == "MINIMAL" and name in columns and columns[name][3] != "PRI":
                yield Finding(
                    Level.WRONG,
                    about,
                    f"the log does not have the key column {name!r} of each row, because it is not"
                    " in the primary key: binlog_row_image is MINIMAL",
                    ("SET GLOBAL binlog_row_image = FULL",),
                )
        for constraint, other in self._ask(_CASCADES, schema, table.name):
            yield Finding(
                Level.RISK,
                about,
                f"rows that the foreign key {constraint!r} changes or deletes together with their"
                f" row of {other!r} are not in the log; a capture of all records finds them:"
                " capture_every",
            )


def gtids_of(text: str) -> Gtids:
    """Return the transactions of a text like ``0-1-57,1-3-12``."""
    found: Gtids = {}
    for one in str(text).split(","):
        if one.strip():
            domain, server, number = one.strip().split("-")
            found[int(domain)] = (int(server), int(number))
    return found


def _order(file: str, position: int) -> tuple[int, int]:
    number = file.rpartition(".")[2]
    return int(number) if number.isdigit() else 0, position
