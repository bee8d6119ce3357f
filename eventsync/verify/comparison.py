"""The comparison of whole stores: every record of every type, counted and compared."""

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
    """The records of one type in one store: how many were compared, and how many differ.

    ``records`` and ``fields`` count what the store should hold. ``differing`` counts fields;
    ``missing``, ``extra`` and ``unreadable`` count records (see ``Kind``).
    """

    records: int = 0
    fields: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class Comparison:
    """The result of a comparison. True if the stores agree.

    ``records``: the number of records that exist, by type. ``stores``: the counts, by store and
    type. ``total``: the number of differences; ``differences`` holds the first of them.
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
    """Compare every store with the merged state of all stores.

    The data and versions of all stores are merged into the winner of each record. Each store should
    hold its view of that winner: the fields of the view, converted, if the record matches the
    store's filter. Changes that are not applied yet show as differences.

    ``record_types``: the types to compare; all by default. ``keep``: the largest number of
    differences in the result; further ones are only counted. ``progress`` is called with the type,
    the number of records compared, and the number of records in total. Blocks; idempotent. Writes
    nothing, except that it finishes or undoes writes that a crash interrupted. Raises
    ``StoreUnavailableError`` and other errors that concern a whole store.
    """
    types = registry.record_types.values() if record_types is None else record_types
    comparison = Comparison()
    for record_type in types:
        name = record_type.__record__.name
        keys = sorted({key for store in holding(registry, name) for key in _keys(store, name)})
        comparison.records[name] = 0
        for store in holding(registry, name):
            comparison.stores.setdefault(store.name, {})[name] = StoreCounts()
        for start in range(0, len(keys), _CHUNK):
            for row in look(registry, record_type, keys[start : start + _CHUNK]):
                _count(row, comparison, keep)
            progress(name, min(start + _CHUNK, len(keys)), len(keys))
    return comparison


def _keys(store: Store, type: str) -> Iterable[str]:
    """Yield all keys that the store's index or its data hold."""
    yield from (key for key, _ in store.index.entries(type))
    accessor = store.accessors[type]

    def skip(error: RecordError) -> None:
        """Skip an unreadable record: if the index has an entry for it, its key is known."""

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
