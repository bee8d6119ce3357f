"""Records in memory, for tests and for data that may be lost when the process ends."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, TypeVar

from eventsync.engine.accessor import Accessor, Write
from eventsync.index import Index, IndexTransaction, MemoryIndex
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.records.view import View
from eventsync.values.packing import freeze

__all__ = ["MemoryAccessor"]

R = TypeVar("R", bound=Record)


class MemoryAccessor(Accessor[R]):
    """Records of one type in a dict of this process.

    ``data`` maps a record's key to its values, by the view's names. A caller may read it, and
    change it to simulate a foreign write.
    """

    atomic: ClassVar[bool] = True

    def __init__(self, record_type: type[R], *, view: View | None = None) -> None:
        super().__init__(record_type, view=view)
        self.data: dict[str, dict[str, Any]] = {}

    def default_index(self) -> Index:
        return MemoryIndex()

    def add(self, record: R) -> None:
        self.data[record.key] = freeze(self.record_to_data(record))

    def update(self, record: R) -> None:
        self.data[record.key] |= freeze(self.record_to_data(record))

    def get(self, key: str) -> R | None:
        data = self.data.get(key)
        return None if data is None else self.data_to_record(freeze(data))

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self.read(freeze(list(self.data.values())), query))

    def remove(self, key: str) -> None:
        self.data.pop(key, None)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        before = dict(self.data)
        try:
            super().write_rows(writes, removals, transaction)
        except BaseException:
            # In place, because callers may have a reference to this dict.
            self.data.clear()
            self.data.update(before)
            raise
