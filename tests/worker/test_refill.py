"""A store that was emptied is reported, and filled again if it is declared with ``refill``."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
import subprocess
import sys

import pytest
import redis
from servers.redis import RedisServer
from support.waiting import eventually
from support.worker_harness import running

from eventsync.broker.bus import Bus
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.monitoring.problem import ProblemKind
from eventsync.records.record import Field, Record
from eventsync.stores.files import JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker

COUNT = 40


class Item(Record):
    id: int = Field(key=True)
    name: str = ""


class PerField(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""


@pytest.fixture(scope="module")
def server():
    with RedisServer() as server:
        yield server


class _Redis:
    """A Redis cache, flushed by another client: its versions are gone with the records."""

    def __init__(self, record_type, folder, server):
        self.client = redis.Redis(port=server.port)
        self.client.flushall()
        self.accessor = RedisAccessor(record_type, server.url)
        self.index = None

    def empty(self):
        self.client.flushall()


class _Keys(_Redis):
    """A Redis cache whose record keys somebody removed: its versions are kept."""

    def empty(self):
        name = self.accessor.type.name
        self.client.delete(*self.client.keys(f"{name}:*"))


class _Table:
    """A table, emptied by plain SQL."""

    def __init__(self, record_type, folder, server):
        self.path, self.name = folder / "cache.db", record_type.__record__.name
        self.accessor = SqlAccessor(record_type, f"sqlite:///{self.path}", create=True)
        self.index = None

    def empty(self):
        with sqlite3.connect(self.path) as connection:
            connection.execute(f"DELETE FROM {self.name}")
        connection.close()


class _Folder:
    """A folder of documents, removed as a whole."""

    def __init__(self, record_type, folder, server):
        self.path, self.index = folder / "documents", folder / "versions.db"
        self.accessor = JsonFolderAccessor(record_type, self.path)

    def empty(self):
        shutil.rmtree(self.path)


class _Documents(_Folder):
    """A folder whose documents were removed."""

    def empty(self):
        for path in self.path.glob("*.json"):
            path.unlink()


class _Lines(_Folder):
    """A file of JSON lines, removed."""

    def __init__(self, record_type, folder, server):
        self.path, self.index = folder / "lines" / "t.jsonl", folder / "versions.db"
        self.accessor = JsonLinesAccessor(record_type, self.path)

    def empty(self):
        self.path.unlink()


KINDS = [_Redis, _Keys, _Table, _Folder, _Documents, _Lines]


@pytest.fixture(params=KINDS, ids=lambda kind: kind.__name__[1:])
def kind(request):
    return request.param


@pytest.fixture(params=[Item, PerField])
def record_type(request):
    return request.param


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        yield bus


def deployment(kind, record_type, bus, folder, server, **options):
    """Return a source with records, the cache that has them, and what empties the cache."""
    foreign = kind(record_type, folder, server)
    cache = Store("cache", foreign.accessor, index=foreign.index, publisher=bus, **options)
    source = Store("crm", SqlAccessor(record_type, f"sqlite:///{folder / 'crm.db'}", create=True))
    for store in (cache, source):
        store.open(publisher=bus)
        bus.declare(store.name, store.accessors)
    source.add([record_type(id=n, name="old") for n in range(COUNT)])
    source.remove(source[record_type, 7])
    worker = Worker(cache, bus, peers=[source, cache])
    worker.drain(timeout=0.05)
    assert cache.count(record_type) == COUNT - 1
    return source, cache, worker, foreign


def rows(store, record_type):
    return {record.key: record.raw() for record in store.find(record_type)}


def test_an_emptied_store_is_filled_again(kind, record_type, bus, tmp_path, server):
    """With ``refill``, the worker fills the store from the others, and changes nothing there."""
    source, cache, worker, foreign = deployment(
        kind, record_type, bus, tmp_path, server, refill=True, capture_every=0.01
    )
    before = rows(source, record_type), dict(source.index.scan(record_type.__record__.name))
    foreign.empty()
    if isinstance(foreign, _Folder):
        # As the worker does while its store refuses to be used.
        worker.maintenance.accept_losses()
    worker.drain(timeout=0.05)
    assert rows(cache, record_type) == before[0]
    worker.drain(timeout=0.05)
    Worker(source, bus).drain(timeout=0.05)
    after = rows(source, record_type), dict(source.index.scan(record_type.__record__.name))
    assert after == before
    assert worker.progress.problems.present() == []
    # Afterwards it is a store as before: edits arrive, and deletes there are deletes.
    record = source[record_type, 1]
    record.name = "new"
    source.update(record)
    worker.drain(timeout=0.05)
    assert cache[record_type, 1].name == "new"
    foreign.accessor.remove("2")
    worker.drain(timeout=0.05)
    Worker(source, bus).drain(timeout=0.05)
    assert source.get(record_type, 2) is None
    assert source.count(record_type) == COUNT - 2


@pytest.mark.parametrize("capture_every", [None, 0.01])
def test_a_store_that_is_not_declared_so_is_only_reported(
    kind, record_type, bus, tmp_path, server, capture_every
):
    """Without ``refill`` the loss is a problem that names the command, until it was run."""
    source, cache, worker, foreign = deployment(
        kind, record_type, bus, tmp_path, server, capture_every=capture_every
    )
    name = record_type.__record__.name
    foreign.empty()
    try:
        worker.drain(timeout=0.05)
    finally:
        problems = worker.progress.problems.present()
    assert {one.kind for one in problems} <= {*ProblemKind} - {ProblemKind.OVERRUN}
    texts = " ".join(one.text for one in problems)
    assert f"eventsync sync --to cache --records {name}" in texts
    assert source.count(record_type) == COUNT - 1
    if isinstance(foreign, _Folder):
        return  # the store refuses to be written until somebody restores it or says refill
    assert cache.count(record_type) == 0
    StoreRegistry(source, cache).synchronize([record_type], targets=["cache"])
    worker.drain(timeout=0.05)
    assert worker.progress.problems.present() == []
    assert rows(cache, record_type) == rows(source, record_type)
    Worker(source, bus).drain(timeout=0.05)
    assert source.count(record_type) == COUNT - 1


def test_an_applied_change_does_not_hide_the_loss(record_type, bus, tmp_path, server):
    """After a flush, one record that arrives by the queue is not the end of the problem."""
    source, cache, worker, foreign = deployment(_Redis, record_type, bus, tmp_path, server)
    foreign.empty()
    worker.drain(timeout=0.05)
    record = source[record_type, 1]
    record.name = "new"
    source.update(record)
    for _ in range(3):
        worker.drain(timeout=0.05)
    (problem,) = worker.progress.problems.present()
    assert problem.kind is ProblemKind.LOSS
    # Nor is another worker that starts now.
    successor = Worker(cache, bus, peers=[source, cache])
    successor.drain(timeout=0.05)
    assert [one.kind for one in successor.progress.problems.present()] == [ProblemKind.LOSS]


def test_a_store_without_a_sound_source_waits(bus, tmp_path, server):
    """If the only other store has lost its records, too, the refill waits and says why."""
    _, cache, worker, foreign = deployment(_Redis, Item, bus, tmp_path, server, refill=True)
    with sqlite3.connect(tmp_path / "crm.db") as connection:
        connection.execute("CREATE TABLE saved AS SELECT * FROM Item")
        connection.execute("DELETE FROM Item")
    foreign.empty()
    worker.drain(timeout=0.05)
    (problem,) = worker.progress.problems.present()
    assert "no other store can fill the records of Item" in problem.text
    assert "the table Item is empty" in problem.text
    with sqlite3.connect(tmp_path / "crm.db") as connection:
        connection.execute("INSERT INTO Item SELECT * FROM saved")
    connection.close()
    worker.drain(timeout=0.05)
    assert worker.progress.problems.present() == []
    assert cache.count(Item) == COUNT - 1


KILLED = """
import os, signal, sys
from eventsync import Field, Record, Store
from eventsync.broker.bus import Bus
from eventsync.engine import refill
from eventsync.stores.redis import RedisAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.worker import Worker

class Item(Record):
    id: int = Field(key=True)
    name: str = ""

url, folder, at = sys.argv[1:]
refill._CHUNK = 5
copy, done = refill.Refill._copy, []

def stop(*arguments):
    os.kill(os.getpid(), signal.SIGKILL)

def dying(self, peer, keys):
    done.append(keys)
    if len(done) == 4 and at == "before":
        stop()
    held = copy(self, peer, keys)
    if len(done) == 4 and at == "after":
        stop()
    return held

refill.Refill._copy = dying
if at == "accept":
    refill.Refill.slices = stop
cache = Store("cache", RedisAccessor(Item, url), refill=True)
source = Store("crm", SqlAccessor(Item, f"sqlite:///{folder}/crm.db"))
with Bus(f"sqlite:///{folder}/broker.db") as bus:
    for store in (cache, source):
        store.open(publisher=bus)
    Worker(cache, bus, peers=[source, cache]).drain(timeout=0.05)
"""


@pytest.mark.parametrize("kind", [_Redis, _Keys])
@pytest.mark.parametrize("at", ["accept", "before", "after"])
def test_a_refill_that_was_killed_is_resumed(bus, tmp_path, server, kind, at):
    """A worker is killed with SIGKILL while it fills the store; the next one completes it."""
    source, cache, _, foreign = deployment(kind, Item, bus, tmp_path, server, refill=True)
    foreign.empty()
    arguments = [sys.executable, "-c", KILLED, server.url, str(tmp_path), at]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert cache.count(Item) < COUNT - 1
    again = Store("cache", RedisAccessor(Item, server.url), refill=True).open(publisher=bus)
    Worker(again, bus, peers=[source, again]).drain(timeout=0.05)
    assert rows(again, Item) == rows(source, Item)
    assert source.count(Item) == COUNT - 1


def test_a_flush_while_it_is_filled_begins_anew(bus, tmp_path, server):
    """The store is flushed again in the middle of a refill, while no worker runs."""
    source, cache, _, foreign = deployment(_Redis, Item, bus, tmp_path, server, refill=True)
    foreign.empty()
    arguments = [sys.executable, "-c", KILLED, server.url, str(tmp_path), "after"]
    assert subprocess.run(arguments, check=False).returncode == -signal.SIGKILL
    assert 0 < cache.count(Item) < COUNT - 1
    foreign.empty()
    again = Store("cache", RedisAccessor(Item, server.url), refill=True).open(publisher=bus)
    Worker(again, bus, peers=[source, again]).drain(timeout=0.05)
    assert rows(again, Item) == rows(source, Item)


def test_a_new_store_is_filled_at_its_first_start(bus, tmp_path, server):
    """A store that is added to a deployment takes the records of the others."""
    source = Store("crm", MemoryAccessor(Item), publisher=bus).open()
    bus.declare("crm", ["Item"])
    source.add([Item(id=n) for n in range(5)])
    cache = Store("cache", MemoryAccessor(Item), refill=True, publisher=bus).open()
    Worker(cache, bus, peers=[source, cache]).drain(timeout=0.05)
    assert cache.count(Item) == 5


def test_a_removed_folder_is_filled_by_a_running_worker(bus, tmp_path, server):
    """The worker waits for a folder that was removed; with ``refill`` it makes a new one."""
    source, cache, _, foreign = deployment(_Folder, Item, bus, tmp_path, server, refill=True)
    worker = Worker(cache, bus, peers=[source, cache], options=Options(retry_for=0.05))
    thread = running(worker)
    try:
        eventually(lambda: worker.progress.doing == "waiting")
        foreign.empty()
        record = source[Item, 1]
        record.name = "new"
        source.update(record)
        eventually(lambda: foreign.path.is_dir() and len(os.listdir(foreign.path)) >= COUNT - 1)
        eventually(lambda: cache[Item, 1].name == "new")
    finally:
        worker.stop()
        thread.join(10)
    assert rows(cache, Item) == rows(source, Item)


def test_a_source_that_was_behind_is_read_once_more(record_type, bus, tmp_path, server):
    """An edit that only the flushed store had made comes back, once its source has applied it."""
    source, cache, worker, foreign = deployment(
        _Redis, record_type, bus, tmp_path, server, refill=True
    )
    Worker(source, bus).drain(timeout=0.05)
    record = cache[record_type, 1]
    record.name = "of the cache"
    cache.update(record)
    worker.drain(timeout=0.05)  # the cache settles its own copy of the change
    foreign.empty()
    worker.drain(timeout=0.05)
    assert cache[record_type, 1].name == "old"  # the source has not applied the edit yet
    Worker(source, bus).drain(timeout=0.05)
    successor = Worker(cache, bus, peers=[source, cache])
    successor.drain(timeout=0.05)
    assert cache[record_type, 1].name == "of the cache"
    assert rows(cache, record_type) == rows(source, record_type)
    assert successor.progress.problems.present() == []
