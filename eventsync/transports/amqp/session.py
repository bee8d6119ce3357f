"""A connection to RabbitMQ that threads share, with eventsync's errors."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import amqp

from eventsync.errors import BusError, BusUnavailableError, ConfigError
from eventsync.transports.amqp.connection import LOST, REFUSED, connection
from eventsync.transports.amqp.url import Endpoint
from eventsync.transports.keep_alive import KeepAliveThread

__all__ = ["Session"]


class Session:
    """A connection to RabbitMQ, which the constructor opens. A background thread sends heartbeats.

    Use the connection and its channels only within a block of ``errors``, which locks it. After a
    ``BusUnavailableError`` the session is unusable; so it is in a forked child.
    """

    def __init__(self, endpoint: Endpoint, *, max_message: int) -> None:
        self.publish_timeout = endpoint.publish_timeout
        self.lock = threading.RLock()
        self.wire: Any = None  # the driver's connection
        self._pid = os.getpid()
        self._blocked = False
        self._keep_alive: KeepAliveThread | None = None
        self._connection = connection(
            endpoint,
            max_message=max_message,
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
        )
        with self.errors(f"RabbitMQ at {endpoint.address}"):
            self.wire = self._connection.connection
            # A write must not block without limit, whatever the broker does.
            self.wire.sock.settimeout(self.publish_timeout)

    @property
    def is_inherited(self) -> bool:
        """Whether the connection belongs to a parent process, which still uses it."""
        return self._pid != os.getpid()

    def channel(self) -> Any:
        """Return a new channel."""
        return self._connection.channel()

    def wait(self, timeout: float) -> bool:
        """Handle one frame from the broker; return whether one arrived in ``timeout`` seconds.

        If none arrived, send a heartbeat if it is due.
        """
        try:
            self.wire.drain_events(timeout=timeout)
        except TimeoutError:
            self.wire.heartbeat_tick()
            return False
        return True

    def start_keep_alive(self, interval: float) -> None:
        """Start the thread that handles the broker's heartbeats and sends ours."""
        self._keep_alive = KeepAliveThread(self._exchange_heartbeats, interval)
        self._keep_alive.start()

    def _exchange_heartbeats(self) -> None:
        with self.errors("the RabbitMQ heartbeat"):
            while self.wait(0):
                pass

    def limit_waits(self, seconds: float) -> None:
        """Limit each later write and wait for confirms to so many seconds."""
        self.wire.sock.settimeout(seconds)
        self.publish_timeout = min(self.publish_timeout, seconds)

    def drop(self) -> None:
        """Disconnect without notice to the broker. Idempotent."""
        if self.is_inherited:
            return
        with self.lock:
            if self._keep_alive is not None:
                self._keep_alive.stop()
            driver = self.wire._transport if self.wire is not None else None
            if driver is not None:
                if driver.sock is not None:
                    # A broker that does not read must not delay this for long.
                    driver.sock.settimeout(0.5)
                self.wire.collect()

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Hold the connection for the block, and raise the driver's errors as eventsync's.

        ``what``: the subject of their messages. All errors but a ``ConfigError`` and those of the
        bus drop the connection.
        """
        if self.is_inherited:
            # Checked before the lock, which a thread of the parent may hold for ever in this copy.
            raise BusUnavailableError(f"{what}: the connection belongs to the parent process")
        with self.lock:
            wire = self.wire  # None until it has connected
            if wire is not None and not wire.connected:
                # The driver would reconnect by itself, without channels and confirms.
                raise BusUnavailableError(f"{what}: the connection is lost")
            try:
                yield
            except (BusError, ConfigError):
                raise
            except REFUSED as error:
                self.drop()
                raise _refusal(what, error) from error
            except AttributeError as error:
                if wire is None or wire.connected:
                    raise  # a fault of the code; the driver raises it only after losing its socket
                raise BusUnavailableError(f"{what}: the connection is lost") from error
            except LOST as error:
                if isinstance(error, TimeoutError):
                    self._read_reason()
                self.drop()
                if self._blocked:
                    raise BusUnavailableError(
                        f"{what}: the broker has blocked publishing: {error}",
                        hint="it is short of memory or disk; look at its alarms",
                    ) from error
                raise BusUnavailableError(f"{what}: {error}") from error

    def _read_reason(self) -> None:
        """Handle the frames that the broker sent while this side only wrote.

        One of them may say that the broker blocks publishing.
        """
        with suppress(*LOST, *REFUSED, AttributeError):  # raised when nothing more has arrived
            while True:
                self.wire.drain_events(timeout=0)

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


def _refusal(what: str, error: Exception) -> BusError:
    if "delivery acknowledgement" in str(error):
        return BusUnavailableError(
            f"{what}: a message was not acknowledged for longer than RabbitMQ allows: {error}",
            hint="raise the server's consumer_timeout, or lower prefetch and batch",
        )
    hint = ""
    if isinstance(error, amqp.PreconditionFailed):
        hint = "it exists with other properties; delete it once it is empty"
    return BusError(f"{what}: {error}", hint=hint)
