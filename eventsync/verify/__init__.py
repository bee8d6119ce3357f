"""Verification: whether stores hold the same records, field by field.

It owns the answer to "do the stores agree?", found from their data and versions alone. It must not
know how changes travel, and it writes nothing but what a writer that died left half done.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import RecordError
from eventsync.records.query import Query
from eventsync.records.record import Record
from eventsync.verify.side_by_side import Difference, Kind, SideBySide, StoreState, holding, look

__all__ = [
    "Comparison",
    "Difference",
    "Kind",
    "SideBySide",
    "StoreState",
    "Tally",
    "compare",
    "look",
]

_CHUNK = 1000


@dataclass(slots=True)
class Tally:
    """What was compared in one store, and how much of it differs.

    ``records`` and ``fields`` are those the store should hold; ``differing`` counts fields.
    """

    records: int = 0
    fields: int = 0
    missing: int = 0
    extra: int = 0
    differing: int = 0
    unreadable: int = 0


@dataclass(slots=True)
class Comparison:
    """What a comparison found. True when the stores agree.

    ``records``: by type, how many records are alive. ``stores``: by store and type. ``total``: how
    many differences there are; ``differences`` are the first of them.
    """

    records: dict[str, int] = field(default_factory=dict)
    stores: dict[str, dict[str, Tally]] = field(default_factory=dict)
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
    """Compare every store with what all stores together know of each record.

    The winner of each record is merged from the stores' data and versions; each store should then
    hold its view of it: its fields, converted, if the record matches its filter. ``record_types``:
    default all. ``keep``: how many differences are told one by one. ``progress`` is told the type,
    and how many of how many records are done. Blocks; idempotent. While changes are on their way,
    what is under way shows as a difference. Raises what reading the stores raises.
    """
    types = registry.record_types.values() if record_types is None else record_types
    comparison = Comparison()
    for record_type in types:
        name = record_type.__record__.name
        keys = sorted({key for store in holding(registry, name) for key in _keys(store, name)})
        comparison.records[name] = 0
        for store in holding(registry, name):
            comparison.stores.setdefault(store.name, {})[name] = Tally()
        for start in range(0, len(keys), _CHUNK):
            for row in look(registry, record_type, keys[start : start + _CHUNK]):
                _count(row, comparison, keep)
            progress(name, min(start + _CHUNK, len(keys)), len(keys))
    return comparison


def _keys(store: Store, type: str) -> Iterable[str]:
    """All keys that the store's index or its data know."""
    yield from (key for key, _ in store.index.entries(type))
    accessor = store.accessors[type]

    def unreadable(error: RecordError) -> None:
        """Such a record is found by its index entry, if it has one."""

    for record in accessor.find(Query.parse(accessor.type, None, unreadable=unreadable)):
        yield record.key


def _count(row: SideBySide, comparison: Comparison, keep: int) -> None:
    if row.merged is not None:
        comparison.records[row.type] += 1
    for store, sight in row.stores.items():
        tally = comparison.stores[store][row.type]
        if sight.expected is not None:
            tally.records += 1
            tally.fields += len(sight.expected)
        for difference in sight.differences:
            if difference.kind is Kind.FIELD:
                tally.differing += 1
            elif difference.kind is Kind.MISSING:
                tally.missing += 1
            elif difference.kind is Kind.EXTRA:
                tally.extra += 1
            else:
                tally.unreadable += 1
    found = row.differences
    comparison.total += len(found)
    comparison.differences += found[: max(0, keep - len(comparison.differences))]
