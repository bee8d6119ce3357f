"""The version index: what a store knows of the version of each of its records.

The contract, and the two indexes for stores that cannot keep versions inside their own transaction.
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
