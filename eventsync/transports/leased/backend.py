"""The contract between the leased-queue channel and the backend that stores the messages."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from eventsync.errors import ConfigError
from eventsync.transports.leased.message import LeasedMessage, OutboundMessage

__all__ = [
    "Backend",
    "Binding",
    "ExchangeDeclaration",
    "LeaseSettings",
    "QueueStats",
    "RoutingTables",
]


@dataclass(frozen=True, kw_only=True)
class LeaseSettings:
    """The settings of leases; times are in seconds.

    ``lease``: how long a consumer keeps its messages without renewing their lease.
    ``reclaim_interval``: the pause between two searches for dead consumers. ``lease_limit``: the
    largest number of messages leased in one step. ``lease_bytes``: about how many bytes of bodies
    are leased in one step; a single message may be larger. ``max_message``: a message of more bytes
    is not read in full.
    """

    lease: float = 30.0
    reclaim_interval: float = 0.25
    lease_limit: int = 1000
    lease_bytes: int = 2 * 1024 * 1024
    max_message: int = 8 * 1024 * 1024

    @classmethod
    def read(cls, *, query: Mapping[str, str], options: Mapping[str, Any], **fixed: Any) -> Self:
        """Return settings made from the query of the broker URL and from kombu's transport options.

        The query overrides ``options``. Unknown names in ``options`` belong to kombu and are
        ignored. ``fixed``: the values of further fields. Raises ``ConfigError`` if the query has an
        unknown name, or if a value is invalid.
        """
        kinds = {field.name: field.type for field in fields(cls) if field.name not in fixed}
        unknown = sorted(set(query) - set(kinds))
        if unknown:
            raise ConfigError(
                f"the broker URL has an unknown setting {unknown[0]!r}",
                hint=f"known settings are {', '.join(sorted(kinds))}",
            )
        given = {name: value for name, value in options.items() if name in kinds} | dict(query)
        convert = {"float": float, "int": int, "str": str}
        values = dict(fixed)
        for name, value in given.items():
            try:
                values[name] = convert[str(kinds[name])](value)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"broker setting {name}={value!r} is not of type {kinds[name]}",
                    hint="correct the setting in the broker URL",
                ) from error
            if not (isinstance(values[name], str) or values[name] > 0):
                raise ConfigError(
                    f"broker setting {name}={value!r} must be greater than 0",
                    hint="correct the setting in the broker URL",
                )
        return cls(**values)


class QueueStats(NamedTuple):
    """The numbers of ready and leased messages in a queue, and the age of the oldest message.

    ``oldest_age`` is in seconds, or ``None`` if the queue is empty.
    """

    ready: int
    leased: int
    oldest_age: float | None


class ExchangeDeclaration(NamedTuple):
    """An exchange and the properties with which it was declared."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: Mapping[str, Any]


class Binding(NamedTuple):
    """A rule: ``queue`` receives the messages of ``exchange`` that match ``routing_key``."""

    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any]


class RoutingTables(NamedTuple):
    """All queues, exchanges and bindings of a broker.

    ``epoch``: a number that changes whenever a queue, exchange or binding is added or removed.
    ``place``: the broker and where it is, for errors.
    """

    epoch: int
    queues: Sequence[str]
    exchanges: Sequence[ExchangeDeclaration]
    bindings: Sequence[Binding]
    place: str = "the broker"


class Backend(ABC):
    """A connection that publishes and consumes messages. A server or a file stores the messages.

    The backends of all processes together guarantee:

    * A leased message belongs to one consumer until that consumer acknowledges or releases the
      message, or another consumer takes the message over.
    * A consumer takes a message over only if the consumer that holds the message is known to be
      dead, or has not called ``lease`` or ``extend`` during the lease time. A later acknowledgement
      by the former holder has no effect.
    * A stored message is removed only by an acknowledgement, or by purging or deleting its queue.

    Every method is thread-safe, because the consumer's thread, publishers and the keep-alive thread
    share one backend. Unless stated otherwise, every method blocks on the server or file. Every
    method raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
    """

    @abstractmethod
    def load_routing(self) -> RoutingTables:
        """Read all queues, exchanges and bindings in one consistent step and return them."""

    @abstractmethod
    def declare_queue(self, queue: str) -> None:
        """Create a durable queue. Idempotent."""

    @abstractmethod
    def delete_queue(self, queue: str) -> None:
        """Remove a queue, its bindings and its messages. Idempotent."""

    @abstractmethod
    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """Create a durable exchange, unless an exchange of that name exists. Idempotent."""

    @abstractmethod
    def delete_exchange(self, exchange: str) -> None:
        """Remove an exchange and its bindings. Idempotent."""

    @abstractmethod
    def bind(self, binding: Binding) -> None:
        """Create a durable binding. Idempotent. Does nothing if queue or exchange do not exist."""

    @abstractmethod
    def unbind(self, binding: Binding) -> None:
        """Remove a binding; its arguments are not compared. Idempotent."""

    @abstractmethod
    def store(self, routed: Sequence[tuple[OutboundMessage, Sequence[str]]], epoch: int) -> bool:
        """Store messages durably, all or none, and return True.

        ``routed``: each message with the names of the queues that receive it. ``epoch``: the epoch
        of the routing tables by which the caller chose the queues. If the routing has changed since
        then, nothing is stored and False is returned; the caller must choose the queues again. Not
        idempotent.
        """

    @abstractmethod
    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[LeasedMessage]:
        """Lease up to ``limit`` ready messages and return them, without waiting for messages.

        First acknowledges the messages of the handles ``acknowledged``, in the same round trip.
        ``limit`` is divided among the queues; the oldest messages of each queue are leased. If an
        error is raised, the caller must acknowledge the messages again.

        Never raises because of the content of a message: the message would stay at the head of the
        queue for ever. Of a message that is too large, only the beginning is returned.
        """

    @abstractmethod
    def acknowledge(self, handles: Sequence[Any]) -> int:
        """Remove the messages of ``handles`` and return how many were removed. Idempotent.

        Messages that this consumer no longer holds are not removed.
        """

    @abstractmethod
    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """Make the messages of ``handles`` ready again, at their old place in the queue.

        Idempotent. Messages that this consumer no longer holds are ignored. ``attempted``: whether
        the lease counts as a delivery.
        """

    @abstractmethod
    def move(self, handles: Sequence[Any], queue: str) -> None:
        """Move the messages of ``handles`` to another queue, in one atomic step.

        The messages do not leave the server or file. Messages that this consumer no longer holds
        are not moved. Idempotent.
        """

    @abstractmethod
    def extend(self) -> bool:
        """Restart the lease time of all messages that this consumer holds. Idempotent.

        Returns False if another consumer has taken messages over, else True.
        """

    @abstractmethod
    def reclaim(self) -> None:
        """Make the messages of dead consumers ready again, and unregister these consumers.

        A consumer is dead if its process has ended or its lease time is over. All messages of a
        consumer become ready in one atomic step or in none. Idempotent.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Free a bounded amount of unused space. Idempotent; cheap if there is nothing to free."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Block until messages may be ready, for at most ``timeout`` seconds.

        May return early although no message is ready. Only the consuming thread calls this method.
        """

    @abstractmethod
    def size(self, queue: str) -> int:
        """Return the number of ready messages in a queue; 0 if the queue does not exist."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Remove the ready messages of a queue and return their number. Idempotent.

        Leased messages are not removed.
        """

    @abstractmethod
    def queue_stats(self, queue: str) -> QueueStats:
        """Return the numbers of messages in a queue. Raises ``BusError`` if it does not exist."""

    def life(self) -> str:
        """Return an id that changes when the server restarts and may have lost confirmed messages.

        The default, a constant, is for servers and files that never lose confirmed messages.
        """
        return ""

    @abstractmethod
    def forget_consumer(self) -> None:
        """Become a new consumer without messages. Call this in a forked child. Does not block."""

    @abstractmethod
    def close(self) -> None:
        """Release all messages of this consumer, unregister it, and disconnect. Idempotent."""
