"""Owns the messages of the leased-queue transports, on their way in and on their way out.

It must not know how a backend keeps them, nor what the bytes of a body mean.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from kombu import message

if TYPE_CHECKING:
    from eventsync.transports.leased.channel import LeasedChannel

__all__ = ["DELIVERY_COUNT", "Delivery", "LeasedMessage", "Outgoing", "PublishBatch"]

#: The header that says how often a message was delivered before without being settled; the name
#: and the meaning are those of RabbitMQ's quorum queues.
DELIVERY_COUNT = "x-delivery-count"

# What kombu's producer adds to every message and a durable, unprioritised queue takes for granted.
_IMPLIED_PROPERTIES = {"delivery_info": None, "delivery_mode": 2, "priority": 0}


class Outgoing(NamedTuple):
    """A message to publish; ``headers`` and ``properties`` hold JSON values only.

    An empty ``exchange`` is AMQP's default exchange: the routing key is the name of the queue.
    """

    body: bytes
    routing_key: str
    exchange: str = ""
    headers: Mapping[str, Any] | None = None
    content_type: str | None = "application/octet-stream"
    content_encoding: str | None = "binary"
    properties: Mapping[str, Any] | None = None
    mandatory: bool = False

    @classmethod
    def from_kombu(
        cls, prepared: Mapping[str, Any], *, exchange: str, routing_key: str, mandatory: bool
    ) -> Outgoing:
        """Return what ``Channel.prepare_message`` prepared, less what every message has."""
        body = prepared["body"]
        properties = {
            name: value
            for name, value in prepared["properties"].items()
            if name not in _IMPLIED_PROPERTIES or value not in (_IMPLIED_PROPERTIES[name], None, {})
        }
        return cls(
            body=body.encode() if isinstance(body, str) else bytes(body),
            routing_key=routing_key,
            exchange=exchange,
            headers=prepared["headers"],
            content_type=prepared["content-type"],
            content_encoding=prepared["content-encoding"],
            properties=properties,
            mandatory=mandatory,
        )


class Delivery(NamedTuple):
    """A message as its backend leased it; ``handle`` is what the backend settles it by.

    ``attempts`` counts the earlier leases that ended neither in an acknowledgement nor in a clean
    release, ``redelivered`` says that somebody may have seen the message before.
    """

    queue: str
    handle: Any
    body: bytes
    headers: dict[str, Any]
    properties: dict[str, Any]
    content_type: str | None
    content_encoding: str | None
    exchange: str
    routing_key: str
    attempts: int
    redelivered: bool


class LeasedMessage(message.Message):
    """A received message whose ``body`` is always the bytes that were published."""

    def __init__(
        self,
        delivery: Delivery,
        *,
        channel: LeasedChannel,
        delivery_tag: int,
        consumer_tag: str | None = None,
    ) -> None:
        # kombu's own constructor is left out on purpose: it inflates the body when the sender
        # sets a `compression` header, before any check of the content. Here that header is data.
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.body = delivery.body
        self.headers = delivery.headers
        self.headers[DELIVERY_COUNT] = delivery.attempts
        self.properties = delivery.properties
        self.content_type = delivery.content_type
        self.content_encoding = delivery.content_encoding
        self.delivery_info = {
            "consumer_tag": consumer_tag,
            "delivery_tag": delivery_tag,
            "redelivered": delivery.redelivered,
            "exchange": delivery.exchange,
            "routing_key": delivery.routing_key,
            "queue": delivery.queue,
        }
        self.accept = None
        self._decoded_cache = None
        self._state = "RECEIVED"


class PublishBatch:
    """What kombu's ``Producer.batch()`` collects: every flush is one atomic publish.

    Not thread-safe; kombu keeps one per thread.
    """

    def __init__(self, channel: LeasedChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._pending: list[Outgoing] = []

    def publish(
        self,
        prepared: Mapping[str, Any],
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool = False,
        **_ignored: Any,
    ) -> None:
        """Keep one prepared message for the next flush, which a full batch brings on."""
        self._pending.append(
            Outgoing.from_kombu(
                prepared, exchange=exchange, routing_key=routing_key, mandatory=mandatory
            )
        )
        if len(self._pending) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Publish what is pending, all or nothing. Blocks until it is durable.

        Raises: as ``LeasedChannel.publish_many``; the messages then stay pending.
        """
        self.channel.publish_many(self._pending)
        self._pending = []

    def discard(self) -> None:
        """Forget what is pending. Idempotent."""
        self._pending = []

    def close(self) -> None:
        """Forget what is pending; there is nothing else to let go. Idempotent."""
        self._pending = []
