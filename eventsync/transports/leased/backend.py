"""Owns the contract between the leased-queue channel and what keeps its messages.

It must not know kombu, nor what the bytes of a message mean.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple, Self

from eventsync.errors import ConfigError
from eventsync.transports.leased.message import Delivery, Outgoing

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
    """How a transport leases; times in seconds.

    ``lease``: how long a silent consumer keeps what it holds. ``reclaim_interval``: the pause
    between two looks for dead consumers. ``lease_limit`` and ``lease_bytes`` bound one lease by
    number and by size of the bodies (one message always passes).
    """

    lease: float = 30.0
    reclaim_interval: float = 0.25
    lease_limit: int = 1000
    lease_bytes: int = 2 * 1024 * 1024

    @classmethod
    def read(cls, *, query: Mapping[str, str], options: Mapping[str, Any], **fixed: Any) -> Self:
        """Return settings from the query of a URL and, after it, from transport options.

        Options of other names are kombu's and passed over; in a query they are an error.
        Raises: ConfigError for an unknown name or a value that does not fit.
        """
        kinds = {field.name: field.type for field in fields(cls) if field.name not in fixed}
        unknown = sorted(set(query) - set(kinds))
        if unknown:
            raise ConfigError(
                f"the broker URL has an unknown setting {unknown[0]!r}",
                hint=f"known are {', '.join(sorted(kinds))}",
            )
        given = {name: value for name, value in options.items() if name in kinds} | dict(query)
        convert = {"float": float, "int": int, "str": str}
        values = dict(fixed)
        for name, value in given.items():
            try:
                values[name] = convert[str(kinds[name])](value)
            except (TypeError, ValueError) as error:
                raise ConfigError(
                    f"broker setting {name}={value!r} is not of type {kinds[name]}"
                ) from error
            if not (isinstance(values[name], str) or values[name] > 0):
                raise ConfigError(f"broker setting {name}={value!r} must be greater than 0")
        return cls(**values)


class QueueStats(NamedTuple):
    """A queue at one moment; ``oldest_age`` in seconds, None when nothing is in the queue."""

    ready: int
    leased: int
    oldest_age: float | None


class ExchangeDeclaration(NamedTuple):
    """An exchange as it was declared."""

    name: str
    type: str
    durable: bool
    auto_delete: bool
    arguments: Mapping[str, Any]


class Binding(NamedTuple):
    """A queue that takes what an exchange gets under a routing key (or pattern)."""

    queue: str
    exchange: str
    routing_key: str
    arguments: Mapping[str, Any]


class RoutingTables(NamedTuple):
    """The whole routing of a broker at one moment; any change of it gives another ``epoch``."""

    epoch: int
    queues: Sequence[str]
    exchanges: Sequence[ExchangeDeclaration]
    bindings: Sequence[Binding]


class Backend(ABC):
    """One consumer and publisher at the place where the messages are kept.

    Together the backends of all processes promise:

    * A lease gives a message to one consumer until that acknowledges or releases it, or it is
      taken over.
    * It is taken over when its consumer is known dead, or has neither leased nor extended for
      ``LeaseSettings.lease`` seconds. A late acknowledgement of it then does nothing.
    * A stored message is removed by an acknowledgement only (or by purging or deleting its queue).

    Every method is thread-safe (the consumer's thread, publishers and the upkeep thread share one
    backend) and blocks for as long as reaching the place takes, unless it says otherwise.

    Raises, from every method: BusUnavailableError when trying again can help, BusError when not.
    """

    @abstractmethod
    def load_routing(self) -> RoutingTables:
        """Return queues, exchanges and bindings as they are now, in one consistent read."""

    @abstractmethod
    def declare_queue(self, queue: str) -> None:
        """Make a queue, durably. Idempotent."""

    @abstractmethod
    def delete_queue(self, queue: str) -> None:
        """Remove a queue with its bindings and messages. Idempotent."""

    @abstractmethod
    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """Make an exchange, durably; leave one of that name as it is. Idempotent."""

    @abstractmethod
    def delete_exchange(self, exchange: str) -> None:
        """Remove an exchange with its bindings. Idempotent."""

    @abstractmethod
    def bind(self, binding: Binding) -> None:
        """Make a binding between a queue and an exchange that exist, durably. Idempotent."""

    @abstractmethod
    def unbind(self, binding: Binding) -> None:
        """Remove a binding. Idempotent."""

    @abstractmethod
    def store(self, routed: Sequence[tuple[Outgoing, Sequence[str]]], epoch: int) -> bool:
        """Store each message for each of its queues, all or nothing, if ``epoch`` is current.

        Returns True once everything is durable, or False with nothing stored if the routing has
        changed since: the caller then routes again. Not idempotent.
        """

    @abstractmethod
    def lease(
        self, queues: Sequence[str], limit: int, acknowledged: Sequence[Any]
    ) -> list[Delivery]:
        """Acknowledge, then lease up to ``limit`` ready messages, in one atomic round trip.

        Never waits for messages. Shares ``limit`` among the queues, the first of them first;
        within a queue oldest first. After an error nothing was acknowledged.
        """

    @abstractmethod
    def acknowledge(self, handles: Sequence[Any]) -> int:
        """Remove the messages this consumer still holds, pass over others. Idempotent.

        Returns how many were removed.
        """

    @abstractmethod
    def release(self, handles: Sequence[Any], *, attempted: bool) -> None:
        """Make the messages this consumer still holds ready, at their old place. Idempotent.

        ``attempted`` False takes the lease out of the delivery count again.
        """

    @abstractmethod
    def extend(self) -> bool:
        """Start the lease time of everything this consumer holds again. Idempotent.

        Returns False if what it held has been taken over.
        """

    @abstractmethod
    def reclaim(self) -> None:
        """Make ready what dead or silent consumers hold, atomically per consumer. Idempotent."""

    @abstractmethod
    def tidy(self) -> None:
        """Give back space no longer needed, in a bounded step. Idempotent, cheap if none is."""

    @abstractmethod
    def wait(self, timeout: float) -> None:
        """Return when messages may have arrived, at the latest after ``timeout`` seconds.

        May return early for no reason. Called by the consuming thread only.
        """

    @abstractmethod
    def size(self, queue: str) -> int:
        """Return how many messages are ready; 0 if there is no such queue."""

    @abstractmethod
    def purge(self, queue: str) -> int:
        """Remove the ready messages and return how many; leased ones stay. Idempotent."""

    @abstractmethod
    def queue_stats(self, queue: str) -> QueueStats:
        """Return the state of a queue. Raises: BusError if there is no such queue."""

    def life(self) -> str:
        """Which life of the place this is; see ``Link.life``. One that never forgets has one."""
        return ""

    @abstractmethod
    def forget_consumer(self) -> None:
        """Lease as another consumer from now on: this is a forked child. Does not block."""

    @abstractmethod
    def close(self) -> None:
        """Unregister this consumer, releasing what it holds, and let go. Idempotent."""
