"""Redis that others write to, empty, restrict or demote, against a real server."""

from __future__ import annotations

import json
from decimal import Decimal
from typing import Any

import pytest
import redis
from redis._parsers.base import BaseParser
from servers.redis import RedisServer

from eventsync.changes.change import BaseState
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PATCH
from eventsync.engine.apply import apply
from eventsync.engine.gate import Outcome
from eventsync.engine.registry import StoreRegistry
from eventsync.engine.store import Store
from eventsync.errors import ConfigError, RejectedError, StoreError, StoreUnavailableError
from eventsync.index import Presence
from eventsync.records.query import Query
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.stores.redis import RedisAccessor, RedisIndex
from eventsync.stores.redis.server import MEANINGS, PHRASES, Server
from eventsync.testing.fake import FakeBus
from eventsync.testing.harness import changed, put

DEEP = "[" * 900 + "]" * 900
LONG = "12345678901234567.12345"


class Thing(Record):
    id: int = Field(key=True)
    name: str = ""
    price: Decimal = Decimal(0)
    size: float = 0.0
    tags: list[str] = Field(default_factory=list)
    more: Any = None


class Note(Record, rule="field"):
    id: int = Field(key=True)
    a: str = ""
    b: str = ""


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


@pytest.fixture
def client(server):
    with server.client() as made:
        made.flushall()
        yield made


def captured(store):
    errors = []
    keys = [change.key for changes in store.capture(unreadable=errors.append) for change in changes]
    return sorted(keys), [str(error) for error in errors]


def text_of(members):
    """JSON text of members whose values are JSON already."""
    return "{" + ",".join(f'"{name}":{text}' for name, text in members.items()) + "}"


def set_foreign(client, layout, number, members):
    """Set a record as another client does. ``members``: JSON texts."""
    if layout == "json":
        client.set(f"Thing:{number}", text_of({"id": number, **members}))
    else:
        client.hset(f"Thing:{number}", mapping={"id": number, **members})


BAD = [
    ("more", "1e9999999999999999999"),
    ("price", "1e9999999999999999999"),
    ("more", DEEP),
    ("tags", DEEP),
    ("tags", "[broken"),
    ("size", "1e400"),
    ("price", "1e99999"),
    ("more", "9" * 5000),
    ("more", '{"$decimal":"1e9999999999999999999"}'),
]


@pytest.mark.parametrize("layout", ["hash", "json"])
@pytest.mark.parametrize(("member", "text"), BAD, ids=[f"{m}-{t[:9]}" for m, t in BAD])
def test_a_value_that_cannot_be_held_affects_its_record_only(server, client, layout, member, text):
    """Its record is passed over with type and key named; page, capture and find go on."""
    for number in (1, 2, 3):
        set_foreign(client, layout, number, {member: text} if number == 2 else {})
    with Store("cache", RedisAccessor(Thing, server.url, layout=layout)) as store:
        keys, errors = captured(store)
        if layout == "hash" and member == "more" and text.startswith('{"$dec'):
            assert keys == ["1", "2", "3"]  # plain text, as in any field of any type
            return
        assert keys == ["1", "3"]
        assert len(errors) == 1
        assert "Thing:2, Thing '2'" in errors[0]
        query = Query.parse(store.accessor(Thing).type, unreadable=lambda error: None)
        assert sorted(t.id for t in store.accessor(Thing).find(query)) == [1, 3]
        assert captured(store)[0] == []


@pytest.mark.parametrize("layout", ["hash", "json"])
def test_a_key_that_takes_another_type_stops_no_capture(server, client, layout):
    """A record that somebody replaced by a list is unreadable, not deleted."""
    with Store("cache", RedisAccessor(Thing, server.url, layout=layout)) as store:
        store.add([Thing(id=n) for n in (1, 2)])
        client.delete("Thing:2")
        client.rpush("Thing:2", "x")
        client.set(b"Thing:\xff", "x")
        client.hset(b"Thing:\xfe", "id", "x")
        assert captured(store)[0] == []
        store.capture_before([put(Thing(id=n), store.clock.tick()) for n in (1, 2)], FakeBus())
        clock = store.clock
        changes = [put(Thing(id=n, name="new"), clock.tick()) for n in (1, 2)]
        outcomes = [settled.outcome for settled in apply(store, changes, clock=clock)]
        assert outcomes == [Outcome.APPLIED, Outcome.REJECTED]


@pytest.mark.parametrize("rule", ["record", "field"])
@pytest.mark.parametrize("text", [LONG, "1e9999999999999999999", DEEP, '"\\ud800"', "NaN"])
def test_members_of_others_stay_in_json(server, client, rule, text):
    """Under both rules a member that the view does not name is written back as it was."""
    kind = Thing if rule == "record" else Note
    field = "name" if rule == "record" else "a"
    accessor = RedisAccessor(kind, server.url, key="it:{id}", layout="json")
    client.set("it:1", f'{{"id":1,"{field}":"old","theirs":{text}}}')
    with Store("cache", accessor) as store:
        assert captured(store) == (["1"], [])
        clock = store.clock
        (settled,) = apply(store, [put(kind(**{"id": 1, field: "new"}), clock.tick())], clock=clock)
        assert settled.outcome is Outcome.APPLIED
        found = client.get("it:1").decode()
        assert f'"theirs":{text}' in found
        assert f'"{field}":"new"' in found


def test_what_is_no_json_is_not_overwritten(server, client):
    """A put leaves a text that somebody else put under the record's Redis key."""
    client.set("Thing:1", "not JSON")
    with Store("cache", RedisAccessor(Thing, server.url, layout="json")) as store:
        (settled,) = apply(store, [put(Thing(id=1), store.clock.tick())], clock=store.clock)
        assert settled.outcome is Outcome.REJECTED
        assert "Thing:1, Thing '1'" in str(settled.error)
        assert client.get("Thing:1") == b"not JSON"


@pytest.mark.parametrize("layout", ["hash", "json"])
@pytest.mark.parametrize("value", [Decimal(LONG), {"a": [Decimal(LONG), 1.5]}, 10**40], ids=str)
def test_numbers_in_undeclared_values_are_not_rounded(server, client, layout, value):
    """Eventsync's own long numbers and those of others are read with all their digits."""
    with Store("cache", RedisAccessor(Thing, server.url, layout=layout)) as store:
        store.add(Thing(id=1, more=value))
        assert store.get(Thing, 1).raw()["more"] == value
        set_foreign(client, layout, 2, {"more": f'{{"n":{LONG},"f":0.1}}'})
        assert store.get(Thing, 2).raw()["more"] == {"n": Decimal(LONG), "f": 0.1}


@pytest.mark.parametrize("layout", ["hash", "json"])
def test_a_patch_leaves_what_somebody_edited(server, client, layout):
    """A patch of one field does not write back another that was edited there, captured or not."""
    with Store("cache", RedisAccessor(Note, server.url, layout=layout)) as store:
        first = Version.of(int(store.clock.now() * 1000) - 5000, 0, 1)
        later = Version.of(int(store.clock.now() * 1000) - 4000, 0, 1)
        apply(store, [put(Note(id=1, a="a", b="b"), first)], clock=store.clock)
        if layout == "hash":
            client.hset("Note:1", "b", "edited")
        else:
            members = json.loads(client.get("Note:1"))
            client.set("Note:1", json.dumps({**members, "b": "edited"}))
        patch = changed(Note, "1", PATCH, later, {"a": "new"})
        patch.known = BaseState(store.index.scan("Note")[0][1].stamp, {"b": "b"}, {})
        apply(store, [patch], clock=store.clock)
        note = store.get(Note, 1)
        assert (note.a, note.b) == ("new", "edited")
        (changes,) = store.capture()
        assert changes[0].data == {"b": "edited"}


# -- what errors mean ------------------------------------------------------------------------------


@pytest.mark.parametrize(("code", "meaning"), MEANINGS.items())
def test_what_an_error_code_means(code, meaning):
    """Each row of the table, as the driver parses the server's answer, and as Redis 6 nests it."""
    server = Server("redis://localhost")
    nested = f"ERR Error running script (call to f_0): @user_script:4: -{code} something"
    moved = f"{code} 3999 127.0.0.1:6381"
    for answer in (moved if code in ("ASK", "MOVED") else f"{code} something", nested):
        error = BaseParser.parse_error(answer)
        assert type(server.error_of(error)) is meaning
        assert code in str(server.error_of(error)) or code in ("WRONGPASS", "NOAUTH")


@pytest.mark.parametrize(("phrase", "meaning"), PHRASES)
def test_what_an_error_without_a_code_means(phrase, meaning):
    """Each row of the table of phrases."""
    error = BaseParser.parse_error(f"ERR {phrase}")
    assert type(Server("redis://localhost").error_of(error)) is meaning


@pytest.mark.parametrize(
    ("error", "meaning"),
    [
        (redis.ConnectionError("refused"), StoreUnavailableError),
        (redis.TimeoutError("late"), StoreUnavailableError),
        (redis.exceptions.RedisClusterException("no node"), StoreUnavailableError),
        (OSError(111, "refused"), StoreUnavailableError),
        (redis.exceptions.ResponseError("value is not an integer"), StoreError),
        (redis.exceptions.BusyLoadingError("loading"), StoreUnavailableError),
        (redis.exceptions.AuthenticationError("invalid password"), ConfigError),
    ],
)
def test_what_an_error_of_the_client_means(error, meaning):
    """What no answer of the server says."""
    assert type(Server("redis://localhost").error_of(error)) is meaning


def test_a_demoted_server_is_waited_for():
    """After REPLICAOF every write is retryable, and goes through once the server is promoted."""
    with (
        RedisServer() as server,
        server.client() as client,
        Store("cache", RedisAccessor(Thing, server.url)) as store,
    ):
        client.execute_command("REPLICAOF", "127.0.0.1", "1")
        with pytest.raises(StoreUnavailableError, match="READONLY"):
            store.add(Thing(id=1))
        client.config_set("replica-serve-stale-data", "no")
        with pytest.raises(StoreUnavailableError, match="MASTERDOWN"):
            store.get(Thing, 1)
        client.execute_command("REPLICAOF", "NO", "ONE")
        store.add(Thing(id=1))


def test_what_a_user_may_not_do_is_configuration():
    """A missing right, a wrong password and a wrong database number are named at once."""
    with RedisServer() as server, server.client() as client:
        client.execute_command("ACL", "SETUSER", "app", "on", ">pw", "~*", "+@all", "-evalsha")
        url = server.url.replace("redis://", "redis://app:pw@")
        with (
            Store("cache", RedisAccessor(Thing, url)) as store,
            pytest.raises(ConfigError, match=r"NOPERM.*access rules"),
        ):
            store.add(Thing(id=1))
        with pytest.raises(ConfigError, match="WRONGPASS"):
            Store("cache", RedisAccessor(Thing, url.replace("pw", "no"))).open()
        with pytest.raises(ConfigError, match="DB index is out of range"):
            Store("cache", RedisAccessor(Thing, server.url.replace("/0", "/99"))).open()


def test_a_full_server_is_waited_for(server, client):
    """OOM in the script is retryable, and the same write goes through later."""
    with Store("cache", RedisAccessor(Thing, server.url)) as store:
        client.config_set("maxmemory", "1")
        try:
            with pytest.raises(StoreUnavailableError, match="OOM"):
                store.add(Thing(id=1))
        finally:
            client.config_set("maxmemory", "0")
        store.add(Thing(id=1))


def test_a_value_beyond_the_server_s_limit_is_the_record_s():
    """A value that Redis will never take is rejected."""
    error = BaseParser.parse_error("ERR string exceeds maximum allowed size (proto-max-bulk-len)")
    assert type(Server("redis://localhost").error_of(error)) is RejectedError


# -- a cache that was emptied ----------------------------------------------------------------------


@pytest.mark.parametrize("layout", ["hash", "json"])
def test_a_flushed_store_is_noticed_and_filled_again(server, client, layout):
    """FLUSHALL is no delete; the loss is told, and a synchronization fills the store."""
    source = Store("crm", MemoryAccessor(Thing))
    cache = Store("cache", RedisAccessor(Thing, server.url, layout=layout))
    with source, cache:
        registry = StoreRegistry(source, cache)
        source.add([Thing(id=n, name="x") for n in range(30)])
        registry.synchronize(sources=[source.name], targets=[cache.name])
        accessor = cache.accessor(Thing)
        assert accessor.loss() is None
        client.flushall()
        assert "are gone, as after FLUSHALL" in accessor.loss()
        assert captured(cache) == ([], [])
        assert accessor.accept_loss() == 0
        assert accessor.loss() is None
        registry.synchronize(sources=[source.name], targets=[cache.name])
        assert cache.count(Thing) == 30
        assert accessor.loss() is None


def test_records_that_somebody_removed_with_their_versions_kept(server, client):
    """Records that are gone, but not their versions, are told, forgotten, and filled again."""
    source, cache = (
        Store("crm", MemoryAccessor(Thing)),
        Store("c", RedisAccessor(Thing, server.url)),
    )
    with source, cache:
        registry = StoreRegistry(source, cache)
        source.add([Thing(id=n, name="x") for n in range(30)])
        registry.synchronize(sources=[source.name], targets=[cache.name])
        client.delete(*(f"Thing:{n}" for n in range(20)))
        accessor = cache.accessor(Thing)
        assert accessor.loss().startswith("20 of 30 records of Thing")
        assert accessor.accept_loss() == 20
        assert cache.index.counts("Thing")[Presence.PRESENT] == 10
        assert cache.index.counts("Thing")[Presence.DELETED] == 0
        registry.synchronize(sources=[source.name], targets=[cache.name])
        assert cache.count(Thing) == 30
        assert accessor.loss() is None


def test_records_that_expire_are_no_loss(server, client):
    """With a time to live, missing records are what was asked for."""
    with Store("cache", RedisAccessor(Thing, server.url, ttl=1000)) as store:
        store.add([Thing(id=n) for n in range(30)])
        client.delete(*(f"Thing:{n}" for n in range(30)))
        assert store.accessor(Thing).loss() is None
        client.flushall()
        assert store.accessor(Thing).loss() is not None
        assert isinstance(store.index, RedisIndex)


@pytest.mark.parametrize("layout", ["hash", "json"])
@pytest.mark.parametrize("record_type", [Thing, Note], ids=["record", "field"])
@pytest.mark.parametrize("form", ["007", "+7", " 7"])
def test_a_key_in_another_form(server, client, layout, record_type, form):
    """A record under such a Redis key is reported and refused, and is not taken for deleted."""
    type = record_type.__record__.name
    accessor = RedisAccessor(record_type, server.url, layout=layout)
    with Store("cache", accessor) as store:
        store.add(record_type(id=7))
        client.rename(f"{type}:7", f"{type}:{form}")
        for _ in range(2):
            errors = []
            assert not any(store.capture(unreadable=errors.append))
            assert [f"{type}:{form}" in error.message for error in errors] == [True]
        puts = [put(record_type(id=n), Version.of(2**41 + n)) for n in (7, 8)]
        later = [one.replace(version=store.clock.tick()) for one in puts]
        settled = {one.change.key: one for one in apply(store, later, clock=store.clock)}
        assert settled["7"].outcome is Outcome.REJECTED
        assert f"rename it to '{type}:7'" in str(settled["7"].error)
        assert settled["8"].outcome is Outcome.APPLIED
        assert not client.exists(f"{type}:7")
        client.rename(f"{type}:{form}", f"{type}:7")
        assert not any(store.capture())
        assert store[record_type, 7].id == 7
