"""The unsettled messages of one channel, and its acknowledgements that are not sent yet."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from typing import Any

__all__ = ["LeasedQoS"]


class LeasedQoS:
    """Keeps the handles of a channel's messages in flight and of its acknowledged messages.

    Replaces kombu's ``QoS``. It only records: the channel itself sends acknowledgements and
    releases messages. ``ack`` and ``take_acknowledged`` are thread-safe; only the consuming thread
    may call the other methods. No method blocks.
    """

    def __init__(self, channel: Any, prefetch_count: int = 0) -> None:
        """Start without messages. ``channel`` is not used; kombu passes it."""
        self.prefetch_count = prefetch_count or 0
        self.in_flight: dict[int, Any] = {}
        self.acknowledged: deque[Any] = deque()

    def free(self, limit: int) -> int:
        """Return how many more messages the prefetch count allows, at most ``limit``."""
        if not self.prefetch_count:
            return limit
        return max(0, min(limit, self.prefetch_count - len(self.in_flight)))

    def can_consume(self) -> bool:
        """Return whether the prefetch count allows another message."""
        return self.free(1) > 0

    def append(self, handle: Any, delivery_tag: int) -> None:
        """Record ``handle`` as in flight until the message with ``delivery_tag`` is settled."""
        self.in_flight[delivery_tag] = handle

    def ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Move a message from those in flight to those to acknowledge at the next flush.

        ``multiple``: also all messages with smaller tags, or all messages if the tag is 0.
        Idempotent: unknown tags are ignored.
        """
        if multiple:
            # Later messages have greater tags. Tag 0 means all messages, as in AMQP.
            for tag in list(self.in_flight):
                if not delivery_tag or tag <= delivery_tag:
                    self.ack(tag)
        elif (handle := self.in_flight.pop(delivery_tag, None)) is not None:
            self.acknowledged.append(handle)

    def take(self, delivery_tags: Iterable[int]) -> list[Any]:
        """Remove messages from those in flight and return their handles; ignore unknown tags."""
        handles = (self.in_flight.pop(tag, None) for tag in delivery_tags)
        return [handle for handle in handles if handle is not None]

    def take_acknowledged(self) -> list[Any]:
        """Remove and return the handles of all messages that are to be acknowledged."""
        handles = []
        while True:
            try:
                handles.append(self.acknowledged.popleft())
            except IndexError:
                return handles

    def clear(self) -> None:
        """Forget all handles, without acknowledging or releasing the messages."""
        self.in_flight.clear()
        self.acknowledged.clear()
