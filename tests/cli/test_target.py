"""The targets of ``eventsync publish``: a failing record does not stop the others."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.records import Product

from eventsync.cli.record_files import RecordLine
from eventsync.cli.target import BusTarget, StoreTarget
from eventsync.engine.store import Store
from eventsync.errors import DependencyError, StoreUnavailableError
from eventsync.stores.memory import MemoryAccessor


class Failing(MemoryAccessor):
    """Raises ``error`` for the product named ``poison``."""

    error: Exception = ValueError("poison")

    def write_rows(self, writes, removals, transaction):
        if any(write.values.get("name") == "poison" for write in writes):
            raise self.error
        super().write_rows(writes, removals, transaction)


class Recorder:
    """A publisher that keeps envelopes and cannot encode the change of key 2."""

    def __init__(self):
        self.published = []

    def encode(self, change):
        if change.key == "2":
            raise TypeError("cannot encode")
        return change.key.encode()

    def publish(self, type, envelopes):
        self.published += envelopes


@pytest.fixture
def store() -> Iterator[Store]:
    """Return an opened store whose accessor fails for one product."""
    with Store("shop", Failing(Product)).open() as store:
        yield store


def lines(*names):
    products = [Product(id=id, name=name) for id, name in enumerate(names)]
    return [RecordLine(p.id + 1, 0, p, p.key) for p in products]


@pytest.mark.parametrize("error", [ValueError("poison"), DependencyError("poison")])
def test_one_record_fails_alone(store: Store, error: Exception) -> None:
    """Whatever a store raises for one record is that record's error; the others are written."""
    store.accessors["Product"].error = error
    (refused,) = StoreTarget(store, Product, False).write(lines("a", "b", "poison", "d", "e"))
    assert refused.number == 3
    assert "poison" in refused.error
    assert sorted(p.id for p in store.find(Product)) == [0, 1, 3, 4]


def test_unreachable_store_stops_the_command(store: Store) -> None:
    """An unreachable store is not the error of one record."""
    store.accessors["Product"].error = StoreUnavailableError("down for the test")
    with pytest.raises(StoreUnavailableError):
        StoreTarget(store, Product, False).write(lines("a", "poison"))


def test_record_that_cannot_be_encoded() -> None:
    """A record that cannot be encoded is refused, and every other is published once, in order."""
    publisher = Recorder()
    (refused,) = BusTarget(publisher, Product, False).write(lines("a", "b", "c", "d"))
    assert refused.number == 3
    assert refused.error == "unexpected TypeError: cannot encode"
    assert publisher.published == [b"0", b"1", b"3"]
