"""Verification finds every difference between stores, and reports no false ones."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pytest

from eventsync import ConfigError, Convert, Field, Record, Store, StoreRegistry, View, compare
from eventsync.errors import StoreUnavailableError
from eventsync.index import IndexTransaction
from eventsync.stores.memory import MemoryAccessor
from eventsync.verify import Kind, look


class Item(Record, rule="field"):
    """An item, of which each store holds a part."""

    id: int = Field(key=True)
    name: str = ""
    price: Decimal = Decimal(0)
    kept: bool = True


ROUNDED = Convert(lambda price: round(price), lambda stored: Decimal(stored))
VIEWS = {
    "whole": View(),
    "part": View(only=("id", "name"), rename={"name": "title"}),
    "rounded": View(only=("id", "price"), convert={"price": ROUNDED}),
    "filtered": View(omit=("price",), where={"kept": True}),
}


@pytest.fixture
def registry() -> StoreRegistry:
    """Four stores in sync, with different views of the same ten items; one item is deleted."""
    stores = [Store(name, MemoryAccessor(Item, view=view)) for name, view in VIEWS.items()]
    registry = StoreRegistry(*stores).open()
    whole = registry["whole"]
    for number in range(10):
        whole.add(Item(id=number, name=f"N{number}", price="1.6", kept=number % 2 == 0))
    whole.remove(whole[Item, 9])
    registry.synchronize(sources=["whole"])
    return registry


def data(registry: StoreRegistry, store: str) -> dict[str, dict[str, object]]:
    """Return the data of a store, for foreign writes."""
    accessor = registry[store].accessors["Item"]
    assert isinstance(accessor, MemoryAccessor)
    return accessor.data


def test_stores_in_sync_agree(registry: StoreRegistry) -> None:
    """Filters, partial views, renamed fields and lossy conversions are not differences."""
    found = compare(registry)
    assert found
    assert found.differences == []
    assert found.records == {"Item": 9}
    counts = {name: types["Item"] for name, types in found.stores.items()}
    assert {name: count.records for name, count in counts.items()} == {
        "whole": 9,
        "part": 9,
        "rounded": 9,
        "filtered": 5,
    }
    assert {name: count.fields for name, count in counts.items()} == {
        "whole": 36,
        "part": 18,
        "rounded": 18,
        "filtered": 15,
    }


def test_another_value(registry: StoreRegistry) -> None:
    """A foreign write to one field differs in that store and field only."""
    data(registry, "rounded")["3"]["price"] = 7
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("rounded", "3", Kind.FIELD)
    assert (found.field, found.held, found.expected) == ("price", Decimal(7), Decimal("1.6"))


def test_missing_record(registry: StoreRegistry) -> None:
    """A record that a store should hold and does not hold is missing."""
    del data(registry, "filtered")["2"]
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("filtered", "2", Kind.MISSING)


@pytest.mark.parametrize(("key", "why"), [("9", "deleted"), ("1", "kept out by the filter")])
def test_extra_record(registry: StoreRegistry, key: str, why: str) -> None:
    """A deleted record, or one that the filter keeps out, is extra."""
    data(registry, "filtered")[key] = {"id": int(key), "name": f"N{key}", "kept": False}
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("filtered", key, Kind.EXTRA), why


def test_record_that_no_index_knows(registry: StoreRegistry) -> None:
    """A record that was added by a foreign write is missing in the other stores."""
    data(registry, "part")["50"] = {"id": 50, "title": "new"}
    found = compare(registry)
    assert {(one.store, one.kind) for one in found.differences} == {
        ("whole", Kind.MISSING),
        ("rounded", Kind.MISSING),
        ("filtered", Kind.MISSING),
    }


def test_unreadable_record(registry: StoreRegistry) -> None:
    """A record with invalid values is unreadable, and the other records are still compared."""
    data(registry, "whole")["4"]["price"] = "much"
    data(registry, "part")["5"]["title"] = "other"
    found = compare(registry)
    kinds = {(one.store, one.key): one.kind for one in found.differences}
    assert kinds[("whole", "4")] is Kind.UNREADABLE
    assert ("part", "5") in kinds or ("whole", "5") in kinds
    assert {key for _, key in kinds} == {"4", "5"}


def test_unexpected_error_of_one_record(
    registry: StoreRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever an accessor raises for one record makes only that record unreadable."""
    accessor = registry["part"].accessors["Item"]
    read_rows = accessor.read_rows

    def faulty(keys: Sequence[str], transaction: IndexTransaction) -> Any:
        if "4" in keys:
            raise KeyError("title")
        return read_rows(keys, transaction)

    monkeypatch.setattr(accessor, "read_rows", faulty)
    (found,) = compare(registry).differences
    assert (found.store, found.key, found.kind) == ("part", "4", Kind.UNREADABLE)
    assert "unexpected KeyError" in found.detail


def test_unreachable_store_is_raised(
    registry: StoreRegistry, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A store that is unreachable ends the comparison; its records are not called unreadable."""

    def unreachable(keys: Sequence[str], transaction: IndexTransaction) -> Any:
        raise StoreUnavailableError("down for the test")

    monkeypatch.setattr(registry["part"].accessors["Item"], "read_rows", unreachable)
    with pytest.raises(StoreUnavailableError):
        compare(registry)


def test_the_later_version_is_expected(registry: StoreRegistry) -> None:
    """After an edit, the stores that have not applied it are the ones that differ."""
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
    """A pending record is missing, and the detail says that it is pending."""
    part = registry["part"]
    part.add(Item.load({"id": 77, "name": "new"}, partial=True))
    changes = part.replicas["Item"].states(["77"])
    registry["whole"].replicas["Item"].apply({"77": changes})
    found = [one for one in compare(registry).differences if one.store == "whole"]
    assert [(one.key, one.kind, one.detail) for one in found] == [("77", Kind.MISSING, "pending")]


def test_keeps_no_more_than_asked(registry: StoreRegistry) -> None:
    """All differences are counted, but only the first ``keep`` are listed."""
    for row in data(registry, "part").values():
        row["title"] = "other"
    found = compare(registry, keep=3)
    assert len(found.differences) == 3
    assert found.total >= 9


def test_progress_and_types(registry: StoreRegistry) -> None:
    """``progress`` is called up to the end; looking for a type that no store holds is an error."""
    calls: list[tuple[str, int, int]] = []
    compare(registry, [Item], progress=lambda *at: calls.append(at))
    assert calls == [("Item", 10, 10)]

    class Other(Record):
        """Held by no store."""

        id: int = Field(key=True)

    with pytest.raises(ConfigError, match="Other"):
        look(registry, Other, ["1"])
