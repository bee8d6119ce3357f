"""The leased-queue channel: batch delivery, buffered acknowledgements and lease renewal."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from queue import Empty
from typing import Any, NamedTuple

from eventsync.errors import BusError
from eventsync.transports.keep_alive import KeepAliveThread
from eventsync.transports.leased.backend import Backend, QueueStats
from eventsync.transports.leased.message import ChannelMessage, LeasedMessage
from eventsync.transports.leased.publishing_channel import PublishingChannel, not_found
from eventsync.transports.leased.qos import LeasedQoS

__all__ = ["LeasedChannel"]


class _Consumer(NamedTuple):
    tag: str
    no_ack: bool
    callback: Callable[[ChannelMessage], Any]


class LeasedChannel(PublishingChannel):
    """A kombu channel over queues that lease messages in batches.

    One thread consumes; publishing, acknowledging, ``flush`` and ``extend_leases`` may be called
    from others. After a fork the child starts empty: messages in flight stay with the parent.

    Raises, from every method that reaches the backend: BusUnavailableError if a retry can help,
    BusError if not.
    """

    # kombu's annotations are narrower than its behaviour.
    Message: Any = ChannelMessage
    QoS: Any = LeasedQoS
    do_restore = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a backend of ``connection``, which is a ``LeasedTransport``."""
        self.settings = connection.settings
        self._consumers_of: dict[str, list[_Consumer]] = {}
        self._undelivered: deque[tuple[int, LeasedMessage]] = deque()
        self._last_tag = 0
        self._keep_alive: KeepAliveThread | None = None
        self._extended_at = time.monotonic()
        self._pid = os.getpid()
        super().__init__(connection, connection.open_backend(), **kwargs)

    @property
    def backend(self) -> Backend:
        """The place where the messages are kept; a forked child is a consumer of its own there."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._keep_alive = None  # a fork does not copy threads
            self._undelivered.clear()
            self.qos.clear()
            self._backend.forget_consumer()
        return self._backend

    # -- consuming -----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """The number of messages leased by this channel and neither acknowledged nor released."""
        return len(self.qos.in_flight)

    @property
    def wants_messages(self) -> bool:
        """Whether there is a consumer and the prefetch count has room for another message."""
        return bool(self._active_queues) and self.qos.can_consume()

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[ChannelMessage], Any],
        consumer_tag: str,
        **_kwargs: Any,
    ) -> None:
        """Start a consumer: ``drain_events`` then calls ``callback`` for the messages of ``queue``.

        Consumers of one queue on one channel share its messages evenly. Raises: ChannelError if
        there is no such queue.
        """
        if not self._has_queue(queue):
            raise not_found("queue", queue)
        self._consumers_of.setdefault(queue, []).append(
            _Consumer(consumer_tag, bool(no_ack), callback)
        )
        self._tag_to_queue[consumer_tag] = queue
        self._consumers.add(consumer_tag)
        if queue not in self._active_queues:
            self._active_queues.append(queue)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop a consumer and release its messages that are not delivered yet. Idempotent."""
        queue = self._tag_to_queue.pop(consumer_tag, None)
        if queue is None:
            return
        self._consumers.discard(consumer_tag)
        others = [one for one in self._consumers_of.pop(queue) if one.tag != consumer_tag]
        if others:
            self._consumers_of[queue] = others
            return
        self._active_queues.remove(queue)
        undelivered = [tag for tag, leased in self._undelivered if leased.queue == queue]
        if undelivered:
            kept = [entry for entry in self._undelivered if entry[1].queue != queue]
            self._undelivered.clear()
            self._undelivered.extend(kept)
            self.release(undelivered, attempted=False)

    def deliver(self) -> int:
        """Flush acknowledgements, lease up to the prefetch count, and call the consumers.

        Never waits for messages. Returns how many were delivered. If a consumer raises, the next
        call delivers the remaining leased messages.
        """
        if not self._undelivered:
            self._fetch()
        delivered = 0
        undelivered = self._undelivered
        while undelivered:
            delivery_tag, leased = undelivered.popleft()
            consumers = self._consumers_of[leased.queue]
            consumer = consumers[delivery_tag % len(consumers)]
            if consumer.no_ack:
                self.qos.ack(delivery_tag)
            delivered += 1
            consumer.callback(
                ChannelMessage(
                    leased, channel=self, delivery_tag=delivery_tag, consumer_tag=consumer.tag
                )
            )
        return delivered

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver the messages that are ready, without waiting.

        Raises: queue.Empty if there are none.
        """
        if not self.deliver():
            raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> ChannelMessage | None:
        """Lease one message, or return None if none is ready; flush acknowledgements."""
        tagged = self._lease([queue], 1)
        if not tagged:
            self.backend.reclaim()
            tagged = self._lease([queue], 1)
        for delivery_tag, leased in tagged:
            self._ensure_keep_alive()
            if no_ack:
                self.qos.ack(delivery_tag)
            return ChannelMessage(leased, channel=self, delivery_tag=delivery_tag)
        return None

    def _fetch(self) -> None:
        if not self.wants_messages:
            self.flush()
            return
        self._ensure_keep_alive()
        free = self.qos.free(self.settings.lease_limit)
        self._undelivered.extend(self._lease(self._active_queues, free))
        # The next lease begins with another queue, so that none starves.
        self._active_queues.append(self._active_queues.pop(0))

    def _lease(self, queues: Sequence[str], limit: int) -> list[tuple[int, LeasedMessage]]:
        """Flush acknowledgements, lease messages and return them with their delivery tags."""
        backend = self.backend
        acknowledged = self.qos.take_acknowledged()
        try:
            messages = backend.lease(queues, limit, acknowledged)
        except BaseException:
            self.qos.acknowledged.extendleft(reversed(acknowledged))
            raise
        tagged = list(enumerate(messages, self._last_tag + 1))
        self._last_tag += len(tagged)
        for delivery_tag, leased in tagged:
            self.qos.append(leased.handle, delivery_tag)
        return tagged

    # -- settling ------------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message, or with ``multiple`` all up to it, from the next flush on.

        ``deliver`` and ``close`` flush. Thread-safe, does not block. Idempotent: tags that are
        settled already are ignored.
        """
        self.qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Release a message if ``requeue``, else drop it, which is the same as ``basic_ack``."""
        if requeue:
            self.release([delivery_tag])
        else:
            self.qos.ack(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> None:
        """Release all messages in flight, delivered or not.

        Raises: BusError unless ``requeue`` is true.
        """
        if not requeue:
            raise BusError("basic_recover(requeue=False) is not supported")
        self._undelivered.clear()
        self.release(list(self.qos.in_flight))

    def release(self, delivery_tags: Iterable[int], *, attempted: bool = True) -> None:
        """Make messages ready again, for any consumer, at their old place in the queue.

        ``attempted``: whether the consumer tried them; if not, this delivery does not count.
        Flushes acknowledgements. Blocks. Idempotent: tags that are settled already are ignored.
        """
        self.flush()
        handles = self.qos.take(delivery_tags)
        if handles:
            self.backend.release(handles, attempted=attempted)

    def flush(self) -> int:
        """Send all acknowledgements so far to the backend, in one round trip.

        Thread-safe, blocks. Returns how many messages were removed, which are fewer than were
        acknowledged if other consumers have taken some over. After an error the acknowledgements
        wait for the next flush.
        """
        backend = self.backend
        handles = self.qos.take_acknowledged()
        if not handles:
            return 0
        try:
            return backend.acknowledge(handles)
        except BaseException:
            self.qos.acknowledged.extendleft(reversed(handles))
            raise

    # -- leases --------------------------------------------------------------------------------

    def queue_stats(self, queue: str) -> QueueStats:
        """Return the numbers of ready and leased messages, and the age of the oldest in seconds.

        Thread-safe, blocks. Raises: BusError if there is no such queue.
        """
        return self.backend.queue_stats(queue)

    def life(self) -> str:
        """Return the id of the broker's present run; see ``Link.life``. Thread-safe, blocks."""
        return self.backend.life()

    def extend_leases(self) -> bool:
        """Restart the lease time of all messages in flight.

        A background thread does this every third of the lease time. Call it only to learn whether
        the leases still hold: returns False if another consumer has taken messages over.
        Acknowledging those has no effect. Thread-safe, blocks, idempotent.
        """
        still_leased = self.backend.extend()
        self._extended_at = time.monotonic()
        return still_leased

    def keep_leases(self) -> None:
        """Extend leases if due, reclaim the messages of dead consumers, and free space.

        The background thread calls this. Thread-safe, blocks, idempotent.
        """
        if self.closed:
            return
        if time.monotonic() - self._extended_at >= self.settings.lease / 3:
            self.extend_leases()
        self.backend.reclaim()
        self.backend.tidy()

    def close(self) -> None:
        """Flush acknowledgements, release messages in flight, and disconnect.

        Idempotent, blocks.
        """
        if self.closed:
            return
        self.closed = True
        with ExitStack() as stack:
            stack.callback(self.connection.close_channel, self)
            stack.callback(self._backend.close)
            if self._keep_alive is not None:
                self._keep_alive.stop()
            self._consumers_of.clear()
            self._consumers.clear()
            self._tag_to_queue.clear()
            self._active_queues.clear()
            self._undelivered.clear()
            self.release(list(self.qos.in_flight), attempted=False)

    def _ensure_keep_alive(self) -> None:
        """Start the background thread if needed; raise the error of its last round."""
        backend = self.backend  # in a forked child, this forgets the parent's thread
        if self._keep_alive is None:
            interval = min(self.settings.reclaim_interval, self.settings.lease / 3)
            self._keep_alive = KeepAliveThread(self.keep_leases, interval)
            self._keep_alive.start()
            backend.reclaim()
        elif self._keep_alive.error is not None:
            raise self._keep_alive.error
