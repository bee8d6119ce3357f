"""The link to RabbitMQ: quorum queues, pipelined confirms, and heartbeats from a thread."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any, Final

import amqp

from eventsync.errors import BusError, BusUnavailableError, UnroutableError
from eventsync.transports.amqp.confirms import ConfirmedPublisher
from eventsync.transports.amqp.connection import LOST, REFUSED
from eventsync.transports.amqp.session import Session
from eventsync.transports.amqp.url import SCHEMES, Endpoint
from eventsync.transports.link import Delivery, Link, QueueState, delivery_of

__all__ = ["SCHEMES", "AmqpLink", "connect"]

# More deliveries than the worker ever allows. Set explicitly, because the default differs between
# versions of RabbitMQ, and the later ones drop a message after 20 deliveries.
_DELIVERY_LIMIT: Final = 1_000_000
# The longest wait, in seconds, during which the connection is locked.
_LONGEST_WAIT: Final = 0.25
# The header with the deliveries of a message before it was released by sending it again.
_EARLIER: Final = "x-eventsync-attempts"
_LONGEST_CLOSE: Final = 3.0


def connect(url: str, *, max_message: int) -> AmqpLink:
    """Return a link to the first broker of ``url`` that answers; semicolons separate several.

    In the query of a URL: ``heartbeat``, ``publish_timeout``, ``connect_timeout`` and ``settle`` in
    seconds; ``ca``, ``cert`` and ``key``, files in PEM format, for ``amqps``. Without ``ca`` the
    system's authorities are trusted; the server's certificate and name are always verified.
    Messages longer than ``max_message`` bytes are not read. Raises ``ConfigError``,
    ``BusUnavailableError``, and ``BusError`` if the broker refuses the login.
    """
    error: BusUnavailableError | None = None
    for endpoint in [Endpoint.parse(part) for part in url.split(";")]:
        try:
            return AmqpLink(endpoint, max_message=max_message)
        except BusUnavailableError as unavailable:
            error = unavailable
    assert error is not None
    raise error


class AmqpLink(Link):
    """A link to RabbitMQ. Methods are thread-safe.

    After a ``BusUnavailableError`` the link is unusable.
    """

    def __init__(self, endpoint: Endpoint, *, max_message: int) -> None:
        self.session = Session(endpoint, max_message=max_message)
        self._settle = endpoint.settle
        self._settled_at = 0.0
        self._unsettled: dict[int, Delivery] = {}
        self._received = []
        self._queue = ""
        self._browsing = False
        self._consumer: Any = None
        with self.session.errors(f"RabbitMQ at {endpoint.address}"):
            self._channel = self.session.channel()
            self._publisher = ConfirmedPublisher(self.session)
        self.session.start_keep_alive(min(1.0, endpoint.heartbeat / 4))

    # -- declaring -------------------------------------------------------------------------------

    def declare_exchange(self, exchange: str) -> None:
        """See ``Link``."""
        with self.session.errors(f"exchange {exchange}"):
            self._channel.exchange_declare(exchange, "topic", durable=True, auto_delete=False)

    def declare_queue(
        self, queue: str, *, exchange: str = "", keys: Iterable[str] = (), dead: str = ""
    ) -> None:
        """See ``Link``. Raises ``BusError`` if the queue exists with other properties."""
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
        with self.session.errors(f"queue {queue}"):
            is_new = not self._exists(queue)
            self._channel.queue_declare(queue, durable=True, auto_delete=False, arguments=arguments)
            if is_new:
                self._settled_at = time.monotonic() + self._settle
            keys = list(keys)
            if keys:
                # Before the first binding, so that nothing is published to it and confirmed early.
                self._await_settled()
            for key in keys:
                self._channel.queue_bind(queue, exchange, key)

    def _exists(self, queue: str) -> bool:
        # On its own channel, because RabbitMQ closes the channel if there is no such queue.
        channel = self.session.channel()
        try:
            channel.queue_declare(queue, passive=True)
        except amqp.NotFound:
            return False
        channel.close()
        return True

    def _await_settled(self) -> None:
        """Wait until RabbitMQ has saved the names of new queues.

        It saves them about a second after it has declared a quorum queue. If it is killed before
        that, it recreates the queue with another identity: without the messages it had confirmed,
        and without ever electing a leader.
        """
        while (left := self._settled_at - time.monotonic()) > 0:
            self.session.wait(min(left, _LONGEST_WAIT))

    def state(self, queue: str) -> QueueState:
        """See ``Link``. RabbitMQ does not tell clients the leased messages and the oldest age."""
        with self.session.errors(f"queue {queue}"):
            declared = self._channel.queue_declare(queue, passive=True)
        return QueueState(declared.message_count, None, None)

    # -- publishing ------------------------------------------------------------------------------

    def publish(
        self, bodies: Iterable[bytes], *, exchange: str, key: str, content_type: str
    ) -> None:
        """See ``Link``. Pipelined: up to 1,000 messages may be unconfirmed at a time.

        If some messages are unroutable, the others are stored nevertheless. Raises
        ``BusUnavailableError`` if the broker refuses a message, or confirms none for
        ``publish_timeout`` seconds.
        """
        properties = {"content_type": content_type}
        publisher = self._publisher
        with self.session.errors("publishing"):
            self._await_settled()
            publisher.publish(((body, properties) for body in bodies), exchange=exchange, key=key)
            if publisher.refused:
                raise BusUnavailableError(
                    f"the broker refused {publisher.refused} messages",
                    hint="look for full queues, or quorum queues without a majority",
                )
            if publisher.unroutable:
                raise UnroutableError(
                    f"no queue takes a message under routing key {publisher.unroutable!r}",
                    hint="declare the store's queues first: start its worker once",
                )

    # -- consuming -------------------------------------------------------------------------------

    def consume(self, queue: str, *, prefetch: int) -> None:
        """See ``Link``."""
        self._queue = queue
        # A whole queue is fetched message by message, because RabbitMQ would push all of it.
        self._browsing = not prefetch
        if self._browsing:
            return
        with self.session.errors(f"queue {queue}"):
            self._channel.basic_qos(0, prefetch, False)
            self._consumer = self._channel.basic_consume(queue, callback=self._on_message)

    def receive(self, *, timeout: float, limit: int) -> list[Delivery]:
        """See ``Link``. Raises ``BusUnavailableError`` also if the queue was deleted."""
        what = f"queue {self._queue}"
        deadline = time.monotonic() + timeout
        with self.session.errors(what):
            while self._browsing and len(self._received) < limit:
                message = self._channel.basic_get(self._queue)
                if message is None:
                    break
                self._on_message(message)
        while not self._browsing and len(self._received) < limit:
            left = 0.0 if self._received else max(0.0, deadline - time.monotonic())
            # Short waits, so that publishers and the keep-alive thread can lock the session, too.
            with self.session.errors(what):
                arrived = self.session.wait(min(_LONGEST_WAIT, left))
            if not arrived and (self._received or time.monotonic() >= deadline):
                break
        with self.session.lock:
            received, self._received = self._received, []
        return received

    def _on_message(self, message: Any) -> None:
        delivery = delivery_of(message, self._queue)
        delivery.attempts += _earlier_attempts(message.headers)
        delivery.size = message.body_size
        delivery.aside = _dead_letter_reason(message.headers)
        self._unsettled[message.delivery_tag] = delivery
        self._received.append(delivery)

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """See ``Link``. The oldest unsettled messages are acknowledged together in one frame."""
        tags = {delivery.message.delivery_tag for delivery in deliveries}
        with self.session.errors(f"queue {self._queue}"):
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
        """See ``Link``. All releases of a message together count as one delivery.

        RabbitMQ counts each release. A store that is down for long would then look like workers
        that crash. Therefore a message that is released for the second time is sent again, with its
        count in a header.
        """
        with self.session.errors(f"queue {self._queue}"):
            unsettled = [one for one in deliveries if one.message.delivery_tag in self._unsettled]
            resent = [one for one in unsettled if one.attempts and one.is_whole]
            self._publisher.publish(
                ((one.body, _properties(one)) for one in resent), exchange="", key=self._queue
            )
            if self._publisher.unroutable or self._publisher.refused:
                resent = []  # some were not stored again, so none is acknowledged
        self.acknowledge(resent)
        self._reject(unsettled, requeue=True)

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """See ``Link``."""
        self._reject(deliveries, requeue=False)

    def _reject(self, deliveries: Iterable[Delivery], *, requeue: bool) -> None:
        with self.session.errors(f"queue {self._queue}"):
            for delivery in deliveries:
                tag = delivery.message.delivery_tag
                if self._unsettled.pop(tag, None) is not None:
                    self._channel.basic_reject(tag, requeue)

    # -- lifetime --------------------------------------------------------------------------------

    def close(self) -> None:
        """See ``Link``. Blocks for a few seconds at most."""
        session = self.session
        if session.is_inherited:
            return
        with session.lock:
            with suppress(*LOST, *REFUSED, BusError):
                if session.wire.connected:
                    session.limit_waits(_LONGEST_CLOSE)
                    if self._consumer is not None:
                        self._stop_consuming()
                        self.release(list(self._unsettled.values()))
                    session.wire.close()
            session.drop()

    def _stop_consuming(self) -> None:
        """Cancel the consumer, after receiving all messages that are on their way.

        RabbitMQ counts it as a delivery if it has to take such a message back itself. A get is the
        one call that it answers only after it has handled the acknowledgements before it. By then
        it has also sent the messages for which these made room, so they arrive before the answer
        to the next call.
        """
        message = self._channel.basic_get(self._queue)
        if message is not None:
            self._on_message(message)
        self._channel.basic_qos(0, 1, False)
        self._channel.basic_cancel(self._consumer)

    def drop(self) -> None:
        """See ``Link``."""
        self.session.drop()

    def life(self) -> str | None:
        """Return a constant, because quorum queues never lose confirmed messages."""
        return ""

    @property
    def connection_errors(self) -> tuple[type[BaseException], ...]:
        """None, because all errors of the driver are translated already."""
        return ()

    @property
    def is_inherited(self) -> bool:
        """Whether the connection belongs to a parent process, which still uses it."""
        return self.session.is_inherited


def _properties(delivery: Delivery) -> dict[str, Any]:
    """Return the properties with which a message is sent again."""
    properties: dict[str, Any] = {"application_headers": {_EARLIER: delivery.attempts}}
    if 0 < len(delivery.content_type) < 128 and delivery.content_type.isascii():
        properties["content_type"] = delivery.content_type
    return properties


def _dead_letter_reason(headers: Any) -> str:
    """Return RabbitMQ's word for why it dead-lettered a message; empty if it did not."""
    word = headers.get("x-first-death-reason") if isinstance(headers, dict) else None
    return word if isinstance(word, str) else ""


def _earlier_attempts(headers: Any) -> int:
    count = headers.get(_EARLIER) if isinstance(headers, dict) else None
    return count if type(count) is int and count > 0 else 0
