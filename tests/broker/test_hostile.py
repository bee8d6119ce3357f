"""Hostile messages of other programs, on each kind of broker."""

from __future__ import annotations

import bz2

import amqp
import pytest
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer
from support.publishing import put
from support.records import Product

from eventsync.broker.bus import Bus, dead_queue, store_queue
from eventsync.engine.store import Store
from eventsync.envelope.codec import CONTENT_TYPE
from eventsync.stores.memory import MemoryAccessor
from eventsync.transports.leased.message import OutboundMessage
from eventsync.worker.worker import Worker

_LARGEST = 100_000
_OTHER_TYPES = {"x-delivery-count": "many", "compression": 7, "nested": {"a": [1, None]}}

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
    "oversized": (b"z" * (4 * _LARGEST), CONTENT_TYPE, {}),
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
    assert found.reason == ("too-large" if what == "oversized" else "envelope")
