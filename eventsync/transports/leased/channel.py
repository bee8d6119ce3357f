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
    """A kombu channel that leases messages in batches from the queues of a ``Backend``.

    Only one thread may consume. Other threads may publish, acknowledge, ``flush`` and call
    ``extend_leases``. After a fork, the parent keeps its messages in flight and the child has none.

    Every method that blocks raises ``BusUnavailableError`` if a retry can help, else ``BusError``.
    """

    # Annotated as Any, because kombu accepts more types here than its annotations say.
    Message: Any = ChannelMessage
    QoS: Any = LeasedQoS
    do_restore = False

    def __init__(self, connection: Any, **kwargs: Any) -> None:
        """Open a backend. ``connection`` is the ``LeasedTransport`` that creates this channel."""
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
        """The backend of this channel. In a forked child, the first access makes a new consumer."""
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
        """The number of messages that this channel has leased and not yet settled."""
        return len(self.qos.in_flight)

    @property
    def wants_messages(self) -> bool:
        """Whether the channel has a consumer and its prefetch count allows another message."""
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

        ``no_ack``: acknowledge each message when it is delivered. Several consumers of one queue on
        this channel share the messages evenly. Raises ``ChannelError`` if the queue does not exist.
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
        """Stop a consumer. Idempotent.

        If no other consumer of the queue remains on this channel, release the messages of the queue
        that are leased and not yet delivered.
        """
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
        """Flush acknowledgements, lease ready messages and deliver them to the consumers.

        Leases as many messages as the prefetch count allows, without waiting for messages. Returns
        how many messages were delivered. If a consumer raises, the next call delivers the remaining
        leased messages.
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
        """Deliver the messages that are ready; do not wait for messages.

        Raises ``queue.Empty`` if no message is ready.
        """
        if not self.deliver():
            raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> ChannelMessage | None:
        """Flush acknowledgements, lease one message and return it; ``None`` if none is ready.

        ``no_ack``: acknowledge the message at once.
        """
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
        # The next lease begins with another queue, so that every queue gets its turn.
        self._active_queues.append(self._active_queues.pop(0))

    def _lease(self, queues: Sequence[str], limit: int) -> list[tuple[int, LeasedMessage]]:
        """Flush acknowledgements, lease messages, and return (delivery tag, message) pairs."""
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
        """Acknowledge a message; with ``multiple``, also all messages with smaller tags.

        The next ``flush``, ``deliver`` or ``close`` sends the acknowledgement. Thread-safe, does
        not block. Idempotent: the tag of a settled message is ignored.
        """
        self.qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Release a message if ``requeue`` is true; else remove it, as ``basic_ack`` does."""
        if requeue:
            self.release([delivery_tag])
        else:
            self.qos.ack(delivery_tag)

    def basic_recover(self, requeue: bool = False) -> None:
        """Release all messages that this channel has leased and not settled.

        Raises ``BusError`` if ``requeue`` is false, because that is not supported.
        """
        if not requeue:
            raise BusError(
                "basic_recover(requeue=False) is not supported",
                hint="call basic_recover(requeue=True)",
            )
        self._undelivered.clear()
        self.release(list(self.qos.in_flight))

    def release(self, delivery_tags: Iterable[int], *, attempted: bool = True) -> None:
        """Flush acknowledgements, then make messages ready again for any consumer.

        Each message returns to its old place in the queue. ``attempted``: whether this delivery
        counts in the message's number of deliveries. Blocks. Idempotent: the tags of settled
        messages are ignored.
        """
        self.flush()
        handles = self.qos.take(delivery_tags)
        if handles:
            self.backend.release(handles, attempted=attempted)

    def move(self, delivery_tags: Iterable[int], queue: str) -> None:
        """Flush acknowledgements, then move messages to ``queue``, unread and unaltered.

        Blocks. Idempotent: the tags of settled messages are ignored.
        """
        self.flush()
        in_flight = self.qos.in_flight
        handles = {tag: in_flight[tag] for tag in delivery_tags if tag in in_flight}
        if handles:
            self.backend.move(list(handles.values()), queue)
            self.qos.take(handles)

    def flush(self) -> int:
        """Send all pending acknowledgements to the backend; return how many messages it removed.

        A message that another consumer has taken over is not removed. If an error is raised, the
        acknowledgements stay pending for the next flush. Thread-safe, blocks.
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
        """Return the numbers of ready and leased messages, and the age of the oldest message.

        Thread-safe, blocks. Raises ``BusError`` if the queue does not exist.
        """
        return self.backend.queue_stats(queue)

    def life(self) -> str:
        """Return an id that changes when the broker restarts and may have lost confirmed messages.

        Thread-safe, blocks.
        """
        return self.backend.life()

    def extend_leases(self) -> bool:
        """Restart the lease time of all messages in flight; return whether all are still leased.

        Returns False if another consumer has taken messages over; acknowledging these messages has
        no effect. A background thread renews leases in time, so call this method only to learn
        whether they still hold. Thread-safe, blocks, idempotent.
        """
        still_leased = self.backend.extend()
        self._extended_at = time.monotonic()
        return still_leased

    def keep_leases(self) -> None:
        """Renew leases if a third of the lease time has passed; reclaim messages; free space.

        Reclaiming makes the messages of dead consumers ready again. The background thread calls
        this method. Thread-safe, blocks, idempotent.
        """
        if self.closed:
            return
        if time.monotonic() - self._extended_at >= self.settings.lease / 3:
            self.extend_leases()
        self.backend.reclaim()
        self.backend.tidy()

    def close(self) -> None:
        """Flush acknowledgements, release all unsettled messages, and disconnect.

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
        """Start the background thread if it does not run; raise its last error, if any."""
        backend = self.backend  # in a forked child, this access forgets the parent's thread
        if self._keep_alive is None:
            interval = min(self.settings.reclaim_interval, self.settings.lease / 3)
            self._keep_alive = KeepAliveThread(self.keep_leases, interval)
            self._keep_alive.start()
            backend.reclaim()
        elif self._keep_alive.error is not None:
            raise self._keep_alive.error
