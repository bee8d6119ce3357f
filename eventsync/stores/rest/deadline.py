"""The deadline of a request: it ends every wait on the connection, whatever the service sends.

A timeout for each read does not limit a request: a service that sends one byte a second never
exceeds it, in headers, in interim answers (1xx), in sizes of chunks or in trailers.
"""

from __future__ import annotations

import socket
import ssl
import threading
import time
from typing import Any

from eventsync.errors import ConfigError

try:
    import httpcore2 as httpcore
except ImportError as error:  # pragma: no cover - the message is all there is to it
    raise ConfigError("REST stores need httpcore2", hint="pip install 'eventsync[rest]'") from error

__all__ = ["Deadline", "TimedStream"]


class Deadline(threading.local):
    """The moment at which the request of this thread ends; each thread has its own."""

    def __init__(self) -> None:
        self._until: float | None = None

    def begin(self, seconds: float) -> None:
        """Set the deadline of all that this thread does on connections from now on."""
        self._until = time.monotonic() + seconds

    @property
    def passed(self) -> bool:
        """Whether there is a deadline and it has passed."""
        return self._until is not None and time.monotonic() >= self._until

    def cut(
        self,
        timeout: float | None,
        late: type[httpcore.TimeoutException] = httpcore.ConnectTimeout,
    ) -> float | None:
        """Return the part of a timeout before the deadline. Raises ``late`` after the deadline."""
        if self._until is None:
            return timeout
        left = self._until - time.monotonic()
        if left <= 0:
            raise late("the deadline of the request has passed")
        return left if timeout is None else min(left, timeout)


class TimedStream(httpcore.NetworkStream):
    """A connection on which each wait ends at the deadline of the thread that waits."""

    def __init__(self, inner: httpcore.NetworkStream, deadline: Deadline) -> None:
        self._inner = inner
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._inner.read(max_bytes, self._deadline.cut(timeout, httpcore.ReadTimeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        # The inner stream applies its timeout to each part that the service accepts, so a service
        # that accepts a byte a second would never exceed it.
        connection: socket.socket = self._inner.get_extra_info("socket")
        left = memoryview(buffer)
        try:
            while left:
                connection.settimeout(self._deadline.cut(timeout, httpcore.WriteTimeout))
                left = left[connection.send(left) :]
        except TimeoutError as error:
            raise httpcore.WriteTimeout(str(error)) from error
        except OSError as error:
            raise httpcore.WriteError(str(error)) from error

    def close(self) -> None:
        self._inner.close()

    def start_tls(
        self,
        ssl_context: ssl.SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        cut = self._deadline.cut(timeout, httpcore.ConnectTimeout)
        return TimedStream(self._inner.start_tls(ssl_context, server_hostname, cut), self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._inner.get_extra_info(info)
