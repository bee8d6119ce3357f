"""Debezium: converts events of the Debezium connectors for relational databases to changes.

The mapping is described in docs/envelope.md.
"""

from __future__ import annotations

from eventsync.envelope.debezium.log_position import version_of
from eventsync.envelope.debezium.reader import DebeziumReader, from_debezium

__all__ = ["DebeziumReader", "from_debezium", "version_of"]
