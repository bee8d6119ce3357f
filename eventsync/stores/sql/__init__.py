"""Records in the tables of an SQL database: SQLite, PostgreSQL, MySQL or MariaDB.

It owns all that is SQL, and knows nothing of other kinds of stores. An existing table is used as it
stands; versions are kept beside it in tables of their own (``eventsync_version``,
``eventsync_outbox``, ``eventsync_mark``), so that data and versions change in one transaction.
"""

from __future__ import annotations

from eventsync.errors import ConfigError

try:
    import sqlalchemy as _sqlalchemy  # noqa: F401
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError(
        "the SQL store needs SQLAlchemy", hint="pip install 'eventsync[sql]'"
    ) from error

from eventsync.stores.sql.accessor import SqlAccessor
from eventsync.stores.sql.derive import derive
from eventsync.stores.sql.index import SqlIndex

__all__ = ["SqlAccessor", "SqlIndex", "derive"]
