"""The comparison of whole stores: all records of all types, field by field, with counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

from eventsync.engine.isolation import concerns_all, item_error
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.engine.unreadable import UnreadableRecord
from eventsync.errors import RecordError
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.verify.side_by_side import Difference, Kind, SideBySide, holding, look

__all__ = ["Comparison", "StoreCounts", "compare"]

_CHUNK = 1000


@dataclass(slots=True)
class StoreCounts:
    """The counts for one record type in one store.

    ``records``, ``fields``: how many records, and fields of these records, the store should hold.
    ``differing``: how many fields have another value. ``missing``, ``extra``, ``unreadable``: how
    many records differ in this way (see ``Kind``). ``error``: why no record of the type could be
    read; empty if some could be read, or if there are none.
    """

    records: int = 0
    fields: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0
    error: str = ""


@dataclass(slots=True)
class Comparison:
    """The result of a comparison. ``bool()`` is true if no store differs.

    ``records``: by type, the number of records that should exist. ``stores``: the counts, by store
    name and record type. ``total``: the number of all differences. ``differences``: the first
    differences, at most ``keep`` (see ``compare``).
    """

    records: dict[str, int] = field(default_factory=dict)
    stores: dict[str, dict[str, StoreCounts]] = field(default_factory=dict)
    differences: list[Difference] = field(default_factory=list)
    total: int = 0

    def __bool__(self) -> bool:
        return not self.total


def compare(
    registry: StoreRegistry,
    record_types: Iterable[type[Record]] | None = None,
    *,
    keep: int = 1000,
    progress: Callable[[str, int, int], None] = lambda type, done, total: None,
) -> Comparison:
    """Compare every store with the merged state of all stores, and return the differences.

    For each record, the field values with the greatest versions win, whichever store holds them.
    Each store should hold these values in the fields of its view, if the record matches the filter
    of the store. Changes that workers have not applied yet are reported as differences.

    ``record_types``: the types to compare; all by default. ``keep``: the largest number of
    differences in the result; further differences are only counted. ``progress`` is called with the
    name of the type, the number of records compared, and the number of records of this type.

    Blocks; idempotent. Writes no records, except that it finishes or undoes writes that a crash
    interrupted; it notes the records that cannot be read (``Store.unreadable_records``). Raises
    ``StoreUnavailableError`` if a store does not answer, and other errors if they concern a whole
    store.
    """
    types = registry.record_types.values() if record_types is None else record_types
    comparison = Comparison()
    for record_type in types:
        name = record_type.__record__.name
        reads = [_read(store, name) for store in holding(registry, name)]
        keys = sorted(set().union(*(read.keys for read in reads)))
        comparison.records[name] = 0
        for read in reads:
            comparison.stores.setdefault(read.store, {})[name] = StoreCounts(error=read.error)
        for start in range(0, len(keys), _CHUNK):
            for row in look(registry, record_type, keys[start : start + _CHUNK]):
                _count(row, comparison, keep)
                for read in reads:
                    read.compared(row)
            progress(name, min(start + _CHUNK, len(keys)), len(keys))
        for read in reads:
            _add(comparison, read.left(), keep)
    return comparison


@dataclass(slots=True)
class _Read:
    """The read of all records of one type in one store.

    ``keys``: the keys in the index and in the data. ``unreadable``: the notes of the records that
    could not be read, by name. ``error``: as in ``StoreCounts``. ``counted``: how many unreadable
    records were counted with their keys. ``hidden``: how many of these are not among
    ``unreadable``, because they are in content whose keys cannot be read.
    """

    store: str
    type: str
    keys: set[str]
    unreadable: dict[str, UnreadableRecord]
    error: str = ""
    counted: int = 0
    hidden: int = 0

    def compared(self, row: SideBySide) -> None:
        """Take note that ``row`` was counted."""
        state = row.stores[self.store]
        if all(found.kind is not Kind.UNREADABLE for found in state.differences):
            return
        self.counted += 1
        if self.unreadable.pop(row.key, None) is None:
            self.hidden += 1

    def left(self) -> list[Difference]:
        """Return a difference for each unreadable record that was not counted with its key."""
        notes = [note for note in self.unreadable.values() if note.keyed]
        notes += [note for note in self.unreadable.values() if not note.keyed][self.hidden :]
        found = [
            Difference(self.store, self.type, note.name, Kind.UNREADABLE, detail=note.error)
            for note in notes
        ]
        if self.error and not self.counted and not found:
            found.append(Difference(self.store, self.type, "", Kind.UNREADABLE, detail=self.error))
        return found


def _read(store: Store, type: str) -> _Read:
    """Read all records of a type in a store, and note those that cannot be read."""
    with store.errors():
        return _read_all(store, type)


def _read_all(store: Store, type: str) -> _Read:
    accessor = store.accessors[type]
    keys = {key for key, _ in store.index.entries(type)}
    reading = store.unreadable_records.reading(type)
    readable, error = 0, ""

    def report(unreadable: RecordError) -> None:
        if unreadable.key is not None:
            keys.add(unreadable.key)
        reading(unreadable)

    try:
        for record in accessor.find(Query.parse(accessor.type, None, unreadable=report)):
            keys.add(record.key)
            readable += 1
    except Exception as failure:
        if concerns_all(failure):
            raise
        error = str(item_error(failure))
    else:
        reading.read_known(accessor)
        reading.save(whole=True)
        if reading.found and not readable:
            first = next(iter(reading.found.values())).error
            error = f"{len(reading.found):,} are unreadable, for example: {first}"
    return _Read(store.name, type, keys, dict(reading.found), error)


def _count(row: SideBySide, comparison: Comparison, keep: int) -> None:
    if row.merged is not None:
        comparison.records[row.type] += 1
    for store, state in row.stores.items():
        counts = comparison.stores[store][row.type]
        if state.expected is not None:
            counts.records += 1
            counts.fields += len(state.expected)
    _add(comparison, row.differences, keep)


def _add(comparison: Comparison, found: Sequence[Difference], keep: int) -> None:
    """Count the differences ``found``."""
    for difference in found:
        counts = comparison.stores[difference.store][difference.type]
        if difference.kind is Kind.FIELD:
            counts.differing += 1
        elif difference.kind is Kind.MISSING:
            counts.missing += 1
        elif difference.kind is Kind.EXTRA:
            counts.extra += 1
        else:
            counts.unreadable += 1
    comparison.total += len(found)
    comparison.differences += found[: max(0, keep - len(comparison.differences))]
