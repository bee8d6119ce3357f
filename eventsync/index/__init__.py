"""The version index of a store: the contract, an index in an SQLite file, and one in memory.

SQL, Redis and MongoDB stores keep their version index inside their own database.
"""

from __future__ import annotations

from eventsync.index.contract import (
    Entry,
    Index,
    IndexTransaction,
    Intent,
    Outgoing,
    Presence,
    UndoneError,
)
from eventsync.index.file import FileIndex
from eventsync.index.memory import MemoryIndex

__all__ = [
    "Entry",
    "FileIndex",
    "Index",
    "IndexTransaction",
    "Intent",
    "MemoryIndex",
    "Outgoing",
    "Presence",
    "UndoneError",
]
