"""What one channel holds: messages in flight, and acknowledgements that are not flushed yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

__all__ = ["LeasedQoS"]


class LeasedQoS:
    """The handles of a channel's messages in flight and of its acknowledged messages.

    It stands where kombu's channel expects its ``QoS``, and only keeps books: the channel itself
    flushes and releases. ``ack`` and ``take_acknowledged`` are thread-safe; the other methods are
    for the consuming thread. No method blocks.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        """Start empty; ``channel`` is passed by kombu and not used."""
        self.prefetch_count = prefetch_count or 0
        self.in_flight: dict[int, Any] = {}
        self.acknowledged: deque[Any] = deque()

    def free(self, limit: int) -> int:
        """Return how many more messages may be leased, at most ``limit``."""
        if not self.prefetch_count:
            return limit
        return max(0, min(limit, self.prefetch_count - len(self.in_flight)))

    def can_consume(self) -> bool:
        """Return whether the prefetch count leaves room for another message."""
        return self.free(1) > 0

    def append(self, handle: Any, delivery_tag: int) -> None:
        """Keep ``handle`` until the message with this tag is settled."""
        self.in_flight[delivery_tag] = handle

    def ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Note an acknowledgement for the next flush. Idempotent: unknown tags are ignored."""
        if multiple:
            # Tags grow. Tag 0 stands for all, as in AMQP.
            for tag in list(self.in_flight):
                if not delivery_tag or tag <= delivery_tag:
                    self.ack(tag)
        elif (handle := self.in_flight.pop(delivery_tag, None)) is not None:
            self.acknowledged.append(handle)

    def take(self, delivery_tags: Iterable[int]) -> list[Any]:
        """Remove messages from those in flight and return their handles."""
        handles = (self.in_flight.pop(tag, None) for tag in delivery_tags)
        return [handle for handle in handles if handle is not None]

    def take_acknowledged(self) -> list[Any]:
        """Remove and return the handles to acknowledge."""
        handles = []
        while True:
            try:
                handles.append(self.acknowledged.popleft())
            except IndexError:
                return handles

    def clear(self) -> None:
        """Forget all messages without settling them."""
        self.in_flight.clear()
        self.acknowledged.clear()
