"""The bus: exchange, one queue a store, held changes and dead letters.

With the transports it is the only user of kombu. It knows nothing of stores' data, and it passes
envelopes on as bytes.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Final

import kombu
from kombu.exceptions import KombuError
from kombu.exceptions import OperationalError as KombuOperationalError
from kombu.utils.url import maybe_sanitize_url

from eventsync import envelope, framing
from eventsync.change import Change
from eventsync.deadletter import DeadLetter
from eventsync.errors import BusError, BusUnavailableError, ConfigError, EventSyncError
from eventsync.keyring import Keyring
from eventsync.transports import redis_url, sqlite

__all__ = ["Bus", "Delivery", "Letters", "QueueState", "Subscription"]

EXCHANGE: Final = "eventsync"
_kombu: Any = kombu  # it does not annotate what it exports
_DEAD_TYPE: Final = "application/x-eventsync-dead-letter"
_ATTEMPTS: Final = "x-delivery-count"


@dataclass(slots=True)
class Delivery:
    """A message as it came: its bytes, and how often it was delivered before."""

    body: bytes
    content_type: str
    attempts: int
    queue: str
    message: Any


@dataclass(slots=True, frozen=True)
class QueueState:
    """How a queue stands: messages ready, in the hands of consumers, age of the oldest in seconds.

    ``None`` where the transport cannot tell.
    """

    ready: int
    leased: int | None
    oldest: float | None


class Bus:
    """Envelopes to the queues of stores, and what could not be applied to their dead letters.

    ``url``: of the broker, as kombu takes it; ``sqlite:////path`` is the embedded one. ``keys``:
    sign what is published, and demand signatures of what is received. Connects at first use. After
    a ``BusUnavailableError`` the next call connects again. Publishing is thread-safe.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Keyring | None = None,
        max_envelope: int = envelope.MAX_BYTES,
        message_envelopes: int = 500,
        message_bytes: int = 512 * 1024,
        lease: float = 60.0,
    ) -> None:
        self._url = url
        self.keys = keys
        self.max_envelope = max_envelope
        self._message_envelopes = message_envelopes
        self._message_bytes = message_bytes
        self._lease = lease
        self._lock = threading.RLock()
        self._connection: Any = None
        self._producer: Any = None
        self._exchange = _kombu.Exchange(EXCHANGE, type="topic", durable=True)

    def __repr__(self) -> str:
        return f"Bus({self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The broker's URL without its password."""
        if self._url.startswith("sqlite:"):
            return self._url
        if self.transport in redis_url.SCHEMES:
            return redis_url.masked(self._url)
        # By its text alone: a URL of an unknown scheme has to be shown too.
        return ";".join(str(maybe_sanitize_url(url)) for url in self._url.split(";"))

    @property
    def transport(self) -> str:
        """The URL's scheme."""
        return self._url.partition(":")[0]

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self) -> Bus:
        """Connect. Idempotent. Raises ``BusUnavailableError``, ``ConfigError``."""
        with self._lock, self._errors():
            self._connected()
        return self

    def close(self) -> None:
        """Disconnect. Idempotent; the next use connects again."""
        with self._lock:
            connection, self._connection, self._producer = self._connection, None, None
            if connection is not None:
                try:
                    connection.close()
                except (OSError, KombuError, BusUnavailableError):
                    # The broker is away; there is nothing left to close.
                    connection = None

    def __enter__(self) -> Bus:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self, store: str, types: Iterable[str]) -> None:
        """Make a store's queues, and have its record types routed there. Idempotent."""
        with self._lock, self._errors():
            channel = self._connected().default_channel
            for queue in self._queues(store, types):
                queue(channel).declare()

    # -- publishing --------------------------------------------------------------------------------

    def encode(self, change: Change) -> bytes:
        """The envelope of ``change``, signed when keys are configured."""
        return envelope.encode(change, keys=self.keys, max_bytes=self.max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes of one record type to every store that takes it; blocks until the broker
        has them safe. Thread-safe.

        Raises ``UnroutableError`` when no store's queue takes the type, ``BusUnavailableError``.
        """
        bodies = framing.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, exchange=self._exchange, key=type)

    def dead_letter(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Put letters into a store's dead letters; blocks until they are safe there."""
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=dead_queue(store), content_type=_DEAD_TYPE)

    def hold(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Put aside what is to be tried again later; blocks until it is safe there."""
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=held_queue(store), content_type=_DEAD_TYPE)

    def send_to(self, store: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes to one store only; blocks until the broker has them safe."""
        bodies = framing.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, key=store_queue(store))

    def _send(
        self,
        bodies: Iterable[bytes],
        *,
        key: str,
        exchange: Any = "",
        content_type: str = envelope.CONTENT_TYPE,
    ) -> None:
        with self._lock, self._errors():
            self._connected()
            # One atomic step where the transport can, a message at a time elsewhere.
            with self._producer.batch():
                for body in bodies:
                    self._producer.publish(
                        body,
                        exchange=exchange,
                        routing_key=key,
                        content_type=content_type,
                        content_encoding="binary",
                        delivery_mode=2,
                        mandatory=True,
                        retry=False,
                    )

    # -- consuming ---------------------------------------------------------------------------------

    def subscribe(self, store: str, types: Iterable[str], *, prefetch: int) -> Subscription:
        """Consume a store's queue, on a connection of its own. Declares the queues."""
        self.declare(store, types)
        with self._errors():
            return Subscription(self._new_connection(), store_queue(store), prefetch)

    @contextmanager
    def letters(self, store: str, *, held: bool = False) -> Iterator[Letters]:
        """The dead letters of a store (or its held changes), to be read, settled or left.

        What is not settled when the block ends is there again, for others too.
        """
        queue = held_queue(store) if held else dead_queue(store)
        with self._errors():
            connection = self._new_connection()
            try:
                _kombu.Queue(queue, durable=True)(connection.default_channel).declare()
                yield Letters(Subscription(connection, queue, prefetch=0))
            finally:
                connection.close()

    def state(self, queue: str) -> QueueState:
        """How a queue stands. Raises ``BusError`` when there is no such queue."""
        with self._lock, self._errors():
            channel = self._connected().default_channel
            if hasattr(channel, "queue_stats"):
                stats = channel.queue_stats(queue)
                return QueueState(stats.ready, stats.leased, stats.oldest_age)
            declared = channel.queue_declare(queue, passive=True)
            return QueueState(declared.message_count, None, None)

    def states(self, store: str) -> dict[str, QueueState]:
        """How the queues of a store stand: ``queue``, ``held`` and ``dead``. Declares none."""
        return {
            "queue": self.state(store_queue(store)),
            "held": self.state(held_queue(store)),
            "dead": self.state(dead_queue(store)),
        }

    # -- inside ------------------------------------------------------------------------------------

    def _queues(self, store: str, types: Iterable[str]) -> list[Any]:
        bindings = [_kombu.binding(self._exchange, routing_key=type) for type in types]
        return [
            _kombu.Queue(store_queue(store), bindings=bindings, durable=True),
            _kombu.Queue(held_queue(store), durable=True),
            _kombu.Queue(dead_queue(store), durable=True),
        ]

    def _new_connection(self) -> Any:
        if self._url.startswith("sqlite:"):
            connection: Any = sqlite.connect(self._url, lease=self._lease)
        elif self.transport in redis_url.SCHEMES:
            from eventsync.transports import redis  # the client library, for whom it serves only

            connection = redis.connect(self._url, lease=self._lease)
        else:
            connection = _kombu.Connection(self._url)
        connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=5.0)
        return connection

    def _connected(self) -> Any:
        if self._connection is None:
            self._connection = self._new_connection()
            self._producer = self._connection.Producer(auto_declare=False)
            self._exchange(self._connection.default_channel).declare()
        return self._connection

    @contextmanager
    def _errors(self) -> Iterator[None]:
        with _bus_errors(self.shown_url):
            try:
                yield
            except (BusUnavailableError, KombuError, OSError):
                self.close()
                raise


class Subscription:
    """A consumer of one queue, for one thread. The transport keeps alive what it holds."""

    def __init__(self, connection: Any, queue: str, prefetch: int) -> None:
        self._connection = connection
        self._queue = queue
        self._received: list[Delivery] = []
        self._channel = connection.channel()
        if prefetch:
            self._channel.basic_qos(0, prefetch, False)
        self._consumer = _kombu.Consumer(
            self._channel,
            queues=[_kombu.Queue(queue, durable=True)],
            on_message=self._receive,
            auto_declare=False,
        )
        self._consumer.consume()

    def fetch(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Up to ``limit`` messages or so; waits up to ``timeout`` seconds for the first.

        More than ``limit`` may come when the transport delivers many at once. Empty when none came
        in time. Raises ``BusUnavailableError``.
        """
        with _bus_errors(self._queue):
            deadline = time.monotonic() + timeout
            while len(self._received) < limit:
                wait = 0.0 if self._received else max(0.0, deadline - time.monotonic())
                try:
                    self._connection.drain_events(timeout=wait)
                except TimeoutError:
                    break
        received, self._received = self._received, []
        return received

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Settle messages for good; in effect when this returns. Raises ``BusUnavailableError``."""
        with _bus_errors(self._queue):
            for delivery in deliveries:
                delivery.message.ack()
            flush = getattr(self._channel, "flush", None)
            if flush is not None:
                flush()

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back, for any consumer."""
        with _bus_errors(self._queue):
            for delivery in deliveries:
                delivery.message.requeue()

    def close(self) -> None:
        """Stop consuming; what is not settled goes back at once. Idempotent."""
        with _bus_errors(self._queue):
            self._connection.close()

    def _receive(self, message: Any) -> None:
        body = message.body
        self._received.append(
            Delivery(
                body.encode("utf-8", "surrogateescape") if isinstance(body, str) else bytes(body),
                message.content_type or "",
                int((message.headers or {}).get(_ATTEMPTS, 0) or 0),
                self._queue,
                message,
            )
        )


class Letters:
    """The letters in a queue while one looks at them. For one thread."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def read(self, limit: int | None = None) -> list[tuple[DeadLetter, Delivery]]:
        """The letters that nobody else has in hand, oldest first.

        Bytes that are no letter are shown as one, with that as their reason.
        """
        found: list[tuple[DeadLetter, Delivery]] = []
        while limit is None or len(found) < limit:
            deliveries = self._subscription.fetch(timeout=0.0, limit=1)
            if not deliveries:
                break
            found += [(_letter(delivery), delivery) for delivery in deliveries]
        return found

    def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Take letters out for good."""
        self._subscription.acknowledge(deliveries)


def store_queue(store: str) -> str:
    """The queue from which a store's workers take."""
    return f"{EXCHANGE}.{store}"


def held_queue(store: str) -> str:
    """The queue of changes that a store tries again later."""
    return f"{EXCHANGE}.{store}.held"


def dead_queue(store: str) -> str:
    """The queue of a store's dead letters."""
    return f"{EXCHANGE}.{store}.dead"


def _letter(delivery: Delivery) -> DeadLetter:
    try:
        return DeadLetter.decode(delivery.body)
    except EventSyncError as error:
        now = time.time()
        return DeadLetter(
            reason="foreign",
            message=f"not a dead letter: {error}",
            store="",
            queue=delivery.queue,
            attempts=delivery.attempts,
            first_time=now,
            last_time=now,
            raw=delivery.body,
        )


@contextmanager
def _bus_errors(what: str) -> Iterator[None]:
    """Turn kombu's and the driver's errors into eventsync's."""
    try:
        yield
    except EventSyncError:
        raise
    except (OSError, KombuOperationalError) as error:
        raise BusUnavailableError(f"broker {what}: {error}") from error
    except KeyError as error:
        raise ConfigError(f"broker {what}: unknown transport {error}") from error
    except KombuError as error:
        raise BusError(f"broker {what}: {error}") from error
