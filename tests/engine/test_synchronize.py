"""Copying records between the stores of a registry."""

from __future__ import annotations

import pytest

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Clock, Version
from eventsync.changes.stamp import PATCH, PUT
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.index import Presence
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class Note(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    text: str = ""


def registry(*record_types, count=2, clock=None):
    """Stores in memory. With a ``clock`` of all stores, no two writes are at the same moment."""
    stores = [
        Store(name, *map(MemoryAccessor, record_types), clock=clock)
        for name in ("one", "two", "three")[:count]
    ]
    return StoreRegistry(*stores)


def fill(store, count, name="item"):
    for number in range(count):
        store.add(Item(id=number, name=name))


def names(store):
    return {record.id: record.name for record in store.find(Item)}


def test_sources_are_copied_into_targets():
    """Records and deletes reach every target, and a second run changes nothing."""
    stores = registry(Item, count=3)
    fill(stores["one"], 7)
    report = stores.synchronize(sources=["one"], count=3)
    assert report.outcomes == {"two": {Outcome.APPLIED: 7}, "three": {Outcome.APPLIED: 7}}
    assert names(stores["two"]) == names(stores["three"]) == names(stores["one"])
    del stores["one"][Item, 3]
    report = stores.synchronize(sources=["one"], targets=["two"])
    assert report.outcomes == {"two": {Outcome.DUPLICATE: 6, Outcome.APPLIED: 1}}
    assert 3 not in names(stores["two"])
    assert 3 in names(stores["three"])


def test_later_version_wins_in_both_directions():
    """Each store ends with the latest write, wherever it was made."""
    stores = registry(Item)
    fill(stores["one"], 2, "old")
    stores.synchronize()
    stores["two"].update(Item(id=1, name="two"))
    stores["one"].update(Item(id=0, name="one"))
    stores.synchronize()
    assert names(stores["one"]) == names(stores["two"]) == {0: "one", 1: "two"}


def test_foreign_writes_are_captured_first():
    """A write that eventsync did not make is found, counted and copied."""
    stores = registry(Item)
    fill(stores["one"], 3)
    stores["one"].accessors["Item"].data["1"]["name"] = "foreign"
    report = stores.synchronize(sources=["one"])
    assert report.captured == 1
    assert names(stores["two"])[1] == "foreign"


def test_foreign_write_in_a_target_is_not_overwritten():
    """What somebody wrote in a target later than the source did stays, and comes back."""
    stores = registry(Item, clock=Clock())
    fill(stores["one"], 3, "old")
    stores.synchronize()
    stores["one"].update(Item(id=1, name="one"))
    stores["two"].accessors["Item"].data["1"]["name"] = "foreign"
    report = stores.synchronize()
    assert names(stores["one"])[1] == names(stores["two"])[1] == "foreign"
    assert report.captured == 1


@pytest.mark.parametrize("record_type", [Item, Note])
def test_foreign_delete_in_a_target_is_not_undone(record_type):
    """A record that somebody deleted in a target is not written there again."""
    stores = registry(record_type, clock=Clock())
    name = record_type.__record__.name
    for number in range(3):
        stores["one"].add(record_type(id=number, name="old"))
    stores.synchronize()
    stores["one"].update(record_type(id=1, name="one"))
    del stores["two"].accessors[name].data["1"]
    del stores["two"].accessors[name].data["2"]
    stores.synchronize(sources=["one"], targets=["two"])
    assert list(stores["two"].accessors[name].data) == ["0"]
    stores.synchronize()
    assert list(stores["one"].accessors[name].data) == ["0"]


def test_deletes_that_are_allowed_in_a_source_are_not_in_a_target():
    """A target that has lost its records is filled, although the source may lack as many."""
    stores = registry(Item)
    fill(stores["one"], 60)
    stores.synchronize()
    for number in range(3):
        stores["one"].accessor("Item").remove(str(number))
    for number in range(50):
        stores["two"].accessor("Item").remove(str(number))
    stores.synchronize(sources=["one"], deletes=1.0)
    expected = dict.fromkeys(range(3, 60), "item")
    assert names(stores["one"]) == expected
    assert names(stores["two"]) == expected


def test_foreign_edit_in_a_target_keeps_its_fields():
    """Of a record edited on both sides each field has the later value, the foreign one too."""
    stores = registry(Note, clock=Clock())
    stores["one"].add(Note(id=1, name="old", text="old"))
    stores.synchronize()
    stores["one"].update(Note(id=1, name="one", text="one"))
    stores["two"].accessors["Note"].data["1"]["text"] = "foreign"
    stores.synchronize(sources=["one"], targets=["two"])
    assert stores["two"].accessors["Note"].data["1"] == {"id": 1, "name": "one", "text": "foreign"}


def test_record_that_a_target_held_before_eventsync_is_older_than_the_source():
    """Nobody versioned it, so the source's version wins over it."""
    stores = registry(Item, clock=Clock())
    fill(stores["one"], 2, "one")
    stores["two"].accessors["Item"].data["1"] = {"id": 1, "name": "before"}
    stores.synchronize(sources=["one"], targets=["two"])
    assert names(stores["two"]) == {0: "one", 1: "one"}


def test_filter_and_types_restrict_the_copy():
    """Only records of the named types that match the filter are copied."""
    stores = registry(Item, Note)
    fill(stores["one"], 5)
    stores["one"].add(Note(id=1))
    stores.synchronize([Item], {"id": {"$lt": 2}})
    assert set(names(stores["two"])) == {0, 1}
    assert stores["two"].count(Note) == 0


def test_interrupted_copy_continues():
    """The parts that were copied before the interruption are not copied again."""
    stores = registry(Item)
    fill(stores["one"], 9)
    done = []

    def interrupt(progress):
        done.append((progress.source, progress.type, progress.done, progress.total))
        if len(done) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stores.synchronize(sources=["one"], count=3, progress=interrupt)
    assert done == [("one", "Item", 3, 9), ("one", "Item", 6, 9)]
    again = stores.synchronize(sources=["one"], count=3)
    assert again.outcomes == {"two": {Outcome.APPLIED: 3}}
    once_more = stores.synchronize(sources=["one"], count=3)
    assert once_more.outcomes == {"two": {Outcome.DUPLICATE: 9}}


@pytest.mark.parametrize(
    "arguments", [{"restart": True}, {"data": {"id": {"$lt": 100}}}, {"targets": ["two", "three"]}]
)
def test_other_copy_starts_from_the_beginning(arguments):
    """Where one copy stopped says nothing about a copy with other arguments."""
    stores = registry(Item, count=3)
    fill(stores["one"], 9)

    def interrupt(progress):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stores.synchronize(sources=["one"], targets=["two"], count=3, progress=interrupt)
    report = stores.synchronize(**{"sources": ["one"], "targets": ["two"], **arguments})
    assert sum(report.outcomes["two"].values()) == 9


def test_age_of_a_record_does_not_matter():
    """A record that was last changed years ago is copied."""
    stores = registry(Item)
    stores["one"].clock = Clock(now=lambda: 1_000_000.0)
    fill(stores["one"], 1)
    assert stores.synchronize(sources=["one"]).outcomes == {"two": {Outcome.APPLIED: 1}}


def test_rejected_record_is_reported():
    """A record that the target refuses does not stop the others."""

    class Strict(MemoryAccessor):
        def add(self, record):
            if record.id == 1:
                raise RejectedError("no ones")
            super().add(record)

    stores = StoreRegistry(Store("one", MemoryAccessor(Item)), Store("two", Strict(Item)))
    fill(stores["one"], 3)
    report = stores.synchronize(sources=["one"])
    assert report.outcomes == {"two": {Outcome.APPLIED: 2, Outcome.REJECTED: 1}}
    ((target, settled),) = report.rejected
    assert (target, settled.change.key, settled.error.reason) == ("two", "1", "rejected")


@pytest.mark.parametrize("dry_run", [False, True])
def test_unreadable_record_is_reported(dry_run):
    """A record of a source that cannot be read is named once, and the others are copied."""
    stores = registry(Item)
    fill(stores["one"], 9)
    stores["one"].accessors["Item"].data["4"]["name"] = ["not a text"]
    report = stores.synchronize(sources=["one"], dry_run=dry_run)
    assert report.outcomes == {"two": {Outcome.APPLIED: 8}}
    ((source, error),) = report.unreadable
    assert (source, error.reason) == ("one", "field")
    assert set(names(stores["two"])) == (set() if dry_run else set(range(9)) - {4})


def test_record_whose_accessor_fails_is_named():
    """An unexpected error of the accessor is reported with the type and key of the record."""

    class Faulty(MemoryAccessor):
        faulty = False

        def get(self, key):
            if self.faulty and key == "4":
                raise ZeroDivisionError("fault")
            return super().get(key)

    accessor = Faulty(Item)
    stores = StoreRegistry(Store("one", MemoryAccessor(Item)), Store("two", accessor))
    fill(stores["one"], 9)
    accessor.faulty = True
    report = stores.synchronize(dry_run=True)
    assert report.outcomes == {"two": {Outcome.APPLIED: 8}}
    assert [(store, str(error)) for store, error in report.unreadable] == [
        ("two", "Item '4' cannot be read: unexpected ZeroDivisionError: fault")
    ]


@pytest.mark.parametrize("dry_run", [False, True])
@pytest.mark.parametrize("away", ["source", "target"])
def test_unreachable_store_stops_the_copy(away, dry_run):
    """A failure of a whole store is no failure of its records."""

    class Away(MemoryAccessor):
        def get(self, key):
            raise StoreUnavailableError("away")

        def find(self, query):
            raise StoreUnavailableError("away")

    good, bad = Store("good", MemoryAccessor(Item)), Store("bad", Away(Item))
    fill(good, 2)
    source = "bad" if away == "source" else "good"
    with pytest.raises(StoreUnavailableError):
        StoreRegistry(good, bad).synchronize(sources=[source], dry_run=dry_run)


def pending(store):
    """Leave a record pending in ``store``, and return the put that completes it."""
    whole = Change(
        type="Note", key="1", op=PUT, version=Version.of(int(store.clock.now() * 1000) - 20),
        data={"id": 1, "name": "a", "text": "t"},
    )  # fmt: skip
    edit = whole.replace(
        op=PATCH, version=store.clock.tick(), data={"name": "b"},
        known=BaseState(whole.stamp, {}, {}),
    )  # fmt: skip
    apply(store, [edit], clock=store.clock)
    assert store.index.counts("Note")[Presence.PENDING] == 1
    return whole


def test_pending_records_of_the_targets_are_completed():
    """After the copy, missing fields come from any store of the registry."""
    stores = registry(Note, count=3)
    whole = pending(stores["two"])
    apply(stores["three"], [whole], clock=stores["three"].clock)
    stores.synchronize(sources=["one"], targets=["two"])
    assert stores["two"].get(Note, 1).text == "t"


def test_dry_run_writes_nothing():
    """It counts what a copy would change, and leaves data, entries and pending records alone."""
    stores = registry(Item, Note)
    fill(stores["one"], 3)
    stores["two"].add(Item(id=0, name="item"))
    stores["two"].add(Item(id=1, name="other"))
    whole = pending(stores["two"])
    apply(stores["one"], [whole], clock=stores["one"].clock)
    stores["one"].accessors["Item"].data["2"]["name"] = "foreign"
    before = {store.name: [dict(store.index.scan(t)) for t in store.accessors] for store in stores}
    report = stores.synchronize([Item], sources=["one"], dry_run=True)
    assert report.outcomes == {"two": {Outcome.DUPLICATE: 1, Outcome.APPLIED: 2}}
    assert before == {
        store.name: [dict(store.index.scan(t)) for t in store.accessors] for store in stores
    }
    assert names(stores["two"]) == {0: "item", 1: "other"}


def test_unknown_store_is_named():
    """A store that is not in the registry is an error that lists those that are."""
    with pytest.raises(ConfigError, match=r"'four'.*one, two"):
        registry(Item).synchronize(sources=["four"])
