"""Slot and publication by which a PostgreSQL log is captured: what exists, what is missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from eventsync.engine.change_source import SourceState
from eventsync.engine.finding import Finding, Level
from eventsync.errors import ConfigError
from eventsync.stores.sql.capture.log_server import LoggedTable, LogServer, Publication, quoted
from eventsync.stores.sql.capture.replication import lsn_value
from eventsync.stores.sql.capture.source import CapturedTable

__all__ = ["PUBLICATION", "LogSetup"]

PUBLICATION: Final = ""
"""The name under which ``LogSetup.identities`` contains the publication itself."""


class LogSetup:
    """What a server has for the capture of some tables, when this object was made.

    ``slot``, ``publication``: their names. ``shared``: whether an administrator made the
    publication, so that it may contain other tables.
    """

    def __init__(
        self,
        server: LogServer,
        captured: Sequence[CapturedTable],
        *,
        slot: str,
        publication: str,
        shared: bool,
    ) -> None:
        self.server = server
        self.slot_name = slot
        self.publication_name = publication
        self.shared = shared
        self.slot: Mapping[str, Any] | None = server.slot(slot)
        self.publication: Publication | None = server.publication(publication)
        self._all = [(table, server.table(table)) for table in captured]

    @property
    def tables(self) -> list[LoggedTable]:
        """The captured tables that exist."""
        return [table for _, table in self._all if table is not None]

    def identities(self) -> dict[str, str]:
        """Return what says that tables and publication are the same as before, by record type.

        Changes of a table are told without a gap as long as the table itself and its membership in
        the publication are the same. A table may be replaced by another one of its name.
        """
        published = self.publication
        if published is None:
            return {}
        same = {
            table.captured.type: f"{table.oid}.{published.membership(table)}"
            for table in self.tables
        }
        return {PUBLICATION: str(published.oid), **same}

    @property
    def unpublished(self) -> list[LoggedTable]:
        """The tables that the publication does not contain."""
        published = self.publication
        if published is None:
            return self.tables
        return [table for table in self.tables if published.membership(table) is None]

    @property
    def is_complete(self) -> bool:
        """Whether everything is there."""
        return (
            not list(self.missing())
            and self.slot is not None
            and self.slot["wal_status"] != "lost"
            and len(self.tables) == len(self._all)
        )

    # -- statements --------------------------------------------------------------------------------

    def statements(self) -> tuple[str, ...]:
        """Return the statements that create publication and slot."""
        return self._publish(), self.server.slot_statement(self.slot_name)

    def _publish(self) -> str:
        return (
            f"CREATE PUBLICATION {quoted(self.publication_name)} FOR TABLE {_list(self.tables)} "
            f"WITH ({self.server.published})"
        )

    def missing(self) -> Iterator[str]:
        """Yield the statements that provide what is missing."""
        published, name = self.publication, quoted(self.publication_name)
        if published is None:
            yield self._publish()
        else:
            more = set(published.members) - {table.oid for table in self.tables}
            if self.unpublished and self.shared:
                yield f"ALTER PUBLICATION {name} ADD TABLE {_list(self.unpublished)}"
            elif self.unpublished or (more and not self.shared) or self._limited(published):
                yield f"ALTER PUBLICATION {name} SET TABLE {_list(self.tables)}"
            if not published.complete or not published.by_root:
                yield f"ALTER PUBLICATION {name} SET ({self.server.published})"
        if self.slot is None:
            yield self.server.slot_statement(self.slot_name)

    def _limited(self, published: Publication) -> list[LoggedTable]:
        return [table for table in self.tables if table.oid in published.limited]

    # -- what is wrong -----------------------------------------------------------------------------

    def findings(self) -> Iterator[Finding]:
        """Yield what is wrong, and what ``install`` would do."""
        yield from self.server.settings()
        for captured, table in self._all:
            yield from self.server.identity(captured, table)
        if self.slot is not None and not self.slot["here"]:
            yield Finding(
                Level.WRONG,
                "log",
                f"the replication slot {self.slot_name} is one of another database or not for "
                "pgoutput; give another name",
            )
        missing = tuple(self.missing())
        if not missing:
            return
        published = self.publication
        foreign = [table.name for table in self.tables if not table.owned]
        if self.shared and published is not None and self._limited(published):
            names = ", ".join(table.name for table in self._limited(published))
            yield Finding(
                Level.WRONG,
                "log",
                f"the publication {self.publication_name} has not all rows or columns of {names}",
                missing,
            )
        if any("PUBLICATION" in statement for statement in missing) and (
            foreign or (published is None and not self.server.may_create)
        ):
            reason = (
                f"does not own {', '.join(foreign)}"
                if foreign
                else "may not create a publication in this database"
            )
            yield Finding(
                Level.WRONG,
                "log",
                f"not installed, and the role {self.server.role} {reason}; an administrator has "
                "to run the statements",
                missing,
            )
        else:
            yield Finding(
                Level.NOTE,
                "log",
                "not completely installed; the capture installs the rest when it starts",
                missing,
            )

    def refuse_wrong(self) -> None:
        """Raise ``ConfigError`` if something is wrong."""
        found = [one for one in self.findings() if one.level is Level.WRONG]
        if found:
            raise ConfigError(
                "; ".join(one.text for one in found),
                hint="; ".join(text for one in found for text in one.statements)
                or "see docs/capture/postgresql.md",
            )

    def state(self) -> SourceState:
        """Return the state for an operator."""
        slot, server = self.slot, self.server
        details = {"publication": self.publication_name, "replication slot": self.slot_name}
        if slot is None:
            return SourceState(installed=False, details=details)
        now = server.position()
        details["state of the log"] = str(slot["wal_status"])
        if slot["safe_wal_size"] is not None:
            details["bytes until it is dropped"] = f"{slot['safe_wal_size']:,}"
        details["read by"] = "nobody"
        if slot["active_pid"] is not None:
            details["read by"] = f"process {slot['active_pid']} of the server"
        restart = slot["restart_lsn"]
        return SourceState(
            self.is_complete,
            lag_bytes=max(0, now - lsn_value(slot["confirmed_flush_lsn"] or "0/0")),
            retained_bytes=0 if restart is None else max(0, now - lsn_value(restart)),
            details=details,
        )


def _list(tables: Sequence[LoggedTable]) -> str:
    return ", ".join(table.quoted for table in tables)
