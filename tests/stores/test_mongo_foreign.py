"""MongoDB that others write to: odd values, ObjectIds, edits beside ours, and what errors mean."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any
from zoneinfo import ZoneInfo

import bson
import pytest
from bson import Binary, Decimal128, Int64, ObjectId, Regex
from pymongo import errors as driver
from servers.mongodb import MongoServer

from eventsync.changes.change import BaseState
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PATCH
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import (
    ConfigError,
    RecordError,
    RejectedError,
    StoreError,
    StoreUnavailableError,
)
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.mongo import MongoAccessor
from eventsync.stores.mongo.database import MEANINGS, Database
from eventsync.testing.harness import changed, put


class Thing(Record):
    id: int = Field(key=True)
    count: int = 0
    price: Decimal = Decimal(0)
    at: dt.datetime | None = Field(default=None, zoned=True)
    tags: list[str] = Field(default_factory=list)
    more: Any = None


class Note(Record, rule="field"):
    id: int = Field(key=True)
    a: str = ""
    b: str = ""


class Person(Record):
    id: str = Field(key=True)
    name: str = ""


@pytest.fixture(scope="module")
def server():
    with MongoServer() as running:
        yield running


@pytest.fixture
def shop(server):
    with server.client(tz_aware=True) as client:
        client.drop_database("shop")
        yield client["shop"]


@pytest.fixture
def url(server, shop):
    return f"{server.url}/shop"


def captured(store):
    errors = []
    keys = [change.key for changes in store.capture(unreadable=errors.append) for change in changes]
    return sorted(keys), [str(error) for error in errors]


def deep(levels):
    value = 1
    for _ in range(levels):
        value = [value]
    return value


BAD = [
    ("count", Decimal128("1E+6144")),
    ("count", Decimal128("NaN")),
    ("price", Decimal128("sNaN")),
    ("price", Decimal128("Infinity")),
    ("price", Decimal128("1E+6111")),
    ("tags", "[broken"),
    ("tags", None),
    ("more", deep(60)),
    ("more", Regex("x")),
    ("more", Binary(b"\xff\xff", 128)),
    ("at", "infinity"),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=[f"{n}-{v!r:.20}" for n, v in BAD])
def test_a_value_that_cannot_be_held_affects_its_record_only(shop, url, name, value):
    """Its document is passed over with type and key named; page, capture and find go on."""
    shop["Thing"].insert_many([{"_id": 1}, {"_id": 2, name: value}, {"_id": 3}])
    with Store("catalogue", MongoAccessor(Thing, url)) as store:
        keys, errors = captured(store)
        assert keys == ["1", "3"]
        assert len(errors) == 1
        if "digits" not in errors[0]:
            assert "Thing 2" in errors[0]
        assert captured(store)[0] == []


def test_text_that_is_no_utf_8_is_its_document_s_failure(url):
    """A string that another driver wrote without care is read, and refused by its field."""
    body = b"\x02_id\x00\x02\x00\x00\x00b\x00" + b"\x02name\x00\x03\x00\x00\x00\xff\xfe\x00"
    raw = (len(body) + 5).to_bytes(4, "little") + body + b"\x00"
    with Store("catalogue", MongoAccessor(Person, url)) as store:
        options = store.accessor(Person).database.collection("Person").codec_options
        document = bson.decode(raw, options)
        with pytest.raises(RecordError, match=r"Person 'b': Person\.name"):
            store.accessor(Person)._record(document)


# -- two documents that a key takes for one --------------------------------------------------------


def test_an_object_id_is_not_a_text(shop, url):
    """A document with an ObjectId is not taken for the record of the key with its text."""
    shop["Person"].insert_one({"_id": "ada", "name": "Ada"})
    id = shop["Person"].insert_one({"name": "theirs"}).inserted_id
    with Store("catalogue", MongoAccessor(Person, url)) as store:
        keys, errors = captured(store)
        assert keys == ["ada"]
        assert "ObjectId" in errors[0]
        (settled,) = apply(
            store, [put(Person(id=str(id), name="ours"), store.clock.tick())], clock=store.clock
        )
        assert settled.outcome is Outcome.REJECTED
        with pytest.raises((RejectedError, RecordError), match="ObjectId"):
            store.add(Person(id=str(id), name="ours"))
        assert [each["name"] for each in shop["Person"].find({"_id": id})] == ["theirs"]
        assert shop["Person"].count_documents({}) == 2
        # A key that looks like an ObjectId, of which there is none, is a key like any other.
        store.add(Person(id=str(ObjectId()), name="ours"))


def test_a_collection_of_object_ids_is_refused_at_open(shop, url):
    """Nothing is written where every document would be misread, and the hint says what to do."""
    shop["Person"].insert_many([{"name": "a"}, {"name": "b"}])
    refused = Store("catalogue", MongoAccessor(Person, url))
    with pytest.raises(ConfigError, match=r"ObjectId.*Convert\(ObjectId, str\)"):
        refused.open()
    refused.close()
    view = View(convert={"id": Convert(ObjectId, str)})
    with Store("catalogue", MongoAccessor(Person, url, view=view)) as store:
        assert len(captured(store)[0]) == 2
        for person in store.find(Person):
            person.name = "new"
            store.update(person)
        assert [each["name"] for each in shop["Person"].find()] == ["new", "new"]


@pytest.mark.parametrize(
    ("theirs", "declared"), [(Binary(b"k", 5), bytes), ("1", int), (1.5, int), (True, int)], ids=str
)
def test_an_id_of_another_type_is_named(shop, url, theirs, declared):
    """An ``_id`` that MongoDB does not take for the record's is unreadable, never overwritten."""

    class Item(Record):
        id: declared = Field(key=True)
        name: str = ""

    shop["Item"].insert_one({"_id": theirs, "name": "theirs"})
    with Store("catalogue", MongoAccessor(Item, url)) as store:
        keys, errors = captured(store)
        assert keys == []
        assert len(errors) == 1
        assert shop["Item"].find_one({"_id": theirs})["name"] == "theirs"


@pytest.mark.parametrize("theirs", [1, 1.0, Int64(1), Decimal128("1.0")], ids=repr)
def test_numbers_that_are_one_id_are_one_record(shop, url, theirs):
    """MongoDB takes these numbers for one ``_id``, and so does eventsync."""
    shop["Note"].insert_one({"_id": theirs, "a": "theirs"})
    with Store("catalogue", MongoAccessor(Note, url)) as store:
        assert captured(store) == (["1"], [])
        store.update(Note(id=1, a="new"))
        assert shop["Note"].count_documents({}) == 1
        assert shop["Note"].find_one()["a"] == "new"


# -- a patch changes the fields it names -----------------------------------------------------------


def test_a_patch_leaves_what_somebody_edited(shop, url):
    """A patch of one field does not write back another that was edited there."""
    with Store("catalogue", MongoAccessor(Note, url)) as store:
        now = int(store.clock.now() * 1000)
        first, later = Version.of(now - 5000, 0, 1), Version.of(now - 4000, 0, 1)
        apply(store, [put(Note(id=1, a="a", b="b"), first)], clock=store.clock)
        shop["Note"].update_one({"_id": 1}, {"$set": {"b": "edited", "theirs": 1.5}})
        patch = changed(Note, "1", PATCH, later, {"a": "new"})
        patch.known = BaseState(store.index.scan("Note")[0][1].stamp, {"b": "b"}, {})
        apply(store, [patch], clock=store.clock)
        note = store.get(Note, 1)
        assert (note.a, note.b) == ("new", "edited")
        (changes,) = store.capture()
        assert changes[0].data == {"b": "edited"}
        assert shop["Note"].find_one({"_id": 1})["theirs"] == 1.5


def test_the_second_half_past_two_in_october(url):
    """A datetime in a repeated hour keeps its instant in a field, a dict and a key."""

    class Event(Record):
        at: dt.datetime = Field(key=True, zoned=True)
        ends: dt.datetime = Field(zoned=True)
        more: Any = None

    zone = ZoneInfo("Europe/Berlin")
    moments = [dt.datetime(2024, 10, 27, 2, 30, fold=fold, tzinfo=zone) for fold in (0, 1)]
    with Store("catalogue", MongoAccessor(Event, url)) as store:
        store.add([Event(at=each, ends=each, more={"at": each}) for each in moments])
        for each in moments:
            found = store.get(Event, each)
            assert found.ends.astimezone(dt.UTC) == each.astimezone(dt.UTC)
            assert found.raw()["more"]["at"].astimezone(dt.UTC) == each.astimezone(dt.UTC)
        assert captured(store) == ([], [])


# -- what errors mean ------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "meaning"), MEANINGS.items())
def test_what_an_error_code_means(code, meaning):
    """Each row of the table, as the answer to a command and as that to one of many writes."""
    database = Database("mongodb://localhost/shop")
    problem = {"code": code, "errmsg": "something", "index": 0}
    assert type(database.error_of("things", problem)) is meaning
    expected = meaning
    with pytest.raises(expected), database.errors("things"):
        raise driver.WriteError("something", code, problem)
    if not issubclass(meaning, RejectedError):
        with pytest.raises(expected), database.errors("things"):
            raise driver.OperationFailure("something", code, problem)


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (driver.ServerSelectionTimeoutError("away"), StoreUnavailableError),
        (driver.AutoReconnect("cut"), StoreUnavailableError),
        (driver.NetworkTimeout("late"), StoreUnavailableError),
        (driver.NotPrimaryError("demoted"), StoreUnavailableError),
        (driver.ConfigurationError("wrong"), ConfigError),
        (driver.DocumentTooLarge("large"), RejectedError),
        (driver.OperationFailure("odd", 999_999), StoreError),
        (driver.ExecutionTimeout("late", 50), StoreUnavailableError),
        (OSError(111, "refused"), StoreUnavailableError),
    ],
    ids=repr,
)
def test_what_an_error_of_the_driver_means(error, meaning):
    """What no code of the server says."""
    with pytest.raises(meaning), Database("mongodb://localhost/shop").errors("things"):
        raise error


# -- a store that was emptied ----------------------------------------------------------------------


def test_a_dropped_database_is_noticed(shop, url):
    """A database that was dropped with its versions publishes no deletes, and is told."""
    with Store("catalogue", MongoAccessor(Note, url)) as store:
        store.add([Note(id=n) for n in range(20)])
        accessor = store.accessor(Note)
        assert accessor.loss() is None
        shop.client.drop_database("shop")
        assert "are gone" in accessor.loss()
        assert captured(store) == ([], [])
        accessor.accept_loss()
        assert accessor.loss() is None
        store.add([Note(id=n) for n in range(20)])
        shop["Note"].delete_many({"_id": {"$lt": 15}})
        assert accessor.loss().startswith("15 of 20")
        assert accessor.accept_loss() == 15
        assert accessor.loss() is None
        store.add([Note(id=n) for n in range(15)])
        assert store.count(Note) == 20
