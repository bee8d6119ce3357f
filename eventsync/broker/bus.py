"""The bus: the exchange, and for each store its queue, its held queue and its dead-letter queue."""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Final

from eventsync.broker.kombu_errors import bus_errors, disconnect
from eventsync.broker.tracing import Tracing
from eventsync.changes.change import Change
from eventsync.envelope import batch, codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.envelope.signing import Keyring
from eventsync.errors import BusError, EventSyncError, UnroutableError
from eventsync.transports import schemes
from eventsync.transports.link import Delivery, Link, QueueState

__all__ = ["Bus", "Delivery", "QueueBrowser", "QueueState", "Subscription"]

EXCHANGE: Final = "eventsync"
_DEAD_TYPE: Final = "application/x-eventsync-dead-letter"
# Reasons of dead letters that RabbitMQ made itself, by its word for the reason. Workers reject only
# messages that are too large.
_REASONS: Final = {"rejected": "too-large", "delivery_limit": "crashes"}


class Bus:
    """Publishes envelopes to the queues of stores, consumes those queues, and keeps dead letters.

    ``url``: of the broker, as for kombu; ``sqlite:////path`` is the embedded broker. ``keys``: sign
    the published envelopes and require signatures of the received ones. ``message_envelopes`` and
    ``message_bytes``: the largest number and size of envelopes in one message. ``max_message``: the
    size above which a received message is not read, in bytes. ``lease``: how long a silent consumer
    keeps its messages, in seconds. ``tracing``: traces changes from here to where they are applied.
    Connects at first use. After a ``BusUnavailableError`` the next call connects again. Publishing
    is thread-safe.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Keyring | None = None,
        max_envelope: int = codec.MAX_BYTES,
        message_envelopes: int = 500,
        message_bytes: int = 512 * 1024,
        max_message: int = 8 * 1024 * 1024,
        lease: float = 60.0,
        tracing: Tracing | None = None,
    ) -> None:
        self._url = url
        self.keys = keys
        self.tracing = tracing
        self.max_envelope = max_envelope
        self._message_envelopes = message_envelopes
        self._message_bytes = message_bytes
        self.max_message = max_message
        self._lease = lease
        self._lock = threading.RLock()
        self._link: Link | None = None

    def __repr__(self) -> str:
        return f"Bus({self.shown_url!r})"

    @property
    def shown_url(self) -> str:
        """The broker's URL without its password."""
        return schemes.masked(self._url)

    @property
    def transport(self) -> str:
        """The URL's scheme."""
        return schemes.scheme_of(self._url)

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self) -> Bus:
        """Connect. Idempotent. Raises ``BusUnavailableError``, ``ConfigError``."""
        with self._lock, self._errors():
            self._connected()
        return self

    def close(self) -> None:
        """Disconnect. Idempotent; the next use connects again."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                disconnect(link)

    def __enter__(self) -> Bus:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self, store: str, types: Iterable[str]) -> None:
        """Create a store's queues, and route its record types to them. Idempotent."""
        with self._lock, self._errors():
            link = self._connected()
            # First the queue of dead letters, because the others may send messages to it.
            link.declare_queue(dead_queue(store))
            link.declare_queue(held_queue(store), dead=dead_queue(store))
            link.declare_queue(
                store_queue(store), exchange=EXCHANGE, keys=types, dead=dead_queue(store)
            )

    # -- publishing --------------------------------------------------------------------------------

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change``, signed if keys are configured."""
        if self.tracing is not None:
            change = self.tracing.published(change)
        return codec.encode(change, keys=self.keys, max_bytes=self.max_envelope)

    def encode_all(self, changes: Iterable[Change]) -> list[bytes]:
        """Return the envelopes of ``changes`` in their order.

        Faster than ``encode`` for each where consecutive changes are alike.
        """
        if self.tracing is not None:
            changes = map(self.tracing.published, changes)
        return codec.encode_all(list(changes), keys=self.keys, max_bytes=self.max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes of one record type to every store that takes the type.

        Blocks until the broker has stored them safely. Thread-safe. Raises ``UnroutableError`` if
        no store's queue takes the type, and ``BusUnavailableError``.
        """
        bodies = batch.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, exchange=EXCHANGE, key=type)

    def dead_letter(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Add letters to a store's dead letters. Blocks until the broker has stored them."""
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=dead_queue(store), content_type=_DEAD_TYPE)

    def hold(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Add changes to a store's held queue. Blocks until the broker has stored them."""
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=held_queue(store), content_type=_DEAD_TYPE)

    def send_to(self, store: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes to one store only. Blocks until the broker has stored them."""
        bodies = batch.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, key=store_queue(store))

    def _send(
        self,
        bodies: Iterable[bytes],
        *,
        key: str,
        exchange: str = "",
        content_type: str = codec.CONTENT_TYPE,
    ) -> None:
        with self._lock, self._errors():
            self._connected().publish(bodies, exchange=exchange, key=key, content_type=content_type)

    # -- consuming ---------------------------------------------------------------------------------

    def subscribe(self, store: str, types: Iterable[str], *, prefetch: int) -> Subscription:
        """Declare a store's queues and consume its queue, on a connection of its own.

        ``prefetch``: how many messages may be received and not settled.
        """
        self.declare(store, types)
        with self._errors():
            return Subscription(self._connect(), store_queue(store), prefetch)

    @contextmanager
    def letters(self, store: str, *, held: bool = False) -> Iterator[QueueBrowser]:
        """Open the dead letters of a store, or its held changes, for the block.

        Letters that are not settled in the block stay in the queue.
        """
        queue = held_queue(store) if held else dead_queue(store)
        with self._errors():
            link = self._connect()
        try:
            with bus_errors(f"the queue {queue}", lambda: link):
                link.declare_queue(queue, dead=dead_queue(store) if held else "")
                subscription = Subscription(link, queue, prefetch=0)
            yield QueueBrowser(subscription)
        finally:
            disconnect(link)

    def state(self, queue: str) -> QueueState:
        """Return the counts of a queue. Raises ``BusError`` if there is no such queue."""
        with self._lock, self._errors():
            return self._connected().state(queue)

    def states(self, store: str) -> dict[str, QueueState]:
        """Return the counts of a store's queues: ``queue``, ``held`` and ``dead``.

        Does not declare them.
        """
        return {
            "queue": self.state(store_queue(store)),
            "held": self.state(held_queue(store)),
            "dead": self.state(dead_queue(store)),
        }

    def life(self) -> str | None:
        """Return an id of the broker's present run, or ``None`` if the transport has none.

        It changes with each restart in which the broker may have lost the latest messages it had
        confirmed. For a broker that never loses them it is always the same. Thread-safe. Raises
        ``BusUnavailableError``.
        """
        with self._lock, self._errors():
            return self._connected().life()

    # -- inside ------------------------------------------------------------------------------------

    def _connect(self) -> Link:
        return schemes.connect(self._url, lease=self._lease, max_message=self.max_message)

    def _connected(self) -> Link:
        """Return the link for publishing; connect if there is none in this process."""
        if self._link is None or self._link.is_inherited:
            self._link = self._connect()
            self._link.declare_exchange(EXCHANGE)
        return self._link

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Translate errors; disconnect after one, except for an ``UnroutableError``."""
        try:
            with bus_errors(f"the broker {self.shown_url}", lambda: self._link):
                yield
        except BusError as error:
            if not isinstance(error, UnroutableError):
                self.close()
            raise


class Subscription:
    """A consumer of one queue, for one thread. The transport renews the leases of its messages."""

    def __init__(self, link: Link, queue: str, prefetch: int) -> None:
        self._link = link
        self._queue = queue
        try:
            link.consume(queue, prefetch=prefetch)
        except BaseException:
            disconnect(link)
            raise

    def fetch(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Return about ``limit`` messages; wait up to ``timeout`` seconds for the first.

        They may be more than ``limit``, if the transport delivers many at once. The list is empty
        if none arrived in time. Raises ``BusUnavailableError``.
        """
        with self._errors():
            return self._link.receive(timeout=timeout, limit=limit)

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Acknowledge messages. Raises ``BusUnavailableError``.

        On return the acknowledgements are sent, but not confirmed: if the connection breaks, some
        of the messages may be delivered again.
        """
        with self._errors():
            self._link.acknowledge(list(deliveries))

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Make messages ready again, for any consumer."""
        with self._errors():
            self._link.release(deliveries)

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Let the broker move messages that were too large to be read to the dead letters."""
        with self._errors():
            self._link.refuse(deliveries)

    def close(self) -> None:
        """Stop consuming; messages that are not settled become ready at once. Idempotent."""
        with self._errors():
            self._link.close()

    def _errors(self) -> AbstractContextManager[None]:
        return bus_errors(f"the queue {self._queue}", lambda: self._link)


class QueueBrowser:
    """The letters of an open dead-letter or held queue. For one thread."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def read(self, limit: int | None = None) -> list[tuple[DeadLetter, Delivery]]:
        """Return the letters that no other process has received, oldest first.

        A message that is not a letter is returned as a letter with the reason "foreign", or with
        the broker's reason if the broker itself moved it to the dead letters.
        """
        found: list[tuple[DeadLetter, Delivery]] = []
        while limit is None or len(found) < limit:
            deliveries = self._subscription.fetch(timeout=0.0, limit=1)
            if not deliveries:
                break
            found += [(_letter(delivery), delivery) for delivery in deliveries]
        return found

    def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Remove letters from the queue."""
        self._subscription.acknowledge(deliveries)


def store_queue(store: str) -> str:
    """Return the name of the queue that a store's workers consume."""
    return f"{EXCHANGE}.{store}"


def held_queue(store: str) -> str:
    """Return the name of the queue of a store's held changes."""
    return f"{EXCHANGE}.{store}.held"


def dead_queue(store: str) -> str:
    """Return the name of the queue of a store's dead letters."""
    return f"{EXCHANGE}.{store}.dead"


def _letter(delivery: Delivery) -> DeadLetter:
    try:
        return DeadLetter.decode(delivery.body)
    except EventSyncError as error:
        now = time.time()
        return DeadLetter(
            reason=_REASONS.get(delivery.aside, "foreign"),
            message=_broker_reason(delivery)
            or f"the message cannot be read as a dead letter: {error}",
            store="",
            queue=delivery.queue,
            attempts=delivery.attempts,
            first_time=now,
            last_time=now,
            raw=delivery.body,
            content_type=delivery.content_type,
            # The same id at each reading.
            id=hashlib.sha256(delivery.body).digest()[:16],
        )


def _broker_reason(delivery: Delivery) -> str:
    if not delivery.aside:
        return ""
    cut = "" if delivery.is_whole else f"; only the first of its {delivery.size:,} bytes are kept"
    return f"the broker itself moved it to the dead letters: {delivery.aside}{cut}"
