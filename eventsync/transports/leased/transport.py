"""The kombu transport of a leased-queue channel."""

from __future__ import annotations

import time
from abc import abstractmethod
from contextlib import ExitStack
from typing import Any

from kombu.transport import virtual

from eventsync.errors import BusError, BusUnavailableError
from eventsync.transports.leased.backend import Backend, LeaseSettings
from eventsync.transports.leased.channel import LeasedChannel

__all__ = ["LeasedTransport"]

# A wait without a timeout is cut into waits of this many seconds.
_LONGEST_WAIT = 1.0


class LeasedTransport(virtual.Transport):
    """A kombu transport whose channels are leased; subclasses provide ``settings`` and a backend.

    Only one thread at a time may call ``drain_events``.
    """

    Channel = LeasedChannel
    settings: LeaseSettings
    #: Longest pause, in seconds, between two looks, if there are several channels. A single channel
    #: waits for messages itself.
    polling_interval = 0.02
    connection_errors: Any = (*virtual.Transport.connection_errors, BusUnavailableError)
    channel_errors: Any = (*virtual.Transport.channel_errors, BusError)
    # Errors after which kombu's retries may repeat a call. Another BusError would occur again.
    recoverable_connection_errors = (BusUnavailableError,)
    recoverable_channel_errors = ()
    implements = virtual.Transport.implements.extend(
        exchange_type=frozenset(virtual.Channel.exchange_types), batch_publish=True
    )

    @abstractmethod
    def open_backend(self) -> Backend:
        """Return a new backend, connected and checked. Blocking."""
        raise NotImplementedError

    def drain_events(self, connection: Any, timeout: float | None = None, **_kwargs: Any) -> None:
        """Deliver all ready messages within the prefetch counts; if there are none, wait for one.

        Blocks for at most ``timeout`` seconds: 0 does not wait, None waits without limit.
        Raises: TimeoutError (an alias of socket.timeout) if none arrived.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            channels: list[LeasedChannel] = list(self.channels)
            if sum(channel.deliver() for channel in channels):
                return
            left = _LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message arrived in time")
            waiting = [channel for channel in channels if channel.wants_messages]
            if len(waiting) != 1:
                left = min(left, self.polling_interval)
            if waiting:
                waiting[0].backend.wait(left)
            else:
                time.sleep(left)

    def close_connection(self, connection: Any) -> None:
        """Close every channel, even if closing one fails; then raise that failure."""
        self._avail_channels.clear()
        with ExitStack() as stack:
            for channel in list(self.channels):
                stack.callback(channel.close)
