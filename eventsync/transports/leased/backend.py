"""The contract between the leased-queue channel and the backend that keeps its messages."""

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
    ``reclaim_interval``: the pause between two searches for dead consumers. ``lease_limit`` and
    ``lease_bytes``: how many messages, and how many bytes of bodies, are leased at once. A single
    message may be larger.
    """

    lease: float = 30.0
    reclaim_interval: float = 0.25
    lease_limit: int = 1000
    lease_bytes: int = 2 * 1024 * 1024

    @classmethod
    def read(cls, *, query: Mapping[str, str], options: Mapping[str, Any], **fixed: Any) -> Self:
        """Return settings from the query of a URL and, with lower priority, transport options.

        Options with unknown names are kombu's and ignored; in a query they are an error.
        Raises: ConfigError for an unknown name or an invalid value.
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
    """The state of a queue; ``oldest_age`` is in seconds, or None if the queue is empty."""

    ready: int
    leased: int
    oldest_age: float | None


class ExchangeDeclaration(NamedTuple):
    """A declared exchange."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: Mapping[str, Any]


class Binding(NamedTuple):
    """A rule that a queue receives the messages of an exchange with a routing key or pattern."""

    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any]


class RoutingTables(NamedTuple):
    """All queues, exchanges and bindings of a broker; every change of them changes ``epoch``."""

    epoch: int
    queues: Sequence[str]
    exchanges: Sequence[ExchangeDeclaration]
    bindings: Sequence[Binding]


class Backend(ABC):
    """One consumer and publisher at the server or file that keeps the messages.

    The backends of all processes together guarantee:

    * A leased message belongs to one consumer until that consumer acknowledges or releases it, or
      until it is taken over.
    * A message is taken over if its consumer is known to be dead, or has neither leased nor
      extended for ``LeaseSettings.lease`` seconds. A late acknowledgement then has no effect.
    * A stored message is removed only by an acknowledgement, or by purging or deleting its queue.

    Every method is thread-safe (the consumer's thread, publishers and the keep-alive thread share
    one backend) and blocks while it reaches the server or file, unless it says otherwise.

    Raises, from every method: BusUnavailableError if a retry can help, BusError if not.
    """

    @abstractmethod
    def load_routing(self) -> RoutingTables:
        """Return the current queues, exchanges and bindings, in one consistent read."""

    @abstractmethod
    def declare_queue(self, queue: str) -> None:
        """Create a durable queue. Idempotent."""

    @abstractmethod
    def delete_queue(self, queue: str) -> None:
        """Remove a queue with its bindings and messages. Idempotent."""

    @abstractmethod
    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """Create a durable exchange; do not change an existing one of that name. Idempotent."""

    @abstractmethod
    def delete_exchange(self, exchange: str) -> None:
        """Remove an exchange with its bindings. Idempotent."""

    @abstractmethod
    def bind(self, binding: Binding) -> None:
        """Create a durable binding between an existing queue and exchange. Idempotent."""

    @abstractmethod
    def unbind(self, binding: Binding) -> None:
        """Remove a binding. Idempotent."""

    @abstractmethod
    def store(self, routed: Sequence[tuple[OutboundMessage, Sequence[str]]], epoch: int) -> bool:
        """Store each message for each of its queues, all or none, if ``epoch`` is current.

        Returns True once everything is durable. Returns False, with nothing stored, if the routing
        has changed since ``epoch``; the caller then routes again. Not idempotent.
        """

    @abstractmethod
    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[LeasedMessage]:
        """Acknowledge, then lease up to ``limit`` ready messages, in one atomic round trip.

        Never waits for messages. Divides ``limit`` among the queues in their order, and takes the
        oldest messages of each. After an error nothing was acknowledged.
        """

    @abstractmethod
    def acknowledge(self, handles: Sequence[Any]) -> int:
        """Remove those of the messages that this consumer still holds. Idempotent.

        Returns how many were removed.
        """

    @abstractmethod
    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """Make those of the messages that this consumer still holds ready, at their old place.

        With ``attempted`` false, this lease does not count as a delivery. Idempotent.
        """

    @abstractmethod
    def extend(self) -> bool:
        """Restart the lease time of everything that this consumer holds. Idempotent.

        Returns False if its messages have been taken over.
        """

    @abstractmethod
    def reclaim(self) -> None:
        """Take over the messages of dead and silent consumers, which makes them ready.

        Atomic for each consumer. Idempotent.
        """

    @abstractmethod
    def tidy(self) -> None:
        """Free unused space, in a step of bounded size. Idempotent; cheap if there is none."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Block until messages may have arrived, for at most ``timeout`` seconds.

        May return early without cause. Only the consuming thread calls this.
        """

    @abstractmethod
    def size(self, queue: str) -> int:
        """Return the number of ready messages; 0 if there is no such queue."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Remove the ready messages, but not leased ones; return their number. Idempotent."""

    @abstractmethod
    def queue_stats(self, queue: str) -> QueueStats:
        """Return the state of a queue. Raises: BusError if there is no such queue."""

    def life(self) -> str:
        """Return the id of the server's present run; see ``Link.life``.

        The default is for places that never lose confirmed messages.
        """
        return ""

    @abstractmethod
    def forget_consumer(self) -> None:
        """Lease as a new consumer from now on, because this is a forked child. Does not block."""

    @abstractmethod
    def close(self) -> None:
        """Release what this consumer holds, unregister it, and disconnect. Idempotent."""
