"""The link to RabbitMQ: uses quorum queues, pipelined confirms and a heartbeat thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import amqp

from eventsync.errors import BusError, BusUnavailableError, UnroutableError
from eventsync.transports.amqp.confirms import ConfirmedPublisher
from eventsync.transports.amqp.connection import LOST, REFUSED
from eventsync.transports.amqp.session import Session
from eventsync.transports.amqp.url import SCHEMES, Endpoint
from eventsync.transports.link import Delivery, Link, QueueState, delivery_of

__all__ = ["SCHEMES", "AmqpLink", "connect"]

# More deliveries than a worker ever allows. Set explicitly, because newer versions of RabbitMQ drop
# a message after 20 deliveries by default.
_DELIVERY_LIMIT: Final = 1_000_000
# The longest wait, in seconds, during which the connection is locked.
_LONGEST_WAIT: Final = 0.25
# The header of a message that `release` has sent again: the number of deliveries before that.
_EARLIER: Final = "x-eventsync-attempts"
# The longest wait for the broker, in seconds, while the link closes.
_LONGEST_CLOSE: Final = 3.0


def connect(url: str, *, max_message: int) -> AmqpLink:
    """Connect to the first broker that answers and return the link. Blocks.

    ``url``: one URL, or several URLs separated by semicolons. The query may set ``heartbeat``,
    ``publish_timeout``, ``connect_timeout`` and ``settle``, in seconds (see ``Endpoint``), and for
    ``amqps`` the PEM files ``ca``, ``cert`` and ``key``. Without ``ca``, the certificate
    authorities of the system are trusted. The server's certificate and host name are always
    verified. ``max_message``: of longer messages, in bytes, only the beginning is kept.

    Raises ``ConfigError`` if a URL is wrong, ``BusUnavailableError`` if no broker answers, and
    ``BusError`` if a broker refuses the login.
    """
    error: BusUnavailableError | None = None
    for endpoint in [Endpoint.parse(part) for part in url.split(";")]:
        try:
            return AmqpLink(endpoint, max_message=max_message)
        except BusUnavailableError as unavailable:
            error = unavailable
    assert error is not None
    raise error


class AmqpLink(Link):
    """A connection to RabbitMQ, which implements ``Link``. All methods are thread-safe.

    After a ``BusUnavailableError`` the link is unusable.
    """

    def __init__(self, endpoint: Endpoint, *, max_message: int) -> None:
        self.session = Session(endpoint, max_message=max_message)
        self._settle = endpoint.settle
        self._settled_at = 0.0
        self._unsettled: dict[int, Delivery] = {}
        self._received = []
        self._queue = ""
        self._browsing = False
        self._consumer: Any = None
        with self.session.errors(f"RabbitMQ at {endpoint.address}"):
            self._channel = self.session.channel()
            self._publisher = ConfirmedPublisher(self.session)
        self.session.start_keep_alive(min(1.0, endpoint.heartbeat / 4))

    # -- declaring -------------------------------------------------------------------------------

    def declare_exchange(self, exchange: str) -> None:
        """Create a durable topic exchange. Idempotent."""
        with self.session.errors(f"exchange {exchange}"):
            self._channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)

    def declare_queue(
        self, queue: str, *, exchange: str = "", keys: Iterable[str] = (), dead: str = ""
    ) -> None:
        """Create a durable quorum queue and bind it to ``exchange`` with each of ``keys``.

        ``dead``: the queue to which RabbitMQ moves rejected messages. Idempotent. Raises
        ``BusError`` if the queue exists with other properties.
        """
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": _DELIVERY_LIMIT,
        }
        if dead:
            arguments |= {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        with self.session.errors(f"queue {queue}"):
            is_new = not self._exists(queue)
            self._channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
            if is_new:
                self._settled_at = time.monotonic() + self._settle
            keys = list(keys)
            if keys:
                # Wait before the first binding, so that no message can reach the queue, and be
                # confirmed, before RabbitMQ has saved the queue.
                self._await_settled()
            for key in keys:
                self._channel.queue_bind(queue, exchange, key)

    def _exists(self, queue: str) -> bool:
        # Uses a separate channel, because RabbitMQ closes the channel if the queue does not exist.
        channel = self.session.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return False
        channel.close()
        return True

    def _await_settled(self) -> None:
        """Wait until ``Endpoint.settle`` seconds have passed since the last queue was created.

        RabbitMQ saves the name of a new quorum queue about a second after the declaration. If the
        server is killed earlier, it recreates the queue with another internal name when it starts.
        The confirmed messages of that queue are lost, and the queue never elects a leader.
        """
        while (left := self._settled_at - time.monotonic()) > 0:
            self.session.wait(min(left, _LONGEST_WAIT))

    def state(self, queue: str) -> QueueState:
        """Return the number of ready messages in a queue.

        RabbitMQ reports neither the number of leased messages nor the age of the oldest message.
        """
        with self.session.errors(f"queue {queue}"):
            declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- publishing ------------------------------------------------------------------------------

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """Publish messages and return when the broker has confirmed all of them.

        Up to 1,000 messages may be unconfirmed at a time. Raises ``UnroutableError`` if no queue
        receives a message; the other messages are stored nevertheless. Raises
        ``BusUnavailableError`` if the broker refuses a message, or if no confirm arrives for
        ``publish_timeout`` seconds.
        """
        properties = {"content_type": content_type}
        publisher = self._publisher
        with self.session.errors("publishing"):
            self._await_settled()
            publisher.publish(((body, properties) for body in bodies), exchange=exchange, key=key)
            if publisher.refused:
                raise BusUnavailableError(
                    f"the broker refused {publisher.refused} messages",
                    hint="look for full queues, and for quorum queues without a majority",
                )
            if publisher.unroutable:
                raise UnroutableError(
                    f"no queue receives messages with routing key {publisher.unroutable!r}",
                    hint="declare the store's queues first: start its worker once",
                )

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Start to consume ``queue``; ``receive`` then returns its messages.

        ``prefetch``: how many messages may be received but not settled at a time. 0 means no limit;
        ``receive`` then fetches messages one by one, to browse the queue.
        """
        self._queue = queue
        # Without a prefetch limit RabbitMQ would push the whole queue. So `receive` then fetches
        # messages one by one.
        self._browsing = not prefetch
        if self._browsing:
            return
        with self.session.errors(f"queue {queue}"):
            self._channel.basic_qos(0, prefetch, False)
            self._consumer = self._channel.basic_consume(queue, callback=self._on_message)

    def receive(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Return about ``limit`` messages; wait up to ``timeout`` seconds for the first one.

        Raises ``BusUnavailableError`` if the connection is lost or the queue was deleted.
        """
        what = f"queue {self._queue}"
        deadline = time.monotonic() + timeout
        with self.session.errors(what):
            while self._browsing and len(self._received) < limit:
                message = self._channel.basic_get(self._queue)
                if message is None:
                    break
                self._on_message(message)
        while not self._browsing and len(self._received) < limit:
            left = 0.0 if self._received else max(0.0, deadline - time.monotonic())
            # Each wait is short, so that publishers and the keep-alive thread can lock the session.
            with self.session.errors(what):
                arrived = self.session.wait(min(_LONGEST_WAIT, left))
            if not arrived and (self._received or time.monotonic() >= deadline):
                break
        with self.session.lock:
            received, self._received = self._received, []
        return received

    def _on_message(self, message: Any) -> None:
        delivery = delivery_of(message, self._queue)
        delivery.attempts += _earlier_attempts(message.headers)
        delivery.size = message.size
        delivery.aside = _dead_letter_reason(message.headers)
        self._unsettled[message.delivery_tag] = delivery
        self._received.append(delivery)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Send the acknowledgements of messages; do not wait until the broker confirms them.

        One frame acknowledges the oldest unsettled messages together.
        """
        tags = {delivery.message.delivery_tag for delivery in deliveries}
        with self.session.errors(f"queue {self._queue}"):
            last = 0
            for tag in list(self._unsettled):
                if tag not in tags:
                    break
                last = tag
                del self._unsettled[tag]
            if last:
                self._channel.basic_ack(last, multiple=True)
            for tag in sorted(tags & self._unsettled.keys()):
                del self._unsettled[tag]
                self._channel.basic_ack(tag)

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back to the queue; all releases of one message count as one delivery.

        RabbitMQ counts each release as a delivery. During a long outage of a store, messages would
        then look as if workers crashed over them. Therefore the second release of a message
        publishes it again, with the number of deliveries in a header.
        """
        with self.session.errors(f"queue {self._queue}"):
            unsettled = [one for one in deliveries if one.message.delivery_tag in self._unsettled]
            resent = [one for one in unsettled if one.attempts and one.is_whole]
            self._publisher.publish(
                ((one.body, _properties(one)) for one in resent), exchange="", key=self._queue
            )
            if self._publisher.unroutable or self._publisher.refused:
                resent = []  # some were not stored again, so requeue all of them instead
        self.acknowledge(resent)
        self._reject(unsettled, requeue=True)

    def refuse(self, deliveries: Iterable[Delivery], dead: str) -> None:
        """Make RabbitMQ move messages to the queue's dead-letter queue, which must be ``dead``."""
        self._reject(deliveries, requeue=False)

    def _reject(self, deliveries: Iterable[Delivery], *, requeue: bool) -> None:
        with self.session.errors(f"queue {self._queue}"):
            for delivery in deliveries:
                tag = delivery.message.delivery_tag
                if self._unsettled.pop(tag, None) is not None:
                    self._channel.basic_reject(tag, requeue)

    # -- lifetime --------------------------------------------------------------------------------

    def close(self) -> None:
        """Release unsettled messages and disconnect. Idempotent. Blocks a few seconds at most."""
        session = self.session
        if session.is_inherited:
            return
        with session.lock:
            with suppress(*LOST, *REFUSED, BusError):
                if session.wire.connected:
                    session.limit_waits(_LONGEST_CLOSE)
                    if self._consumer is not None:
                        self._stop_consuming()
                        self.release(list(self._unsettled.values()))
                    session.wire.close()
            session.drop()

    def _stop_consuming(self) -> None:
        """Receive all messages that RabbitMQ has already sent, then cancel the consumer.

        If RabbitMQ takes back a sent message by itself, it counts a delivery. RabbitMQ answers a
        ``basic_get`` only after it has handled the earlier acknowledgements. These may have made
        room for more messages. RabbitMQ has then sent these messages, too, and they arrive before
        the answer to the next call.
        """
        message = self._channel.basic_get(self._queue)
        if message is not None:
            self._on_message(message)
        self._channel.basic_qos(0, 1, False)
        self._channel.basic_cancel(self._consumer)

    def drop(self) -> None:
        """Disconnect after a failure, without a message to the broker. Idempotent."""
        self.session.drop()

    def life(self) -> str | None:
        """Return always the same id, because quorum queues never lose confirmed messages."""
        return ""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """An empty tuple, because this link raises only eventsync's errors."""
        return ()

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process opened the connection; this process must then not use it."""
        return self.session.is_inherited


def _properties(delivery: Delivery) -> dict[str, Any]:
    """Return the properties for publishing ``delivery`` again, with its number of deliveries."""
    properties: dict[str, Any] = {"application_headers": {_EARLIER: delivery.attempts}}
    if 0 < len(delivery.content_type) < 128 and delivery.content_type.isascii():
        properties["content_type"] = delivery.content_type
    return properties


def _dead_letter_reason(headers: Any) -> str:
    """Return RabbitMQ's reason for dead-lettering a message; empty if it did not do so."""
    word = headers.get("x-first-death-reason") if isinstance(headers, dict) else None
    return word if isinstance(word, str) else ""


def _earlier_attempts(headers: Any) -> int:
    count = headers.get(_EARLIER) if isinstance(headers, dict) else None
    return count if type(count) is int and count > 0 else 0
