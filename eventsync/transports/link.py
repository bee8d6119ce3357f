"""The link: one connection to a broker, with everything in which brokers differ for the bus."""

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
    """A message as received, with the number of its earlier deliveries.

    ``aside``: if the broker itself moved the message to the dead letters, its word for the reason,
    else empty. ``size``: of the message in bytes; greater than the length of ``body`` if the
    message was too large to be read.
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
        """Whether ``body`` is the entire message."""
        return self.size == len(self.body)


@dataclass(slots=True, frozen=True)
class QueueState:
    """The counts of a queue; ``None`` where the transport does not report them."""

    ready: int
    """Messages that wait for a consumer."""
    leased: int | None
    """Messages that consumers have received and not settled yet."""
    oldest: float | None
    """Age of the oldest message, in seconds."""


class RawMessage(virtual.Message):
    """A message of one of kombu's virtual transports, with its body as it was received."""

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
                properties = {**properties, "body_encoding": None}  # the body stays as it is
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
    """A connection to a broker over any kombu transport; the constructor connects and blocks.

    For one thread at a time. Every method raises the errors of kombu and its driver, or eventsync's
    errors where the transport is eventsync's own.
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
        """Create a durable queue that receives the routing ``keys`` of ``exchange``. Idempotent.

        ``dead``: the queue to which the broker moves messages that it removes from this one.
        """
        source = _kombu.Exchange(exchange, type="topic", durable=True)
        bindings = [_kombu.binding(source, routing_key=key) for key in keys]
        _kombu.Queue(queue, bindings=bindings, durable=True)(self._channel).declare()

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """Send messages; on return they are as safe as the transport can make them.

        One atomic step if the transport supports it, else one message at a time. Raises
        ``UnroutableError`` if no queue takes them and the transport notices that.
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
        """Return the counts of a queue. Raises if it is missing, unless the broker hides that."""
        if hasattr(self._channel, "queue_stats"):
            stats = self._channel.queue_stats(queue)
            return QueueState(stats.ready, stats.leased, stats.oldest_age)
        if isinstance(self._channel, virtual.Channel):
            # Asked for the size, because some transports do not remember an empty queue and would
            # report it as missing.
            channel: Any = self._channel
            return QueueState(channel._size(queue), None, None)
        declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Start to consume ``queue``; ``receive`` then returns its messages.

        ``prefetch``: how many may be received and not settled; 0 for no limit, to browse a queue.
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
        """Return about ``limit`` messages; wait up to ``timeout`` seconds for the first."""
        deadline = time.monotonic() + timeout
        while len(self._received) < limit:
            wait = 0.0 if self._received else max(0.0, deadline - time.monotonic())
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                break
            if isinstance(self._channel, LeasedChannel):
                break  # it has delivered all ready messages at once
        received, self._received = self._received, []
        return received

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Acknowledge messages; on return the acknowledgements are sent, but not confirmed."""
        for delivery in deliveries:
            delivery.message.ack()
        flush = getattr(self._channel, "flush", None)
        if flush is not None:
            flush()

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Make messages ready again, for any consumer."""
        for delivery in deliveries:
            delivery.message.requeue()

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Let the broker move messages to the queue's dead letters, if it supports that."""
        raise NotImplementedError(f"{type(self).__name__} receives every message in full")

    def life(self) -> str | None:
        """Return an id of the broker's present run, or ``None`` if the transport has none.

        It changes with each restart in which the broker may have lost the latest messages it had
        confirmed. For a broker that never loses them it is always the same.
        """
        return self._channel.life() if isinstance(self._channel, LeasedChannel) else None

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """The exceptions, besides ``OSError``, that the driver raises for a lost connection."""
        return tuple(self._connection.connection_errors)

    @property
    def is_inherited(self) -> bool:
        """Whether the connection is a parent process's, so that this process must not use it.

        Always false here; ``AmqpLink`` overrides it.
        """
        return False

    def close(self) -> None:
        """Disconnect; messages that are not settled become ready again. Idempotent."""
        channel, self._channel = self._channel, None
        if isinstance(channel, virtual.Channel) and not isinstance(channel, LeasedChannel):
            # Some of kombu's transports would lose these messages with the channel.
            channel.qos.restore_unacked()
        self._connection.close()

    def drop(self) -> None:
        """Disconnect after a failure, without notice to the broker. Idempotent."""
        self._connection.close()

    def _on_message(self, message: message.Message) -> None:
        self._received.append(delivery_of(message, self._queue))


def delivery_of(message: Any, queue: str) -> Delivery:
    """Return a message as a ``Delivery``, whatever values its sender has put into it."""
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
    )


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}
