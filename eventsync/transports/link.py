"""The link: one connection to a broker, and all in which brokers differ for the bus.

It must not know what the bytes of a message mean, nor which stores the queues belong to.
"""

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

_kombu: Any = kombu  # it does not annotate what it exports
_ATTEMPTS: Final = "x-delivery-count"


@dataclass(slots=True)
class Delivery:
    """A message as it came: its bytes, and how often it was delivered before.

    ``aside``: the broker's word for why it put the message aside by itself; empty if it did not.
    ``size``: in bytes; greater than what ``body`` holds when the message was too large to read.
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
        """Whether ``body`` is all of it."""
        return self.size == len(self.body)


@dataclass(slots=True, frozen=True)
class QueueState:
    """How a queue stands: messages ready, in the hands of consumers, age of the oldest in seconds.

    ``None`` where the transport cannot tell.
    """

    ready: int
    leased: int | None
    oldest: float | None


class RawMessage(virtual.Message):
    """A message of a virtual transport, whose body nobody decodes, least of all decompresses."""

    def __init__(self, payload: Any, channel: Any = None, **_ignored: Any) -> None:
        # kombu's constructor is left out on purpose: it inflates the body when the sender sets a
        # `compression` header, and fails on a message that lacks what kombu's own senders set.
        payload = payload if isinstance(payload, dict) else {"body": repr(payload)}
        properties = _dict(payload.get("properties"))
        body = payload.get("body")
        if isinstance(body, str | bytes) and isinstance(properties.get("body_encoding"), str):
            try:
                body = channel.decode_body(body, properties["body_encoding"])
            except (KeyError, ValueError):
                properties = {**properties, "body_encoding": None}  # it comes as it is
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
    """One connection to a broker, over any kombu transport. Connects at once; blocks.

    For one thread at a time. Raises, from every method, what kombu and the driver raise, and
    eventsync's own errors from the transports that have them.
    """

    def __init__(self, connection: Any) -> None:
        self._connection = connection
        self._received: list[Delivery] = []
        self._queue = ""
        connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5.0)
        self._channel = self._new_channel()
        self._producer = _kombu.Producer(self._channel, auto_declare=False)

    def _new_channel(self) -> Any:
        channel = self._connection.channel()
        if isinstance(channel, virtual.Channel) and channel.Message is virtual.Message:
            channel.Message = RawMessage
        return channel

    def declare_exchange(self, exchange: str) -> None:
        """Make a durable topic exchange. Idempotent."""
        _kombu.Exchange(exchange, type="topic", durable=True)(self._channel).declare()

    def declare_queue(
        self, queue: str, *, exchange: str = "", keys: Iterable[str] = (), dead: str = ""
    ) -> None:
        """Make a durable queue that takes ``keys`` of ``exchange``. Idempotent.

        ``dead``: the queue where the broker puts what it takes out of this one by itself.
        """
        source = _kombu.Exchange(exchange, type="topic", durable=True)
        bindings = [_kombu.binding(source, routing_key=key) for key in keys]
        _kombu.Queue(queue, bindings=bindings, durable=True)(self._channel).declare()

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """Send messages; they are safe when this returns, as far as the transport can promise.

        One atomic step where the transport can, a message at a time elsewhere. Raises
        ``UnroutableError`` when no queue takes them, where the transport can tell.
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
        """How a queue stands. Raises an error when there is none, where the broker can tell."""
        if hasattr(self._channel, "queue_stats"):
            stats = self._channel.queue_stats(queue)
            return QueueState(stats.ready, stats.leased, stats.oldest_age)
        if isinstance(self._channel, virtual.Channel):
            # Those that keep no list of their queues know none that is empty.
            channel: Any = self._channel
            return QueueState(channel._size(queue), None, None)
        declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """Have the messages of ``queue`` come to ``receive``.

        ``prefetch``: how many may be in hand; 0 for those who look through a whole queue.
        """
        self._queue = queue
        if prefetch:
            self._channel.basic_qos(0, prefetch, False)
        consumer = _kombu.Consumer(
            self._channel,
            queues=[_kombu.Queue(queue, durable=True)],
            on_message=self._take,
            auto_declare=False,
        )
        consumer.consume()

    def receive(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Up to ``limit`` messages or so; waits up to ``timeout`` seconds for the first."""
        deadline = time.monotonic() + timeout
        while len(self._received) < limit:
            wait = 0.0 if self._received else max(0.0, deadline - time.monotonic())
            try:
                self._connection.drain_events(timeout=wait)
            except TimeoutError:
                break
            if isinstance(self._channel, LeasedChannel):
                break  # all that was ready has come at once: another look would only keep it here
        received, self._received = self._received, []
        return received

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Settle messages for good; on its way to the broker when this returns."""
        for delivery in deliveries:
            delivery.message.ack()
        flush = getattr(self._channel, "flush", None)
        if flush is not None:
            flush()

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back, for any consumer."""
        for delivery in deliveries:
            delivery.message.requeue()

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Have the broker put messages into the queue's dead letters, where it can do that."""
        raise NotImplementedError(f"{type(self).__name__} reads every message whole")

    def life(self) -> str | None:
        """Which life of the broker this is: another after each restart in which one may have
        forgotten the last it had confirmed, and always the same of one that never forgets.

        ``None`` where the transport cannot tell.
        """
        return self._channel.life() if isinstance(self._channel, LeasedChannel) else None

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """What a driver raises, beside ``OSError``, when its broker has gone away."""
        return tuple(self._connection.connection_errors)

    @property
    def is_inherited(self) -> bool:
        """Whether it was made before a fork and may not be used here; never for those that mind."""
        return False

    def close(self) -> None:
        """Disconnect; what is not settled goes back. Idempotent."""
        channel, self._channel = self._channel, None
        if isinstance(channel, virtual.Channel) and not isinstance(channel, LeasedChannel):
            # Some of kombu's own would let it perish with the channel.
            channel.qos.restore_unacked()
        self._connection.close()

    def drop(self) -> None:
        """Disconnect after a failure, without a word to the broker. Idempotent."""
        self._connection.close()

    def _take(self, message: message.Message) -> None:
        self._received.append(delivery_of(message, self._queue))


def delivery_of(message: Any, queue: str) -> Delivery:
    """What the bus sees of a message, whatever its sender put into it."""
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


def _dict(held: Any) -> dict[str, Any]:
    return held if isinstance(held, dict) else {}
