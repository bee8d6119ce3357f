"""The driver's connection to RabbitMQ, with what it lacks, and what its errors mean.

It must not know what is sent over it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import Any, Final

import amqp
from kombu.connection import Connection as KombuConnection
from kombu.transport import pyamqp

from eventsync.transports.amqp.frames import Channel, frame_handler
from eventsync.transports.amqp.url import Endpoint

__all__ = ["LOST", "REFUSED", "connection"]

# Longer than the publish timeout, so that this and not the system's is what ends a wait.
_MARGIN: Final = 0.25

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


class _Connection(pyamqp.Connection):
    Channel = Channel

    def Transport(self, *arguments: Any, **options: Any) -> Any:  # noqa: N802  # the driver's name
        """What reads and writes the socket; in a forked child it leaves the connection alone."""
        transport = super().Transport(*arguments, **options)
        close, owner = transport.close, os.getpid()
        # The driver would shut the parent's connection down once the child forgets its copy.
        transport.close = lambda: close() if os.getpid() == owner else None
        return transport


class _Transport(pyamqp.Transport):
    Connection = _Connection


def connection(
    endpoint: Endpoint,
    *,
    max_message: int,
    on_blocked: Callable[[str], None],
    on_unblocked: Callable[[], None],
) -> Any:
    """A connection, made at first use, that reads messages of up to ``max_message`` bytes."""
    settings: dict[int, int] = {}
    if hasattr(socket, "TCP_USER_TIMEOUT"):
        # The driver's own second is too short for a broker that holds its publishers back.
        settings[socket.TCP_USER_TIMEOUT] = int((endpoint.publish_timeout + _MARGIN) * 1000)
    untyped: Any = KombuConnection
    return untyped(
        transport=_Transport,
        transport_options={
            "frame_handler": frame_handler(max_message),
            "socket_settings": settings,
            "on_blocked": on_blocked,
            "on_unblocked": on_unblocked,
        },
        **endpoint.arguments,
    )
