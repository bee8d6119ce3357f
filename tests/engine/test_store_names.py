"""Errors name the store that failed, on every path through several stores."""

from __future__ import annotations

import pytest

from eventsync.changes.change import Change
from eventsync.engine.apply import apply
from eventsync.engine.completion import complete
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    RejectedError,
    StoreUnavailableError,
    in_store,
)
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.verify import compare, look


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class Failing(MemoryAccessor):
    """Raises ``error`` at every use, if it is set."""

    error: Exception | None = None

    def _fail(self):
        if self.error is not None:
            raise self.error

    def get(self, key):
        self._fail()
        return super().get(key)

    def find(self, query):
        self._fail()
        return super().find(query)

    def write_rows(self, writes, removals, transaction):
        self._fail()
        super().write_rows(writes, removals, transaction)

    def read_rows(self, keys, transaction):
        self._fail()
        return super().read_rows(keys, transaction)

    def ensure(self):
        self._fail()

    def ping(self):
        self._fail()


@pytest.fixture
def stores():
    """Two stores with one record; the store ``two`` fails."""
    registry = StoreRegistry(Store("one", MemoryAccessor(Item)), Store("two", Failing(Item)))
    for store in registry.open():
        store.add(Item(id=1, name="a"))
    registry["two"].accessors["Item"].error = StoreUnavailableError("away", hint="wait")
    return registry


USES = {
    "open": lambda stores: stores.open(),
    "ping": lambda stores: stores["two"].ping(),
    "get": lambda stores: stores.get(Item, 1),
    "find": lambda stores: stores.find(Item),
    "count": lambda stores: stores.count(Item),
    "update": lambda stores: stores.update(Item(id=1, name="b")),
    "capture": lambda stores: list(stores["two"].capture()),
    "sync into": lambda stores: stores.synchronize(sources=["one"], restart=True),
    "sync from": lambda stores: stores.synchronize(sources=["two"]),
    "dry sync into": lambda stores: stores.synchronize(sources=["one"], dry_run=True),
    "dry sync from": lambda stores: stores.synchronize(sources=["two"], dry_run=True),
    "compare": lambda stores: compare(stores),
    "look": lambda stores: look(stores, Item, ["1"]),
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("kind", [StoreUnavailableError, ConfigError])
def test_error_names_its_store(stores, use, kind):
    """The error of the store ``two`` begins with its name, whatever other stores take part."""
    stores["two"].accessors["Item"].error = kind("away", hint="wait")
    if use == "sync into":
        stores["one"].update(Item(id=1, name="later"))
    with pytest.raises(kind) as caught:
        USES[use](stores)
    assert str(caught.value) == "store 'two': away (wait)"
    assert caught.value.message == "away"


def test_rejected_change_names_its_store(stores):
    """So does the error of a change that becomes a dead letter."""
    store = stores["two"]
    store.accessors["Item"].error = RejectedError("too long")
    version = store.clock.tick()
    change = Change(type="Item", key="9", op="put", version=version, data={"id": 9, "name": "x"})
    (settled,) = apply(store, [change], clock=store.clock)
    assert str(settled.error) == "store 'two': too long"


def test_error_of_a_peer_names_the_peer():
    """A store that is completed from another one does not take that one's error for its own."""
    assert complete(Store("one", MemoryAccessor(Item)), []) == {}
    with pytest.raises(EventSyncError) as caught, in_store("one"), in_store("two"):
        raise StoreUnavailableError("away")
    assert caught.value.store == "two"


def test_name_is_said_once_and_not_of_a_broker():
    """A text that names the store is not repeated; the broker is no store."""
    with pytest.raises(ConfigError) as caught, in_store("one"):
        raise ConfigError("store 'one' has no accessor")
    assert str(caught.value) == "store 'one' has no accessor"
    with pytest.raises(BusUnavailableError) as caught, in_store("one"):
        raise BusUnavailableError("the broker is away")
    assert str(caught.value) == "the broker is away"
