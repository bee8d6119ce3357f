"""Owns what one channel holds: messages in flight, and acknowledgements not yet flushed.

It must not know how a backend settles them; a handle is the backend's own.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from kombu.transport import virtual

if TYPE_CHECKING:
    from eventsync.transports.leased.channel import LeasedChannel

__all__ = ["LeasedQoS"]


class LeasedQoS(virtual.QoS):
    """What one channel holds: the messages in flight, and the acknowledgements not yet flushed.

    Acknowledging is thread-safe and does not block; the rest belongs to the consuming thread.
    """

    def __init__(self, channel: LeasedChannel, prefetch_count: int = 0) -> None:
        # kombu's own constructor is left out on purpose: it registers an exit handler that would
        # restore messages behind the back of the leases.
        self.channel = channel
        self.prefetch_count = prefetch_count or 0
        self.in_flight: dict[int, Any] = {}
        self.acknowledged: deque[Any] = deque()

    def free(self, limit: int) -> int:
        """Return how many more messages may be leased, at most ``limit``."""
        if not self.prefetch_count:
            return limit
        return max(0, min(limit, self.prefetch_count - len(self.in_flight)))

    def can_consume(self) -> bool:
        """Say whether the prefetch count leaves room for another message."""
        return self.free(1) > 0

    def can_consume_max_estimate(self) -> int | None:
        """Return how many messages the prefetch count leaves room for, None if it sets no bound."""
        return self.free(self.prefetch_count) if self.prefetch_count else None

    def append(self, handle: Any, delivery_tag: int) -> None:
        """Keep ``handle`` until the message of that tag is settled."""
        self.in_flight[delivery_tag] = handle

    def get(self, delivery_tag: int) -> Any:
        """Return the handle of a message in flight. Raises: KeyError."""
        return self.in_flight[delivery_tag]

    def ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Note an acknowledgement for the next flush. Idempotent: an unknown tag is passed over."""
        if multiple:
            # Tags grow. Tag 0 stands for all, as in AMQP.
            for tag in list(self.in_flight):
                if not delivery_tag or tag <= delivery_tag:
                    self.ack(tag)
        elif (handle := self.in_flight.pop(delivery_tag, None)) is not None:
            self.acknowledged.append(handle)

    def reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Give a message back, or drop it when it is not to be requeued. Blocks if it requeues."""
        if requeue:
            self.channel.release([delivery_tag])
        else:
            self.ack(delivery_tag)

    def restore_unacked(self) -> None:
        """Give back all that is in flight. Blocks."""
        self.channel.release(list(self.in_flight))

    def restore_unacked_once(self, stderr: Any = None) -> None:
        """Do nothing: closing the channel releases, and a lease runs out by itself."""

    def take(self, delivery_tags: Iterable[int]) -> list[Any]:
        """Remove messages from those in flight and return their handles."""
        handles = (self.in_flight.pop(tag, None) for tag in delivery_tags)
        return [handle for handle in handles if handle is not None]

    def take_acknowledged(self) -> list[Any]:
        """Remove and return the handles to acknowledge; thread-safe."""
        handles = []
        while True:
            try:
                handles.append(self.acknowledged.popleft())
            except IndexError:
                return handles

    def clear(self) -> None:
        """Forget everything, settling nothing."""
        self.in_flight.clear()
        self.acknowledged.clear()
