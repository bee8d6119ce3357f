"""The messages of the leased-queue transports: published, leased, and as kombu sees them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu import message
from kombu.transport import virtual

__all__ = ["DELIVERY_COUNT", "ChannelMessage", "LeasedMessage", "OutboundMessage"]

#: The header with the number of earlier deliveries that were not settled. Name and meaning are
#: those of RabbitMQ's quorum queues.
DELIVERY_COUNT = "x-delivery-count"

# What kombu's producer adds to every message, and what holds for every message of a durable queue
# without priorities. These need not be stored.
_IMPLIED_PROPERTIES = {"delivery_info": None, "delivery_mode": 2, "priority": 0}


class OutboundMessage(NamedTuple):
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
    ) -> OutboundMessage:
        """Return the result of ``Channel.prepare_message`` without the implied properties."""
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


class LeasedMessage(NamedTuple):
    """A message as its backend leased it; the backend settles it by its ``handle``.

    ``attempts`` counts the earlier leases that ended neither with an acknowledgement nor with a
    release that took them out of the count. ``redelivered``: a consumer may have seen it before.
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


class ChannelMessage(message.Message):
    """A leased message for kombu's consumers; ``body`` is always the bytes that were published."""

    def __init__(
        self,
        leased: LeasedMessage,
        *,
        channel: virtual.Channel,
        delivery_tag: int,
        consumer_tag: str | None = None,
    ) -> None:
        # kombu's constructor is not called on purpose: it decompresses the body, unchecked, if the
        # sender sets a `compression` header. Here that header is data.
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.body = leased.body
        self.headers = leased.headers
        self.headers[DELIVERY_COUNT] = leased.attempts
        self.properties = leased.properties
        self.content_type = leased.content_type
        self.content_encoding = leased.content_encoding
        self.delivery_info = {
            "consumer_tag": consumer_tag,
            "delivery_tag": delivery_tag,
            "redelivered": leased.redelivered,
            "exchange": leased.exchange,
            "routing_key": leased.routing_key,
            "queue": leased.queue,
        }
        self.accept = None
        self._decoded_cache = None
        self._state = "RECEIVED"
