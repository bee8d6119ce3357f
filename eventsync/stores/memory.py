"""Records in memory, for tests and for data that may be lost when the process ends."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, TypeVar

from eventsync.engine.accessor import Accessor, Write
from eventsync.engine.isolation import concerns_all, record_error
from eventsync.errors import RecordError, StoreUnavailableError
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
        self.data[record.key] |= freeze(self.view.to_store(record.changes()))

    def get(self, key: str) -> R | None:
        data = self.data.get(key)
        return None if data is None else self._record(key, data)

    def find(self, query: Query) -> Iterable[R]:
        return query.select(self._found(query))

    def _found(self, query: Query) -> Iterator[R]:
        for key, data in list(self.data.items()):
            if query.unreadable is None:
                yield self.data_to_record(freeze(data))
                continue
            try:
                yield self._record(key, data)
            except RecordError as error:
                query.unreadable(error)

    def _record(self, key: str, data: Mapping[str, Any]) -> R:
        """Return the record of some data. Raises ``RecordError`` that names type and key."""
        try:
            return self.data_to_record(freeze(data))
        except Exception as error:
            if concerns_all(error):
                raise
            known = record_error(error, f"{self.type.name} {key!r}", key=key)
            raise known from known.__cause__

    def remove(self, key: str) -> None:
        self.data.pop(key, None)

    def write_rows(
        self, writes: Sequence[Write], removals: Sequence[str], transaction: IndexTransaction
    ) -> None:
        before = dict(self.data)
        try:
            for write in writes:
                self._write(write)
            for key in removals:
                self.remove(key)
        except BaseException:
            # In place, because callers may have a reference to this dict.
            self.data.clear()
            self.data.update(before)
            raise

    def _write(self, write: Write) -> None:
        """Write the fields that ``write`` names, and no others."""
        if write.key not in self.data and not write.whole:
            raise StoreUnavailableError(
                f"{self.type.name} {write.key!r} vanished while it was being updated"
            )
        record = self.make(write.values)
        if write.key not in self.data:
            self.add(record)
            return
        stored = freeze(self.record_to_data(record))
        constants = self.view.constant.keys()
        self.data[write.key] |= {n: value for n, value in stored.items() if n not in constants}
