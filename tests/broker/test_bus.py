"""The bus on each kind of broker."""

from __future__ import annotations

import multiprocessing
import socket
import threading
import time
from functools import partial

import amqp
import pytest
from kombu.exceptions import BatchPublishError
from kombu.transport import TRANSPORT_ALIASES
from servers.certificate import self_signed
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer
from support.publishing import publish_patiently, put
from support.records import Product
from support.waiting import eventually

from eventsync.broker.bus import Bus, dead_queue, store_queue
from eventsync.broker.kombu_errors import bus_errors
from eventsync.changes.clock import Clock
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.envelope import batch
from eventsync.envelope.codec import CONTENT_TYPE
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import (
    BusConfigError,
    BusError,
    BusUnavailableError,
    ConfigError,
    StoreUnavailableError,
    UnroutableError,
)
from eventsync.stores.memory import MemoryAccessor
from eventsync.transports.amqp.confirms import Confirms
from eventsync.transports.amqp.link import AmqpLink, connect
from eventsync.worker.options import Options
from eventsync.worker.worker import Worker


@pytest.fixture(scope="module")
def rabbit():
    """Return one RabbitMQ for the module; a test that kills it starts it again."""
    with RabbitServer() as server:
        yield server


@pytest.fixture(scope="module")
def redis():
    """Return one Redis for the module."""
    with RedisServer() as server:
        yield server


def quick(rabbit, **settings):
    """Return a URL with a short ``settle``, for tests that do not kill the server."""
    return rabbit.url + "?" + "&".join(f"{k}={v}" for k, v in {"settle": 0.01, **settings}.items())


# How to reach a broker, by its name; ``fresh`` is a name that no other test uses.
BROKERS = {
    "sqlite": lambda request: f"sqlite:///{request.getfixturevalue('tmp_path') / 'broker.db'}",
    "amqp": lambda request: quick(request.getfixturevalue("rabbit")),
    "redis": lambda request: request.getfixturevalue("redis").url,
}


@pytest.fixture(params=sorted(BROKERS))
def url(request):
    return BROKERS[request.param](request)


@pytest.fixture
def store(request):
    """Return a name that is unique to the test, for its store and its record type."""
    return f"s{abs(hash(request.node.nodeid))}"


@pytest.fixture
def bus(url, store):
    with Bus(url, message_envelopes=1) as bus:
        bus.declare(store, [store])
        yield bus


def fetch(subscription, count):
    """Wait for that many messages and return them."""
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
    """Published envelopes arrive complete and in order, and are gone once acknowledged."""
    bus.publish(store, [b"%d" % n for n in range(50)])
    subscription = bus.subscribe(store, [store], prefetch=20)
    bodies = []
    while len(bodies) < 50:
        got = fetch(subscription, 1)
        assert len(got) <= 20
        bodies += [batch.split_batch(delivery.body)[0] for delivery in got]
        subscription.acknowledge(got)
    assert bodies == [b"%d" % n for n in range(50)]
    subscription.close()
    ready(bus, store_queue(store), 0)


def test_prefetch_is_a_limit(bus, store):
    """A consumer receives no more unsettled messages than its prefetch count."""
    bus.publish(store, [b"x"] * 10)
    subscription = bus.subscribe(store, [store], prefetch=4)
    got = fetch(subscription, 4)
    assert subscription.fetch(timeout=0.2, limit=10) == []
    subscription.acknowledge([got[2], got[0], got[1]])
    assert len(fetch(subscription, 3)) == 3
    subscription.close()
    ready(bus, store_queue(store), 7)


def test_released_comes_again_with_its_attempts(bus, store):
    """A released or unsettled message is delivered again, and its attempts are counted."""
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
    """Publishing an unroutable type, or to a missing queue, raises and breaks nothing."""
    with pytest.raises(UnroutableError):
        bus.publish(f"{store}x", [b"x"])
    with pytest.raises(UnroutableError):
        bus.send_to(f"{store}x", [b"x"])
    bus.publish(store, [b"x"])
    ready(bus, store_queue(store), 1)


def test_missing_queue_is_an_error(bus, store):
    """Asking for the state of a missing queue raises an error."""
    with pytest.raises(BusError, match=r"no queue|NOT_FOUND"):
        bus.state(store_queue(f"{store}x"))


def test_letters_are_read_and_settled(bus, store):
    """Letters can be read any number of times until they are settled."""
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
    """Several threads publish through one bus and nothing is lost."""
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


def test_texts_that_are_not_utf8_stop_nothing(rabbit, store):
    """A message whose routing key, content type and headers are not UTF-8 is dead-lettered."""
    with Bus(quick(rabbit)) as bus:
        worker = Worker(Store(store, MemoryAccessor(Product)).open(), bus)
        bus.declare(store, ["Product"])
        channel = raw_channel(rabbit)
        channel.exchange_declare(store, "fanout", auto_delete=True)
        channel.queue_bind(store_queue(store), store)
        message = amqp.Message(
            b"t", content_type="text/\udcff", application_headers={"x-delivery-count": "many"}
        )
        channel.basic_publish(message, store, "\udcff")
        ready(bus, store_queue(store), 1)
        worker.drain(timeout=0.3)
        with bus.letters(store) as letters:
            ((found, _),) = letters.read()
        assert found.raw == b"t"
        assert found.reason == "envelope"
        channel.connection.close()


def test_too_large_message_goes_to_the_dead_letters_unread(rabbit, store):
    """The broker moves a message over the limit to the dead letters, which show its size."""
    with Bus(quick(rabbit), max_message=100_000) as bus:
        worker = Worker(Store(store, MemoryAccessor(Product)).open(), bus)
        bus.declare(store, ["Product"])
        bus._send([b"z" * 400_000], key=store_queue(store))
        worker.drain(timeout=0.3)
        ready(bus, dead_queue(store), 1)
        with bus.letters(store) as letters:
            ((found, _),) = letters.read()
        assert found.reason == "too-large"
        assert "400,000" in found.message


class Slow(MemoryAccessor):
    """An accessor whose writes take eight seconds."""

    def write_rows(self, writes, removals, transaction):
        time.sleep(8)
        super().write_rows(writes, removals, transaction)


@pytest.mark.slow
def test_heartbeats_go_on_while_the_store_is_busy(rabbit, store):
    """An apply that takes four heartbeats does not break the connection and runs once."""
    with Bus(quick(rabbit, heartbeat=2)) as bus:
        held = Store(store, Slow(Product)).open()
        worker = Worker(held, bus)
        bus.declare(store, ["Product"])
        bus.send_to(store, [bus.encode(put(1))])
        assert worker.drain(timeout=0.5) == 1
        assert worker.outcomes == {Outcome.APPLIED: 1}
        assert held.count(Product) == 1
        ready(bus, store_queue(store), 0)


def test_deleted_queue_is_noticed(rabbit, store):
    """A consumer whose queue is deleted gets an error."""
    with Bus(quick(rabbit)) as bus:
        subscription = bus.subscribe(store, ["Product"], prefetch=1)
        channel = raw_channel(rabbit)
        channel.queue_delete(store_queue(store))
        channel.connection.close()
        with pytest.raises(BusUnavailableError):
            subscription.fetch(timeout=20.0, limit=1)
        subscription.close()


@pytest.mark.slow
def test_blocked_broker_is_an_error(rabbit, store):
    """Publishing to a broker short of memory fails after the timeout and does not hang."""

    def watermark(fraction):
        rabbit.ctl("set_vm_memory_high_watermark", fraction)

    with Bus(quick(rabbit, publish_timeout=2)) as bus:
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
    """A worker waits for a broker that is killed and started again, and nothing is lost."""
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
                eventually(lambda n=number: sent(bus, store, put(n, clock=clock)), timeout=60)
            eventually(lambda: held.count(Product) == 300, timeout=60)
        finally:
            worker.stop()
            thread.join(20)


def sent(bus, store, change):
    """Return whether the broker took the change; false if it is unreachable."""
    try:
        bus.send_to(store, [bus.encode(change)])
    except BusUnavailableError:
        return False
    return True


@pytest.mark.slow
def test_confirmed_in_a_new_queue_survives_a_kill(rabbit, store):
    """A message confirmed in a new queue survives SIGKILL, and the queue still works."""
    with Bus(rabbit.url) as bus:
        bus.declare(store, ["Product"])
        bus.publish("Product", [b"x"])
        rabbit.kill()
        rabbit.start()
        eventually(lambda: sent(bus, store, put(1)))
        ready(bus, store_queue(store), 2)


def test_clean_releases_are_no_crashes(rabbit, store):
    """All releases of a message count as one delivery; each broken connection counts as one."""
    with Bus(quick(rabbit)) as bus:
        bus.declare(store, ["Product"])
        bus.publish("Product", [b"x"])
        for number in range(6):
            subscription = bus.subscribe(store, ["Product"], prefetch=1)
            (got,) = fetch(subscription, 1)
            assert got.attempts == min(number, 1)
            if number % 2:
                subscription.release([got])
            subscription.close()
        for number in range(3):
            subscription = bus.subscribe(store, ["Product"], prefetch=1)
            (got,) = fetch(subscription, 1)
            assert got.attempts == 1 + number
            assert got.content_type == CONTENT_TYPE
            assert batch.split_batch(got.body) == [b"x"]
            subscription._link.drop()
        ready(bus, store_queue(store), 1)


class Away(MemoryAccessor):
    """An accessor whose writes fail because the store is unreachable."""

    def write_rows(self, writes, removals, transaction):
        raise StoreUnavailableError("away for the test")


def test_a_store_that_is_down_for_long_has_no_dead_letters(rabbit, store):
    """More failed deliveries than ``max_deliveries`` leave a message in the queue."""
    with Bus(quick(rabbit)) as bus:
        options = Options(retry_for=0.01, max_deliveries=2)
        worker = Worker(Store(store, Away(Product)).open(), bus, options=options)
        bus.declare(store, ["Product"])
        bus.send_to(store, [bus.encode(put(1))])
        for _ in range(5):
            with pytest.raises(StoreUnavailableError):
                worker.drain(timeout=5.0)
        ready(bus, store_queue(store), 1)
        assert bus.state(dead_queue(store)).ready == 0


def test_a_fork_leaves_the_connection_to_the_parent(rabbit, store):
    """A forked child opens its own connection, and its end does not break its parent's."""
    with Bus(quick(rabbit)) as bus:
        bus.declare(store, ["Product"])
        child = multiprocessing.get_context("fork").Process(
            target=bus.publish, args=("Product", [b"c"])
        )
        child.start()
        child.join(20)
        assert child.exitcode == 0
        assert bus._link is not None
        before = bus._link
        bus.publish("Product", [b"p"])
        assert bus._link is before
        ready(bus, store_queue(store), 2)


def test_a_mistake_of_ours_is_not_taken_for_a_lost_connection(rabbit):
    """An ``AttributeError`` is raised unchanged while the connection is open."""
    link = connect(quick(rabbit), max_message=1000)
    with pytest.raises(AttributeError, match="mistake"), link.session.errors("test"):
        raise AttributeError("mistake")
    link.close()


def test_a_restarted_redis_gets_the_latest_again():
    """Changes that a restarted Redis has lost are published again, once."""
    here = Store("here", MemoryAccessor(Product))
    with RedisServer(fsync="always") as server, Bus(server.url) as bus, here.open(publisher=bus):
        bus.declare("here", here.accessors)
        bus.declare("there", ["Product"])
        worker = Worker(here, bus)
        here.add(Product(id=1, name="one"))
        worker.drain(timeout=0.05)
        before = bus.life()
        server.client().flushall()
        server.kill()
        server.start()
        bus.declare("there", ["Product"])
        worker.drain(timeout=0.05)
        assert bus.life() != before
        ready(bus, store_queue("there"), 1)
        worker.drain(timeout=0.05)
        assert bus.state(store_queue("there")).ready == 1, "told once, not at every look"


def test_a_worker_outlives_a_broker_of_kombus_own_kind(monkeypatch):
    """A worker waits while the driver of kombu's own transport cannot reach its server."""
    monkeypatch.setitem(TRANSPORT_ALIASES, "stock", "kombu.transport.redis:Transport")
    store = Store("here", MemoryAccessor(Product))
    with RedisServer(fsync="always") as server, store.open():
        with Bus(server.url.replace("redis:", "stock:")) as bus:
            assert bus.life() is None
            bus.declare("here", ["Product"])
            worker = Worker(store, bus)
            thread = threading.Thread(target=worker.run)
            thread.start()
            try:
                for number in range(3):
                    publish_patiently(bus, put(number))
                    eventually(partial(store.get, Product, number))
                    if number < 2:
                        server.kill()
                        eventually(lambda: worker.progress.error, what="it is missed")
                        server.start()
                        worker.progress.error = ""
                assert bus.states("here")["queue"].ready == 0
            finally:
                worker.stop()
                thread.join(20)
        assert not thread.is_alive()


def test_a_batch_that_may_be_lost_can_be_published_again():
    """A ``BatchPublishError`` of kombu counts as an unreachable broker."""
    with pytest.raises(BusUnavailableError, match="uncertain"), bus_errors("here", lambda: None):
        raise BatchPublishError("delivery is uncertain")


class _TlsRabbit(RabbitServer):
    """A RabbitMQ that accepts only TLS."""

    def prepare(self):
        super().prepare()
        self.certificate, key = self_signed(self.folder)
        (self.folder / "rabbitmq.conf").write_text(
            f"listeners.ssl.default = {self.port}\nlisteners.tcp = none\n"
            f"ssl_options.cacertfile = {self.certificate}\n"
            f"ssl_options.certfile = {self.certificate}\nssl_options.keyfile = {key}\n"
            "ssl_options.verify = verify_none\n"
        )

    def environment(self):
        environment = super().environment()
        del environment["RABBITMQ_NODE_PORT"], environment["RABBITMQ_NODE_IP_ADDRESS"]
        return environment

    def is_ready(self):
        try:
            socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
        except OSError:
            return False
        return True


@pytest.mark.slow
def test_amqps_verifies_the_server(store):
    """With amqps:// the server's certificate and name are verified."""
    with _TlsRabbit() as server:
        place = f"localhost:{server.port}//?settle=0.01"
        with Bus(f"amqps://guest:guest@{place}&ca={server.certificate}") as bus:
            bus.declare(store, ["Product"])
            bus.publish("Product", [b"x"])
            ready(bus, store_queue(store), 1)
        with pytest.raises(BusConfigError, match="certificate verify failed"):
            Bus(f"amqps://guest:guest@{place}").open()
        by_number = place.replace("localhost", "127.0.0.1")
        with pytest.raises(BusConfigError, match="certificate is not valid for"):
            Bus(f"amqps://guest:guest@{by_number}&ca={server.certificate}").open()


def test_confirms_out_of_order_are_counted_exactly():
    """Each message is counted once, in any order of single and multiple confirms."""
    confirms = Confirms()
    for _ in range(10):
        confirms.published()
    confirms.confirm(3, False)
    confirms.refuse(5, True)
    assert (len(confirms), confirms.refused) == (5, 4)
    confirms.refuse(9, False)
    confirms.refuse(9, False)
    confirms.confirm(8, True)
    assert (len(confirms), confirms.refused) == (1, 5)
    confirms.confirm(10, True)
    assert (len(confirms), confirms.refused) == (0, 5)


@pytest.mark.parametrize(
    "url", ["amqp://h?heartbeat=no", "amqp://h?settle=-1", "amqp://h?ca=x", "amqp://h?x=1"]
)
def test_wrong_settings_are_named(url):
    """A wrong or unknown setting in the URL raises an error."""
    with pytest.raises(ConfigError, match=r"heartbeat|settle|ca|x"):
        connect(url, max_message=1000)


def test_acknowledged_prefix_is_one_write(rabbit, store):
    """All messages delivered so far are acknowledged in one frame."""
    with Bus(quick(rabbit), message_envelopes=1) as bus:
        subscription = bus.subscribe(store, ["Product"], prefetch=50)
        bus.send_to(store, [b"x"] * 50)
        got = fetch(subscription, 50)
        link = subscription._link
        assert isinstance(link, AmqpLink)
        with link.session.lock:
            before = link.session.wire.bytes_sent
            subscription.acknowledge(got)
            assert link.session.wire.bytes_sent - before == 1
        subscription.close()
