"""A connection to RabbitMQ that several threads share and that raises eventsync's errors."""

from __future__ import annotations

import os
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any, Final

import amqp

from eventsync.errors import BusConfigError, BusError, BusUnavailableError, ConfigError
from eventsync.transports.amqp.connection import LOST, REFUSED, connection
from eventsync.transports.amqp.url import Endpoint
from eventsync.transports.keep_alive import KeepAliveThread

__all__ = ["Session"]


class Session:
    """A connection to RabbitMQ. The constructor connects. A background thread sends heartbeats.

    Use the connection and its channels only within a block of ``errors``, which holds a lock. The
    session is unusable after a ``BusUnavailableError``, and in a forked child.
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
            # Limit every write, so that a broker that stops reading cannot block it for ever.
            self.wire.sock.settimeout(self.publish_timeout)

    @property
    def is_inherited(self) -> bool:
        """Whether a parent process opened the connection; this process must then not use it."""
        return self._pid != os.getpid()

    def channel(self) -> Any:
        """Open a new channel and return it."""
        return self._connection.channel()

    def wait(self, timeout: float) -> bool:
        """Wait for the broker's next frame and handle it; return whether a frame arrived.

        If no frame arrives within ``timeout`` seconds, send a heartbeat if one is due.
        """
        try:
            self.wire.drain_events(timeout=timeout)
        except TimeoutError:
            self.wire.heartbeat_tick()
            return False
        return True

    def start_keep_alive(self, interval: float) -> None:
        """Start a thread that handles received frames and sends heartbeats.

        ``interval``: the pause between two rounds of the thread, in seconds.
        """
        self._keep_alive = KeepAliveThread(self._exchange_heartbeats, interval)
        self._keep_alive.start()

    def _exchange_heartbeats(self) -> None:
        with self.errors("the RabbitMQ heartbeat"):
            while self.wait(0):
                pass

    def limit_waits(self, seconds: float) -> None:
        """Limit each later write, and each wait for a confirm, to ``seconds``."""
        self.wire.sock.settimeout(seconds)
        self.publish_timeout = min(self.publish_timeout, seconds)

    def drop(self) -> None:
        """Close the socket without a message to the broker. Idempotent."""
        if self.is_inherited:
            return
        with self.lock:
            if self._keep_alive is not None:
                self._keep_alive.stop()
            driver = self.wire._transport if self.wire is not None else None
            if driver is not None:
                if driver.sock is not None:
                    # Limits the delay if the broker does not read.
                    driver.sock.settimeout(0.5)
                self.wire.collect()

    @contextmanager
    def errors(self, what: str) -> Iterator[None]:
        """Lock the connection during the block, and raise the driver's errors as eventsync errors.

        ``what``: the subject of the error messages, such as "queue orders". After an error of the
        driver the connection is dropped. ``BusError`` and ``ConfigError`` pass unchanged and do not
        drop the connection.
        """
        if self.is_inherited:
            # Checked before the lock is taken: if another thread of the parent held the lock during
            # the fork, nobody ever frees it in this process.
            raise BusUnavailableError(
                f"{what}: the connection to RabbitMQ belongs to the parent process",
                hint="connect again in this process",
            )
        with self.lock:
            wire = self.wire  # None until the session is connected
            if wire is not None and not wire.connected:
                # Otherwise the driver would reconnect by itself, without channels and confirms.
                raise BusUnavailableError(f"{what}: the connection to RabbitMQ is lost")
            try:
                yield
            except (BusError, ConfigError):
                raise
            except REFUSED as error:
                self.drop()
                raise _refusal(what, error) from error
            except AttributeError as error:
                if wire is None or wire.connected:
                    raise  # a programming error; the driver raises it only after losing its socket
                raise BusUnavailableError(f"{what}: the connection to RabbitMQ is lost") from error
            except ssl.SSLCertVerificationError as error:
                self.drop()
                raise BusConfigError(
                    f"{what}: the certificate is not trusted: {error}",
                    hint="name the authority that issued it as ca= in the broker URL",
                ) from error
            except LOST as error:
                if isinstance(error, TimeoutError):
                    self._read_reason()
                self.drop()
                if self._blocked:
                    raise BusUnavailableError(
                        f"{what}: the broker has blocked publishing: {error}",
                        hint="the broker is short of memory or disk space; look at the output of "
                        "`rabbitmq-diagnostics alarms`",
                    ) from error
                raise BusUnavailableError(
                    f"{what}: the connection to RabbitMQ failed: {error}"
                ) from error

    def _read_reason(self) -> None:
        """Handle the frames that have arrived while this process only wrote.

        One of these frames may say that the broker blocks publishing, and why.
        """
        with suppress(*LOST, *REFUSED, AttributeError):  # raised when nothing more has arrived
            while True:
                self.wire.drain_events(timeout=0)

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False


# The refusals that last until somebody changes the configuration.
_LASTING: Final[dict[type[Exception], str]] = {
    amqp.AccessRefused: "correct the user and password in the broker URL, or give the user the "
    "rights to configure, write and read",
    amqp.NotAllowed: "correct the virtual host in the broker URL, or give the user access to it",
    amqp.PreconditionFailed: "the queue or exchange exists with other properties; delete it when "
    "it is empty",
}


def _refusal(what: str, error: Exception) -> BusError:
    if "delivery acknowledgement" in str(error):
        return BusUnavailableError(
            f"{what}: a message was not acknowledged for longer than RabbitMQ allows: {error}",
            hint="raise the server's consumer_timeout, or lower prefetch and batch",
        )
    hint = next((hint for kind, hint in _LASTING.items() if isinstance(error, kind)), None)
    if hint is not None:
        return BusConfigError(f"{what}: RabbitMQ refuses the request: {error}", hint=hint)
    return BusError(f"{what}: RabbitMQ refuses the request: {error}")
