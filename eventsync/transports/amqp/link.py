"""RabbitMQ: quorum queues, pipelined confirms, heartbeats beside the work, and no trust in bytes.

It must not know what the bytes of a message mean, nor which stores the queues belong to.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import amqp
from amqp import spec

from eventsync.errors import BusError, BusUnavailableError, ConfigError, UnroutableError
from eventsync.transports.amqp.confirms import Confirms
from eventsync.transports.amqp.connection import LOST, REFUSED, connection
from eventsync.transports.amqp.url import SCHEMES, Endpoint
from eventsync.transports.leased.lease_thread import LeaseUpkeep
from eventsync.transports.link import Delivery, Link, QueueState, delivery_of

__all__ = ["SCHEMES", "AmqpLink", "connect"]

# Above any number of deliveries that the worker lets pass, and said outright: what RabbitMQ takes
# for granted differs between its versions, and the later ones drop a message after 20.
_DELIVERY_LIMIT: Final = 1_000_000
_WINDOW: Final = 1000
_SLICE: Final = 0.25
# How often a message was delivered before it was given back and sent anew.
_EARLIER: Final = "x-eventsync-attempts"
_LONGEST_LEAVE: Final = 3.0


def connect(url: str, *, max_message: int) -> AmqpLink:
    """A link to the first broker of ``url`` that answers; several are separated by semicolons.

    In the query of a URL: ``heartbeat``, ``publish_timeout``, ``connect_timeout`` and ``settle`` in
    seconds; ``ca``, ``cert`` and ``key``, files in PEM format, for ``amqps``. Without ``ca`` the
    system's authorities are trusted; the server's certificate and name are always verified.
    Messages longer than ``max_message`` bytes are not read. Raises ``ConfigError``,
    ``BusUnavailableError``, ``BusError`` when the broker refuses the login.
    """
    error: BusUnavailableError | None = None
    for endpoint in [Endpoint.parse(part) for part in url.split(";")]:
        try:
            return AmqpLink(endpoint, max_message=max_message)
        except BusUnavailableError as away:
            error = away
    assert error is not None
    raise error


class AmqpLink(Link):
    """One connection to RabbitMQ. A thread of its own serves heartbeats; methods are thread-safe.

    After ``BusUnavailableError`` the link is of no use any more.
    """

    def __init__(self, endpoint: Endpoint, *, max_message: int) -> None:
        self._publish_timeout = endpoint.publish_timeout
        self._settle = endpoint.settle
        self._settled_at = 0.0
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._blocked = False
        self._unsettled: dict[int, Delivery] = {}
        self._confirms = Confirms()
        self._returned = ""
        self._pulling = False
        self._consumer: Any = None
        self._upkeep: LeaseUpkeep | None = None
        self._connection = connection(
            endpoint,
            max_message=max_message,
            on_blocked=self._on_blocked,
            on_unblocked=self._on_unblocked,
        )
        self._received = []
        self._queue = ""
        with self._errors(f"RabbitMQ at {endpoint.address}"):
            self._wire: Any = self._connection.connection
            # No write blocks for ever, whatever the broker does.
            self._wire.sock.settimeout(self._publish_timeout)
            self._channel = self._connection.channel()
            self._confirmed: Any = self._connection.channel()
            self._confirmed.confirm_select()
            self._confirmed.events["basic_ack"].add(self._confirms.confirm)
            self._confirmed.events["basic_nack"].add(self._confirms.refuse)
            self._confirmed.events["basic_return"].add(self._on_return)
        self._upkeep = LeaseUpkeep(self._keep_alive, min(1.0, endpoint.heartbeat / 4))
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
            is_new = not self._exists(queue)
            self._channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
            if is_new:
                self._settled_at = time.monotonic() + self._settle
            keys = list(keys)
            if keys:
                # Nobody can publish into it before it is bound, so nothing is confirmed too early.
                self._await_settled()
            for key in keys:
                self._channel.queue_bind(queue, exchange, key)

    def _exists(self, queue: str) -> bool:
        # On a channel of its own: RabbitMQ closes one that asks for a queue that is not there.
        channel = self._connection.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return False
        channel.close()
        return True

    def _await_settled(self) -> None:
        """Wait until RabbitMQ has saved the names of new queues.

        It does that about a second after it has declared a quorum queue. When it is killed before,
        it starts the queue anew under another identity: without what it had confirmed, and without
        a leader for ever.
        """
        while (left := self._settled_at - time.monotonic()) > 0:
            try:
                self._wire.drain_events(timeout=min(left, _SLICE))
            except TimeoutError:
                self._wire.heartbeat_tick()

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
            self._await_settled()
            self._returned, self._confirms.refused = "", 0
            for body in bodies:
                if len(self._confirms) >= _WINDOW:
                    self._await_confirms(_WINDOW // 2)
                self._send(body, exchange, key, content_type=content_type)
            self._await_confirms(0)
            if self._confirms.refused:
                raise BusUnavailableError(
                    f"the broker refused {self._confirms.refused} messages",
                    hint="look for full queues, or quorum queues without a majority",
                )
            if self._returned:
                raise UnroutableError(
                    f"no queue takes a message under routing key {self._returned!r}",
                    hint="declare the store's queues first: start its worker once",
                )

    def _send(self, body: bytes, exchange: str, key: str, **properties: Any) -> None:
        self._confirms.published()
        message = amqp.Message(body, content_encoding="binary", delivery_mode=2, **properties)
        arguments = (0, exchange, key, True, False)
        self._confirmed.send_method(spec.Basic.Publish, "Bssbb", arguments, message)

    def _await_confirms(self, most: int) -> None:
        """Wait until at most so many messages are unconfirmed."""
        deadline = time.monotonic() + self._publish_timeout
        while (before := len(self._confirms)) > most:
            try:
                self._wire.drain_events(timeout=min(1.0, self._publish_timeout))
            except TimeoutError:
                self._wire.heartbeat_tick()
            if len(self._confirms) < before:
                deadline = time.monotonic() + self._publish_timeout
            elif time.monotonic() >= deadline:
                raise TimeoutError(f"{before} messages not confirmed within the publish timeout")

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
            self._consumer = self._channel.basic_consume(queue, callback=self._take)

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
        delivery.attempts += _earlier(message.headers)
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
        """See ``Link``. It counts as a delivery once for each message, however often it happens.

        RabbitMQ would count each time, and a store that is down for long would look like workers
        that die. So what comes back not for the first time is sent anew, with its old count.
        """
        with self._errors(f"queue {self._queue}"):
            mine = [one for one in deliveries if one.message.delivery_tag in self._unsettled]
            again = [one for one in mine if one.attempts and one.is_whole]
            self._returned, self._confirms.refused = "", 0
            for one in again:
                properties: dict[str, Any] = {"application_headers": {_EARLIER: one.attempts}}
                if 0 < len(one.content_type) < 128 and one.content_type.isascii():
                    properties["content_type"] = one.content_type
                self._send(one.body, "", one.queue, **properties)
            self._await_confirms(0)
            if self._returned or self._confirms.refused:
                again = []  # some are safe only where they are
        self.acknowledge(again)
        self._reject(mine, requeue=True)

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
        """See ``Link``. Gives back what is in hand; waits a few seconds at most."""
        if self.is_inherited:
            return
        with self._lock:
            self._stop_upkeep()
            with suppress(*LOST, *REFUSED, BusError):
                if self._wire.connected:
                    self._wire.sock.settimeout(_LONGEST_LEAVE)
                    self._publish_timeout = min(self._publish_timeout, _LONGEST_LEAVE)
                    if self._consumer is not None:
                        self._stop_consuming()
                        self.release(list(self._unsettled.values()))
                    self._wire.close()
            self.drop()

    def drop(self) -> None:
        """See ``Link``."""
        if self.is_inherited:
            return
        with self._lock:
            self._stop_upkeep()
            wire: Any = getattr(self, "_wire", None)
            driver = wire._transport if wire is not None else None
            if driver is not None:
                if driver.sock is not None:
                    # A broker that does not read must not keep us from leaving.
                    driver.sock.settimeout(0.5)
                wire.collect()

    def _stop_consuming(self) -> None:
        """Cancel, and have in hand all that was on its way.

        What RabbitMQ has to take back by itself it counts as a delivery. A get is the one call that
        is answered only once it has dealt with the acknowledgements before, and has sent what these
        made room for; that comes before the answer of the next call.
        """
        message = self._channel.basic_get(self._queue)
        if message is not None:
            self._take(message)
        self._channel.basic_qos(0, 1, False)
        self._channel.basic_cancel(self._consumer)

    def life(self) -> str | None:
        """Quorum queues never forget what was confirmed."""
        return ""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """None that are not translated already."""
        return ()

    @property
    def is_inherited(self) -> bool:
        """Whether it is a parent process's, which goes on using it."""
        return self._pid != os.getpid()

    def _stop_upkeep(self) -> None:
        if self._upkeep is not None:
            self._upkeep.stop()

    def _hear_why(self) -> None:
        """Read what the broker may have said while we did nothing but write."""
        with suppress(*LOST, *REFUSED, AttributeError):  # then it has said nothing
            while True:
                self._wire.drain_events(timeout=0)

    @contextmanager
    def _errors(self, what: str) -> Iterator[None]:
        """Hold the connection for the block, and turn the driver's errors into eventsync's."""
        if self.is_inherited:
            # Nor is the lock ours: the thread that may hold it has stayed with the parent.
            raise BusUnavailableError(f"{what}: the connection is the parent process's")
        with self._lock:
            wire: Any = getattr(self, "_wire", None)  # there is none before it has connected
            if wire is not None and not wire.connected:
                # The driver would connect anew by itself, with neither channels nor confirms.
                raise BusUnavailableError(f"{what}: the connection is lost")
            try:
                yield
            except (BusError, ConfigError):
                raise
            except REFUSED as error:
                self.drop()
                hint = ""
                if "delivery acknowledgement" in str(error):
                    raise BusUnavailableError(
                        f"{what}: a message was in hand for longer than RabbitMQ allows: {error}",
                        hint="raise the server's consumer_timeout, or lower prefetch and batch",
                    ) from error
                if isinstance(error, amqp.PreconditionFailed):
                    hint = "it exists, made otherwise; once it is empty, delete it"
                raise BusError(f"{what}: {error}", hint=hint) from error
            except AttributeError as error:
                if wire is None or wire.connected:
                    raise  # a mistake of ours; the driver makes it only when it has lost its socket
                raise BusUnavailableError(f"{what}: the connection is lost") from error
            except LOST as error:
                if isinstance(error, TimeoutError):
                    self._hear_why()
                self.drop()
                if self._blocked:
                    raise BusUnavailableError(
                        f"{what}: the broker has blocked publishing: {error}",
                        hint="it is short of memory or disk; see its alarms",
                    ) from error
                raise BusUnavailableError(f"{what}: {error}") from error


def _aside(headers: Any) -> str:
    """Why RabbitMQ put a message aside by itself, as its header says."""
    word = headers.get("x-first-death-reason") if isinstance(headers, dict) else None
    return word if isinstance(word, str) else ""


def _earlier(headers: Any) -> int:
    count = headers.get(_EARLIER) if isinstance(headers, dict) else None
    return count if type(count) is int and count > 0 else 0
