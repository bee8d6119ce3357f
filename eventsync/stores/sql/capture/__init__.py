"""The change sources of SQL stores: triggers into a change table, and the logs of databases."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from eventsync.engine.change_source import ChangeSource
from eventsync.stores.sql.capture.change_table import ChangeTable, Place
from eventsync.stores.sql.capture.source import Captured
from eventsync.stores.sql.capture.trigger_source import TriggerSource
from eventsync.stores.sql.dialect import Dialect

__all__ = ["sources_of"]


def sources_of(accessors: Sequence[Captured], store: str) -> list[ChangeSource]:
    """Return the change sources of a database, the best first. Connects to nothing.

    ``accessors``: the accessors of one store. ``store``: its name.
    """
    name = accessors[0].engine.dialect.name
    triggers = TriggerSource(accessors, _change_table_of(name))
    if name == "postgresql":
        # Imported here, because each source needs a driver of its own.
        from eventsync.stores.sql.capture.postgresql_log import PostgresqlLog

        return [PostgresqlLog(accessors, store), triggers]
    return [triggers]


def _change_table_of(database: str) -> Callable[[Dialect, Sequence[Place]], ChangeTable]:
    """Return the class of the change table of a kind of database."""
    # Imported here, because each needs a driver of its own.
    if database == "sqlite":
        from eventsync.stores.sql.capture.sqlite_triggers import SqliteTriggers

        return SqliteTriggers
    if database == "postgresql":
        from eventsync.stores.sql.capture.postgresql_triggers import PostgresqlTriggers

        return PostgresqlTriggers
    from eventsync.stores.sql.capture.mysql_triggers import MysqlTriggers

    return MysqlTriggers
