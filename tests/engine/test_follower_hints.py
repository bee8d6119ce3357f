"""The follower with a source of hints: what it reads at a start, and what is looked for."""

from __future__ import annotations

import pytest
from support.scripted_source import Scripted

from eventsync.engine.change_source import Changes
from eventsync.engine.store import Store
from eventsync.index import MemoryIndex
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.testing.fake import FakeBus


class Product(Record):
    id: int = Field(key=True)
    name: str = ""


class Observer:
    def __init__(self):
        self.wholes = []
        self.blocks = []

    def captured(self, type, count, moment):
        pass

    def whole(self, type, reason):
        self.wholes.append(reason)

    def blocked(self, type, error):
        self.blocks.append(str(error))

    def cleared(self, type):
        pass

    def alive(self):
        pass


class Hinted(Scripted):
    """Tells keys as hints; ``look``: tells the type, without a key."""

    complete = False

    def __init__(self):
        super().__init__()
        self.look = False

    def changes(self, mark, *, wait):
        if self.look:
            self.look = False
            return Changes(mark, recent={"Product"})
        return super().changes(mark, wait=wait)


class Dated(MemoryAccessor):
    """Knows which records changed, if ``changed`` is a list of their keys."""

    changed = None

    def changed_since(self, mark, unreadable):
        return None if self.changed is None else (self.changed, "later")


@pytest.fixture
def source():
    return Hinted()


def opened(source, *, index=None, **options):
    accessor = Dated(Product)
    accessor.data["1"] = {"id": 1, "name": "Ada"}
    bus = FakeBus()
    store = Store("shop", accessor, publisher=bus, index=index or MemoryIndex(), **options)
    follower = store.follower(bus, Observer(), source=source)
    follower.open()
    return follower, accessor, bus


def test_a_start_reads_all_if_nobody_else_does(source):
    """A restart, too: what was written meanwhile is not told."""
    index = MemoryIndex()
    for _ in range(2):
        follower, _, bus = opened(source, index=index)
        assert list(follower.copies) == ["Product"]
        while follower.copies:
            follower.step(0)
        follower.finish()
    assert bus.changes() == []
    assert follower._observer.wholes == ["what was written before is not told"]


def test_a_start_reads_nothing_if_a_worker_looks(source):
    follower, _, bus = opened(source, capture_every=5.0)
    follower.step(0)
    assert not follower.copies
    assert bus.changes() == []


def test_a_hinted_key_is_captured(source):
    follower, accessor, bus = opened(source, capture_every=5.0)
    accessor.data["2"] = {"id": 2, "name": "Bob"}
    source.log.append(("Product", "2", None))
    follower.step(0)
    assert [change.key for change in bus.changes()] == ["2"]


def test_a_hinted_type_is_searched_for_recent_changes(source):
    """Only the records that the store names are read, and its new mark is saved."""
    follower, accessor, bus = opened(source, capture_every=5.0)
    accessor.data["2"] = {"id": 2, "name": "Bob"}
    accessor.changed = ["2"]
    source.look = True
    follower.step(0)
    assert [change.key for change in bus.changes()] == ["2"]
    assert follower._index.load_mark("capture/Product") == "later"


def test_a_hinted_type_is_read_whole_if_the_store_knows_no_changes(source):
    follower, _, bus = opened(source, capture_every=5.0)
    source.look = True
    follower.step(0)
    assert list(follower.copies) == ["Product"]
    while follower.copies:
        follower.step(0)
    assert [change.key for change in bus.changes()] == ["1"]
