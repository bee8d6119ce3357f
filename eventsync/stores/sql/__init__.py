"""Records in the tables of an SQL database: SQLite, PostgreSQL, MySQL or MariaDB.

An existing table is used as it is. Versions are kept in tables of their own in the same database
(``eventsync_version``, ``eventsync_outbox``, ``eventsync_mark``), so that data and versions change
in one transaction.
"""

from __future__ import annotations

from eventsync.errors import ConfigError

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as error:  # pragma: no cover - not run where SQLAlchemy is installed
    raise ConfigError(
        "the SQL store needs SQLAlchemy", hint="pip install 'eventsync[sql]'"
    ) from error

from eventsync.stores.sql.accessor import SqlAccessor
from eventsync.stores.sql.capture.source import Replication
from eventsync.stores.sql.derive import derive
from eventsync.stores.sql.index import SqlIndex

__all__ = ["Replication", "SqlAccessor", "SqlIndex", "derive"]
