"""Verification: differences are found, and what only looks like one is not."""

from __future__ import annotations

from decimal import Decimal

import pytest

from eventsync import ConfigError, Convert, Field, Record, Store, StoreRegistry, View, compare
from eventsync.stores.memory import MemoryAccessor
from eventsync.verify import Kind, look


class Item(Record, rule="field"):
    """Something that stores hold in part."""

    id: int = Field(key=True)
    name: str = ""
    price: Decimal = Decimal(0)
    kept: bool = True


ROUNDED = Convert(lambda price: round(price), lambda held: Decimal(held))
VIEWS = {
    "whole": View(),
    "part": View(only=("id", "name"), rename={"name": "title"}),
    "rounded": View(only=("id", "price"), convert={"price": ROUNDED}),
    "filtered": View(omit=("price",), where={"kept": True}),
}


@pytest.fixture
def registry() -> StoreRegistry:
    """Four stores that see the same items differently, in sync: ten items, of which one is gone."""
    stores = [Store(name, MemoryAccessor(Item, view=view)) for name, view in VIEWS.items()]
    registry = StoreRegistry(*stores).open()
    whole = registry["whole"]
    for number in range(10):
        whole.add(Item(id=number, name=f"N{number}", price="1.6", kept=number % 2 == 0))
    whole.remove(whole[Item, 9])
    registry.synchronize(sources=["whole"])
    return registry


def data(registry: StoreRegistry, store: str) -> dict[str, dict[str, object]]:
    """What a store holds, to be altered behind eventsync's back."""
    accessor = registry[store].accessors["Item"]
    assert isinstance(accessor, MemoryAccessor)
    return accessor.data


def test_stores_in_sync_agree(registry: StoreRegistry) -> None:
    """Filters, left out fields, other names and lossy conversions are no differences."""
    found = compare(registry)
    assert found
    assert found.differences == []
    assert found.records == {"Item": 9}
    tallies = {name: types["Item"] for name, types in found.stores.items()}
    assert {name: tally.records for name, tally in tallies.items()} == {
        "whole": 9,
        "part": 9,
        "rounded": 9,
        "filtered": 5,
    }
    assert {name: tally.fields for name, tally in tallies.items()} == {
        "whole": 36,
        "part": 18,
        "rounded": 18,
        "filtered": 15,
    }


def test_another_value(registry: StoreRegistry) -> None:
    """A field that was altered differs, in that store and field only."""
    data(registry, "rounded")["3"]["price"] = 7
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("rounded", "3", Kind.FIELD)
    assert (found.field, found.held, found.expected) == ("price", Decimal(7), Decimal("1.6"))


def test_missing_record(registry: StoreRegistry) -> None:
    """A record that should be in a store and is not is missing."""
    del data(registry, "filtered")["2"]
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("filtered", "2", Kind.MISSING)


@pytest.mark.parametrize(("key", "why"), [("9", "deleted"), ("1", "kept out by the filter")])
def test_extra_record(registry: StoreRegistry, key: str, why: str) -> None:
    """A record that was deleted, or that the filter keeps out, is one too many."""
    data(registry, "filtered")[key] = {"id": int(key), "name": f"N{key}", "kept": False}
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("filtered", key, Kind.EXTRA), why


def test_record_that_no_index_knows(registry: StoreRegistry) -> None:
    """A record put behind eventsync's back is missing in the stores that have not heard of it."""
    data(registry, "part")["50"] = {"id": 50, "title": "new"}
    found = compare(registry)
    assert {(one.store, one.kind) for one in found.differences} == {
        ("whole", Kind.MISSING),
        ("rounded", Kind.MISSING),
        ("filtered", Kind.MISSING),
    }


def test_unreadable_record(registry: StoreRegistry) -> None:
    """Values that do not fit are told for that record, and the others are compared all the same."""
    data(registry, "whole")["4"]["price"] = "much"
    data(registry, "part")["5"]["title"] = "other"
    found = compare(registry)
    kinds = {(one.store, one.key): one.kind for one in found.differences}
    assert kinds[("whole", "4")] is Kind.UNREADABLE
    assert ("part", "5") in kinds or ("whole", "5") in kinds
    assert {key for _, key in kinds} == {"4", "5"}


def test_the_later_version_is_expected(registry: StoreRegistry) -> None:
    """A store that has not heard of an edit is the one that differs."""
    whole = registry["whole"]
    item = whole[Item, 0]
    item.name = "later"
    whole.update(item)
    found = compare(registry)
    assert {(one.store, one.field, one.expected) for one in found.differences} == {
        ("part", "name", "later"),
        ("filtered", "name", "later"),
    }
    row = look(registry, Item, ["0"])[0]
    assert row.merged is not None
    assert row.merged["name"] == "later"
    assert row.version == row.stores["whole"].version


def test_pending_records_say_so(registry: StoreRegistry) -> None:
    """A record that waits for its other fields is missing, with that as its reason."""
    part = registry["part"]
    part.add(Item.load({"id": 77, "name": "new"}, partial=True))
    changes = part.replicas["Item"].states(["77"])
    registry["whole"].replicas["Item"].apply({"77": changes})
    found = [one for one in compare(registry).differences if one.store == "whole"]
    assert [(one.key, one.kind, one.detail) for one in found] == [("77", Kind.MISSING, "pending")]


def test_keeps_no_more_than_asked(registry: StoreRegistry) -> None:
    """All differences are counted, but only the first are told one by one."""
    for row in data(registry, "part").values():
        row["title"] = "other"
    found = compare(registry, keep=3)
    assert len(found.differences) == 3
    assert found.total >= 9


def test_progress_and_types(registry: StoreRegistry) -> None:
    """Progress is told up to the end; a type that no store holds is an error to look for."""
    told: list[tuple[str, int, int]] = []
    compare(registry, [Item], progress=lambda *at: told.append(at))
    assert told == [("Item", 10, 10)]

    class Other(Record):
        """Held by no store."""

        id: int = Field(key=True)

    with pytest.raises(ConfigError, match="Other"):
        look(registry, Other, ["1"])
