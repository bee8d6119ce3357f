"""A store that comes back empty, or half empty, while edits wait for it, deletes nothing."""

from __future__ import annotations

import json
import sqlite3

import pytest

from eventsync.broker.bus import Bus
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import SuspiciousReadError
from eventsync.records.record import Field, Record
from eventsync.stores.files import CsvAccessor, JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.worker import Worker

COUNT = 30


class PerRecord(Record):
    id: int = Field(key=True)
    name: str = ""


class PerField(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""


class _Sql:
    """A table, edited by plain SQL."""

    def __init__(self, record_type, folder):
        self.path = folder / "t.db"
        self.accessor = SqlAccessor(record_type, f"sqlite:///{self.path}", create=True)
        self.name = record_type.__record__.name

    def remove(self, keys):
        with sqlite3.connect(self.path) as connection:
            connection.executemany(f"DELETE FROM {self.name} WHERE id = ?", [(k,) for k in keys])
        connection.close()


class _Folder:
    """A folder of documents, edited by removing files."""

    def __init__(self, record_type, folder):
        self.path = folder / "documents"
        self.accessor = JsonFolderAccessor(record_type, self.path, create=True)

    def remove(self, keys):
        for key in keys:
            (self.path / f"{key}.json").unlink()
        if not any(self.path.glob("*.json")):
            (self.path / ".eventsync-empty").touch()  # without it, the folder is refused


class _Lines:
    """A file of JSON lines, edited by removing lines."""

    def __init__(self, record_type, folder):
        self.path = folder / "t.jsonl"
        self.accessor = JsonLinesAccessor(record_type, self.path)

    def remove(self, keys):
        lines = self.path.read_text().splitlines(keepends=True)
        kept = [line for line in lines if json.loads(line)["id"] not in keys]
        self.path.write_text("".join(kept) or "\n")  # an empty file is refused as it is


class _Csv:
    """A table in a file, edited by removing lines."""

    def __init__(self, record_type, folder):
        self.path = folder / "t.csv"
        self.accessor = CsvAccessor(record_type, self.path)

    def remove(self, keys):
        head, *lines = self.path.read_text().splitlines(keepends=True)
        gone = {str(key) for key in keys}
        self.path.write_text(
            "".join([head, *(line for line in lines if line.split(",")[0] not in gone)])
        )


class _Memory:
    """Records in memory, removed behind the store's back."""

    def __init__(self, record_type, folder):
        self.accessor = MemoryAccessor(record_type)

    def remove(self, keys):
        for key in keys:
            self.accessor.remove(str(key))


@pytest.fixture(params=[_Sql, _Folder, _Lines, _Csv, _Memory], ids=lambda kind: kind.__name__[1:])
def kind(request):
    """Return a kind of store and its foreign writer."""
    return request.param


@pytest.fixture(params=[PerRecord, PerField])
def record_type(request):
    return request.param


@pytest.fixture
def stores(kind, record_type, tmp_path):
    """Return a bus, a captured store with its foreign writer, and another store: 30 records."""
    foreign = kind(record_type, tmp_path)
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        captured = Store("captured", foreign.accessor, publisher=bus, capture_every=0.01)
        other = Store("other", MemoryAccessor(record_type), publisher=bus)
        for store in (captured, other):
            store.open()
            bus.declare(store.name, store.accessors)
        other.add([record_type(id=i, name="old") for i in range(COUNT)])
        settle(bus, captured, other)
        assert captured.count(record_type) == COUNT
        yield bus, captured, foreign, other
        captured.close()


def settle(bus, *stores):
    """Let a worker of each store apply what waits, until nothing waits any more."""
    for _ in range(3):
        for store in stores:
            Worker(store, bus).drain(timeout=0.05)


def edit(record_type, store, count):
    """Edit the first records through a store."""
    for i in range(count):
        record = store[record_type, i]
        record.name = "new"
        store.update(record)


def names(record_type, store):
    return {record.id: record.name for record in store.find(record_type)}


@pytest.mark.parametrize("waiting", [5, 25])
def test_emptied_store_deletes_nothing(stores, record_type, waiting):
    """All records are gone from a store while edits wait: the edits are applied, none is lost."""
    bus, captured, foreign, other = stores
    foreign.remove(range(COUNT))
    edit(record_type, other, waiting)
    settle(bus, captured, other)
    expected = {i: "new" if i < waiting else "old" for i in range(COUNT)}
    assert names(record_type, other) == expected
    assert names(record_type, captured) == dict.fromkeys(range(waiting), "new")


def test_half_emptied_store_deletes_nothing(stores, record_type):
    """Most records are gone, those of the waiting edits among them."""
    bus, captured, foreign, other = stores
    foreign.remove(range(20))
    edit(record_type, other, 3)
    settle(bus, captured, other)
    assert len(names(record_type, other)) == COUNT


def test_few_deletes_are_captured_before_edits(stores, record_type):
    """Somebody deletes three records while an edit of one of them waits: the deletes are real."""
    bus, captured, foreign, other = stores
    foreign.remove(range(3))
    edit(record_type, other, 1)
    settle(bus, captured, other)
    assert set(names(record_type, other)) == set(range(3, COUNT))
    assert set(names(record_type, captured)) == set(range(3, COUNT))


def test_refilled_store_captures_deletes_again(stores, record_type):
    """Once the store has all records again, what somebody deletes there is a delete."""
    bus, captured, foreign, other = stores
    foreign.remove(range(COUNT))
    edit(record_type, other, 25)
    settle(bus, captured, other)
    with pytest.raises(SuspiciousReadError, match="5 of 30 known records"):
        list(captured.capture())
    with StoreRegistry(captured, other) as registry:
        registry.synchronize(sources=["other"], targets=["captured"])
    assert len(names(record_type, captured)) == COUNT
    settle(bus, captured, other)
    foreign.remove([1])
    settle(bus, captured, other)
    assert set(names(record_type, other)) == set(range(COUNT)) - {1}


def test_allowed_deletes_are_captured(stores, record_type):
    """Somebody says that the store was emptied on purpose."""
    bus, captured, foreign, other = stores
    foreign.remove(range(COUNT))
    edit(record_type, other, 25)
    settle(bus, captured, other)
    list(captured.capture(deletes=1.0))
    settle(bus, captured, other)
    assert set(names(record_type, other)) == set(range(25))
