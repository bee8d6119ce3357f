"""Hostile messages of other programs, on each kind of broker."""

from __future__ import annotations

import bz2
import sqlite3
import tracemalloc
from typing import Any

import amqp
import pytest
import redis as redis_client
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer
from support.publishing import put
from support.records import Product

from eventsync.broker.bus import EXCHANGE, Bus, dead_queue, store_queue
from eventsync.engine.store import Store
from eventsync.envelope import batch
from eventsync.envelope.codec import CONTENT_TYPE, Keyring
from eventsync.errors import BusUnavailableError
from eventsync.records.record import Field, Record
from eventsync.stores.memory import MemoryAccessor
from eventsync.transports.leased.message import KEPT_BYTES, OutboundMessage
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker

_LARGEST = 100_000


class Note(Record):
    id: int = Field(key=True)
    text: str = ""


_OTHER_TYPES = {"x-delivery-count": "many", "compression": 7, "nested": {"a": [1, None]}}

_DEEP: Any = []
for _ in range(90):
    _DEEP = [_DEEP]

# Body, content type, headers; ``None`` for what is absent.
HOSTILE = {
    "JSON": (b'{"a": 1}', "application/json", {}),
    "text": (b"hello", "text/plain", {}),
    "no body": (None, CONTENT_TYPE, {}),
    "nothing": (None, None, None),
    "no headers": (b"x", CONTENT_TYPE, None),
    "headers of other types": (b"x", CONTENT_TYPE, _OTHER_TYPES),
    "not UTF-8": (b"\xff\xfe\x00", "text/plain", {}),
    "a bomb": (bz2.compress(bytes(32 << 20)), CONTENT_TYPE, {"compression": "application/x-bz2"}),
    "deep headers": (b"x", CONTENT_TYPE, {"a": _DEEP}),
    "oversized": (b"z" * (4 * _LARGEST), CONTENT_TYPE, {}),
    "oversized headers": (b"x", CONTENT_TYPE, {"a": "y" * 100_000}),
}


@pytest.fixture(scope="module")
def rabbit():
    """Return one RabbitMQ for the module."""
    with RabbitServer() as server:
        yield server


@pytest.fixture(scope="module")
def redis():
    """Return one Redis for the module."""
    with RedisServer() as server:
        yield server


def into_leased(bus, queue, body, content_type, headers):
    """Put a message into a queue of a leased transport."""
    message = OutboundMessage(body or b"", queue, headers=headers, content_type=content_type)
    bus._link._channel.publish_many([message])


def into_memory(bus, queue, body, content_type, headers):
    """Put a message into a queue of kombu's memory transport."""
    message = {"body": body, "content-type": content_type, "headers": headers}
    given = {name: held for name, held in message.items() if held is not None}
    bus._link._channel._put(queue, given)


def into_rabbitmq(bus, queue, body, content_type, headers):
    """Put a message into a queue of RabbitMQ, with the plain driver."""
    properties = {"content_type": content_type, "application_headers": headers}
    given = {name: held for name, held in properties.items() if held is not None}
    host, port = bus._link.session.wire.host.split(":")
    with amqp.Connection(f"{host}:{port}") as connection, connection.channel() as channel:
        channel.confirm_select()
        channel.basic_publish_confirm(amqp.Message(body or b"", **given), "", queue)


# A broker's URL, from pytest's request, and how another program puts a message into it.
BROKERS = {
    "sqlite": (lambda r: f"sqlite:///{r.getfixturevalue('tmp_path') / 'broker.db'}", into_leased),
    "redis": (lambda r: r.getfixturevalue("redis").url, into_leased),
    "amqp": (lambda r: f"{r.getfixturevalue('rabbit').url}?settle=0.01", into_rabbitmq),
    "memory": (lambda r: "memory://", into_memory),
}


@pytest.mark.parametrize("what", HOSTILE)
@pytest.mark.parametrize("broker", BROKERS)
def test_what_others_send_ends_as_a_dead_letter(request, broker, what):
    """A hostile message becomes a dead letter with its bytes, and the next one is applied."""
    url, put_raw = BROKERS[broker]
    body, content_type, headers = HOSTILE[what]
    name = f"s{abs(hash(request.node.nodeid))}"
    with Bus(url(request), max_message=_LARGEST) as bus:
        store = Store(name, MemoryAccessor(Product)).open()
        bus.declare(name, ["Product"])
        put_raw(bus, store_queue(name), body, content_type, headers)
        bus.send_to(name, [bus.encode(put(1, "good"))])
        Worker(store, bus).drain(timeout=0.3)
        assert store[Product, 1].name == "good"
        assert bus.state(store_queue(name)).ready == 0
        assert bus.state(dead_queue(name)).ready == 1
    # A bus with a larger limit reads the entire message.
    with Bus(url(request)) as bus, bus.letters(name) as letters:
        ((found, _),) = letters.read()
    assert found.raw == (body or b"")
    # kombu's own transports read every message in full.
    unread = {"oversized"} if broker == "memory" else {"oversized", "oversized headers"}
    assert found.reason == ("too-large" if what in unread else "envelope")


@pytest.mark.parametrize("broker", [name for name in BROKERS if name != "memory"])
def test_the_routing_key_says_nothing_about_a_change(request, broker):
    """What counts is the type in the envelope, which a signature covers."""
    url, _ = BROKERS[broker]
    keys = Keyring.parse("all:" + "QUFB" * 11)
    with Bus(url(request), keys=keys) as bus:
        bus.declare("notes", ["Note"])
        bus.declare("shop", ["Product"])
        notes = Store("notes", MemoryAccessor(Note)).open()
        shop = Store("shop", MemoryAccessor(Product)).open()
        product = bus.encode(put(1, "good"))
        for key in ("Note", "Product"):
            bus._send(
                batch.batches([product], max_count=1, max_bytes=1), exchange=EXCHANGE, key=key
            )
        for store in (notes, shop):
            Worker(store, bus).drain(timeout=0.3)
        assert (notes.count(Note), shop.count(Product)) == (0, 1)
        with bus.letters("notes") as letters:
            ((letter, delivery),) = letters.read()
            letters.settle([delivery])
        assert (letter.type, letter.key) == ("Product", "1")
        assert letter.raw == product
        assert "Product" in letter.message


_NESTED = b"[" * 100_000

# The fields of a stream entry that somebody adds with XADD.
ENTRIES = {
    "a deep label": {_NESTED: b"body"},
    "a label of another form": {b"[1]": b"body"},
    "no text": {b"\xff\x00": b"\xff"},
    "deep headers": {b"a": b"body", b"headers": _NESTED},
    "headers of another form": {b"a": b"body", b"headers": b'[1, {"a": 2}]'},
    "many fields": {str(number).encode(): b"x" for number in range(9_000)},
    "a large body": {b"a": b"x" * 300_000},
    "a large label": {b"a" * 300_000: b"x"},
}


def drained(bus, name, **options):
    """Apply what waits for the store ``name``; return the letters that this left."""
    store = Store(name, MemoryAccessor(Product)).open()
    bus.send_to(name, [bus.encode(put(1, "good"))])
    Worker(store, bus, options=Options(**options)).drain(timeout=0.3)
    assert store[Product, 1].name == "good"
    assert bus.state(store_queue(name)).ready == 0
    with bus.letters(name) as letters:
        return [letter for letter, _ in letters.read()]


@pytest.mark.parametrize("what", ENTRIES)
def test_a_hostile_stream_entry_stops_no_store(redis, what):
    """Whatever the fields of an entry are, the entry becomes a dead letter."""
    name = f"e{abs(hash(what))}"
    with (
        Bus(redis.url, max_message=_LARGEST) as bus,
        redis_client.Redis.from_url(redis.url) as client,
    ):
        bus.declare(name, ["Product"])
        client.xadd(f"{{eventsync}}:queue:{store_queue(name)}", ENTRIES[what])
        (letter,) = drained(bus, name)
    large = {"a deep label", "deep headers", "many fields", "a large body", "a large label"}
    assert letter.reason == ("too-large" if what in large else "envelope")


# What somebody writes into the columns of a message in a broker file.
COLUMNS = {
    "deep headers": {"headers": _NESTED.decode()},
    "headers that are bytes": {"headers": _NESTED[:9_000]},
    "a large body": {"body": b"x" * 300_000},
    "a body that is text": {"body": "x" * 300_000},
    "a body that is a number": {"body": 7},
    "a large label": {"routing_key": "x" * 300_000},
    "labels that are bytes": {"content_type": b"\xff", "exchange": b"[" * 9},
}


@pytest.mark.parametrize("what", COLUMNS)
def test_a_hostile_row_stops_no_store(tmp_path, what):
    """Whatever the columns of a message are, the message becomes a dead letter."""
    path = tmp_path / "broker.db"
    with Bus(f"sqlite:///{path}", max_message=_LARGEST) as bus:
        bus.declare("s", ["Product"])
        bus.send_to("s", [b"raw"])
        with sqlite3.connect(path) as file:
            for column, value in COLUMNS[what].items():
                file.execute(f"UPDATE message SET {column} = ?", (value,))
        file.close()
        (letter,) = drained(bus, "s")
    large = {"deep headers", "a large body", "a body that is text"}
    assert letter.reason == ("too-large" if what in large else "envelope")


def test_half_a_gigabyte_is_put_aside_unread(redis):
    """The largest value that Redis takes: the worker's memory does not grow by it."""
    with Bus(redis.url) as bus, redis_client.Redis.from_url(redis.url) as client:
        bus.declare("half", ["Product"])
        body = b"x" * (256 << 20)
        client.xadd(f"{{eventsync}}:queue:{store_queue('half')}", {b"a": body})
        del body
        tracemalloc.start()
        (letter,) = drained(bus, "half")
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert (letter.reason, len(letter.raw)) == ("too-large", KEPT_BYTES)
        assert peak < 32 << 20
        with bus.letters("half") as letters:
            letters.settle(delivery for _, delivery in letters.read())


def test_a_full_broker_still_gets_emptier():
    """What was applied is acknowledged, although no dead letter can be stored at the moment."""
    with RedisServer() as server, server.client() as client, Bus(server.url) as bus:
        store = Store("crm", MemoryAccessor(Product)).open()
        bus.declare("crm", ["Product"])
        for key in range(20):
            bus.send_to("crm", [bus.encode(put(key, "good"))])
        bus.send_to("crm", [b"no envelope"])
        client.config_set("maxmemory", 1)
        with pytest.raises(BusUnavailableError):
            Worker(store, bus).drain(timeout=0.3)
        assert store.count(Product) == 20
        assert bus.state(store_queue("crm")).ready + bus.state(store_queue("crm")).leased == 1
        client.config_set("maxmemory", 0)
        Worker(store, bus).drain(timeout=0.3)
        assert bus.state(store_queue("crm")).ready == 0
        with bus.letters("crm") as letters:
            assert [letter.raw for letter, _ in letters.read()] == [b"no envelope"]
