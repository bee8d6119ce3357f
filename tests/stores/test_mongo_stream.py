"""Capture by MongoDB's change stream: the conformance suite, and lost history."""

from __future__ import annotations

import itertools
import time

import pytest
from pymongo import DeleteOne, InsertOne, UpdateOne
from servers.mongodb import MongoServer

from eventsync.engine.change_source import MarkLostError
from eventsync.errors import StoreUnavailableError
from eventsync.stores.mongo import MongoAccessor
from eventsync.testing import SourceContract
from eventsync.testing.harness import Item
from eventsync.testing.sources import insert


@pytest.fixture(scope="module")
def server():
    with MongoServer() as running, running.client() as client:
        yield running.url, client


class TestStream(SourceContract):
    kind = "stream"
    installs = False
    truncates = True
    loses = True
    keyless = None
    keys_change = False
    unreadable = {"name": 5}  # noqa: RUF012
    databases = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.url, self.client = server
        self.names = {}

    def database(self, folder):
        return self.names.setdefault(folder, f"stream{next(self.databases)}")

    def accessor(self, record_type, folder):
        return MongoAccessor(record_type, f"{self.url}/{self.database(folder)}")

    def edit(self, folder, *edits):
        for one in edits:
            record = one.record_type.__record__
            documents = self.client[self.database(folder)][record.name]
            given = one.key if one.key is not None else one.values
            key = {name: given[name] for name in record.keys}
            natural = len(key) == 1
            id = next(iter(key.values())) if natural else record.key_of(key)
            if one.values is None:
                documents.bulk_write([DeleteOne({"_id": id})])
            elif one.key is None:
                values = {n: v for n, v in one.values.items() if not natural or n not in key}
                documents.bulk_write([InsertOne({"_id": id, **values})])
            else:
                documents.bulk_write([UpdateOne({"_id": id}, {"$set": dict(one.values)})])

    def truncate(self, folder, record_type):
        self.client[self.database(folder)].drop_collection(record_type.__record__.name)

    def lose(self, folder):
        """Make a collection anew, as a restore does."""
        database = self.client[self.database(folder)]
        found = list(database["Item"].find())
        database.drop_collection("Item")
        database["Item"].insert_many(found)


def test_the_moment_is_that_of_the_write(server, tmp_path):
    contract = TestStream()
    contract.url, contract.client = server
    contract.names = {}
    contract.setup_method()
    process = contract.running(tmp_path)
    began = time.time()
    contract.edit(tmp_path, insert(Item, id=1, name="Ada"))
    process.catch_up()
    (change,) = process.published()
    assert began - 0.1 <= change.version.millis / 1000 <= time.time()
    contract.teardown_method()


def test_a_token_of_another_server_is_lost(server, tmp_path):
    contract = TestStream()
    contract.url, contract.client = server
    contract.names = {}
    contract.setup_method()
    process = contract.running(tmp_path, insert(Item, id=1, name="Ada"))
    mark = process.source.changes("", wait=0.0).mark
    with MongoServer() as other, other.client() as client:
        client[contract.database(tmp_path)]["Item"].insert_one({"_id": 1})
        contract.url = other.url
        there = contract.process(tmp_path, process.bus)
        with pytest.raises(MarkLostError):
            there.source.open(mark)
        contract.teardown_method()


def test_a_server_that_is_killed_loses_nothing(tmp_path):
    with MongoServer() as server:
        contract = TestStream()
        contract.url, contract.names = server.url, {}
        with server.client() as contract.client:
            contract.setup_method()
            process = contract.running(tmp_path, insert(Item, id=1, name="Ada"))
            contract.edit(tmp_path, insert(Item, id=2, name="Ada"))
            server.stop()
            with pytest.raises(StoreUnavailableError):
                process.source.changes("", wait=0.0)
            server.start()
            process.follower.open()
            contract.edit(tmp_path, insert(Item, id=3, name="Ada"))
            process.catch_up()
            assert process.operations() == [("put", "2"), ("put", "3")]
            contract.teardown_method()


def test_a_dropped_database_makes_all_records_be_read(server, tmp_path):
    """Its stream ends; the next one continues after that."""
    contract = TestStream()
    (contract.url, contract.client), contract.names = server, {}
    contract.setup_method()
    process = contract.running(tmp_path)
    source = process.source
    contract.client.drop_database(contract.database(tmp_path))
    told = source.changes("", wait=5.0)
    assert "Item" in told.whole
    contract.edit(tmp_path, insert(Item, id=3, name="Ada"))
    keys: set[str] = set()
    while "3" not in keys:
        keys |= set(source.changes("", wait=5.0).keys.get("Item", {}))
    contract.teardown_method()
