"""The driver's connection to RabbitMQ, adapted to forks and slow brokers, and its errors."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final

import amqp
from kombu.connection import Connection as KombuConnection
from kombu.transport import pyamqp

from eventsync.transports.amqp.frames import TolerantChannel, frame_handler
from eventsync.transports.amqp.url import Endpoint

__all__ = ["LOST", "REFUSED", "connection"]

# The operating system's timeout is longer than the publish timeout by this, in seconds. So a wait
# ends by the publish timeout.
_MARGIN: Final = 0.25

# The driver's errors for a lost connection, and for a request that the broker refuses.
LOST: Final[tuple[type[Exception], ...]] = (
    OSError,
    amqp.RecoverableConnectionError,
    amqp.ConnectionError,
    amqp.UnexpectedFrame,
)
REFUSED: Final[tuple[type[Exception], ...]] = (
    amqp.ChannelError,
    amqp.AccessRefused,
    amqp.NotAllowed,
    amqp.InternalError,
)


class _ForkSafeConnection(pyamqp.Connection):
    Channel = TolerantChannel

    def Transport(self, *arguments: Any, **options: Any) -> Any:  # noqa: N802  # the driver's name
        """Return the driver's socket object. Only the process that opened the socket closes it."""
        transport = super().Transport(*arguments, **options)
        close, owner = transport.close, os.getpid()
        # Otherwise, garbage collection in a forked child would shut down the parent's connection.
        transport.close = lambda: close() if os.getpid() == owner else None
        return transport


class _ForkSafeTransport(pyamqp.Transport):
    Connection = _ForkSafeConnection


def connection(
    endpoint: Endpoint,
    *,
    max_message: int,
    on_blocked: Callable[[str], None],
    on_unblocked: Callable[[], None],
) -> Any:
    """Return a kombu connection to RabbitMQ. The first use connects.

    Of a message longer than ``max_message`` bytes, only the beginning is kept. ``on_blocked``:
    called with the reason when the broker blocks publishing; ``on_unblocked``: called when the
    broker allows publishing again.
    """
    settings: dict[int, int] = {}
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The driver's default of one second is too short for a broker that throttles publishers.
        settings[socket.TCP_USER_TIMEOUT] = int((endpoint.publish_timeout + _MARGIN) * 1000)
    untyped: Any = KombuConnection
    return untyped(
        transport=_ForkSafeTransport,
        transport_options={
            "frame_handler": frame_handler(max_message),
            "socket_settings": settings,
            "on_blocked": on_blocked,
            "on_unblocked": on_unblocked,
        },
        **endpoint.arguments,
    )
