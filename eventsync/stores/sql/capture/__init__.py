"""The change sources of SQL stores: triggers into a change table, and the logs of databases."""

from __future__ import annotations

from collections.abc import Sequence

from eventsync.engine.change_source import ChangeSource
from eventsync.stores.sql.capture.source import Captured

__all__ = ["sources_of"]


def sources_of(accessors: Sequence[Captured], store: str) -> list[ChangeSource]:
    """Return the change sources of a database, the best first. Connects to nothing.

    ``accessors``: the accessors of one store. ``store``: its name.
    """
    name = accessors[0].engine.dialect.name
    if name == "postgresql":
        # Imported here, because each source needs a driver of its own.
        from eventsync.stores.sql.capture.postgresql_log import PostgresqlLog

        return [PostgresqlLog(accessors, store)]
    return []
