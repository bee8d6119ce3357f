"""The messages of the leased-queue transports: to publish, as leased, and for kombu."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from kombu import message
from kombu.transport import virtual

__all__ = [
    "DELIVERY_COUNT",
    "KEPT_BYTES",
    "MAX_HEADERS",
    "ChannelMessage",
    "LeasedMessage",
    "OutboundMessage",
]

#: The header with the number of earlier deliveries that were not settled. RabbitMQ's quorum queues
#: use the same header.
DELIVERY_COUNT = "x-delivery-count"

#: How many bytes of the headers and properties of a message are read. A message with more is not
#: read, as if its body were too large: a parsed header takes fifty times the memory of its text.
MAX_HEADERS = 16 * 1024

#: How many bytes of the body of a message that is too large are read.
KEPT_BYTES = 4096

# Properties that kombu's producer adds to every message, with their usual values. These values need
# not be stored, because they hold for every message of a durable queue without priorities.
_IMPLIED_PROPERTIES = {"delivery_info": None, "delivery_mode": 2, "priority": 0}


class OutboundMessage(NamedTuple):
    """A message to publish. ``headers`` and ``properties`` may contain only JSON values.

    With an empty ``exchange``, ``routing_key`` is the name of the queue (AMQP's default exchange).
    ``mandatory``: publishing raises an error if no queue receives the message.
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
        """Convert the result of kombu's ``Channel.prepare_message``.

        Properties with the values that kombu gives to every message are left out.
        """
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
    """A message that a backend has leased to its consumer.

    ``handle``: identifies the message when the backend acknowledges or releases it. ``attempts``:
    the number of earlier deliveries, without those released as not attempted. ``redelivered``:
    whether a consumer may have received the message before. ``size``: the bytes of the whole
    message if it is too large, and then ``body`` is only its beginning; else 0. ``moved``: whether
    ``Backend.move`` has put it into this queue.
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
    size: int = 0
    moved: bool = False


class ChannelMessage(message.Message):
    """A leased message as kombu's consumers receive it. ``body``: the bytes as published."""

    def __init__(
        self,
        leased: LeasedMessage,
        *,
        channel: virtual.Channel,
        delivery_tag: int,
        consumer_tag: str | None = None,
    ) -> None:
        # kombu's constructor is not called, because it would decompress the body, without a limit,
        # if the sender sets a `compression` header. Here that header has no effect.
        self.channel = channel
        self.delivery_tag = delivery_tag
        self.body = leased.body
        self.size = leased.size or len(leased.body)
        self.aside = "rejected" if leased.moved else ""  # RabbitMQ's word for the same
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
