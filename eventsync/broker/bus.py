"""The bus: the exchange, and the queue, held queue and dead-letter queue of each store."""

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
from eventsync.envelope.key_file import KeyFile
from eventsync.envelope.signing import Keyring
from eventsync.errors import BusError, EventSyncError, UnroutableError
from eventsync.transports import schemes
from eventsync.transports.link import Delivery, Link, QueueState

__all__ = ["Bus", "Delivery", "QueueBrowser", "QueueState", "Subscription"]

EXCHANGE: Final = "eventsync"
_DEAD_TYPE: Final = "application/x-eventsync-dead-letter"
# RabbitMQ's words for why it made a dead letter, and eventsync's reasons. Workers reject only
# messages that are too large.
_REASONS: Final = {"rejected": "too-large", "delivery_limit": "crashes"}


class Bus:
    """Publishes envelopes, consumes the queues of stores, and stores held changes and dead letters.

    ``url``: the broker's URL in kombu's form; ``sqlite:////path`` is the embedded broker. ``keys``:
    sign published envelopes with these keys, and reject received envelopes without a valid
    signature. ``max_envelope``: the largest size of an envelope, in bytes. ``message_envelopes``
    and ``message_bytes``: the largest number of envelopes in one message, and of their bytes.
    ``max_message``: a received message of more bytes is not read. ``lease``: after so many seconds
    without a sign of life, other consumers take over a consumer's messages. ``tracing``: records
    traces of the published changes.

    The first use connects. After a ``BusUnavailableError`` the next call connects again. Publishing
    is thread-safe.
    """

    def __init__(
        self,
        url: str,
        *,
        keys: Keyring | KeyFile | None = None,
        max_envelope: int = codec.MAX_BYTES,
        message_envelopes: int = 500,
        message_bytes: int = 512 * 1024,
        max_message: int = 8 * 1024 * 1024,
        lease: float = 60.0,
        tracing: Tracing | None = None,
    ) -> None:
        self._url = url
        self._keys = keys
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
    def keys(self) -> Keyring | None:
        """The signing keys at this moment; ``None`` if changes are not signed."""
        return self._keys.keyring if isinstance(self._keys, KeyFile) else self._keys

    @property
    def shown_url(self) -> str:
        """The broker's URL with the password replaced by ``**``."""
        return schemes.masked(self._url)

    @property
    def transport(self) -> str:
        """The scheme of the broker's URL, such as ``redis``."""
        return schemes.scheme_of(self._url)

    # -- lifecycle -------------------------------------------------------------------------------

    def open(self) -> Bus:
        """Connect to the broker and return this bus. Idempotent.

        Raises ``BusUnavailableError`` if the broker cannot be reached, and ``ConfigError`` if its
        URL is wrong.
        """
        with self._lock, self._errors():
            self._connected()
        return self

    def missing(self) -> str:
        """Return which file of the broker the first use would create; empty if nothing."""
        with self._errors():
            return schemes.missing(self._url)

    def ping(self) -> None:
        """Connect to the broker and disconnect; declare nothing. Raises as ``open`` does."""
        with self._errors():
            disconnect(self._connect())

    def close(self) -> None:
        """Disconnect from the broker. Idempotent. The next use connects again."""
        with self._lock:
            link, self._link = self._link, None
            if link is not None:
                disconnect(link)

    def __enter__(self) -> Bus:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self, store: str, types: Iterable[str]) -> None:
        """Create the three queues of ``store`` and route changes of ``types`` to its main queue.

        Idempotent.
        """
        with self._lock, self._errors():
            link = self._connected()
            # The dead-letter queue comes first, because the other queues may move messages to it.
            link.declare_queue(dead_queue(store))
            link.declare_queue(held_queue(store), dead=dead_queue(store))
            link.declare_queue(
                store_queue(store), exchange=EXCHANGE, keys=types, dead=dead_queue(store)
            )

    # -- publishing --------------------------------------------------------------------------------

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change`` as bytes, signed if keys are configured.

        Raises ``ValueRefusedError`` if the change cannot be encoded.
        """
        if self.tracing is not None:
            change = self.tracing.published(change)
        return codec.encode(change, keys=self.keys, max_bytes=self.max_envelope)

    def encode_all(self, changes: Iterable[Change]) -> list[bytes]:
        """Return the envelopes of ``changes``, in the same order.

        If consecutive changes are similar, this is faster than calling ``encode`` for each change.
        """
        if self.tracing is not None:
            changes = map(self.tracing.published, changes)
        return codec.encode_all(list(changes), keys=self.keys, max_bytes=self.max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes of the record type ``type`` to every store that holds this type.

        Blocks until the broker has stored the envelopes. Thread-safe. Raises ``UnroutableError`` if
        no store's queue receives the type, and ``BusUnavailableError`` if the broker cannot be
        reached or refuses the envelopes for now.
        """
        bodies = batch.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, exchange=EXCHANGE, key=type)

    def dead_letter(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Add letters to a store's dead-letter queue. Blocks until the broker has stored them."""
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=dead_queue(store), content_type=_DEAD_TYPE)

    def hold(self, store: str, letters: Sequence[DeadLetter]) -> None:
        """Add held changes to a store's held queue. Blocks until the broker has stored them.

        ``letters``: the held changes, in the form of dead letters.
        """
        bodies = [letter.encode() for letter in letters]
        self._send(bodies, key=held_queue(store), content_type=_DEAD_TYPE)

    def send_to(self, store: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes to the queue of one store. Blocks until the broker has stored them."""
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
        """Declare the queues of a store and consume its main queue through a new connection.

        ``prefetch``: how many messages may be received but not settled at a time.
        """
        self.declare(store, types)
        with self._errors():
            return Subscription(
                self._connect(), store_queue(store), prefetch, dead=dead_queue(store)
            )

    @contextmanager
    def letters(self, store: str, *, held: bool = False) -> Iterator[QueueBrowser]:
        """Open the dead-letter queue of a store, or with ``held`` its held queue, for the block.

        Yields a browser of the queue. Letters that are not settled in the block stay in the queue.
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
        """Return the numbers of messages in a queue, by the queue's full name.

        Raises ``BusError`` if the queue does not exist, and ``BusUnavailableError`` if the broker
        cannot be reached.
        """
        with self._lock, self._errors():
            return self._connected().state(queue)

    def states(self, store: str) -> dict[str, QueueState]:
        """Return the state of each queue of a store, under ``queue``, ``held`` and ``dead``.

        Raises ``BusError`` if a queue does not exist, because this method declares no queues.
        """
        return {
            "queue": self.state(store_queue(store)),
            "held": self.state(held_queue(store)),
            "dead": self.state(dead_queue(store)),
        }

    def life(self) -> str | None:
        """Return the life id of the broker, or ``None`` if the transport has no such id.

        The id changes when the broker restarts and may have lost confirmed messages. A broker that
        never loses confirmed messages always has the same id. Thread-safe. Raises
        ``BusUnavailableError`` if the broker cannot be reached.
        """
        with self._lock, self._errors():
            return self._connected().life()

    # -- inside ------------------------------------------------------------------------------------

    def _connect(self) -> Link:
        return schemes.connect(self._url, lease=self._lease, max_message=self.max_message)

    def _connected(self) -> Link:
        """Return the link for publishing; connect if this process has no link yet."""
        if self._link is None or self._link.is_inherited:
            self._link = self._connect()
            self._link.declare_exchange(EXCHANGE)
        return self._link

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Raise the transport's errors of the block as eventsync errors, and then disconnect.

        An ``UnroutableError`` keeps the connection.
        """
        try:
            with bus_errors(f"the broker {self.shown_url}", lambda: self._link):
                yield
        except BusError as error:
            if not isinstance(error, UnroutableError):
                self.close()
            raise


class Subscription:
    """A consumer of one queue. Not thread-safe.

    The transport renews the leases of received messages until they are settled. ``dead``: the
    dead-letter queue of the queue.
    """

    def __init__(self, link: Link, queue: str, prefetch: int, *, dead: str = "") -> None:
        self._link = link
        self._queue = queue
        self._dead = dead
        try:
            link.consume(queue, prefetch=prefetch)
        except BaseException:
            disconnect(link)
            raise

    def fetch(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Return received messages; wait up to ``timeout`` seconds for the first one.

        Returns an empty list if no message arrives. ``limit``: about how many messages to return; a
        transport that delivers messages in batches may return more. Raises ``BusUnavailableError``
        if the broker cannot be reached.
        """
        with self._errors():
            return self._link.receive(timeout=timeout, limit=limit)

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Send the acknowledgements of messages; do not wait until the broker confirms them.

        If the connection breaks, some of the messages may be delivered again. Raises
        ``BusUnavailableError`` if the broker cannot be reached.
        """
        with self._errors():
            self._link.acknowledge(list(deliveries))

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back to the queue, so that any consumer can receive them again."""
        with self._errors():
            self._link.release(deliveries)

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Make the broker move messages that were too large to be read to the dead-letter queue."""
        with self._errors():
            self._link.refuse(deliveries, self._dead)

    def close(self) -> None:
        """Stop consuming and disconnect. Unsettled messages become ready at once. Idempotent."""
        with self._errors():
            self._link.close()

    def _errors(self) -> AbstractContextManager[None]:
        return bus_errors(f"the queue {self._queue}", lambda: self._link)


class QueueBrowser:
    """Reads and removes the letters of an open dead-letter or held queue. Not thread-safe."""

    def __init__(self, subscription: Subscription) -> None:
        self._subscription = subscription

    def read(self, limit: int | None = None) -> list[tuple[DeadLetter, Delivery]]:
        """Return letters with their deliveries, oldest first.

        ``limit``: about how many letters to return; ``None`` for all. Letters that another process
        has received and not settled are not returned. A message that is not a letter is converted
        to a letter. Its reason is "foreign", or the broker's reason if the broker itself moved the
        message to the dead letters.
        """
        found: list[tuple[DeadLetter, Delivery]] = []
        while limit is None or len(found) < limit:
            deliveries = self._subscription.fetch(timeout=0.0, limit=1)
            if not deliveries:
                break
            found += [(_letter(delivery), delivery) for delivery in deliveries]
        return found

    def settle(self, deliveries: Iterable[Delivery]) -> None:
        """Remove the letters of ``deliveries`` from the queue."""
        self._subscription.acknowledge(deliveries)


def store_queue(store: str) -> str:
    """Return the name of the main queue of a store, which the store's workers consume."""
    return f"{EXCHANGE}.{store}"


def held_queue(store: str) -> str:
    """Return the name of the held queue of a store."""
    return f"{EXCHANGE}.{store}.held"


def dead_queue(store: str) -> str:
    """Return the name of the dead-letter queue of a store."""
    return f"{EXCHANGE}.{store}.dead"


def _letter(delivery: Delivery) -> DeadLetter:
    try:
        return DeadLetter.decode(delivery.body)
    except EventSyncError as error:
        now = time.time()
        return DeadLetter(
            reason=_REASONS.get(delivery.aside, "foreign" if delivery.is_whole else "too-large"),
            message=_broker_reason(delivery)
            or f"the message cannot be read as a dead letter: {error}",
            store="",
            queue=delivery.queue,
            attempts=delivery.attempts,
            first_time=now,
            last_time=now,
            raw=delivery.body,
            content_type=delivery.content_type,
            # A digest, so that the message gets the same id each time it is read.
            id=hashlib.sha256(delivery.body).digest()[:16],
        )


def _broker_reason(delivery: Delivery) -> str:
    if not delivery.is_whole:
        return (
            f"the message has {delivery.size:,} bytes, too many to be read; it is in the "
            "dead-letter queue unaltered, but only its beginning is shown"
        )
    if not delivery.aside:
        return ""
    return f"the broker itself moved the message to the dead letters: {delivery.aside}"
