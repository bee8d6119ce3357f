"""The plan of a joint write: the order in which records that depend on each other are written."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from eventsync.engine.write import Write
from eventsync.errors import DependencyError
from eventsync.index import IndexTransaction

__all__ = ["Part", "Plan", "RecordId"]

RecordId: TypeAlias = tuple[str, str]
"""The record type and the key of a record."""


@dataclass(slots=True, frozen=True)
class Part:
    """What a joint write does to the records of one accessor.

    ``accessor``: an ``Accessor``, which is defined in terms of plans and hence not named here.
    ``rows``: all values that each written record has after the write, by key, as far as they are
    known. ``removals``: the keys of the records to remove.
    """

    accessor: Any
    writes: Sequence[Write]
    rows: Mapping[str, Mapping[str, Any]]
    removals: Sequence[str]


class Plan:
    """The plan of a joint write in a store that leaves the order to eventsync.

    ``waiting``: the errors of the records that cannot be written or removed yet. ``write`` leaves
    them out.
    """

    def __init__(
        self,
        parts: Sequence[Part],
        transaction: IndexTransaction,
        waiting: Mapping[RecordId, DependencyError],
    ) -> None:
        self.parts = parts
        self.transaction = transaction
        self.waiting = waiting

    def write(self) -> None:
        """Write the records. Raises the errors of ``Accessor.write_rows``."""
        for part in self.parts:
            type = part.accessor.type.name
            writes = [write for write in part.writes if (type, write.key) not in self.waiting]
            removals = [key for key in part.removals if (type, key) not in self.waiting]
            if writes or removals:
                part.accessor.write_rows(writes, removals, self.transaction)

    def groups(self) -> list[list[RecordId]]:
        """Return the records in groups; no record depends on one of another group."""
        return [
            [(part.accessor.type.name, key)]
            for part in self.parts
            for key in (*part.rows, *part.removals)
        ]
