"""The bus: exchange, one queue a store, held changes and dead letters.

With the transports it is the only user of kombu. It knows nothing of stores' data, and it passes
envelopes on as bytes.
"""

from __future__ import annotations

import hashlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any, Final

import kombu
from kombu.exceptions import BatchPublishError, KombuError
from kombu.exceptions import OperationalError as KombuOperationalError
from kombu.utils.url import maybe_sanitize_url

from eventsync.broker.tracing import Tracing
from eventsync.changes.change import Change
from eventsync.envelope import batch, codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.envelope.signing import Keyring
from eventsync.errors import (
    BusError,
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    UnroutableError,
)
from eventsync.transports.amqp import link as amqp
from eventsync.transports.link import Delivery, Link, QueueState
from eventsync.transports.redis import url as redis_url
from eventsync.transports.sqlite import transport as sqlite

__all__ = ["Bus", "Delivery", "QueueBrowser", "QueueState", "Subscription"]

EXCHANGE: Final = "eventsync"
_kombu: Any = kombu  # it does not annotate what it exports
_DEAD_TYPE: Final = "application/x-eventsync-dead-letter"
# By RabbitMQ's word for why it put a message aside; messages too large are rejected by us.
_ASIDE: Final = {"rejected": "too-large", "delivery_limit": "crashes"}


class Bus:
    """Envelopes to the queues of stores, and what could not be applied to their dead letters.

    ``url``: of the broker, as kombu takes it; ``sqlite:////path`` is the embedded one. ``keys``:
    sign what is published, and demand signatures of what is received. ``max_message``: the size of
    the largest message that is read. ``tracing``: traces changes from here to where they are
    applied; ``None``: nothing is traced. Connects at first use. After
    a ``BusUnavailableError`` the next call connects again. Publishing is thread-safe.
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
            link, self._link = self._link, None
            if link is not None:
                _leave(link)

    def __enter__(self) -> Bus:
        return self.open()

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def declare(self, store: str, types: Iterable[str]) -> None:
        """Make a store's queues, and have its record types routed there. Idempotent."""
        with self._lock, self._errors():
            link = self._connected()
            # Where dead letters go has to be there before what may send some.
            link.declare_queue(dead_queue(store))
            link.declare_queue(held_queue(store), dead=dead_queue(store))
            link.declare_queue(
                store_queue(store), exchange=EXCHANGE, keys=types, dead=dead_queue(store)
            )

    # -- publishing --------------------------------------------------------------------------------

    def encode(self, change: Change) -> bytes:
        """The envelope of ``change``, signed when keys are configured."""
        if self.tracing is not None:
            change = self.tracing.published(change)
        return codec.encode(change, keys=self.keys, max_bytes=self.max_envelope)

    def encode_all(self, changes: Iterable[Change]) -> list[bytes]:
        """The envelopes of changes in their order: quicker than one by one where they are alike."""
        if self.tracing is not None:
            changes = map(self.tracing.published, changes)
        return codec.encode_all(list(changes), keys=self.keys, max_bytes=self.max_envelope)

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Send envelopes of one record type to every store that takes it; blocks until the broker
        has them safe. Thread-safe.

        Raises ``UnroutableError`` when no store's queue takes the type, ``BusUnavailableError``.
        """
        bodies = batch.batches(
            envelopes, max_count=self._message_envelopes, max_bytes=self._message_bytes
        )
        self._send(bodies, exchange=EXCHANGE, key=type)

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
        """Consume a store's queue, on a connection of its own. Declares the queues."""
        self.declare(store, types)
        with self._errors():
            return Subscription(self._new_link(), store_queue(store), prefetch)

    @contextmanager
    def letters(self, store: str, *, held: bool = False) -> Iterator[QueueBrowser]:
        """The dead letters of a store (or its held changes), to be read, settled or left.

        What is not settled when the block ends is there again, for others too.
        """
        queue = held_queue(store) if held else dead_queue(store)
        with self._errors():
            link = self._new_link()
        try:
            with _bus_errors(queue, lambda: link):
                link.declare_queue(queue, dead=dead_queue(store) if held else "")
                subscription = Subscription(link, queue, prefetch=0)
            yield QueueBrowser(subscription)
        finally:
            _leave(link)

    def state(self, queue: str) -> QueueState:
        """How a queue stands. Raises ``BusError`` when there is no such queue."""
        with self._lock, self._errors():
            return self._connected().state(queue)

    def states(self, store: str) -> dict[str, QueueState]:
        """How the queues of a store stand: ``queue``, ``held`` and ``dead``. Declares none."""
        return {
            "queue": self.state(store_queue(store)),
            "held": self.state(held_queue(store)),
            "dead": self.state(dead_queue(store)),
        }

    def life(self) -> str | None:
        """Which life of the broker this is: another after each restart in which it may have
        forgotten the last it had confirmed; always the same for brokers that never forget.

        ``None`` where the transport cannot tell. Thread-safe. Raises ``BusUnavailableError``.
        """
        with self._lock, self._errors():
            return self._connected().life()

    # -- inside ------------------------------------------------------------------------------------

    def _new_link(self) -> Link:
        if self.transport in amqp.SCHEMES:
            return amqp.connect(self._url, max_message=self.max_message)
        if self.transport == "sqlite":
            return Link(sqlite.connect(self._url, lease=self._lease))
        if self.transport in redis_url.SCHEMES:
            # Imported here because only Redis needs the client library.
            from eventsync.transports.redis import transport as redis

            return Link(redis.connect(self._url, lease=self._lease))
        return Link(_kombu.Connection(self._url))

    def _connected(self) -> Link:
        if self._link is None or self._link.is_inherited:
            self._link = self._new_link()
            self._link.declare_exchange(EXCHANGE)
        return self._link

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            with _bus_errors(self.shown_url, lambda: self._link):
                yield
        except BusError as error:
            if not isinstance(error, UnroutableError):
                self.close()
            raise


class Subscription:
    """A consumer of one queue, for one thread. The transport keeps alive what it holds."""

    def __init__(self, link: Link, queue: str, prefetch: int) -> None:
        self._link = link
        self._queue = queue
        try:
            link.consume(queue, prefetch=prefetch)
        except BaseException:
            _leave(link)
            raise

    def fetch(self, *, timeout: float, limit: int) -> list[Delivery]:
        """Up to ``limit`` messages or so; waits up to ``timeout`` seconds for the first.

        More than ``limit`` may come when the transport delivers many at once. Empty when none came
        in time. Raises ``BusUnavailableError``.
        """
        with _bus_errors(self._queue, lambda: self._link):
            return self._link.receive(timeout=timeout, limit=limit)

    def acknowledge(self, deliveries: Iterable[Delivery]) -> None:
        """Settle messages for good; on its way when this returns. Raises ``BusUnavailableError``.

        A connection that breaks then may bring some of them again.
        """
        with _bus_errors(self._queue, lambda: self._link):
            self._link.acknowledge(list(deliveries))

    def release(self, deliveries: Iterable[Delivery]) -> None:
        """Give messages back, for any consumer."""
        with _bus_errors(self._queue, lambda: self._link):
            self._link.release(deliveries)

    def refuse(self, deliveries: Iterable[Delivery]) -> None:
        """Have the broker put messages into the dead letters that were too large to be read."""
        with _bus_errors(self._queue, lambda: self._link):
            self._link.refuse(deliveries)

    def close(self) -> None:
        """Stop consuming; what is not settled goes back at once. Idempotent."""
        with _bus_errors(self._queue, lambda: self._link):
            self._link.close()


class QueueBrowser:
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
            reason=_ASIDE.get(delivery.aside, "foreign"),
            message=_why_aside(delivery) or f"not a dead letter: {error}",
            store="",
            queue=delivery.queue,
            attempts=delivery.attempts,
            first_time=now,
            last_time=now,
            raw=delivery.body,
            content_type=delivery.content_type,
            # The same at every look.
            id=hashlib.sha256(delivery.body).digest()[:16],
        )


def _why_aside(delivery: Delivery) -> str:
    if not delivery.aside:
        return ""
    cut = "" if delivery.is_whole else f"; of its {delivery.size:,} bytes these are the first"
    return f"the broker put it aside by itself: {delivery.aside}{cut}"


def _leave(link: Link) -> None:
    """Disconnect from a broker that may be away."""
    # Then there is nothing left to close.
    with suppress(OSError, KombuError, BusUnavailableError, *link.connection_errors):
        link.close()


@contextmanager
def _bus_errors(what: str, link: Callable[[], Link | None]) -> Iterator[None]:
    """Turn kombu's and the driver's errors into eventsync's; ``link``: the one that is used."""
    try:
        yield
    except EventSyncError:
        raise
    except (OSError, KombuOperationalError, BatchPublishError) as error:
        raise BusUnavailableError(f"broker {what}: {error}") from error
    except KeyError as error:
        # Kombu's way of saying that it knows no such transport; its text is a KeyError's argument.
        raise ConfigError(
            f"broker {what}: {error.args[0] if error.args else error}",
            hint="as in sqlite:///broker.db, redis://host/0 or amqp://user@host//",
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"broker {what}: {error}", hint="install the package that the transport needs"
        ) from error
    except KombuError as error:
        raise BusError(f"broker {what}: {error}") from error
    except Exception as error:
        used = link()
        if used is None or not isinstance(error, used.connection_errors):
            raise
        raise BusUnavailableError(f"broker {what}: {error}") from error
