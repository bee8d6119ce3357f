"""The SQL store, on SQLite."""

from __future__ import annotations

from eventsync.stores.sql import SqlAccessor
from eventsync.testing import StoreContract


class TestSqlAccessor(StoreContract):
    """The conformance suite on tables that eventsync makes."""

    def accessor(self, record_type, folder, view=None):
        return SqlAccessor(record_type, f"sqlite:///{folder}/data.db", create=True, view=view)
