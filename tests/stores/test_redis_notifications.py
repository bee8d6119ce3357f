"""Keyspace notifications of Redis as hints, with redis-py as the foreign writer."""

from __future__ import annotations

import itertools
import time
from types import SimpleNamespace

import pytest
import redis
import redis.cluster
from redis.backoff import NoBackoff
from redis.retry import Retry
from servers.redis import ClusterServer, RedisServer
from support.records import Product

from eventsync.engine.finding import Level
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, StoreUnavailableError
from eventsync.stores.redis import RedisAccessor
from eventsync.testing import FakeBus, SourceContract
from eventsync.testing.sources import _Observer


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture(autouse=True)
def client(server):
    with server.client() as client:
        client.flushdb()
        client.config_set("notify-keyspace-events", "")
        yield client


class _OnRedis(SourceContract):
    kind = "notifications"
    complete = False

    @pytest.fixture(autouse=True)
    def _connect(self, server, client):
        self.client, self.url = client, server.url
        self.tags, self.numbers = {}, itertools.count()

    def tag(self, folder):
        return self.tags.setdefault(folder, f"s{next(self.numbers)}")

    def pattern(self, record_type, folder):
        return f"{{{{{self.tag(folder)}}}}}:{record_type.__record__.name}:{{key}}"

    def accessor(self, record_type, folder):
        return RedisAccessor(record_type, self.url, key=self.pattern(record_type, folder))

    def edit(self, folder, *edits):
        with self.client.pipeline() as pipe:
            for edit in edits:
                of = edit.record_type
                pattern = RedisAccessor(of, self.url, key=self.pattern(of, folder)).pattern
                type = of.__record__

                def name(key, pattern=pattern, type=type):
                    try:
                        return pattern.name(type.key_text(key))
                    except Exception:  # longer than eventsync's keys may be
                        return pattern.text.format(key="/".join(map(str, key.values())))

                if edit.values is None:
                    pipe.delete(name(edit.key))
                    continue
                where = {n: v for n, v in edit.values.items() if n in type.keys}
                if edit.key is not None and where:
                    pipe.rename(name(edit.key), name({**edit.key, **where}))
                at = name({**(edit.key or {}), **where})
                for field, value in edit.values.items():
                    if value is None:
                        pipe.hdel(at, field)
                    else:
                        pipe.hset(
                            at,
                            field,
                            {True: "true", False: "false"}.get(value, value)
                            if isinstance(value, bool)
                            else value,
                        )
            pipe.execute()


class TestNotifications(_OnRedis):
    """The suite of change sources on hashes."""


def capturing(url, **options):
    """A store that captures, after its first read."""
    bus = FakeBus()
    store = Store(
        "cache",
        RedisAccessor(Product, url, key="product:{id}", **options),
        publisher=bus,
        capture="notifications",
        capture_every=60.0,
    ).open()
    source = store.change_source()
    source.install()
    follower = store.follower(bus, _Observer(), source=source)
    follower.open()
    return store, follower, bus


def follower_of(source):
    """What ``told`` needs of a follower."""
    return SimpleNamespace(source=source)


def told(follower, seconds=5.0):
    """The keys that are told next, by type."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        changes = follower.source.changes("-", wait=0.1)
        if changes.keys or changes.whole:
            return {type: set(keys) for type, keys in changes.keys.items()}
    return {}


def test_events_that_change_a_record(server, client):
    """Each command that can change a record tells it; others tell nothing."""
    store, follower, _ = capturing(server.url)
    client.hset("product:9", mapping={"id": 9, "name": "Ada"})
    assert told(follower) == {"Product": {"9"}}
    for command in (
        ["HDEL", "product:9", "name"],
        ["RENAME", "product:9", "product:8"],
        ["COPY", "product:8", "product:9"],
        ["SET", "product:9", "text"],
        ["DEL", "product:9"],
        ["PEXPIRE", "product:8", 1],
    ):
        client.execute_command(*command)
        assert told(follower), command
    client.hset("product:7", "id", 7)
    told(follower)
    client.expire("product:7", 1000)
    client.persist("product:7")
    client.set("other:1", "x")
    client.set(b"product:\xff", "x")
    assert told(follower, 0.3) == {}
    follower.close()
    store.close()


def test_a_hint_is_captured_within_milliseconds(server, client):
    store, follower, bus = capturing(server.url)
    times = []
    for number in range(50):
        began = time.perf_counter()
        client.hset(f"product:{number}", mapping={"id": number, "name": "Ada"})
        while len(bus.changes()) <= number:
            follower.step(0.5)
        times.append(time.perf_counter() - began)
    assert sorted(times)[25] < 0.1
    follower.close()
    store.close()


def test_json_strings_are_told_too(server, client):
    store, follower, bus = capturing(server.url, layout="json")
    client.set("product:1", '{"id": 1, "name": "Ada"}')
    while not bus.changes():
        follower.step(0.5)
    assert bus.changes()[0].key == "1"
    follower.close()
    store.close()


def test_a_closed_connection_is_no_silent_loss(server, client):
    """redis-py would connect again by itself, and what was sent meanwhile would be lost."""
    store, follower, _ = capturing(server.url)
    client.client_kill_filter(_type="pubsub")
    with pytest.raises(StoreUnavailableError, match=r"(?i)closed"):
        follower.step(5.0)
    follower.open()
    client.hset("product:1", "id", 1)
    assert told(follower) == {"Product": {"1"}}
    follower.close()
    store.close()


def test_a_client_that_connects_again_by_itself(server, client):
    """Its subscriptions are made again, but what was sent in between is lost."""
    with redis.Redis(port=server.port, retry=Retry(NoBackoff(), 3)) as patient:
        accessor = RedisAccessor(Product, patient)
        with Store("cache", accessor, capture="notifications") as store:
            source = store.change_source()
            source.install()
            source.open("")
            client.client_kill_filter(_type="pubsub")
            with pytest.raises(StoreUnavailableError, match=r"(?i)closed"):
                told(follower_of(source), 10.0)
            source.close()


def test_a_flush_is_not_told(server, client):
    """The guide says so: Redis sends nothing."""
    store, follower, _ = capturing(server.url)
    client.hset("product:1", "id", 1)
    assert told(follower)
    client.flushdb()
    assert told(follower, 0.5) == {}
    follower.close()
    store.close()


def test_a_server_that_stops_to_notify_is_noticed(server, client):
    """As after a failover, or when somebody has changed the setting."""
    store, follower, _ = capturing(server.url)
    client.config_set("notify-keyspace-events", "")
    follower.source._probed_at -= 100.0  # a new probe is due
    follower.step(0.0)
    follower.source._probed_at -= 100.0  # and has not been heard in time
    with pytest.raises(StoreUnavailableError, match="has stopped to send"):
        follower.step(0.0)
    with pytest.raises(ConfigError, match="sends no keyspace notifications"):
        follower.open()
    follower.close()
    store.close()


def test_the_setting_of_others_is_kept(server, client):
    """Install adds what is missing; remove restores what was there."""
    client.config_set("notify-keyspace-events", "Ex")
    store = Store("cache", RedisAccessor(Product, server.url), capture="notifications").open()
    source = store.change_source()
    assert not source.state().installed
    (statement,) = source.statements()
    assert statement.startswith("CONFIG SET notify-keyspace-events ")
    source.install()
    flags = client.config_get("notify-keyspace-events")["notify-keyspace-events"]
    assert set(flags) >= set("EKg$hxe")
    assert source.statements() == ()
    client.config_set("notify-keyspace-events", "KA")  # A stands for all that is needed
    assert source.state().installed
    source.remove()
    assert set(client.config_get("notify-keyspace-events")["notify-keyspace-events"]) == set("xE")
    store.close()


def test_a_user_who_may_not_see_the_setting(server, client):
    """As at managed servers: the check says so, and the source tries whether it hears anything."""
    client.execute_command("ACL", "SETUSER", "app", "on", ">secret", "~*", "&*", "+@all", "-config")
    url = f"redis://app:secret@127.0.0.1:{server.port}/0"
    store = Store("cache", RedisAccessor(Product, url), capture="notifications").open()
    source = store.change_source()
    assert source.state().installed
    assert [finding.level for finding in source.findings()] == [Level.NOTE]
    with pytest.raises(ConfigError, match="sends no keyspace notifications"):
        source.open("")
    client.config_set("notify-keyspace-events", "KA")
    source.open("")
    source.close()
    store.close()


def test_a_user_who_may_not_listen(server, client):
    if int(client.info("server")["redis_version"].split(".")[0]) < 7:
        pytest.skip("older servers do not tell it")
    client.execute_command(
        "ACL", "SETUSER", "deaf", "on", ">secret", "~*", "resetchannels", "+@all"
    )
    url = f"redis://deaf:secret@127.0.0.1:{server.port}/0"
    store = Store("cache", RedisAccessor(Product, url), capture="notifications")
    (finding,) = store.change_source().findings()
    assert finding.level is Level.WRONG
    (statement,) = finding.statements
    client.execute_command(*statement.split())
    assert not list(store.change_source().findings())
    client.config_set("notify-keyspace-events", "KA")
    source = store.change_source()
    source.open("")
    source.close()
    store.close()


def test_a_cluster():
    """The source listens to the node that has the hash slot of the store."""
    with ClusterServer() as server:
        client = redis.cluster.RedisCluster(host="127.0.0.1", port=server.port)
        accessor = RedisAccessor(Product, client, key="{{shop}}:product:{id}")
        bus = FakeBus()
        store = Store("cache", accessor, publisher=bus, capture="notifications", capture_every=9.0)
        with store, server.client() as writer:
            store.change_source().install()
            follower = store.follower(bus, _Observer())
            follower.open()
            writer.hset("{shop}:product:1", mapping={"id": 1, "name": "Ada"})
            while not bus.changes():
                follower.step(0.5)
            follower.close()
        client.close()
