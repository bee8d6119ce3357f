"""The link: one connection to a broker. It hides the differences between brokers from the bus."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import kombu
from kombu import message
from kombu.transport import virtual

from eventsync.transports.leased.channel import LeasedChannel

__all__ = ["Delivery", "Link", "QueueState"]

_kombu: Any = kombu  # its exports are not annotated
_ATTEMPTS: Final = "x-delivery-count"


@dataclass(slots=True)
class Delivery:
    """A received message.

    ``attempts``: how often the message was delivered before. ``queue``: the queue from which it was
    received. ``message``: the driver's message. ``aside``: if the broker itself moved the message
    to the dead letters, the broker's word for the reason, else empty. ``size``: the length of the
    message in bytes. If the message was too large to be read, ``body`` is only its beginning, and
    shorter than ``size``.
    """

    body: bytes
    content_type: str
    attempts: int
    queue: str
    message: Any
    aside: str = ""
    size: int = -1

    def __post_init__(self) -> None:
        if self.size < 0:
            self.size = len(self.body)

    @property
    def is_whole(self) -> bool:
        """Whether ``body`` is the entire message, and not only its beginning."""
        return self.size == len(self.body)


@dataclass(slots=True, frozen=True)
class QueueState:
    """The state of a queue. A value is ``None`` if the transport does not report it."""

    ready: int
    """The number of messages that wait for a consumer."""
    leased: int | None
    """The number of messages that consumers have received and not settled yet."""
    oldest: float | None
    """The age of the oldest message, in seconds; ``None`` also if the queue is empty."""

    @property
    def unsettled(self) -> int:
        """The number of messages in the queue, with those that consumers have leased."""
        return self.ready + (self.leased or 0)


class RawMessage(virtual.Message):
    """A message of one of kombu's virtual transports. Its body is not decompressed or decoded."""

    def __init__(self, payload: Any, channel: Any = None, **_ignored: Any) -> None:
        # kombu's constructor is not called on purpose: it decompresses the body if the sender sets
        # a `compression` header, and fails on messages without the properties that kombu sets.
        payload = payload if isinstance(payload, dict) else {"body": repr(payload)}
        properties = _dict(payload.get("properties"))
        body = payload.get("body")
        if isinstance(body, str | bytes) and isinstance(properties.get("body_encoding"), str):
            try:
                body = channel.decode_body(body, properties["body_encoding"])
            except (KeyError, ValueError):
                properties = {**properties, "body_encoding": None}  # keep the body as received
        self._raw = payload
        self.body = body
        self.channel = channel
        self.properties = properties
        self.headers = _dict(payload.get("headers"))
        self.delivery_info = _dict(properties.get("delivery_info"))
        self.delivery_tag = properties.setdefault("delivery_tag", f"foreign-{id(self)}")
        self.content_type = payload.get("content-type")
        self.content_encoding = payload.get("content-encoding")
        self.accept = None
        self.errors = []
        self._decoded_cache = None
        self._state = "RECEIVED"


class Link:
    """A connection to a broker through any kombu transport. The constructor connects and blocks.

    Only one thread at a time may use a link. With eventsync's own transports every method raises
    eventsync's errors; with kombu's transports, the errors of kombu and of the driver.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._received: list[Delivery] = []
        self._queue = ""
        connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5.0)
        self._channel = self._open_channel()
        self._producer = _kombu.Producer(self._channel, auto_declare=False)

    def _open_channel(self) -> Any:
        channel = self._connection.channel()
        if isinstance(channel, virtual.Channel) and channel.Message is virtual.Message:
            channel.Message = RawMessage
        return channel

    def declare_exchange(self, exchange: str) -> None:
        """Create a durable topic exchange. Idempotent."""
        _kombu.Exchange(exchange, type="topic", durable=True)(self._channel).declare()

    def declare_queue(
        self, queue: str, *, exchange: str = "", keys: Iterable[str] = (), dead: str = ""
    ) -> None:
        """Create a durable queue and bind it to ``exchange`` with each of ``keys``. Idempotent.

        ``dead``: the name of the dead-letter queue, to which the broker moves the messages that it
        removes from this queue. Transports without dead-letter support ignore it.
        """
        source = _kombu.Exchange(exchange, type="topic", durable=True)
        bindings = [_kombu.binding(source, routing_key=key) for key in keys]
        _kombu.Queue(queue, bindings=bindings, durable=True)(self._channel).declare()

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """Publish messages; return once the transport has stored them as safely as it can.

        Publishes all messages in one atomic step if the transport supports that, else one by one.
        Raises ``UnroutableError`` if no queue receives a message and the transport reports that.
        """
        with self._producer.batch():
            for body in bodies:
                self._producer.publish(
                    body,
                    exchange=exchange,
                    routing_key=key,
                    content_type=content_type,
                    content_encoding="binary",
                    delivery_mode=2,
                    mandatory=True,
                    retry=False,
                )

    def state(self, queue: str) -> QueueState:
        """Return the numbers of messages in a queue.

        Raises the transport's error if the queue does not exist. Some of kombu's transports report
        a missing queue as an empty one.
        """
        if hasattr(self._channel, "queue_stats"):
            stats = self._channel.queue_stats(queue)
            return QueueState(stats.ready, stats.leased, stats.oldest_age)
        if isinstance(self._channel, virtual.Channel):
            # `_size` is used, because some transports forget an empty queue. For such a queue
            # `queue_declare` would report that it is missing.
            channel: Any = self._channel
            return QueueState(channel._size(queue), None, None)
        declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Start to consume ``queue``; ``receive`` then returns its messages.

        ``prefetch``: how many messages may be received but not settled at a time. 0 means no limit,
        which is for browsing a queue.
        """
        self._queue = queue
        if prefetch:
            self._channel.basic_qos(0, prefetch, False)
        consumer = _kombu.Consumer(
            self._channel,
            queues=[_kombu.Queue(queue, durable=True)],
            on_message=self._on_message,
            auto_declare=False,
        )
        consumer.consume()

    def receive(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Return received messages; wait up to ``timeout`` seconds for the first one.

        Returns an empty list if no message arrives. ``limit``: about how many messages to return; a
        transport that delivers messages in batches may return more.
        """
        deadline = time.monotonic() + timeout
        while len(self._received) < limit:
            wait = 0.0 if self._received else max(0.0, deadline - time.monotonic())
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                break
            if isinstance(self._channel, LeasedChannel):
                break  # drain_events has delivered all ready messages at once
        received, self._received = self._received, []
        return received

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Send the acknowledgements of messages; do not wait until the broker confirms them."""
        for delivery in deliveries:
            delivery.message.ack()
        flush = getattr(self._channel, "flush", None)
        if flush is not None:
            flush()

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back to the queue, so that any consumer can receive them again."""
        for delivery in deliveries:
            delivery.message.requeue()

    def refuse(self, deliveries: Iterable[Delivery], dead: str) -> None:
        """Make the broker move messages to the dead-letter queue ``dead``.

        Only for messages that were too large to be read. The other transports of kombu read every
        message in full; with them, the list is empty.
        """
        tags = [delivery.message.delivery_tag for delivery in deliveries]
        if tags:
            self._channel.move(tags, dead)

    def life(self) -> str | None:
        """Return the life id of the broker, or ``None`` if the transport has no such id.

        The id changes when the broker restarts and may have lost confirmed messages. A broker that
        never loses confirmed messages always has the same id.
        """
        return self._channel.life() if isinstance(self._channel, LeasedChannel) else None

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """The exceptions that the driver raises for a lost connection, besides ``OSError``."""
        return tuple(self._connection.connection_errors)

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process opened the connection; this process must then not use it.

        Always False in this class; ``AmqpLink`` overrides it.
        """
        return False

    def close(self) -> None:
        """Disconnect. Received messages that are not settled become ready again. Idempotent."""
        channel, self._channel = self._channel, None
        if isinstance(channel, virtual.Channel) and not isinstance(channel, LeasedChannel):
            # With some of kombu's transports, closing the channel would lose unsettled messages.
            channel.qos.restore_unacked()
        self._connection.close()

    def drop(self) -> None:
        """Disconnect after a failure, without a message to the broker. Idempotent."""
        self._connection.close()

    def _on_message(self, message: message.Message) -> None:
        self._received.append(delivery_of(message, self._queue))


def delivery_of(message: Any, queue: str) -> Delivery:
    """Return a ``Delivery`` for a driver's message. Never raises, even for malformed headers.

    ``queue``: the queue from which the message was received.
    """
    body, content_type = message.body, message.content_type
    if isinstance(body, str):
        body = body.encode("utf-8", "surrogateescape")
    elif not isinstance(body, bytes | bytearray | memoryview):
        body = b"" if body is None else repr(body).encode()
    attempts = message.headers.get(_ATTEMPTS, 0) if isinstance(message.headers, dict) else 0
    return Delivery(
        bytes(body),
        content_type if isinstance(content_type, str) else "",
        attempts if type(attempts) is int and attempts > 0 else 0,
        queue,
        message,
        aside=getattr(message, "aside", ""),
        size=getattr(message, "size", -1),
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
