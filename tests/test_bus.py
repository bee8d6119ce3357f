"""What every broker promises the bus, tried on each of them."""

from __future__ import annotations

import threading
import time

import amqp
import pytest
from servers import eventually
from servers.rabbitmq import RabbitServer

from eventsync import framing
from eventsync.bus import Bus, dead_queue, store_queue
from eventsync.deadletter import DeadLetter
from eventsync.errors import BusError, BusUnavailableError, UnroutableError
from eventsync.record import Field, Record
from eventsync.store import Store
from eventsync.stores.memory import MemoryAccessor
from eventsync.transports.amqp import AmqpLink
from eventsync.worker import Worker


class Product(Record):
    id: int = Field(key=True)
    name: str


@pytest.fixture(scope="module")
def rabbit():
    """One RabbitMQ for the module; a test that kills it starts it again."""
    with RabbitServer() as server:
        yield server


# How to reach a broker, by its name; ``fresh`` is a name that no other test uses.
BROKERS = {
    "sqlite": lambda request: f"sqlite:///{request.getfixturevalue('tmp_path') / 'broker.db'}",
    "amqp": lambda request: request.getfixturevalue("rabbit").url,
}


@pytest.fixture(params=sorted(BROKERS))
def url(request):
    return BROKERS[request.param](request)


@pytest.fixture
def store(request):
    """A store's name of the test's own, and its record type."""
    return f"s{abs(hash(request.node.nodeid))}"


@pytest.fixture
def bus(url, store):
    with Bus(url, message_envelopes=1) as bus:
        bus.declare(store, [store])
        yield bus


def fetch(subscription, count):
    """That many messages, waited for."""
    got = []
    deadline = time.monotonic() + 20
    while len(got) < count:
        assert time.monotonic() < deadline, f"{len(got)} of {count} came"
        got += subscription.fetch(timeout=0.2, limit=count - len(got))
    return got


def letter(number=1, **more):
    return DeadLetter(
        reason="rejected",
        message="m",
        store="s",
        queue="q",
        attempts=number,
        first_time=1.0,
        last_time=2.0,
        raw=b"r",
        **more,
    )


def ready(bus, queue, count):
    eventually(lambda: bus.state(queue).ready == count, what=f"{count} in {queue}")


def test_published_arrives_once(bus, store):
    """What is published comes whole, in order, and is gone once it is acknowledged."""
    bus.publish(store, [b"%d" % n for n in range(50)])
    subscription = bus.subscribe(store, [store], prefetch=20)
    bodies = []
    while len(bodies) < 50:
        got = fetch(subscription, 1)
        assert len(got) <= 20
        bodies += [framing.split_batch(delivery.body)[0] for delivery in got]
        subscription.acknowledge(got)
    assert bodies == [b"%d" % n for n in range(50)]
    subscription.close()
    ready(bus, store_queue(store), 0)


def test_prefetch_is_a_limit(bus, store):
    """No more than the prefetch count is in hand."""
    bus.publish(store, [b"x"] * 10)
    subscription = bus.subscribe(store, [store], prefetch=4)
    got = fetch(subscription, 4)
    assert subscription.fetch(timeout=0.2, limit=10) == []
    subscription.acknowledge([got[2], got[0], got[1]])
    assert len(fetch(subscription, 3)) == 3
    subscription.close()
    ready(bus, store_queue(store), 7)


def test_released_comes_again_with_its_attempts(bus, store):
    """A message that was given back comes again, counted; what was not settled too."""
    bus.publish(store, [b"x"])
    subscription = bus.subscribe(store, [store], prefetch=1)
    (first,) = fetch(subscription, 1)
    assert first.attempts == 0
    subscription.release([first])
    (second,) = fetch(subscription, 1)
    assert second.attempts == 1
    subscription.close()
    again = bus.subscribe(store, [store], prefetch=1)
    assert fetch(again, 1)[0].body == first.body
    again.close()


def test_unroutable_is_an_error(bus, store):
    """A type that no queue takes is an error, and a queue that is not there; then all works on."""
    with pytest.raises(UnroutableError):
        bus.publish(f"{store}x", [b"x"])
    with pytest.raises(UnroutableError):
        bus.send_to(f"{store}x", [b"x"])
    bus.publish(store, [b"x"])
    ready(bus, store_queue(store), 1)


def test_missing_queue_is_an_error(bus, store):
    """The state of a queue that is not there is an error."""
    with pytest.raises(BusError, match=r"no queue|NOT_FOUND"):
        bus.state(store_queue(f"{store}x"))


def test_letters_are_read_and_settled(bus, store):
    """Letters are there for the next look until they are settled, however often one looks."""
    bus.dead_letter(store, [letter(n) for n in range(3)])
    bus.hold(store, [letter(7)])
    for _ in range(3):
        ready(bus, dead_queue(store), 3)
        with bus.letters(store) as letters:
            assert [one.attempts for one, _ in letters.read()] == [0, 1, 2]
    with bus.letters(store) as letters:
        (_, first), *_ = letters.read()
        letters.settle([first])
    ready(bus, dead_queue(store), 2)
    with bus.letters(store, held=True) as letters:
        assert [one.attempts for one, _ in letters.read(5)] == [7]


def test_threads_publish(bus, store):
    """Several threads may publish through one bus; nothing is lost."""
    threads = [threading.Thread(target=bus.publish, args=(store, [b"x"] * 50)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    ready(bus, store_queue(store), 200)


# -- RabbitMQ --------------------------------------------------


def raw_channel(rabbit):
    connection = amqp.Connection(f"127.0.0.1:{rabbit.port}")
    connection.connect()
    return connection.channel()


HOSTILE = [
    amqp.Message(
        b"BZh9",
        content_type="application/x-eventsync",
        application_headers={"compression": "bzip2"},
    ),
    amqp.Message(b'{"a": 1}', content_type="text/plain"),
    amqp.Message(b""),
    amqp.Message(b"\xff\xfe", content_type="application/x-eventsync", content_encoding="punycode"),
    amqp.Message(
        b"t", content_type="text/\udcff", application_headers={"x-delivery-count": "many"}
    ),
]


@pytest.mark.parametrize("number", range(len(HOSTILE)))
def test_hostile_message_becomes_a_dead_letter(rabbit, store, number):
    """What others put into a queue ends as a dead letter with its bytes, and stops nothing."""
    with Bus(rabbit.url) as bus:
        worker = Worker(Store(store, MemoryAccessor(Product)).open(), bus)
        bus.declare(store, ["Product"])
        channel = raw_channel(rabbit)
        message = HOSTILE[number]
        if message.properties.get("content_type") == "text/\udcff":
            # A text that is not UTF-8, in every place that takes one.
            channel.exchange_declare(store, "fanout", auto_delete=True)
            channel.queue_bind(store_queue(store), store)
            channel.basic_publish(message, store, "\udcff")
        else:
            channel.basic_publish(message, "", store_queue(store))
        ready(bus, store_queue(store), 1)
        worker.drain(timeout=0.3)
        with bus.letters(store) as letters:
            ((found, _),) = letters.read()
        assert found.raw == message.body
        assert found.reason == "envelope"
        channel.connection.close()


def test_too_large_message_goes_to_the_dead_letters_unread(rabbit, store):
    """A message over the limit is moved by the broker, and shown with its size."""
    with Bus(rabbit.url, max_message=100_000) as bus:
        worker = Worker(Store(store, MemoryAccessor(Product)).open(), bus)
        bus.declare(store, ["Product"])
        bus._send([b"z" * 400_000], key=store_queue(store))
        worker.drain(timeout=0.3)
        ready(bus, dead_queue(store), 1)
        with bus.letters(store) as letters:
            ((found, _),) = letters.read()
        assert found.reason == "too-large"
        assert "400,000" in found.message


@pytest.mark.slow
def test_heartbeats_go_on_while_the_worker_is_busy(rabbit, store):
    """A consumer that is busy for four times the heartbeat keeps its connection and its message."""
    with Bus(f"{rabbit.url}?heartbeat=2") as bus:
        bus.declare(store, ["Product"])
        bus.publish("Product", [b"x"])
        subscription = bus.subscribe(store, ["Product"], prefetch=1)
        got = fetch(subscription, 1)
        time.sleep(8)
        subscription.acknowledge(got)
        subscription.close()
        ready(bus, store_queue(store), 0)


def test_deleted_queue_is_noticed(rabbit, store):
    """A consumer whose queue is deleted is told."""
    with Bus(rabbit.url) as bus:
        subscription = bus.subscribe(store, ["Product"], prefetch=1)
        channel = raw_channel(rabbit)
        channel.queue_delete(store_queue(store))
        channel.connection.close()
        with pytest.raises(BusUnavailableError):
            subscription.fetch(timeout=20.0, limit=1)
        subscription.close()


@pytest.mark.slow
def test_blocked_broker_is_an_error(rabbit, store):
    """A broker short of memory makes publishing fail after the timeout, not hang."""
    import subprocess

    def watermark(fraction):
        subprocess.run(
            [
                "rabbitmqctl",
                "-n",
                rabbit.environment()["RABBITMQ_NODENAME"],
                "set_vm_memory_high_watermark",
                fraction,
            ],
            env=rabbit.environment(),
            user=rabbit.user(),
            check=True,
            capture_output=True,
        )

    with Bus(f"{rabbit.url}?publish_timeout=2") as bus:
        bus.declare(store, ["Product"])
        watermark("0.000001")
        try:
            started = time.monotonic()
            with pytest.raises(BusUnavailableError, match="blocked"):
                bus._send([b"x" * 100_000] * 500, key=store_queue(store))
            assert time.monotonic() - started < 20
        finally:
            watermark("0.4")
        eventually(lambda: bus.send_to(store, [b"x"]) is None)


@pytest.mark.slow
def test_worker_outlives_the_broker(rabbit, store):
    """A broker that is killed and started again is waited for, and nothing is lost."""
    from eventsync.change import Change
    from eventsync.clock import Clock

    clock = Clock()
    with Bus(rabbit.url, message_envelopes=5) as bus, Bus(rabbit.url) as own:
        held = Store(store, MemoryAccessor(Product)).open()
        worker = Worker(held, own)
        bus.declare(store, ["Product"])
        thread = threading.Thread(target=worker.run)
        thread.start()
        try:
            for number in range(300):
                if number == 150:
                    rabbit.kill()
                    rabbit.start()
                change = Change(
                    type="Product",
                    key=str(number),
                    op="put",
                    version=clock.tick(),
                    data={"id": number, "name": "x"},
                    source="t",
                )
                deadline = time.monotonic() + 60
                while True:
                    try:
                        bus.send_to(store, [bus.encode(change)])
                        break
                    except BusUnavailableError:
                        assert time.monotonic() < deadline
                        time.sleep(0.2)
            eventually(lambda: held.count(Product) == 300, timeout=60)
        finally:
            worker.stop()
            thread.join(20)


def test_acknowledged_prefix_is_one_write(rabbit, store):
    """Messages that are all that was delivered so far are acknowledged in one frame."""
    with Bus(rabbit.url, message_envelopes=1) as bus:
        subscription = bus.subscribe(store, ["Product"], prefetch=50)
        bus.send_to(store, [b"x"] * 50)
        got = fetch(subscription, 50)
        link = subscription._link
        assert isinstance(link, AmqpLink)
        with link._lock:
            before = link._wire.bytes_sent
            subscription.acknowledge(got)
            assert link._wire.bytes_sent - before == 1
        subscription.close()
