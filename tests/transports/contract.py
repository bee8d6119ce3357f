"""The conformance suite of the leased-queue transports; a backend's tests subclass it.

A subclass overrides ``url`` (a fresh broker for each test) and names its ``connect`` function.
"""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from kombu import Exchange, Producer, Queue
from kombu.exceptions import ChannelError

from eventsync.errors import BusError, UnroutableError
from eventsync.transports.leased.message import (
    DELIVERY_COUNT,
    KEPT_BYTES,
    MAX_HEADERS,
    OutboundMessage,
)

PATIENCE = 20.0  # seconds until a condition that must come true counts as failed


def eventually(condition: Callable[[], Any], timeout: float = PATIENCE) -> Any:
    """Wait for the condition's first true value and return it; fail after a time."""
    deadline = time.monotonic() + timeout
    while not (value := condition()):
        assert time.monotonic() < deadline, "the condition did not come true in time"
        time.sleep(0.005)
    return value


class Actor:
    """Another process at the same broker; see ``actor.py`` for its commands."""

    def __init__(self, connect: str, url: str, **options: Any) -> None:
        root = Path(__file__).parents[2]
        self._process = subprocess.Popen(
            [
                sys.executable,
                str(Path(__file__).with_name("actor.py")),
                *connect.split(":"),
                url,
                json.dumps(options),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "PYTHONPATH": str(root)},
            text=True,
        )
        self._ready = False
        self._unread = b""
        self.pid = self._process.pid

    def begin(self, command: str, *arguments: Any) -> None:
        """Send a command without waiting for its answer."""
        assert self._process.stdin
        self._process.stdin.write(json.dumps([command, *arguments]) + "\n")
        self._process.stdin.flush()

    def answer(self) -> Any:
        """Return the result of the oldest command that has not been answered yet."""
        if not self._ready:
            self._ready = True
            self.answer()
        line = self.line()
        assert line, "the actor has died"
        status, *rest = json.loads(line)
        assert status == "ok", rest
        return rest[0]

    def line(self) -> str:
        """Return a raw line of the actor's output; empty if the actor has died."""
        assert self._process.stdout
        pipe = self._process.stdout.fileno()
        # Read from the pipe itself: what a buffered reader holds back, select would not see.
        while b"\n" not in self._unread:
            assert select.select([pipe], [], [], PATIENCE)[0], "no answer in time"
            part = os.read(pipe, 65536)
            if not part:
                return ""
            self._unread += part
        line, _, self._unread = self._unread.partition(b"\n")
        return line.decode()

    def do(self, command: str, *arguments: Any) -> Any:
        """Send a command and return its result."""
        self.begin(command, *arguments)
        return self.answer()

    def signal(self, number: int) -> None:
        """Send a signal without waiting for the process, so that a dead one stays a zombie."""
        os.kill(self.pid, number)

    def end(self) -> None:
        """Kill the process and wait for its end."""
        self._process.kill()
        self._process.communicate()


class TransportContract:
    """The tests that each leased-queue transport must pass."""

    #: ``module:function`` that takes a URL and options and returns a kombu connection.
    connect: str
    #: Whether a consumer that is killed is known to be dead before its lease runs out.
    knows_the_dead = True

    @pytest.fixture
    def url(self) -> str:
        """Return the URL of an empty broker."""
        raise NotImplementedError

    @pytest.fixture
    def broker(self, url: str) -> Iterator[Broker]:
        """Return the broker of ``url``, cleaned up after the test."""
        with Broker.opened(self.connect, url) as broker:
            yield broker

    # -- publishing and routing ----------------------------------------------------------------

    def test_bytes_arrive_as_they_were_sent(self, broker: Broker) -> None:
        """Body, content type, headers, properties and origin arrive unchanged, for any bytes."""
        broker.declare("crm", "eventsync", "topic", "customer.*")
        body = bytes(range(256)) * 3
        broker.connection.Producer(broker.channel).publish(
            body,
            exchange="eventsync",
            routing_key="customer.put",
            content_type="application/x-eventsync",
            content_encoding="binary",
            headers={"reason": "größer", "attempts": 3},
            correlation_id="c-1",
        )
        (message,) = broker.receive("crm", 1)
        assert message.body == body
        assert isinstance(message.body, bytes)
        assert message.content_type == "application/x-eventsync"
        assert message.content_encoding == "binary"
        assert message.headers == {"reason": "größer", "attempts": 3, DELIVERY_COUNT: 0}
        assert message.properties["correlation_id"] == "c-1"
        assert message.delivery_info["exchange"] == "eventsync"
        assert message.delivery_info["routing_key"] == "customer.put"
        assert message.delivery_info["redelivered"] is False

    def test_kombu_serialises_as_ever(self, broker: Broker) -> None:
        """A plain kombu producer and consumer work with their own serialisation."""
        queue = Queue("crm", Exchange("e", "direct"), routing_key="crm", channel=broker.channel)
        queue.declare()
        got: list[Any] = []
        broker.connection.Producer(broker.channel, Exchange("e")).publish({"a": [1]}, "crm")
        consumer = broker.connection.Consumer(
            [queue], callbacks=[lambda body, message: (got.append(body), message.ack())]
        )
        with consumer:
            broker.connection.drain_events(timeout=PATIENCE)
        assert got == [{"a": [1]}]

    def test_order_is_kept_in_a_queue(self, broker: Broker) -> None:
        """A consumer receives the messages of a queue in the order of their publishing."""
        broker.declare("crm")
        broker.publish("crm", *map(str, range(300)))
        got = broker.receive("crm", 300, prefetch=70, settle=True)
        assert [message.body for message in got] == [str(n).encode() for n in range(300)]

    @pytest.mark.parametrize(
        ("kind", "bindings", "key", "expected"),
        [
            ("direct", {"a": "x.1", "b": "x.2", "c": "x.1"}, "x.1", {"a", "c"}),
            ("topic", {"a": "x.*", "b": "x.#", "c": "*.2", "d": "#"}, "x.1", {"a", "b", "d"}),
            ("topic", {"a": "x.*", "b": "x.#"}, "x.1.2", {"b"}),
            ("fanout", {"a": "", "b": "y"}, "x.1", {"a", "b"}),
        ],
    )
    def test_exchanges_route(
        self, broker: Broker, kind: str, bindings: dict[str, str], key: str, expected: set[str]
    ) -> None:
        """Direct, topic and fanout exchanges route like kombu's virtual exchanges."""
        for queue, binding in bindings.items():
            broker.declare(queue, "e", kind, binding)
        broker.channel.publish_many([OutboundMessage(b"1", key, "e")])
        assert {queue for queue in bindings if broker.ready(queue)} == expected

    def test_a_new_binding_counts_at_once(self, broker: Broker) -> None:
        """A binding made by another process takes effect for a publisher at once."""
        broker.declare("crm", "e", "topic", "customer")
        broker.channel.publish_many([OutboundMessage(b"1", "customer", "e")])
        broker.actor().do("declare", "cache", "e", "topic", "customer")
        broker.channel.publish_many([OutboundMessage(b"2", "customer", "e")])
        assert [broker.ready("crm"), broker.ready("cache")] == [2, 1]

    def test_a_removed_binding_counts_at_once(self, broker: Broker) -> None:
        """A binding removed by another connection has no effect from then on."""
        broker.declare("crm", "e", "topic", "customer")
        broker.channel.publish_many([OutboundMessage(b"1", "customer", "e")])
        broker.other().channel.queue_unbind("crm", "e", "customer")
        broker.channel.publish_many([OutboundMessage(b"2", "customer", "e")])
        assert broker.ready("crm") == 1

    def test_unroutable_is_an_error_if_mandatory(self, broker: Broker) -> None:
        """An unroutable mandatory message raises, and its batch is not published."""
        broker.declare("crm", "e", "topic", "customer")
        batch = [
            OutboundMessage(b"1", "customer", "e", mandatory=True),
            OutboundMessage(b"2", "order", "e", mandatory=True),
        ]
        with pytest.raises(UnroutableError, match="'order'"):
            broker.channel.publish_many(batch)
        with pytest.raises(UnroutableError):
            broker.channel.publish_many([OutboundMessage(b"3", "no-such-queue", mandatory=True)])
        assert broker.ready("crm") == 0

    def test_unroutable_is_dropped_otherwise(self, broker: Broker) -> None:
        """An unroutable message that is not mandatory is dropped, and its batch is published."""
        broker.declare("crm", "e", "topic", "customer")
        broker.channel.publish_many(
            [OutboundMessage(b"1", "order", "e"), OutboundMessage(b"2", "customer", "e")]
        )
        assert [m.body for m in broker.receive("crm", 1)] == [b"2"]

    def test_unroutable_goes_to_the_deadletter_queue(self, broker: Broker) -> None:
        """Unroutable messages go to the queue that kombu's transport option names."""
        broker.declare("crm", "e", "topic", "customer")
        other = broker.other(deadletter_queue="lost")
        other.channel.publish_many([OutboundMessage(b"1", "order", "e")])
        assert [m.body for m in broker.receive("lost", 1)] == [b"1"]

    def test_the_default_exchange_makes_its_queue(self, broker: Broker) -> None:
        """A message to an undeclared queue on the default exchange creates the queue."""
        broker.channel.publish_many([OutboundMessage(b"1", "later")])
        assert [m.body for m in broker.receive("later", 1)] == [b"1"]

    def test_a_batch_is_published_as_one(self, broker: Broker) -> None:
        """kombu's producer batch publishes at its end, and nothing after an error."""
        broker.declare("crm")
        producer: Producer = broker.connection.Producer(broker.channel, routing_key="crm")
        with producer.batch(max_size=100):
            producer.publish("1")
            producer.publish("2")
            assert broker.ready("crm") == 0
        assert broker.ready("crm") == 2
        with suppress(ZeroDivisionError), producer.batch():
            producer.publish("3")
            raise ZeroDivisionError
        assert broker.ready("crm") == 2

    def test_declarations_contradict(self, broker: Broker) -> None:
        """Declaring an exchange with another or an unknown type raises."""
        broker.channel.exchange_declare("e", "topic", durable=True)
        broker.other().channel.exchange_declare("e", "topic", durable=True)
        with pytest.raises(BusError, match="another type"):
            broker.other().channel.exchange_declare("e", "direct", durable=True)
        with pytest.raises(BusError, match="not supported"):
            broker.channel.exchange_declare("h", "headers")

    def test_what_does_not_exist_is_said(self, broker: Broker) -> None:
        """Passive declarations, bindings, consumers and statistics of missing queues raise."""
        channel = broker.channel
        channel.queue_declare("crm")
        with pytest.raises(ChannelError, match="no queue 'none'"):
            channel.queue_declare("none", passive=True)
        with pytest.raises(ChannelError, match="no exchange 'none'"):
            channel.exchange_declare("none", passive=True)
        with pytest.raises(ChannelError, match="no queue 'none'"):
            channel.queue_bind("none", "e", "k")
        with pytest.raises(ChannelError, match="no exchange 'none'"):
            channel.queue_bind("crm", "none", "k")
        with pytest.raises(ChannelError, match="no queue 'none'"):
            channel.basic_consume("none", False, print, "tag")
        with pytest.raises(BusError, match="no queue 'none'"):
            channel.queue_stats("none")

    def test_compression_is_not_obeyed(self, broker: Broker) -> None:
        """The body of a message that claims to be compressed arrives as it was sent."""
        broker.declare("crm")
        broker.channel.publish_many(
            [OutboundMessage(b"BZh9", "crm", headers={"compression": "bzip2"})]
        )
        (message,) = broker.receive("crm", 1)
        assert message.body == b"BZh9"
        assert message.headers["compression"] == "bzip2"
        assert not message.errors

    # -- leasing and settling ------------------------------------------------------------------

    def test_a_drain_delivers_a_batch(self, broker: Broker) -> None:
        """One drain_events delivers as many messages as the prefetch count allows."""
        broker.declare("crm")
        broker.publish("crm", *map(str, range(30)))
        got = broker.consume("crm", prefetch=20)
        broker.connection.drain_events(timeout=PATIENCE)
        assert len(got) == broker.channel.in_flight == 20
        assert broker.channel.queue_stats("crm")[:2] == (10, 20)
        with pytest.raises(TimeoutError):
            broker.connection.drain_events(timeout=0)
        for message in got[:5]:
            message.ack()
        broker.connection.drain_events(timeout=PATIENCE)
        assert len(got) == 25
        assert broker.channel.queue_stats("crm")[:2] == (5, 20)

    def test_queues_share_a_lease(self, broker: Broker) -> None:
        """A long queue does not starve another queue of the same consumer."""
        broker.declare("deep")
        broker.declare("other")
        broker.publish("deep", *["d"] * 100)
        broker.publish("other", "o")
        got = broker.consume("deep", prefetch=1)
        broker.consume("other", into=got)
        for _ in range(2):
            broker.connection.drain_events(timeout=PATIENCE)
            for message in got:
                if not message.acknowledged:
                    message.ack()
        assert b"o" in [message.body for message in got]

    def test_acknowledged_is_gone(self, broker: Broker) -> None:
        """A flush removes acknowledged messages and returns their number; others stay leased."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        first, second, _third = broker.receive("crm", 3)
        first.ack()
        second.ack()
        assert broker.channel.flush() == 2
        assert broker.channel.flush() == 0
        assert broker.channel.queue_stats("crm")[:2] == (0, 1)

    def test_acknowledging_multiple(self, broker: Broker) -> None:
        """Acknowledging with ``multiple`` acknowledges all messages up to that one."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        messages = broker.receive("crm", 3)
        broker.channel.basic_ack(messages[1].delivery_tag, multiple=True)
        assert broker.channel.flush() == 2
        assert broker.channel.in_flight == 1

    def test_closing_flushes_and_gives_back(self, broker: Broker) -> None:
        """Closing flushes acknowledgements and releases the rest without counting a delivery."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        other = broker.other()
        other.receive("crm", 3)[0].ack()
        other.connection.release()
        assert broker.channel.queue_stats("crm")[:2] == (2, 0)
        messages = broker.receive("crm", 2)
        assert [message.body for message in messages] == [b"2", b"3"]
        assert [message.headers[DELIVERY_COUNT] for message in messages] == [0, 0]
        assert messages[0].delivery_info["redelivered"] is True

    def test_requeued_comes_back_at_its_place(self, broker: Broker) -> None:
        """A requeued message is delivered next, to any consumer, as counted and redelivered."""
        broker.declare("crm")
        broker.publish("crm", "1", "2")
        other = broker.other()
        other.receive("crm", 1, prefetch=1)[0].requeue()
        first, second = broker.receive("crm", 2)
        assert [first.body, second.body] == [b"1", b"2"]
        assert [first.headers[DELIVERY_COUNT], second.headers[DELIVERY_COUNT]] == [1, 0]
        assert first.delivery_info["redelivered"] is True
        assert second.delivery_info["redelivered"] is False

    def test_rejected_is_dropped(self, broker: Broker) -> None:
        """A message rejected without requeue is removed at the next flush."""
        broker.declare("crm")
        broker.publish("crm", "1")
        broker.receive("crm", 1)[0].reject()
        assert broker.channel.flush() == 1
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)

    def test_released_in_bulk(self, broker: Broker) -> None:
        """One call releases many messages, and counts deliveries as the caller asks."""
        broker.declare("crm")
        broker.publish("crm", *"abcd")
        other = broker.other()
        tags = [message.delivery_tag for message in other.receive("crm", 4)]
        other.channel.release(tags[:2])
        other.channel.release(tags[2:], attempted=False)
        counts = [message.headers[DELIVERY_COUNT] for message in broker.receive("crm", 4)]
        assert counts == [1, 1, 0, 0]

    def test_moved_is_only_in_the_other_queue(self, broker: Broker) -> None:
        """A message moves with its bytes and headers, and the queues of its copies keep theirs."""
        for queue in ("crm", "shop", "dead"):
            broker.declare(queue)
        broker.publish("crm", "1", "2", "3")
        broker.publish("shop", "s")
        first, _, third = broker.receive("crm", 3)
        broker.channel.move([third.delivery_tag, first.delivery_tag, 99], "dead")
        broker.channel.move([first.delivery_tag], "dead")
        assert broker.channel.queue_stats("crm")[:2] == (0, 1)
        moved = broker.receive("dead", 2)
        assert sorted(message.body for message in moved) == [b"1", b"3"]
        assert [message.aside for message in moved] == ["rejected", "rejected"]
        assert [message.headers[DELIVERY_COUNT] for message in moved] == [0, 0]
        for message in moved:
            message.ack()
        assert broker.channel.flush() == 2
        (other,) = broker.receive("shop", 1)
        assert (other.body, other.aside) == (b"s", "")

    def test_moved_to_no_queue_stays(self, broker: Broker) -> None:
        """A message that cannot be moved is still leased."""
        broker.declare("crm")
        broker.publish("crm", "1")
        (message,) = broker.receive("crm", 1)
        with pytest.raises(BusError, match="no queue 'nowhere'"):
            broker.channel.move([message.delivery_tag], "nowhere")
        assert broker.channel.queue_stats("crm")[:2] == (0, 1)

    def test_too_large_is_cut(self, broker: Broker) -> None:
        """Of a message beyond the limits only the beginning is delivered, with its whole size."""
        large = broker.channel.settings.max_message + 1
        broker.declare("crm")
        broker.channel.publish_many(
            [
                OutboundMessage(b"x" * large, "crm"),
                OutboundMessage(b"y", "crm", headers={"a": "b" * MAX_HEADERS}),
                OutboundMessage(b"z", "crm"),
            ]
        )
        body, headers, small = broker.receive("crm", 3)
        assert body.body == b"x" * KEPT_BYTES
        assert body.size >= large
        assert headers.size > MAX_HEADERS
        assert (small.body, small.size) == (b"z", 1)

    def test_recover_gives_everything_back(self, broker: Broker) -> None:
        """basic_recover makes all messages in flight ready again."""
        broker.declare("crm")
        broker.publish("crm", "1", "2")
        other = broker.other()
        other.receive("crm", 2)
        other.channel.basic_recover(requeue=True)
        assert other.channel.in_flight == 0
        assert len(broker.receive("crm", 2)) == 2

    def test_cancelling_gives_back_what_was_not_delivered(self, broker: Broker) -> None:
        """A consumer that cancels itself within a batch keeps only the messages it has seen."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        got: list[Any] = []

        def once(message: Any) -> None:
            got.append(message)
            broker.channel.basic_cancel("tag")

        broker.channel.basic_consume("crm", False, once, "tag")
        broker.connection.drain_events(timeout=PATIENCE)
        assert [message.body for message in got] == [b"1"]
        assert broker.channel.queue_stats("crm")[:2] == (2, 1)

    def test_a_consumer_that_raises_loses_nothing(self, broker: Broker) -> None:
        """Messages that a failing consumer has not seen are delivered by the next drain."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        got: list[bytes] = []

        def fails_first(message: Any) -> None:
            got.append(message.body)
            if len(got) == 1:
                raise ZeroDivisionError

        broker.channel.basic_consume("crm", False, fails_first, "tag")
        with pytest.raises(ZeroDivisionError):
            broker.connection.drain_events(timeout=PATIENCE)
        broker.connection.drain_events(timeout=PATIENCE)
        assert got == [b"1", b"2", b"3"]

    def test_no_ack_needs_no_acknowledgement(self, broker: Broker) -> None:
        """A consumer with no_ack removes the messages that it receives."""
        broker.declare("crm")
        broker.publish("crm", "1", "2")
        got: list[Any] = []
        broker.channel.basic_consume("crm", True, got.append, "tag")
        broker.connection.drain_events(timeout=PATIENCE)
        broker.channel.flush()
        assert len(got) == 2
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)

    def test_getting_one(self, broker: Broker) -> None:
        """basic_get leases one message, or returns None if there is none."""
        broker.declare("crm")
        broker.publish("crm", "1")
        first = broker.channel.basic_get("crm")
        assert first.body == b"1"
        assert broker.channel.basic_get("crm") is None
        first.requeue()
        again = broker.channel.basic_get("crm")
        assert again.headers[DELIVERY_COUNT] == 1
        again.ack()
        assert broker.channel.basic_get("crm") is None
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)

    def test_a_queue_as_a_whole(self, broker: Broker) -> None:
        """Size, purge and delete count ready messages; purge leaves leased messages."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        message = broker.channel.basic_get("crm")
        assert broker.channel.queue_declare("crm", passive=True).message_count == 2
        stats = broker.channel.queue_stats("crm")
        assert stats[:2] == (2, 1)
        assert stats.oldest_age is not None
        assert 0 <= stats.oldest_age < PATIENCE
        assert broker.channel.queue_purge("crm") == 2
        message.ack()
        assert broker.channel.flush() == 1
        assert broker.channel.queue_stats("crm") == (0, 0, None)
        broker.publish("crm", "4")
        broker.channel.queue_delete("crm")
        with pytest.raises(ChannelError):
            broker.channel.queue_declare("crm", passive=True)
        broker.declare("crm")
        assert broker.ready("crm") == 0

    def test_copies_are_settled_apart(self, broker: Broker) -> None:
        """Acknowledging a message in one queue leaves its copy in another queue intact."""
        broker.declare("crm", "e", "fanout", "")
        broker.declare("cache", "e", "fanout", "")
        broker.channel.publish_many([OutboundMessage(b"x" * 1000, "k", "e")])
        broker.receive("crm", 1)[0].ack()
        broker.channel.flush()
        assert [m.body for m in broker.other().receive("cache", 1)] == [b"x" * 1000]

    def test_an_acknowledgement_from_another_thread_counts(self, broker: Broker) -> None:
        """Thousands of acknowledgements from other threads all take effect."""
        broker.declare("crm")
        broker.publish("crm", *["x"] * 2000)
        messages = broker.receive("crm", 2000)
        threads = [
            threading.Thread(target=lambda part: [m.ack() for m in part], args=(messages[n::4],))
            for n in range(4)
        ]
        for thread in threads:
            thread.start()
        removed = 0
        while any(thread.is_alive() for thread in threads):
            removed += broker.channel.flush()
        assert removed + broker.channel.flush() == 2000

    # -- waiting -------------------------------------------------------------------------------

    def test_waiting_ends_when_a_message_comes(self, broker: Broker) -> None:
        """A waiting consumer soon receives a message that another process publishes."""
        broker.declare("crm")
        broker.actor().do("publish", ["first"], "", "crm")
        got = broker.consume("crm")
        broker.connection.drain_events(timeout=PATIENCE)
        delays = []
        other = broker.other()
        for _ in range(5):
            published: list[float] = []

            def publish(at: list[float] = published) -> None:
                other.channel.publish_many([OutboundMessage(b"x", "crm")])
                at.append(time.monotonic())

            timer = threading.Timer(0.05, publish)
            timer.start()
            broker.connection.drain_events(timeout=PATIENCE)
            timer.join()
            delays.append(time.monotonic() - published[0])
        assert len(got) == 6
        assert min(delays) < 0.1

    def test_waiting_ends_in_time(self, broker: Broker) -> None:
        """drain_events raises after its timeout, with or without a consumer."""
        broker.declare("crm")
        started = time.monotonic()
        with pytest.raises(TimeoutError):
            broker.connection.drain_events(timeout=0.05)
        broker.consume("crm")
        with pytest.raises(TimeoutError):
            broker.connection.drain_events(timeout=0.05)
        assert 0.1 <= time.monotonic() - started < PATIENCE

    def test_waiting_flushes_first(self, broker: Broker) -> None:
        """Acknowledgements are flushed before the consumer waits for messages."""
        broker.declare("crm")
        broker.publish("crm", "1")
        broker.receive("crm", 1)[0].ack()
        with pytest.raises(TimeoutError):
            broker.connection.drain_events(timeout=0)
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)

    # -- processes that die, stall and compete -------------------------------------------------

    def test_a_killed_consumer_is_succeeded(self, broker: Broker) -> None:
        """The messages of a killed consumer go to another, at once if its death is visible."""
        broker.declare("crm")
        broker.publish("crm", *map(str, range(50)))
        lease = 3600.0 if self.knows_the_dead else 1.0
        actor = broker.actor(lease=lease)
        actor.do("consume", "crm", 40)
        assert len(actor.do("receive", 40, PATIENCE)) == 40
        heir = broker.other(lease=lease)
        got = heir.consume("crm")
        heir.drain_until(lambda: len(got) == 10)
        actor.signal(signal.SIGKILL)
        heir.drain_until(lambda: len(got) == 50)
        counts = {message.body: message.headers[DELIVERY_COUNT] for message in got}
        assert counts == {str(n).encode(): int(n < 40) for n in range(50)}
        assert all(m.delivery_info["redelivered"] is bool(m.headers[DELIVERY_COUNT]) for m in got)

    def test_a_stalled_consumer_is_succeeded(self, broker: Broker) -> None:
        """A consumer stopped past its lease loses its messages; late settling has no effect."""
        broker.declare("crm")
        broker.publish("crm", "1", "2", "3")
        actor = broker.actor(lease=0.6)
        actor.do("consume", "crm", 2)
        assert actor.do("receive", 2, PATIENCE) == ["1", "2"]
        actor.signal(signal.SIGSTOP)
        heir = broker.other(lease=0.6)
        got = heir.consume("crm")
        heir.drain_until(lambda: len(got) == 3)
        first, second, third = sorted(got, key=lambda message: message.body)
        first.ack()
        heir.channel.flush()
        actor.signal(signal.SIGCONT)
        assert actor.do("acknowledge") == 0
        assert broker.channel.queue_stats("crm")[:2] == (0, 2)
        second.requeue()
        heir.drain_until(lambda: len(got) == 4)
        assert got[3].body == b"2", "the late acknowledgement took the payload"
        third.ack()
        got[3].ack()
        assert heir.channel.flush() == 2
        # And it goes on as a consumer in good standing.
        broker.publish("crm", "4")
        heir.connection.release()
        assert actor.do("receive", 1, PATIENCE) == ["4"]
        assert actor.do("acknowledge") == 1

    def test_a_busy_consumer_is_not_succeeded(self, broker: Broker) -> None:
        """A consumer busy for longer than its lease keeps its messages."""
        broker.declare("crm")
        broker.publish("crm", "1")
        busy = broker.other(lease=0.8)
        (message,) = busy.receive("crm", 1)
        rival = broker.other(lease=0.8)
        got = rival.consume("crm")
        end = time.monotonic() + 1.6
        rival.drain_until(lambda: time.monotonic() > end)
        assert got == []
        assert busy.channel.extend_leases() is True
        message.ack()
        assert busy.channel.flush() == 1

    def test_a_publish_outlives_its_producer(self, broker: Broker) -> None:
        """Each message whose publish returned before the producer was killed is stored once."""
        broker.declare("crm")
        actor = broker.actor()
        actor.begin("publish_until_killed", "", "crm")
        actor.line()
        said = [int(actor.line()) for _ in range(50)]
        actor.signal(signal.SIGKILL)
        while line := actor.line():
            said.append(int(line))
        count = broker.ready("crm")
        assert len(said) <= count <= len(said) + 1
        bodies = [int(m.body) for m in broker.receive("crm", count, settle=True)]
        assert bodies == list(range(count))

    def test_processes_compete(self, broker: Broker) -> None:
        """With four producers and four consumers, each message arrives exactly once."""
        broker.declare("crm")
        consumers = [broker.actor() for _ in range(4)]
        producers = [broker.actor() for _ in range(4)]
        for consumer in consumers:
            consumer.begin("consume", "crm", 50)
            consumer.begin("settle_until", 1.0, PATIENCE / 2)
        for number, producer in enumerate(producers):
            producer.begin("publish_singly", f"{number}-", 150, "", "crm")
        assert [producer.answer() for producer in producers] == [150] * 4
        bodies: list[str] = []
        for consumer in consumers:
            consumer.answer()
            bodies += consumer.answer()
        assert sorted(bodies) == sorted(f"{n}-{i}" for n in range(4) for i in range(150))
        assert broker.channel.queue_stats("crm")[:2] == (0, 0)

    def test_a_fork_starts_anew(self, broker: Broker) -> None:
        """A forked child leases and publishes by itself and leaves its parent's leases alone."""
        broker.declare("crm")
        broker.publish("crm", "1", "2")
        got = broker.consume("crm", prefetch=1)
        broker.connection.drain_events(timeout=PATIENCE)

        def child() -> None:
            assert broker.channel.in_flight == 1  # not known yet that this is a child
            got[0].ack()
            assert broker.channel.flush() == 0
            broker.drain_until(lambda: len(got) == 2)
            assert got[1].body == b"2"
            got[1].ack()
            assert broker.channel.flush() == 1
            broker.publish("crm", "3")
            broker.connection.release()

        in_a_fork(child)
        assert broker.channel.queue_stats("crm")[:2] == (1, 1)
        got[0].ack()
        broker.drain_until(lambda: len(got) == 2)
        assert [message.body for message in got] == [b"1", b"3"]


def in_a_fork(work: Callable[[], None]) -> None:
    """Run a function in a forked child; fail if it fails there."""
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            work()
            status = 0
        except BaseException:
            sys.excepthook(*sys.exc_info())
        finally:
            os._exit(status)  # nothing of pytest's may run twice
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0, "the child failed, see above"


class Broker:
    """A connection with a channel, and shortcuts for tests."""

    def __init__(self, connect: str, url: str, stack: ExitStack, **options: Any) -> None:
        module, name = connect.split(":")
        self._connect = connect
        self._stack = stack
        self.url = url
        self.connection = getattr(__import__(module, fromlist=[name]), name)(url, **options)
        stack.callback(self.connection.release)
        self.channel = self.connection.channel()

    @classmethod
    @contextmanager
    def opened(cls, connect: str, url: str) -> Iterator[Broker]:
        """Open a broker for the block; close it with all its connections and actors."""
        with ExitStack() as stack:
            yield cls(connect, url, stack)

    def other(self, **options: Any) -> Broker:
        """Return another connection to the same broker."""
        return Broker(self._connect, self.url, self._stack, **options)

    def actor(self, **options: Any) -> Actor:
        """Start and return another process at the same broker."""
        actor = Actor(self._connect, self.url, **options)
        self._stack.callback(actor.end)
        return actor

    def declare(self, queue: str, exchange: str = "", kind: str = "", key: str = "") -> None:
        """Declare a queue, and bind it if an exchange is given."""
        self.channel.queue_declare(queue, durable=True)
        if exchange:
            self.channel.exchange_declare(exchange, kind, durable=True)
            self.channel.queue_bind(queue, exchange, key)

    def publish(self, queue: str, *bodies: str) -> None:
        """Publish bodies to a queue in one step."""
        self.channel.publish_many([OutboundMessage(body.encode(), queue) for body in bodies])

    def consume(self, queue: str, *, prefetch: int = 0, into: list[Any] | None = None) -> list[Any]:
        """Start to consume a queue; return the list that receives its messages."""
        got: list[Any] = [] if into is None else into
        if into is None:
            self.channel.basic_qos(0, prefetch, False)
        self.channel.basic_consume(queue, False, got.append, str(uuid.uuid4()))
        return got

    def receive(
        self, queue: str, count: int, *, prefetch: int = 0, settle: bool = False
    ) -> list[Any]:
        """Consume a queue until that many messages have arrived, then stop."""
        got = self.consume(queue, prefetch=prefetch)
        tag = next(tag for tag, of in self.channel._tag_to_queue.items() if of == queue)
        settled = 0
        deadline = time.monotonic() + PATIENCE
        while len(got) < count:
            assert time.monotonic() < deadline, f"{len(got)} of {count} messages came"
            self.connection.drain_events(timeout=PATIENCE)
            for message in got[settled:] if settle else ():
                message.ack()
                settled += 1
        self.channel.basic_cancel(tag)
        return got

    def drain_until(self, condition: Callable[[], Any]) -> None:
        """Drain events until the condition holds."""
        deadline = time.monotonic() + PATIENCE
        while not condition():
            assert time.monotonic() < deadline, "the condition did not come true in time"
            try:
                self.connection.drain_events(timeout=0.02)
            except TimeoutError:
                continue

    def ready(self, queue: str) -> int:
        """Return how many messages of a queue are ready."""
        return int(self.channel.queue_stats(queue).ready)
