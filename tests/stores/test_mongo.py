"""The MongoDB store, against a real server, or one that speaks its wire protocol."""

from __future__ import annotations

import datetime as dt
import itertools
import multiprocessing
import random
import time
from decimal import Decimal
from uuid import UUID

import pytest
from bson import Binary, Decimal128, ObjectId
from servers.mongodb import MongoServer

from eventsync.changes.clock import Version
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RejectedError, StoreUnavailableError
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.mongo import MongoAccessor, MongoIndex
from eventsync.testing import FakeBus, StoreContract
from eventsync.testing.fake import Crash
from eventsync.testing.harness import changed, put


@pytest.fixture(scope="module")
def server():
    with MongoServer() as running:
        yield running


class TestMongo(StoreContract):
    """The conformance suite, where each directory of the suite is a database of the server."""

    examples = 4  # each makes some databases
    databases = itertools.count()

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.url = server.url
        self.names = {}

    def accessor(self, record_type, folder, view=None):
        name = self.names.setdefault(folder, f"contract{next(self.databases)}")
        return MongoAccessor(record_type, f"{self.url}/{name}", view=view)

    def steps(self, store):
        return [(store.index.database, "write")]


class Customer(Record):
    id: int = Field(key=True)
    name: str = ""
    email: str | None = None
    visits: int = 0


class Counter(Record, rule="field"):
    id: int = Field(key=True)
    a: int = 0
    b: int = 0


@pytest.fixture
def shop(server):
    """An empty database, as somebody sees it who knows nothing of eventsync."""
    with server.client(tz_aware=True, uuidRepresentation="standard") as client:
        client.drop_database("shop")
        yield client["shop"]


@pytest.fixture
def url(server, shop):
    return f"{server.url}/shop"


NOW = int(time.time() * 1000) - 100_000


def version(step, now=NOW):
    return Version.of(now + step, 0, 7)


def outcomes(store, *changes):
    """Apply changes in one batch; what became of each."""
    return [settled.outcome for settled in apply(store, changes, clock=store.clock)]


def data(document):
    """A document without what eventsync adds to it."""
    return {name: held for name, held in document.items() if name != "_eventsync"}


def test_documents_as_others_write_them(shop, url):
    """A value has BSON's own type where there is one, and the key is the ``_id``."""

    class Thing(Record):
        id: int = Field(key=True)
        price: Decimal
        at: dt.datetime = Field(zoned=True)
        local: dt.datetime = Field(zoned=False)
        day: dt.date
        blob: bytes
        token: UUID
        tags: list[Decimal]
        more: dict
        note: str | None = None

    thing = Thing(
        id=2**40,
        price="19.90",
        at=dt.datetime(2026, 1, 2, 3, 4, 5, 678000, dt.UTC),
        local=dt.datetime(2026, 1, 2),
        day=dt.date(2026, 1, 2),
        blob=b"\0",
        token=UUID(int=5),
        tags=["1.50"],
        more={"a": [1, {"b": None}]},
    )
    with Store("crm", MongoAccessor(Thing, url)) as store:
        store.add(thing)
    assert data(shop["Thing"].find_one()) == {
        "_id": 2**40,
        "price": Decimal128("19.90"),
        "at": thing.at,
        "local": dt.datetime(2026, 1, 2, tzinfo=dt.UTC),
        "day": "2026-01-02",
        "blob": b"\0",
        "token": UUID(int=5),
        "tags": [Decimal128("1.50")],
        "more": {"a": [1, {"b": None}]},
        "note": None,
    }


def test_nothing_is_rounded(shop, url):
    """Values without a BSON type (microseconds, long numbers, some in dicts) read back equal."""

    class Fine(Record):
        id: int = Field(key=True)
        at: dt.datetime = Field(zoned=True)
        number: int
        price: Decimal
        more: dict

    fine = Fine(
        id=1,
        at=dt.datetime(2026, 1, 2, 3, 4, 5, 678901, dt.UTC),
        number=2**100,
        price=Decimal("0." + "1234567890" * 4),
        more={"day": dt.date(2026, 1, 2), "a.b": 1, "$c": 2**70},
    )
    with Store("crm", MongoAccessor(Fine, url)) as store:
        store.add([fine, Fine(**{**fine.raw(), "id": 2, "number": 2**200})])
        assert store[Fine, 1].raw() == fine.raw()
        assert store[Fine, 2]["number"] == 2**200
        assert [change for chunk in store.capture() for change in chunk] == []
    kept = shop["Fine"].find_one({"_id": 1})
    assert kept["at"] == "2026-01-02T03:04:05.678901+00:00"
    assert kept["number"] == Decimal128(str(2**100))
    assert kept["price"] == str(fine.price)
    assert isinstance(kept["more"], Binary)


def test_an_existing_collection(shop, url):
    """Documents with ObjectIds are records, and fields outside the view stay unchanged."""

    class Book(Record, rule="field"):
        id: str = Field(key=True)
        title: str
        price: Decimal | None = None

    first = ObjectId()
    shop["books"].insert_one({"_id": first, "title": "Emma", "shelf": {"row": 3}})
    view = View(convert={"id": Convert(ObjectId, str)})
    bus = FakeBus()
    with Store("crm", MongoAccessor(Book, url, collection="books", view=view), publisher=bus) as (
        store
    ):
        assert [c.key for chunk in store.capture() for c in chunk] == [str(first)]
        emma = store[Book, str(first)]
        assert emma.raw() == {"id": str(first), "title": "Emma", "price": None}
        emma.price = "5.00"
        store.update(emma)
        new = str(ObjectId())
        store.add(Book(id=new, title="Persuasion"))
        assert store.find(Book, {"id": new})
    held = data(shop["books"].find_one({"_id": first}))
    assert held == {
        "_id": first,
        "title": "Emma",
        "shelf": {"row": 3},
        "price": Decimal128("5.00"),
    }
    assert shop["books"].find_one({"_id": ObjectId(new)})["title"] == "Persuasion"
    assert [change.op for change in bus.changes()] == ["patch", "patch", "put"]


def test_a_key_that_is_not_the_id(shop, url):
    """A renamed key field is in the ``_id`` as text; another ``_id`` is an error."""
    view = View(rename={"id": "number"})
    with Store("crm", MongoAccessor(Customer, url, view=view)) as store:
        store.add(Customer(id=1, name="Ada"))
        assert shop["Customer"].find_one()["_id"] == "1"
        shop["Customer"].insert_one({"number": 2, "name": "by hand", "visits": 0})
        unreadable = []
        query = Query.parse(Customer.__record__, unreadable=unreadable.append)
        assert [c.id for c in store.accessor(Customer).find(query)] == [1]
        assert "must have the _id '2'" in str(unreadable[0])


def test_a_unique_index(shop, url):
    """A record that breaks a unique index is held alone; the error names index and document."""
    shop["Customer"].create_index("email", unique=True, sparse=True, name="one_email")
    shop["Customer"].insert_one({"_id": 7, "name": "Eve", "email": "secret@x", "visits": 0})
    bus = FakeBus()
    with Store("crm", MongoAccessor(Customer, url), publisher=bus) as store:
        batch = [
            put(Customer(id=n, email="secret@x" if n == 2 else f"{n}@x"), version(n))
            for n in range(4)
        ]
        settled = apply(store, batch, clock=store.clock)
        assert (settled[2].outcome, settled[2].error.reason) == (Outcome.HELD, "unique")
        assert "the document 7" in str(settled[2].error)
        assert "one_email" in str(settled[2].error)
        assert "secret" not in str(settled[2].error)
        assert Outcome.HELD not in [s.outcome for s in settled if s.change.key != "2"]
        assert sorted(c.id for c in store.find(Customer)) == [0, 1, 3, 7]
        assert [key for key, _ in store.index.scan("Customer")] == ["0", "1", "3"]
        with pytest.raises(RejectedError, match="one_email"):
            store.add(Customer(id=9, email="1@x"))
        one = store[Customer, 1]
        one.email = "3@x"
        with pytest.raises(RejectedError, match="one_email"):
            store.update(one)
        assert store[Customer, 1].email == "1@x"
        assert bus.changes() == []
        assert store.index.outgoing() == []
        shop["Customer"].delete_one({"_id": 7})
        assert outcomes(store, batch[2]) == [Outcome.APPLIED]
        taken = put(Customer(id=2, email="3@x"), version(50))
        chain = [put(Customer(id=3, email="0@x"), version(40)), taken]
        freed = put(Customer(id=0, email=None), version(30))
        settled = apply(store, [*reversed(chain), freed], clock=store.clock)
        assert {s.outcome for s in settled} <= {Outcome.APPLIED, Outcome.DUPLICATE}
        assert [store[Customer, n].email for n in (0, 2, 3)] == [None, "3@x", "0@x"]


def test_a_validator(shop, url):
    """A document that the collection's validator rejects is rejected, with the rule named."""
    rules = {"required": ["name"], "properties": {"visits": {"maximum": 9}}}
    shop.create_collection("Customer", validator={"$jsonSchema": rules})
    with Store("crm", MongoAccessor(Customer, url)) as store:
        with pytest.raises(RejectedError, match="visits"):
            store.add(Customer(id=1, visits=10))
        store.add(Customer(id=1, visits=9))
        assert store.index.counts("Customer")[1] == 1


def test_two_stores_need_two_indexes(url):
    """A second store of one type in one database is refused until it has an index of its own."""
    Store("a", MongoAccessor(Customer, url, collection="a")).open().close()
    refused = Store("b", MongoAccessor(Customer, url, collection="b"))
    with pytest.raises(ConfigError, match="index of its own"):
        refused.open()
    refused.close()
    index = MongoIndex(url, name="b")
    Store("b", MongoAccessor(Customer, url, collection="b"), index=index).open().close()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"collation": {"locale": "en", "strength": 2}}, "collation"),
        ({"capped": True, "size": 4096}, "capped"),
        ({"viewOn": "other", "pipeline": []}, "viewOn"),
    ],
    ids=["collation", "capped", "view"],
)
def test_collections_that_cannot_hold_records(shop, url, options, told):
    """A collection with a collation, or whose documents cannot be changed, is refused."""
    shop.create_collection("Customer", **options)
    store = Store("crm", MongoAccessor(Customer, url))
    with pytest.raises(ConfigError, match=told):
        store.open()
    store.close()


def test_nothing_but_a_key(shop, url):
    """A record that consists of its key alone is added, also by hand, and removed."""

    class Tag(Record):
        name: str = Field(key=True)

    with Store("crm", MongoAccessor(Tag, url)) as store:
        store.add(Tag(name="new"))
        accessor = store.accessor(Tag)
        accessor.add(Tag(name="by hand"))
        accessor.update(Tag(name="by hand"))
        assert [c.key for chunk in store.capture() for c in chunk] == ["by hand"]
        store.remove(store[Tag, "new"])
        assert [t["name"] for t in store.find(Tag)] == ["by hand"]


def test_a_document_that_is_too_large(shop, url):
    """A record larger than a document may be is rejected, not retried for ever."""
    with Store("crm", MongoAccessor(Customer, url)) as store:
        with pytest.raises(RejectedError):
            store.add(Customer(id=1, name="x" * 2**24))
        assert store.index.counts("Customer")[1] == 0


def test_a_database_of_the_callers(shop):
    """A database that the caller opened is used and left open."""
    store = Store("a", MongoAccessor(Customer, shop), MongoAccessor(Counter, shop))
    with store:
        store.add(Customer(id=1))
    assert shop["Customer"].count_documents({}) == 1


@pytest.mark.parametrize(
    "wrong", ["mongodb://u:s3cret@localhost", "http://u:s3cret@x/y", "mongodb://u:s3@cret@x/y", 7]
)
def test_refused_places(wrong):
    """A malformed URL is refused, and the error shows nothing of its password."""
    with pytest.raises(ConfigError) as caught:
        Store("a", MongoAccessor(Customer, wrong)).open()
    assert "s3" not in f"{caught.value!r} {caught.value.__cause__!r}"


def test_a_server_that_is_away():
    """An unreachable server is a retryable error, and is used again when it answers."""
    with MongoServer() as server:
        url = f"{server.url}/shop?serverSelectionTimeoutMS=300&socketTimeoutMS=1000"
        with Store("crm", MongoAccessor(Customer, url)) as store:
            store.add(Customer(id=1, name="Ada"))
            server.kill()
            with pytest.raises(StoreUnavailableError):
                store.get(Customer, 1)
            with pytest.raises(StoreUnavailableError):
                store.add(Customer(id=2))
            server.start()
            server.pause()
            with pytest.raises(StoreUnavailableError):
                store.get(Customer, 1)
            server.resume()
            store.add(Customer(id=3, name="Bob"))
            assert store[Customer, 1].name == "Ada"


def test_a_wrong_password():
    """A wrong password is a configuration error that does not show the password."""
    with MongoServer() as server:
        with server.client() as client:
            client.admin.command("createUser", "root", pwd="right", roles=["root"])
        server.stop()
        server.auth = True
        server.start()
        url = server.url.replace("://", "://root:{}@") + "/shop?authSource=admin"
        refused = Store("crm", MongoAccessor(Customer, url.format("s3cret")))
        with pytest.raises(ConfigError) as caught:
            refused.open()
        refused.close()
        assert "s3cret" not in f"{caught.value!r} {caught.value.__cause__!r}"
        assert "roles" in str(caught.value)
        with Store("crm", MongoAccessor(Customer, url.format("right"))) as store:
            store.add(Customer(id=1))


def dying(store, number):
    """Let the process die at the ``number``-th write from now on, until the result is called."""
    database, write = store.index.database, store.index.database.write
    left = itertools.count(1)

    def failing(*arguments):
        if next(left) >= number:
            raise Crash
        return write(*arguments)

    database.write = failing
    return lambda: vars(database).pop("write")


def test_the_relay_finishes_what_a_writer_left(shop, url):
    """A writer that dies after its entry and before its document has made its edit all the same."""
    bus = FakeBus()
    with Store("crm", MongoAccessor(Customer, url), publisher=bus) as store:
        revive = dying(store, 2)
        with pytest.raises(Crash):
            store.add(Customer(id=1, name="Ada"))
        revive()
        assert shop["Customer"].find_one() is None
        assert store.flush() == 1
        assert shop["Customer"].find_one()["name"] == "Ada"
        assert shop["eventsync_version"].find_one({"step": {"$exists": True}}) is None


def test_opening_finishes_what_a_writer_left(shop, url):
    """The edit is also finished when a store without a publisher is opened again."""
    with Store("crm", MongoAccessor(Customer, url)) as store:
        revive = dying(store, 2)
        with pytest.raises(Crash):
            apply(store, [put(Customer(id=1, name="Ada"), version(1))], clock=store.clock)
        revive()
    with Store("crm", MongoAccessor(Customer, url)) as store:
        assert store[Customer, 1].name == "Ada"


@pytest.mark.parametrize("last", ["put", "delete"])
def test_a_writer_that_stalls(shop, url, last):
    """A writer that is overtaken between entry and document overwrites nothing later."""
    with Store("slow", MongoAccessor(Customer, url)) as slow:
        database, write = slow.index.database, slow.index.database.write

        def stalling(name, operations):
            if name == "Customer":
                vars(database).pop("write")
                with Store("quick", MongoAccessor(Customer, url)) as quick:
                    later = put(Customer(id=1, name="later"), version(2))
                    if last == "delete":
                        later = changed(Customer, "1", "delete", version(2), None)
                    assert outcomes(quick, later) == [Outcome.APPLIED]
            return write(name, operations)

        database.write = stalling
        assert outcomes(slow, put(Customer(id=1, name="slow"), version(1))) == [Outcome.APPLIED]
        held = shop["Customer"].find_one()
        assert held is None if last == "delete" else held["name"] == "later"
        assert [change for chunk in slow.capture() for change in chunk] == []


def _patch_many(url, number, now):
    """In a process of its own: apply patches that all others apply too, in an order of its own."""
    rng = random.Random(number)
    puts = [put(Customer(id=n % 5, visits=n), version(n, now)) for n in range(60)]
    patches = [
        changed(Counter, str(n % 5), "patch", version(100 + n, now), {"ab"[n % 2]: n})
        for n in range(60)
    ]
    changes = [*puts, *patches]
    rng.shuffle(changes)
    seen = {}
    with Store("crm", MongoAccessor(Customer, url), MongoAccessor(Counter, url)) as store:
        while changes:
            batch = [changes.pop() for _ in range(min(7, len(changes)))]
            for settled in apply(store, batch, clock=store.clock):
                seen[settled.outcome] = seen.get(settled.outcome, 0) + 1
    assert set(seen) <= {"applied", "stale", "duplicate", "superseded"}


def test_workers_on_the_same_records(url):
    """When many workers apply the same changes in any order, the latest of each field wins."""
    with Store("crm", MongoAccessor(Customer, url), MongoAccessor(Counter, url)) as store:
        apply(store, [put(Counter(id=n), version(0)) for n in range(5)], clock=store.clock)
        spawn = multiprocessing.get_context("spawn")
        workers = [spawn.Process(target=_patch_many, args=(url, n, NOW)) for n in range(3)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        assert {c.id: c.visits for c in store.find(Customer)} == {n: 55 + n for n in range(5)}
        held = {c.id: {c.a, c.b} for c in store.find(Counter)}
        assert held == {n: {50 + n, 55 + n} for n in range(5)}
        assert [change for chunk in store.capture() for change in chunk] == []


def test_a_document_that_another_puts_back(shop, url):
    """A foreign write is an edit, even if the document bears eventsync's number."""
    bus = FakeBus()
    with Store("crm", MongoAccessor(Customer, url), publisher=bus) as store:
        store.add(Customer(id=1, name="Ada"))
        document = shop["Customer"].find_one()
        shop["Customer"].delete_one({"_id": 1})
        assert [c.op for chunk in store.capture(deletes=1.0) for c in chunk] == ["delete"]
        shop["Customer"].insert_one(document)
        assert [c.op for chunk in store.capture() for c in chunk] == ["put"]
        assert [change.op for change in bus.changes()] == ["put", "delete", "put"]
        assert outcomes(store, put(Customer(id=1, name="old"), version(1))) == [Outcome.STALE]
