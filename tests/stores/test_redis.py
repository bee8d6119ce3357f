"""The Redis store, against a real server."""

from __future__ import annotations

import itertools
import multiprocessing
import random
import threading
import time

import pytest
import redis
import redis.cluster
from servers.redis import ClusterServer, RedisServer
from support.waiting import eventually

from eventsync.changes.clock import Version
from eventsync.engine.accessor import Write
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, EventSyncError, StoreUnavailableError
from eventsync.records.record import Field, Record
from eventsync.records.view import Convert, View
from eventsync.stores.redis import RedisAccessor, RedisIndex
from eventsync.testing import FakeBus, StoreContract
from eventsync.testing.harness import changed, put


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


class _OnRedis(StoreContract):
    """A folder of the suite is a hash tag of the server."""

    layout = "hash"

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.url = server.url
        self.tags = {}
        self.numbers = itertools.count()
        with server.client() as client:
            client.flushdb()

    def accessor(self, record_type, folder, view=None):
        tag = self.tags.setdefault(folder, f"s{next(self.numbers)}")
        return RedisAccessor(
            record_type,
            self.url,
            key=f"{{{{{tag}}}}}:{record_type.__record__.name}:{{key}}",
            layout=self.layout,
            view=view,
        )


class TestHashes(_OnRedis):
    """The conformance suite on hashes."""


class TestJson(_OnRedis):
    """The conformance suite on JSON strings."""

    layout = "json"


class Customer(Record):
    id: int = Field(key=True)
    name: str = ""
    city: str | None = None
    visits: int = 0


class Counter(Record, rule="field"):
    id: int = Field(key=True)
    name: str = ""
    total: int = 0


@pytest.fixture
def client(server):
    with server.client() as made:
        made.flushdb()
        yield made


def sent(store, record, version):
    """Apply the creation of a record at a version; the outcome."""
    (settled,) = apply(store, [put(record, version)], clock=store.clock)
    return settled.outcome


NOW = int(time.time() * 1000) - 100_000


def version(step, node=7, now=NOW):
    return Version.of(now + step, 0, node)


def test_people_can_read_it(server, client):
    """A hash has a text field for each field that is not ``None``; a JSON string is plain JSON."""
    customer = Customer(id=1, name="Zoë", visits=3)
    with Store("crm", RedisAccessor(Customer, server.url, key="customer:{id}")) as store:
        store.add(customer)
        assert client.hgetall("customer:1") == {
            b"id": b"1",
            b"name": "Zoë".encode(),
            b"visits": b"3",
        }
        client.hset("customer:2", mapping={"name": "by hand"})
        assert store[Customer, 2].raw() == {"id": 2, "name": "by hand", "city": None}
    accessor = RedisAccessor(Customer, server.url, key="doc:{id}", layout="json")
    with Store("doc", accessor, index=RedisIndex(server.url, slot="doc")) as store:
        store.add(customer)
        assert client.get("doc:1") == '{"id":1,"name":"Zoë","city":null,"visits":3}'.encode()


def test_versions_are_compared_byte_by_byte(server, client):
    """Versions are ordered by their bytes, which Lua's numbers or a locale would not do."""
    with Store("crm", RedisAccessor(Customer, server.url)) as store:
        nodes = [0, 1, 0x41, 0x61, 0x7F, 0x80, 0xFF, 0x100, 1 << 53, (1 << 53) + 1, (1 << 64) - 1]
        for number, (low, high) in enumerate(itertools.pairwise(nodes)):
            older, newer = version(0, low), version(0, high)
            assert sent(store, Customer(id=number, name="newer"), newer) is Outcome.APPLIED
            assert sent(store, Customer(id=number, name="older"), older) is Outcome.STALE
            assert sent(store, Customer(id=number, name="newer"), newer) is Outcome.DUPLICATE
            assert store[Customer, number].name == "newer"
            assert sent(store, Customer(id=-1 - number), older) is Outcome.APPLIED
            assert sent(store, Customer(id=-1 - number, visits=1), newer) is Outcome.APPLIED
            assert store[Customer, -1 - number].visits == 1


def test_keys_that_look_like_others(server, client):
    """For any key fields, no two records share a Redis key, and none leaves its hash slot."""
    visit = Record.derive(
        "Visit", {"place": Field(type=str, key=True), "who": Field(type=str, key=True)}
    )
    hostile = ["", ":", "a:b", "}{", "{x}", "%", "%3A", "*", "?", "[a-z]", "\0", "é", "a\nb", "\\"]
    pairs = [(p, w) for p in hostile for w in hostile if p or w]
    accessor = RedisAccessor(visit, server.url, key="{{t}}:v:{place}:{who}")
    with Store("crm", accessor) as store:
        store.add([visit(place=place, who=who) for place, who in pairs])
        client.set("{t}:v:another", "thing")
        client.hset("{t}:v:no-visit-at-all", mapping={"place": "x"})
        names = [n.decode() for n in client.keys("{t}:v:*:*")]
        assert len(set(names)) == len(pairs)
        assert all(name.count("{") == name.count("}") == 1 for name in names)
        assert {(r["place"], r["who"]) for r in store.find(visit)} == set(pairs)
        assert store.count(visit) == len(pairs)
        assert [change for chunk in store.capture() for change in chunk] == []


@pytest.mark.parametrize(
    "pattern", ["customer", "customer:{nam}", "{id}:{id}", "c:{id!r}", "c:{id", "{key}{id}"]
)
def test_refused_patterns(server, pattern):
    """A pattern that could give two records one key is refused with the reason."""
    with pytest.raises(ConfigError, match="pattern"):
        RedisAccessor(Customer, server.url, key=pattern)


def test_expired_is_not_deleted(server, client):
    """An expired record is not deleted elsewhere, and a newer change restores it."""
    bus = FakeBus()
    accessor = RedisAccessor(Customer, server.url, key="c:{id}", ttl=30)
    with Store("cache", accessor, publisher=bus) as store:
        for number in range(12):
            sent(store, Customer(id=number, name="Ada"), version(number))
        assert 0 < client.pttl("c:1") <= 30_000
        client.delete(*client.keys("c:*"))  # as the server does when their time has come
        assert [change for chunk in store.capture() for change in chunk] == []
        assert bus.changes() == []
        assert sent(store, Customer(id=1, name="old"), version(0)) is Outcome.STALE
        assert store.get(Customer, 1) is None
        assert sent(store, Customer(id=1, name="new"), version(99)) is Outcome.APPLIED
        assert store[Customer, 1].name == "new"
    with Store("kept", RedisAccessor(Customer, server.url, key="c:{id}"), publisher=bus) as store:
        client.delete("c:1")
        deletes = [change for chunk in store.capture(deletes=1.0) for change in chunk]
        assert {change.op for change in deletes} == {"delete"}


@pytest.mark.parametrize("layout", ["hash", "json"])
def test_index_sets(server, client, layout):
    """After every change, an index set finds what reading all records finds."""
    accessor = RedisAccessor(
        Customer, server.url, key="c:{id}", layout=layout, indexes=["city", "visits"]
    )
    with Store("crm", accessor) as store:
        store.add([Customer(id=n, city=["Rome", "Oslo", None, ""][n % 4]) for n in range(12)])
        moved = store[Customer, 0]
        moved.city = "Oslo"
        store.update(moved)
        store.remove(store[Customer, 1])
        sent(store, Customer(id=4, city=None), Version.of(int(time.time() * 1000) + 3000, 0, 1))
        foreign = RedisAccessor(
            Customer, server.url, key="c:{id}", layout=layout, indexes=["city", "visits"]
        )
        edited = foreign.get("5")
        edited["city"], edited["visits"] = "Rome", 7
        foreign.update(edited)
        found = {r.id for r in store.find(Customer, {"city": "Oslo"})}
        assert found == {r.id for r in store.find(Customer) if r.city == "Oslo"} == {0, 9}
        cities = {"city": {"$in": ["Rome", "Oslo"]}}
        assert {r.id for r in store.find(Customer, cities)} == {0, 9, 5, 8}
        assert [r.id for r in store.find(Customer, {"visits": 7, "city": "Rome"})] == [5]
        assert store.count(Customer, {"city": ""}) == 3
        assert client.smembers("eventsync:{eventsync}:by:Customer:city:Oslo") == {b"0", b"9"}
        assert not client.exists("eventsync:{eventsync}:by:Customer:city:")
    if layout == "hash":
        client.hset("c:2", "city", "Oslo")
        with store:
            assert sorted(c.key for chunk in store.capture() for c in chunk) == ["2", "5"]
            assert {r.id for r in store.find(Customer, {"city": "Oslo"})} == {0, 9, 2}


@pytest.mark.parametrize("layout", ["hash", "json"])
def test_conversion_that_alters(server, client, layout):
    """A patch whose value a conversion alters is not taken for a foreign write."""
    view = View(convert={"name": Convert(str.upper, str.lower)})
    accessor = RedisAccessor(Counter, server.url, layout=layout, view=view)
    with Store("crm", accessor) as store:
        sent(store, Counter(id=1, name="Lamp", total=1), version(1))
        patches = [
            changed(Counter, "1", "patch", version(2), {"name": "Chair"}),
            changed(Counter, "1", "patch", version(3), {"total": 2}),
        ]
        for patch in patches:
            apply(store, [patch], clock=store.clock)
            assert [change for chunk in store.capture() for change in chunk] == []
        assert store[Counter, 1].raw() == {"id": 1, "name": "chair", "total": 2}


def test_lost_answer(server, client):
    """An edit that the client repeats because its answer was lost is made and sent once."""
    bus = FakeBus()
    store = Store("crm", RedisAccessor(Customer, server.url), publisher=bus)
    commit = store.index._commit
    store.index._commit = lambda *arguments: [commit(*arguments) for _ in range(2)][1]
    with store:
        store.add(Customer(id=1, name="Ada"))
        ada = store[Customer, 1]
        ada.name = "Ada L."
        store.update(ada)
        store.remove(ada)
    assert [change.op for change in bus.changes()] == ["put", "put", "delete"]


def test_key_of_another_kind(server, client):
    """A record whose Redis key holds a list is rejected alone, with the key named."""
    client.rpush("c:2", "not", "ours")
    with Store("crm", RedisAccessor(Customer, server.url, key="c:{id}")) as store:
        batch = [put(Customer(id=n), version(n)) for n in (1, 2, 3)]
        settled = apply(store, batch, clock=store.clock)
        assert [s.outcome for s in settled] == ["applied", "rejected", "applied"]
        assert "c:2" in str(settled[1].error)
        assert client.lrange("c:2", 0, -1) == [b"not", b"ours"]
        assert client.exists("c:1", "c:3") == 2


def test_two_stores_need_two_slots(server, client):
    """A second store of one type in one database is refused until it has an index of its own."""
    Store("a", RedisAccessor(Customer, server.url, key="a:{id}")).open().close()
    with pytest.raises(ConfigError, match="slot"):
        Store("b", RedisAccessor(Customer, server.url, key="b:{id}")).open()
    index = RedisIndex(server.url, slot="b")
    Store("b", RedisAccessor(Customer, server.url, key="b:{id}"), index=index).open().close()


def test_eviction_of_versions_is_refused(server, client):
    """A server that may evict any key is refused, because it could forget deletes."""
    client.config_set("maxmemory", "1gb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    try:
        with pytest.raises(ConfigError, match="evict"):
            Store("crm", RedisAccessor(Customer, server.url)).open()
        client.config_set("maxmemory-policy", "volatile-lru")
        Store("crm", RedisAccessor(Customer, server.url)).open().close()
    finally:
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", "0")


def test_errors_tell_no_secret(server, client):
    """A wrong password, a malformed URL and an unreachable server never show the password."""
    shown = []
    client.config_set("requirepass", "another")
    for url in (
        f"redis://:s3cret@127.0.0.1:{server.port}/0",
        "redis://:s3cret@127.0.0.1:s3cret/0",
        "redis://:s3cret@127.0.0.1:1/0",
    ):
        with pytest.raises(EventSyncError) as caught:
            Store("crm", RedisAccessor(Customer, url)).open()
        error = caught.value
        shown += [f"{error!r} {error} {error.__cause__!r}"]
        assert error.retryable == url.endswith(":1/0"), error
    client.auth("another")
    client.config_set("requirepass", "")
    shown.append(repr(RedisIndex("redis://:s3cret@127.0.0.1:1/0")))
    assert "s3cret" not in " ".join(shown)


def test_cluster():
    """On Redis Cluster a store's keys share one slot; a pattern without its tag is refused."""
    with ClusterServer() as node:
        cluster = redis.cluster.RedisCluster("127.0.0.1", node.port)
        bus = FakeBus()
        with pytest.raises(ConfigError, match="hash tag"):
            Store("crm", RedisAccessor(Customer, cluster, key="customer:{id}")).open()
        accessor = RedisAccessor(Customer, cluster, key="{{crm}}:customer:{id}", indexes=["city"])
        with Store("crm", accessor, publisher=bus) as store:
            store.add([Customer(id=n, city="Rome") for n in range(20)])
            assert sent(store, Customer(id=3), version(1)) is Outcome.STALE
            assert store.count(Customer, {"city": "Rome"}) == store.count(Customer) == 20
            store.remove(store[Customer, 3])
            assert len(bus.changes()) == 21
            assert [change for chunk in store.capture() for change in chunk] == []
            names = cluster.keys("*", target_nodes="all")
            assert len({cluster.keyslot(name) for name in names}) == 1
        cluster.close()


def _increments(url, number, times):
    """In a process of its own: raise the totals of the same records, and patch them as well."""
    store = Store(f"w{number}", RedisAccessor(Counter, url), publisher=FakeBus())
    with store:
        for step in range(times):
            key = step % 3

            def raise_total(key=key):
                with store.index.transaction() as transaction:
                    rows = store.accessor(Counter).read_rows([str(key)], transaction)
                    total = rows[str(key)]["total"] + 1
                    write = Write(str(key), {"total": total}, whole=False)
                    store.accessor(Counter).write_rows([write], [], transaction)
                    transaction.read("Counter", [str(key)])

            store.index.until_done(raise_total)


def test_processes_on_the_same_records(server, client):
    """Concurrent transactions of several processes lose none of each other's writes."""
    with Store("crm", RedisAccessor(Counter, server.url)) as store:
        store.add([Counter(id=n) for n in range(3)])
        spawn = multiprocessing.get_context("spawn")
        workers = [
            spawn.Process(target=_increments, args=(server.url, number, 60)) for number in range(4)
        ]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(60)
            assert worker.exitcode == 0
        assert sum(record.total for record in store.find(Counter)) == 4 * 60


def _put_many(url, seed, now):
    """In a process of its own: apply the same changes as all others, in an order of its own."""
    rng = random.Random(seed)
    changes = [put(Customer(id=n % 5, visits=n), version(n, now=now)) for n in range(300)]
    with Store("crm", RedisAccessor(Customer, url)) as store:
        rng.shuffle(changes)
        while changes:
            apply(store, [changes.pop() for _ in range(min(7, len(changes)))], clock=store.clock)


def test_workers_on_the_same_records(server, client):
    """When many workers apply the same changes in any order, the latest of each record wins."""
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=_put_many, args=(server.url, seed, NOW)) for seed in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
        assert worker.exitcode == 0
    with Store("crm", RedisAccessor(Customer, server.url)) as store:
        assert {r.id: r.visits for r in store.find(Customer)} == {n: 295 + n for n in range(5)}
        for key, entry in store.index.scan("Customer"):
            assert entry.stamp.version == version(295 + int(key))


def test_killed_server():
    """After a server was killed and started again, each record has its version and envelope."""
    with RedisServer(fsync="always") as own:
        store = Store("crm", RedisAccessor(Customer, own.url), publisher=FakeBus(away=True)).open()
        done = []

        def edit():
            for number in range(100_000):
                try:
                    store.add([Customer(id=number * 2 + n, name="Ada") for n in (0, 1)])
                except StoreUnavailableError:
                    return
                done.append(number)

        thread = threading.Thread(target=edit)
        thread.start()
        eventually(lambda: len(done) > 200)
        own.kill()
        thread.join(60)
        assert not thread.is_alive()
        own.start()
        again = Store("crm", RedisAccessor(Customer, own.url)).open()
        rows = {record.id for record in again.find(Customer)}
        assert rows >= {number * 2 + n for number in done for n in (0, 1)}
        assert len(rows) % 2 == 0
        entries = {int(key) for key, _ in again.index.scan("Customer", limit=10**6)}
        assert entries == rows
        assert len(again.index.outgoing(10**6)) == len(rows)
        assert [change for chunk in again.capture() for change in chunk] == []
        again.close()
        store.close()
