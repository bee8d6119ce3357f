"""A store restored from yesterday's backup, as docs/scaling.md describes it."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from eventsync import Bus, Field, Record, Store, StoreRegistry, View, Worker
from eventsync.stores.files import JsonFolderAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.verify import compare


class Customer(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    city: str = ""
    balance: int = 0


@pytest.fixture
def stores(tmp_path: Path) -> Iterator[tuple[StoreRegistry, Bus]]:
    """Return a database, documents without the field ``balance``, and a bus, all in use."""
    database = SqlAccessor(Customer, f"sqlite:///{tmp_path / 'crm.db'}", create=True)
    documents = JsonFolderAccessor(Customer, tmp_path / "documents", view=View(omit=("balance",)))
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        registry = StoreRegistry(
            Store("crm", database, publisher=bus), Store("documents", documents, publisher=bus)
        )
        with registry:
            for store in registry:
                bus.declare(store.name, store.accessors)
            crm = registry["crm"]
            for number in range(1, 30):
                crm += Customer(id=number, name=f"n{number}", city="Oslo", balance=number)
            drain(registry, bus)
            yield registry, bus


def drain(registry: StoreRegistry, bus: Bus) -> None:
    for _ in range(2):
        for store in registry:
            Worker(store, bus, peers=registry).drain(timeout=0.05)


def a_day(registry: StoreRegistry, bus: Bus) -> None:
    """Edit a record in each store, add one and delete one."""
    crm, documents = registry["crm"], registry["documents"]
    first = crm[Customer, 1]
    first.city, first.balance = "Lyon", 1000
    crm.update(first)
    second = documents[Customer, 2]
    second.city = "Porto"
    documents.update(second)
    crm += Customer(id=99, name="new", city="Graz", balance=9)
    del crm[Customer, 3]
    drain(registry, bus)


def test_a_database_of_yesterday_is_brought_up_to_date(
    stores: tuple[StoreRegistry, Bus], tmp_path: Path
) -> None:
    """A sync from the other store brings new, changed and deleted records; nothing old returns.

    The field that only this store holds keeps the value of the backup.
    """
    registry, bus = stores
    crm, documents = registry["crm"], registry["documents"]
    crm.close()
    shutil.copy(tmp_path / "crm.db", tmp_path / "backup.db")
    a_day(registry, bus)
    crm.close()
    for leftover in tmp_path.glob("crm.db-*"):
        leftover.unlink()
    shutil.copy(tmp_path / "backup.db", tmp_path / "crm.db")
    crm.open()
    assert crm[Customer, 1].city == "Oslo"
    # Its worker captures nothing: the restored data match the restored fingerprints.
    crm.capture_every = 1.0
    drain(registry, bus)
    assert documents[Customer, 1].city == "Lyon"
    report = registry.synchronize(sources=["documents"], targets=["crm"])
    assert not report.rejected
    drain(registry, bus)
    assert [crm[Customer, n].city for n in (1, 2, 99)] == ["Lyon", "Porto", "Graz"]
    assert crm.get(Customer, 3) is None
    assert documents.get(Customer, 3) is None
    assert crm[Customer, 1].balance == 1
    assert compare(registry)


def test_data_without_their_versions_count_as_edits(
    stores: tuple[StoreRegistry, Bus], tmp_path: Path
) -> None:
    """Old documents under a newer version index are captured as foreign writes.

    This is why a backup must contain both, as a copy of the whole folder does.
    """
    registry, bus = stores
    documents = registry["documents"]
    old = (tmp_path / "documents/1.json").read_text()
    a_day(registry, bus)
    (tmp_path / "documents/1.json").write_text(old)
    documents.capture_every = 1.0
    drain(registry, bus)
    assert registry["crm"][Customer, 1].city == "Oslo"
