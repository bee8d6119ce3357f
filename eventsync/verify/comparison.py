"""The comparison of whole stores: all records of all types, field by field, with counts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
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
    many records differ in this way (see ``Kind``).
    """

    records: int = 0
    fields: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0


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

    Blocks; idempotent. Writes nothing, except that it finishes or undoes writes that a crash
    interrupted. Raises ``StoreUnavailableError`` if a store does not answer, and other errors if
    they concern a whole store.
    """
    types = registry.record_types.values() if record_types is None else record_types
    comparison = Comparison()
    for record_type in types:
        name = record_type.__record__.name
        found: set[str] = set()
        for store in holding(registry, name):
            with store.errors():
                found.update(_keys(store, name))
        keys = sorted(found)
        comparison.records[name] = 0
        for store in holding(registry, name):
            comparison.stores.setdefault(store.name, {})[name] = StoreCounts()
        for start in range(0, len(keys), _CHUNK):
            for row in look(registry, record_type, keys[start : start + _CHUNK]):
                _count(row, comparison, keep)
            progress(name, min(start + _CHUNK, len(keys)), len(keys))
    return comparison


def _keys(store: Store, type: str) -> Iterable[str]:
    """Yield the keys of all records of a type in the index and the data of a store, some twice."""
    yield from (key for key, _ in store.index.entries(type))
    accessor = store.accessors[type]

    def skip(error: RecordError) -> None:
        """Do nothing: the key of an unreadable record is known if the index has an entry for it."""

    for record in accessor.find(Query.parse(accessor.type, None, unreadable=skip)):
        yield record.key


def _count(row: SideBySide, comparison: Comparison, keep: int) -> None:
    if row.merged is not None:
        comparison.records[row.type] += 1
    for store, state in row.stores.items():
        counts = comparison.stores[store][row.type]
        if state.expected is not None:
            counts.records += 1
            counts.fields += len(state.expected)
        for difference in state.differences:
            if difference.kind is Kind.FIELD:
                counts.differing += 1
            elif difference.kind is Kind.MISSING:
                counts.missing += 1
            elif difference.kind is Kind.EXTRA:
                counts.extra += 1
            else:
                counts.unreadable += 1
    found = row.differences
    comparison.total += len(found)
    comparison.differences += found[: max(0, keep - len(comparison.differences))]
