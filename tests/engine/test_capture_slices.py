"""Capture in slices: what is applied meanwhile, and which types a tripped delete guard holds up."""

from __future__ import annotations

import pytest

from eventsync.changes.change import Change
from eventsync.changes.stamp import PUT
from eventsync.engine.apply import apply
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import StoreUnavailableError, SuspiciousReadError
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class Part(Record):
    id: int = Field(key=True)
    name: str = ""


@pytest.fixture
def store():
    """Return a store of two types with thirty records each."""
    store = Store("crm", MemoryAccessor(Item), MemoryAccessor(Part)).open()
    store.add([type(id=n, name="old") for type in (Item, Part) for n in range(30)])
    return store


def put(store, number):
    data = {"id": number, "name": "new"}
    version = store.clock.tick()
    return Change(type="Item", key=str(number), op=PUT, version=version, data=data, source="t")


def empty(store, type):
    """Remove most records of a type behind the store's back."""
    for number in range(5, 30):
        store.accessor(type).remove(str(number))


def test_records_that_are_added_during_a_pass_are_not_missing(store):
    """A pass does not see them, but they are many: the delete guard must not trip."""
    store.accessor(Item).remove("3")
    slices = store.capture(Item, count=10)
    next(slices)
    apply(store, [put(store, number) for number in range(100, 200)], clock=store.clock)
    assert [(change.key, change.op) for part in slices for change in part] == [("3", "delete")]
    assert store.count(Item) == 129


def test_a_pass_that_ends_early_deletes_nothing(store, monkeypatch):
    """A read that fails after its first slices concludes nothing about the rest."""
    accessor = store.accessor(Item)
    find = accessor.find

    def failing(query):
        for number, record in enumerate(find(query)):
            if number == 15:
                raise StoreUnavailableError("away for the test")
            yield record

    monkeypatch.setattr(accessor, "find", failing)
    accessor.remove("3")
    with pytest.raises(StoreUnavailableError):
        list(store.capture(Item, count=5))
    assert store.index.scan("Item", limit=100)[0][1].presence == 1
    monkeypatch.undo()
    deletes = [change for part in store.capture(Item) for change in part]
    assert [change.key for change in deletes] == ["3"]


def test_a_pass_that_is_given_up_deletes_nothing(store):
    """A caller that stops between two slices has captured no delete."""
    store.accessor(Item).remove("3")
    slices = store.capture(Item, count=5)
    for _ in range(3):
        assert next(slices) == []
    slices.close()
    assert [change.key for part in store.capture(Item) for change in part] == ["3"]


def test_the_guard_holds_up_one_type_only(store):
    """The other types are captured before the error is raised, which names the commands."""
    empty(store, Item)
    store.accessor(Part).remove("7")
    found, slices = [], store.capture()
    with pytest.raises(SuspiciousReadError) as caught:
        found.extend(change for part in slices for change in part)
    assert [(change.type, change.key) for change in found] == [("Part", "7")]
    assert "eventsync sync --to crm --records Item" in caught.value.hint
    assert "eventsync sync --from crm --records Item --allow-deletes" in caught.value.hint


def test_two_tripped_guards_are_both_named(store):
    """One error names the types and the commands of both."""
    empty(store, Item)
    empty(store, Part)
    with pytest.raises(SuspiciousReadError) as caught:
        list(store.capture())
    for type in ("Item", "Part"):
        assert f"known records of type {type}" in caught.value.message
        assert f"--from crm --records {type} --allow-deletes" in caught.value.hint


def test_a_synchronization_copies_the_other_types(store):
    """A tripped guard keeps one type from being copied, and is raised at the end."""
    empty(store, Item)
    other = Store("other", MemoryAccessor(Item), MemoryAccessor(Part)).open()
    with pytest.raises(SuspiciousReadError):
        StoreRegistry(store, other).synchronize(sources=["crm"], targets=["other"])
    assert (other.count(Item), other.count(Part)) == (0, 30)


def test_a_named_source_is_captured_even_alone(store):
    """The command that accepts deletes works for a type that no other store holds."""
    empty(store, Item)
    other = Store("other", MemoryAccessor(Part)).open()
    with pytest.raises(SuspiciousReadError):
        list(store.capture(Item))
    StoreRegistry(store, other).synchronize([Item], sources=["crm"], deletes=1.0)
    assert list(store.capture(Item)) == [[]]
    assert store.replicas["Item"].lacking == 0
