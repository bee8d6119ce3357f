"""RabbitMQ: quorum queues, pipelined confirms, heartbeats beside the work, and no trust in bytes.

It must not know what the bytes of a message mean, nor which stores the queues belong to.
"""

from __future__ import annotations

import ssl
import threading
import time
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlsplit

import amqp
from amqp import spec
from kombu.connection import Connection as KombuConnection
from kombu.transport import pyamqp

from eventsync.errors import BusError, BusUnavailableError, ConfigError, UnroutableError
from eventsync.transports.frame import Channel, frame_handler
from eventsync.transports.link import Delivery, Link, QueueState, delivery_of
from eventsync.transports.upkeep import LeaseUpkeep

__all__ = ["SCHEMES", "AmqpLink", "connect"]

SCHEMES: Final = ("amqp", "amqps", "pyamqp")
# Above any number of deliveries that the worker lets pass, and said outright: what RabbitMQ takes
# for granted differs between its versions, and the later ones drop a message after 20.
_DELIVERY_LIMIT: Final = 1_000_000
_WINDOW: Final = 1000
_SLICE: Final = 0.25
_SETTINGS: Final = {"heartbeat": 20.0, "publish_timeout": 30.0, "connect_timeout": 5.0}
_FILES: Final = {"ca": "ca_certs", "cert": "certfile", "key": "keyfile"}


class _Connection(pyamqp.Connection):
    Channel = Channel


class _Transport(pyamqp.Transport):
    Connection = _Connection


def connect(url: str, *, max_message: int) -> AmqpLink:
    """A link to the first broker of ``url`` that answers; several are separated by semicolons.

    In the query of a URL: ``heartbeat``, ``publish_timeout`` and ``connect_timeout`` in seconds;
    ``ca``, ``cert`` and ``key``, files in PEM format, for ``amqps``. Without ``ca`` the system's
    authorities are trusted; the server's certificate and name are always verified. Messages longer
    than ``max_message`` bytes are not read. Raises ``ConfigError``, ``BusUnavailableError``,
    ``BusError`` when the broker refuses the login.
    """
    error: BusUnavailableError | None = None
    for one in [_settings(part) for part in url.split(";")]:
        try:
            return AmqpLink(*one, max_message=max_message)
        except BusUnavailableError as away:
            error = away
    assert error is not None
    raise error


def _settings(url: str) -> tuple[dict[str, Any], dict[str, float]]:
    """What kombu needs to connect, and the times."""
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    times = dict(_SETTINGS)
    for name in times:
        if name in query:
            try:
                times[name] = float(query.pop(name))
            except ValueError:
                times[name] = 0.0
            if not times[name] > 0:
                raise ConfigError(f"broker setting {name} is not a number of seconds above 0")
    secure = parts.scheme == "amqps"
    files = {kind: query.pop(name) for name, kind in _FILES.items() if name in query}
    if query or (files and not secure):
        name = next(iter(query), None) or "ca, cert or key"
        raise ConfigError(
            f"the broker URL has a setting that does not belong there: {name}",
            hint=f"known are {', '.join(_SETTINGS)}, and for amqps: {', '.join(_FILES)}",
        )
    host = parts.hostname or "localhost"
    arguments: dict[str, Any] = {
        "hostname": host,
        "port": parts.port or (5671 if secure else 5672),
        "userid": unquote(parts.username or "guest"),
        "password": unquote(parts.password or "guest"),
        "virtual_host": unquote(parts.path.removeprefix("/")) or "/",
        "heartbeat": times["heartbeat"],
        "connect_timeout": times["connect_timeout"],
    }
    if secure:
        arguments["ssl"] = {
            **files,
            "server_hostname": host,
            "cert_reqs": ssl.CERT_REQUIRED,
        }
    return arguments, times


class AmqpLink(Link):
    """One connection to RabbitMQ. A thread of its own serves heartbeats; methods are thread-safe.

    After ``BusUnavailableError`` the link is of no use any more.
    """

    def __init__(
        self, arguments: dict[str, Any], times: dict[str, float], *, max_message: int
    ) -> None:
        self._max_message = max_message
        self._publish_timeout = times["publish_timeout"]
        self._lock = threading.RLock()
        self._blocked = False
        self._unsettled: dict[int, Delivery] = {}
        self._unconfirmed: deque[int] = deque()
        self._settled_early: set[int] = set()
        self._refused = 0
        self._returned = ""
        self._published = 0
        self._pulling = False
        self._upkeep: LeaseUpkeep | None = None
        untyped: Any = KombuConnection
        self._connection = untyped(
            transport=_Transport,
            transport_options={
                "frame_handler": frame_handler(max_message),
                "on_blocked": self._on_blocked,
                "on_unblocked": self._on_unblocked,
            },
            **arguments,
        )
        self._received = []
        self._queue = ""
        with self._errors("connecting"):
            self._wire: Any = self._connection.connection
            # No write blocks for ever, whatever the broker does.
            self._wire.sock.settimeout(self._publish_timeout)
            self._channel = self._connection.channel()
            self._confirmed: Any = self._connection.channel()
            self._confirmed.confirm_select()
            self._confirmed.events["basic_ack"].add(self._on_confirm)
            self._confirmed.events["basic_nack"].add(self._on_nack)
            self._confirmed.events["basic_return"].add(self._on_return)
        self._upkeep = LeaseUpkeep(self._keep_alive, min(1.0, times["heartbeat"] / 4))
        self._upkeep.start()

    # -- declaring -------------------------------------------------------------------------------

    def declare_exchange(self, exchange: str) -> None:
        """See ``Link``."""
        with self._errors(f"exchange {exchange}"):
            self._channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)

    def declare_queue(
        self, queue: str, *, exchange: str = "", keys: Iterable[str] = (), dead: str = ""
    ) -> None:
        """See ``Link``. Raises ``BusError`` when there is one that was made otherwise."""
        arguments: dict[str, Any] = {
            "x-queue-type": "quorum",
            "x-delivery-limit": _DELIVERY_LIMIT,
        }
        if dead:
            arguments |= {
                "x-dead-letter-exchange": "",
                "x-dead-letter-routing-key": dead,
                "x-dead-letter-strategy": "at-least-once",
                "x-overflow": "reject-publish",
            }
        with self._errors(f"queue {queue}"):
            self._channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
            for key in keys:
                self._channel.queue_bind(queue, exchange, key)

    def state(self, queue: str) -> QueueState:
        """See ``Link``. What is in hand, and how old, RabbitMQ does not tell its clients."""
        with self._errors(f"queue {queue}"):
            declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- publishing ------------------------------------------------------------------------------

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """See ``Link``. Up to 1,000 messages are on their way at a time.

        When some are unroutable the others are safe all the same. Raises ``BusUnavailableError``
        when the broker refuses a message, or confirms none for ``publish_timeout`` seconds.
        """
        with self._errors("publishing"):
            self._returned, self._refused = "", 0
            for body in bodies:
                if len(self._unconfirmed) >= _WINDOW:
                    self._await_confirms(_WINDOW // 2)
                self._published += 1
                self._unconfirmed.append(self._published)
                self._confirmed.send_method(
                    spec.Basic.Publish,
                    "Bssbb",
                    (0, exchange, key, True, False),
                    amqp.Message(
                        body,
                        content_type=content_type,
                        content_encoding="binary",
                        delivery_mode=2,
                    ),
                )
            self._await_confirms(0)
            if self._refused:
                raise BusUnavailableError(
                    f"the broker refused {self._refused} messages",
                    hint="look for full queues, or quorum queues without a majority",
                )
            if self._returned:
                raise UnroutableError(
                    f"no queue takes a message under routing key {self._returned!r}",
                    hint="declare the store's queues first: start its worker once",
                )

    def _await_confirms(self, most: int) -> None:
        """Wait until at most so many messages are unconfirmed."""
        deadline = time.monotonic() + self._publish_timeout
        while len(self._unconfirmed) > most:
            before = len(self._unconfirmed)
            try:
                self._wire.drain_events(timeout=min(1.0, self._publish_timeout))
            except TimeoutError:
                self._wire.heartbeat_tick()
            if len(self._unconfirmed) < before:
                deadline = time.monotonic() + self._publish_timeout
            elif time.monotonic() >= deadline:
                raise TimeoutError(
                    f"{len(self._unconfirmed)} messages not confirmed within "
                    f"{self._publish_timeout:g} s"
                )

    def _on_confirm(self, tag: int, multiple: bool) -> None:
        pending = self._unconfirmed
        if multiple:
            while pending and pending[0] <= tag:
                self._settled_early.discard(pending.popleft())
        else:
            self._settled_early.add(tag)
        while pending and pending[0] in self._settled_early:
            self._settled_early.discard(pending.popleft())

    def _on_nack(self, tag: int, multiple: bool) -> None:
        before = len(self._unconfirmed)
        self._on_confirm(tag, multiple)
        self._refused += max(1, before - len(self._unconfirmed))

    def _on_return(self, error: Any, exchange: str, key: str, message: Any) -> None:
        self._returned = key

    def _on_blocked(self, reason: str) -> None:
        self._blocked = True

    def _on_unblocked(self) -> None:
        self._blocked = False

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """See ``Link``."""
        self._queue = queue
        # A whole queue is looked through message by message: RabbitMQ would push all of it.
        self._pulling = not prefetch
        if self._pulling:
            return
        with self._errors(f"queue {queue}"):
            self._channel.basic_qos(0, prefetch, False)
            self._channel.basic_consume(queue, callback=self._take)

    def receive(self, *, timeout: float, limit: int) -> list[Delivery]:
        """See ``Link``. Raises ``BusUnavailableError`` also when the queue is gone."""
        deadline = time.monotonic() + timeout
        with self._errors(f"queue {self._queue}"):
            while self._pulling and len(self._received) < limit:
                message = self._channel.basic_get(self._queue)
                if message is None:
                    break
                self._take(message)
        while not self._pulling and len(self._received) < limit:
            # In slices, so that publishers and the upkeep have their turn at the lock.
            wait = 0.0 if self._received else min(_SLICE, max(0.0, deadline - time.monotonic()))
            with self._errors(f"queue {self._queue}"):
                try:
                    self._wire.drain_events(timeout=wait)
                except TimeoutError:
                    self._wire.heartbeat_tick()
                    if self._received or time.monotonic() >= deadline:
                        break
        with self._lock:
            received, self._received = self._received, []
        return received

    def _take(self, message: Any) -> None:
        delivery = delivery_of(message, self._queue)
        delivery.size = message.body_size
        delivery.aside = _aside(message.headers)
        self._unsettled[message.delivery_tag] = delivery
        self._received.append(delivery)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Link``. What comes first of all that is in hand goes in one frame."""
        tags = {delivery.message.delivery_tag for delivery in deliveries}
        with self._errors(f"queue {self._queue}"):
            last = 0
            for tag in list(self._unsettled):
                if tag not in tags:
                    break
                last = tag
                del self._unsettled[tag]
            if last:
                self._channel.basic_ack(last, multiple=True)
            for tag in sorted(tags & self._unsettled.keys()):
                del self._unsettled[tag]
                self._channel.basic_ack(tag)

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """See ``Link``. RabbitMQ counts it as a delivery."""
        self._reject(deliveries, requeue=True)

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Have the broker itself move messages to the queue's dead letters, unread."""
        self._reject(deliveries, requeue=False)

    def _reject(self, deliveries: Iterable[Delivery], *, requeue: bool) -> None:
        with self._errors(f"queue {self._queue}"):
            for delivery in deliveries:
                tag = delivery.message.delivery_tag
                if self._unsettled.pop(tag, None) is not None:
                    self._channel.basic_reject(tag, requeue)

    # -- life ------------------------------------------------------------------------------------

    def _keep_alive(self) -> None:
        """Read what has come, so that the broker's heartbeats count, and send ours."""
        with self._errors("upkeep"):
            while True:
                try:
                    self._wire.drain_events(timeout=0)
                except TimeoutError:
                    break
            self._wire.heartbeat_tick()

    def close(self) -> None:
        """See ``Link``. Waits a few seconds at most."""
        with self._lock:
            self._stop_upkeep()
            with suppress(*_LOST, *_REFUSED):
                if self._wire.connected:
                    self._wire.sock.settimeout(3.0)
                    self._wire.close()
            self.drop()

    def drop(self) -> None:
        """See ``Link``."""
        with self._lock:
            self._stop_upkeep()
            wire: Any = getattr(self, "_wire", None)
            driver = wire._transport if wire is not None else None
            if driver is not None:
                if driver.sock is not None:
                    # A broker that does not read must not keep us from leaving.
                    driver.sock.settimeout(0.5)
                wire.collect()

    def _stop_upkeep(self) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Hold the connection for the block, and turn the driver's errors into eventsync's."""
        with self._lock:
            wire: Any = getattr(self, "_wire", None)
            if wire is not None and not wire.connected:
                # The driver would connect anew by itself, with neither channels nor confirms.
                raise BusUnavailableError(f"{what}: the connection is lost")
            try:
                yield
            except (BusError, ConfigError):
                raise
            except _REFUSED as error:
                self.drop()
                hint = ""
                if isinstance(error, amqp.PreconditionFailed):
                    hint = "it exists, made otherwise; once it is empty, delete it"
                raise BusError(f"{what}: {error}", hint=hint) from error
            except _LOST as error:
                self.drop()
                if self._blocked:
                    raise BusUnavailableError(
                        f"{what}: the broker has blocked publishing: {error}",
                        hint="it is short of memory or disk; see its alarms",
                    ) from error
                raise BusUnavailableError(f"{what}: {error}") from error


# A broken connection shows in many ways in the driver, of which these are not documented.
_LOST: tuple[type[Exception], ...] = (
    OSError,
    amqp.RecoverableConnectionError,
    amqp.ConnectionError,
    amqp.UnexpectedFrame,
    AttributeError,
)
_REFUSED: tuple[type[Exception], ...] = (
    amqp.ChannelError,
    amqp.AccessRefused,
    amqp.NotAllowed,
    amqp.InternalError,
)


def _aside(headers: Any) -> str:
    """Why RabbitMQ put a message aside by itself, as its header says."""
    word = headers.get("x-first-death-reason") if isinstance(headers, dict) else None
    return word if isinstance(word, str) else ""
