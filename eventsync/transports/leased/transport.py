"""The base class of the kombu transports with leased queues."""

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

# The longest single wait, in seconds. A wait without a timeout is a series of such waits.
_LONGEST_WAIT = 1.0


class LeasedTransport(virtual.Transport):
    """A kombu transport whose channels lease messages from a ``Backend``.

    Subclasses set ``settings`` and implement ``open_backend``. Only one thread at a time may call
    ``drain_events``.
    """

    Channel = LeasedChannel
    settings: LeaseSettings
    #: The longest pause, in seconds, between two checks for messages, if there are several
    #: channels. With a single channel, its backend waits for messages instead.
    polling_interval = 0.02
    connection_errors: Any = (*virtual.Transport.connection_errors, BusUnavailableError)
    channel_errors: Any = (*virtual.Transport.channel_errors, BusError)
    # The errors after which kombu repeats a call. Any other BusError would occur again.
    recoverable_connection_errors = (BusUnavailableError,)
    recoverable_channel_errors = ()
    implements = virtual.Transport.implements.extend(
        exchange_type=frozenset(virtual.Channel.exchange_types), batch_publish=True
    )

    @abstractmethod
    def open_backend(self) -> Backend:
        """Connect a new backend, check that the server or file can be used, and return the backend.

        Blocks. Raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
        """
        raise NotImplementedError

    def drain_events(self, connection: Any, timeout: float | None = None, **_kwargs: Any) -> None:
        """Deliver the ready messages that the prefetch counts allow; wait if none is ready.

        Waits for at most ``timeout`` seconds; 0 means no wait, ``None`` no limit. Raises
        ``TimeoutError`` if no message arrived.
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
        """Close all channels. An error is raised only after all channels were tried."""
        self._avail_channels.clear()
        with ExitStack() as stack:
            for channel in list(self.channels):
                stack.callback(channel.close)
