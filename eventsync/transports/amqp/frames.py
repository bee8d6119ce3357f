"""Reads AMQP frames; tolerates malformed content and limits the size of messages.

The driver's own reader raises an error for texts that are not UTF-8 and for malformed header
tables. The message would then stay unsettled, and the broker would deliver it again and again.
"""

from __future__ import annotations

from collections.abc import Callable
from struct import unpack_from
from typing import Any

import amqp
from amqp import method_framing, spec
from kombu.transport import pyamqp

from eventsync.transports.leased.message import KEPT_BYTES, MAX_HEADERS

__all__ = ["TolerantChannel", "frame_handler"]


class _InboundMessage(amqp.Message):  # type: ignore[misc]  # py-amqp has no annotations
    """A message that is being received. If it has over ``largest`` bytes, its end is dropped."""

    largest = 0
    properties: dict[str, Any]
    # The bytes of the headers, if they are too large to be read.
    _unread = 0

    @property
    def size(self) -> int:
        """The bytes of the body, and of the headers if they were too large to be read."""
        return int(self.body_size) + self._unread

    def _load_properties(self, class_id: int, buf: bytes, offset: int) -> int:
        if len(buf) > MAX_HEADERS:
            self._unread = len(buf)
            self.properties = {}
            return offset
        try:
            loaded: int = super()._load_properties(class_id, buf, offset)
        except Exception:  # a hostile sender can make the driver raise any exception
            self.properties = {}
            return offset
        return loaded

    def inbound_body(self, buf: bytes) -> None:
        """Add the content ``buf`` of one body frame to the message."""
        if self.body_size > self.largest and self.body_received:
            self.body_received += len(buf)
            self.ready = self.body_received >= self.body_size
            return
        if self.body_size > self.largest:
            self.body_received += len(buf)
            self.body = bytes(buf[:KEPT_BYTES])
            self.ready = self.body_received >= self.body_size
            return
        super().inbound_body(buf)

    @property
    def content_type(self) -> Any:
        """The content type as the sender set it, or ``None``."""
        return self.properties.get("content_type")

    @property
    def headers(self) -> Any:
        """The headers that the sender and the broker set, or ``None``."""
        return self.properties.get("application_headers")


def frame_handler(largest: int) -> Callable[..., Callable[[Any], bool]]:
    """Return a factory of frame readers for py-amqp's option ``frame_handler``.

    The readers truncate message bodies of more than ``largest`` bytes.
    """

    class LimitedMessage(_InboundMessage):
        pass

    LimitedMessage.largest = largest

    def make(connection: Any, callback: Callable[..., None]) -> Callable[[Any], bool]:
        partial: dict[int, _InboundMessage] = {}

        def done(channel: int) -> bool:
            message = partial.pop(channel)
            callback(channel, message.frame_method, message.frame_args, message)
            return True

        def on_frame(frame: tuple[int, int, bytes]) -> bool:
            kind, channel, buf = frame
            connection.bytes_recv += 1
            if kind == 8:
                return False
            if (kind == 1) == (channel in partial):
                raise amqp.UnexpectedFrame(
                    f"the broker sent an AMQP frame of type {kind} where a frame of another type "
                    "must follow"
                )
            if kind == 1:
                method = unpack_from(">HH", buf, 0)
                if method in method_framing._CONTENT_METHODS:
                    partial[channel] = LimitedMessage(frame_method=method, frame_args=buf)
                    return False
                callback(channel, method, buf, None)
                return True
            message = partial[channel]
            if kind == 2:
                message.inbound_header(buf)
            else:
                message.inbound_body(buf)
            return done(channel) if message.ready else False

        return on_frame

    return make


class TolerantChannel(pyamqp.Channel):
    """A kombu channel that does not decode bodies and accepts routing keys that are not UTF-8."""

    def __init__(self, connection: Any, channel_id: Any = None, **options: Any) -> None:
        # Without this, the driver would decode the body with any codec that the sender names.
        super().__init__(connection, channel_id, **{**options, "auto_decode": False})

    def dispatch_method(self, method_sig: tuple[int, int], payload: bytes, content: Any) -> None:
        """Handle one AMQP method from the broker. Text that is not UTF-8 does not raise."""
        if method_sig == spec.Basic.Deliver and not self.is_closing:
            tag, at = _text(payload, 4)
            delivery_tag, redelivered = unpack_from(">QB", payload, at)
            exchange, at = _text(payload, at + 9)
            key, _ = _text(payload, at)
            self._on_basic_deliver(tag, delivery_tag, bool(redelivered), exchange, key, content)
            return
        if method_sig == spec.Basic.GetOk:
            # Replace the non-ASCII bytes of the two texts (exchange, routing key) by "?". The bytes
            # that give the lengths of the texts stay.
            second = 14 + payload[13]
            end = second + 1 + payload[second]
            texts = bytearray(byte if byte < 0x80 else 0x3F for byte in payload[14:end])
            texts[second - 14] = payload[second]
            payload = payload[:14] + bytes(texts) + payload[end:]
        super().dispatch_method(method_sig, payload, content)


def _text(buf: bytes, at: int) -> tuple[str, int]:
    end = at + 1 + buf[at]
    return buf[at + 1 : end].decode("utf-8", "backslashreplace"), end
