"""Owns the leased-queue channel: batch delivery, buffered acknowledgements, lease upkeep, publish.

It must not know where a backend keeps messages, nor what the bytes of a message mean.
"""

from __future__ import annotations

import os
import time
from abc import abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from queue import Empty
from typing import Any, NamedTuple

from kombu.transport import virtual

from eventsync.errors import BusError, BusUnavailableError, UnroutableError
from eventsync.transports.leased.backend import Backend, LeaseSettings, QueueStats
from eventsync.transports.leased.lease_thread import LeaseUpkeep
from eventsync.transports.leased.message import Delivery, LeasedMessage, Outgoing, PublishBatch
from eventsync.transports.leased.qos import LeasedQoS
from eventsync.transports.leased.routing import RoutedChannel, Routing, not_found

__all__ = ["LeasedChannel", "LeasedQoS", "LeasedTransport"]

# While waiting without an end, how often to look around, in seconds.
_LONGEST_WAIT = 1.0


class _Subscription(NamedTuple):
    consumer_tag: str
    no_ack: bool
    callback: Callable[[LeasedMessage], Any]


class LeasedChannel(RoutedChannel):
    """A kombu channel over queues that lease messages in batches.

    One thread consumes; publishing, acknowledging, ``flush`` and ``extend_leases`` may be called
    from others. After a fork the child starts empty: what was in flight stays the parent's.

    Raises, from every method that reaches the backend: BusUnavailableError when trying again can
    help, BusError when it cannot.
    """

    # kombu's annotations are partial and narrower than what it does; Any stays in these lines.
    Message: Any = LeasedMessage
    QoS = LeasedQoS
    do_restore = False
    from_transport_options: Any = ("deadletter_queue",)

    def __init__(self, connection: LeasedTransport, **kwargs: Any) -> None:
        self.settings = connection.settings
        self._subscriptions: dict[str, list[_Subscription]] = {}
        self._undelivered: deque[tuple[int, Delivery]] = deque()
        self._last_tag = 0
        self._upkeep: LeaseUpkeep | None = None
        self._extended_at = time.monotonic()
        self._pid = os.getpid()
        super().__init__(connection, connection.open_backend(), **kwargs)

    @property
    def backend(self) -> Backend:
        """Where the messages are kept; in a forked child, as a consumer of its own."""
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._upkeep = None  # threads stay in the parent
            self._undelivered.clear()
            self.qos.clear()
            self._backend.forget_consumer()
        return self._backend

    # -- publishing ----------------------------------------------------------------------------

    def publish_many(self, messages: Iterable[Outgoing]) -> None:
        """Publish messages in one atomic step; they are durable when this returns.

        Thread-safe, blocking, not idempotent.

        A message that no queue takes is dropped, as kombu's virtual transports do, unless it is
        ``mandatory`` or the transport option ``deadletter_queue`` names a queue for it. Without
        ``mandatory`` the default exchange makes the queue it is to put a message into.

        Raises: UnroutableError, with nothing published, if no queue takes a mandatory message.
        """
        batch = list(messages)
        routing = self.current_routing()
        while batch:
            routed = [(message, self._route(routing, message)) for message in batch]
            lost = next((m for m, queues in routed if m.mandatory and not queues), None)
            if lost is None:
                if self.backend.store(routed, routing.epoch):
                    return
                routing = self.refresh_routing()
                continue
            fresh = self.refresh_routing()
            if fresh.epoch == routing.epoch:
                raise UnroutableError(
                    f"no queue takes a message of exchange {lost.exchange!r} under routing key "
                    f"{lost.routing_key!r}",
                    hint="declare the queue and its binding before publishing",
                )
            routing = fresh

    def basic_publish(
        self,
        message: Mapping[str, Any],
        exchange: str,
        routing_key: str,
        mandatory: bool = False,
        **_kwargs: Any,
    ) -> None:
        """Publish one prepared message; see ``publish_many``."""
        outgoing = Outgoing.from_kombu(
            message, exchange=exchange, routing_key=routing_key, mandatory=mandatory
        )
        self.publish_many([outgoing])

    def create_publish_batch(self, max_size: int) -> PublishBatch:
        """Return what kombu's ``Producer.batch()`` publishes through."""
        return PublishBatch(self, max_size)

    def _route(self, routing: Routing, message: Outgoing) -> tuple[str, ...]:
        queues = routing.match(message.exchange, message.routing_key)
        if queues or message.mandatory:
            return queues
        fallback = self.deadletter_queue if message.exchange else message.routing_key
        if not fallback:
            return ()
        # A new queue moves the epoch: the store refuses, and the batch is routed once more.
        self._new_queue(fallback)
        return (fallback,)

    # -- consuming -----------------------------------------------------------------------------

    @property
    def in_flight(self) -> int:
        """How many messages this channel holds: leased and neither acknowledged nor released."""
        return len(self.qos.in_flight)

    @property
    def hungry(self) -> bool:
        """Whether there is a consumer, and room for another message."""
        return bool(self._active_queues) and self.qos.can_consume()

    def basic_consume(
        self,
        queue: str,
        no_ack: bool,
        callback: Callable[[LeasedMessage], Any],
        consumer_tag: str,
        **_kwargs: Any,
    ) -> None:
        """Have ``callback`` called for the messages of ``queue``, from ``drain_events``.

        Consumers of one queue on one channel take turns. Raises: ChannelError without the queue.
        """
        if not self._has_queue(queue):
            raise not_found("queue", queue)
        self._subscriptions.setdefault(queue, []).append(
            _Subscription(consumer_tag, bool(no_ack), callback)
        )
        self._tag_to_queue[consumer_tag] = queue
        self._consumers.add(consumer_tag)
        if queue not in self._active_queues:
            self._active_queues.append(queue)

    def basic_cancel(self, consumer_tag: str) -> None:
        """Stop a consumer; messages leased but not yet delivered go back. Idempotent."""
        queue = self._tag_to_queue.pop(consumer_tag, None)
        if queue is None:
            return
        self._consumers.discard(consumer_tag)
        left = [s for s in self._subscriptions.pop(queue) if s.consumer_tag != consumer_tag]
        if left:
            self._subscriptions[queue] = left
            return
        self._active_queues.remove(queue)
        undelivered = [tag for tag, delivery in self._undelivered if delivery.queue == queue]
        if undelivered:
            kept = [entry for entry in self._undelivered if entry[1].queue != queue]
            self._undelivered.clear()
            self._undelivered.extend(kept)
            self.release(undelivered, attempted=False)

    def deliver(self) -> int:
        """Flush acknowledgements, lease what fits the prefetch count, call the consumers.

        Never waits for messages. Returns how many were delivered. If a consumer raises, what was
        leased and not delivered yet is delivered by the next call.
        """
        if not self._undelivered:
            self._fetch()
        delivered = 0
        undelivered = self._undelivered
        while undelivered:
            delivery_tag, delivery = undelivered.popleft()
            subscribers = self._subscriptions[delivery.queue]
            subscriber = subscribers[delivery_tag % len(subscribers)]
            if subscriber.no_ack:
                self.qos.ack(delivery_tag)
            delivered += 1
            subscriber.callback(
                LeasedMessage(
                    delivery,
                    channel=self,
                    delivery_tag=delivery_tag,
                    consumer_tag=subscriber.consumer_tag,
                )
            )
        return delivered

    def drain_events(self, timeout: float | None = None, callback: Any = None) -> None:
        """Deliver what is ready on this channel, without waiting. Raises: queue.Empty."""
        if not self.deliver():
            raise Empty

    def basic_get(self, queue: str, no_ack: bool = False, **_kwargs: Any) -> LeasedMessage | None:
        """Lease one message, or return None if none is ready; flushes acknowledgements."""
        leased = self._leased([queue], 1)
        if not leased:
            self.backend.reclaim()
            leased = self._leased([queue], 1)
        for delivery_tag, delivery in leased:
            self._keep_up()
            if no_ack:
                self.qos.ack(delivery_tag)
            return LeasedMessage(delivery, channel=self, delivery_tag=delivery_tag)
        return None

    def _fetch(self) -> None:
        if not self.hungry:
            self.flush()
            return
        self._keep_up()
        free = self.qos.free(self.settings.lease_limit)
        self._undelivered.extend(self._leased(self._active_queues, free))
        # Another queue is first next time, so that none starves.
        self._active_queues.append(self._active_queues.pop(0))

    def _leased(self, queues: Sequence[str], limit: int) -> list[tuple[int, Delivery]]:
        backend = self.backend
        acknowledged = self.qos.take_acknowledged()
        try:
            deliveries = backend.lease(queues, limit, acknowledged)
        except BaseException:
            self.qos.acknowledged.extendleft(reversed(acknowledged))
            raise
        tagged = list(enumerate(deliveries, self._last_tag + 1))
        self._last_tag += len(tagged)
        for delivery_tag, delivery in tagged:
            self.qos.append(delivery.handle, delivery_tag)
        return tagged

    # -- settling ------------------------------------------------------------------------------

    def basic_ack(self, delivery_tag: int, multiple: bool = False) -> None:
        """Acknowledge a message, or with ``multiple`` all up to it; takes effect with a flush.

        A flush is part of every delivery and of ``close``. Thread-safe, does not block.
        Idempotent: a tag that is settled already is passed over.
        """
        self.qos.ack(delivery_tag, multiple)

    def basic_reject(self, delivery_tag: int, requeue: bool = False) -> None:
        """Drop a message (as ``basic_ack``) or give it back at once (as ``release``)."""
        self.qos.reject(delivery_tag, requeue=requeue)

    def basic_recover(self, requeue: bool = False) -> None:
        """Give back all that is in flight, delivered or not; only ``requeue=True``."""
        if not requeue:
            raise BusError("basic_recover(requeue=False) is not supported")
        self._undelivered.clear()
        self.qos.restore_unacked()

    def release(self, delivery_tags: Iterable[int], *, attempted: bool = True) -> None:
        """Give messages back: ready for any consumer when this returns, at their old place.

        ``attempted`` False says that the consumer did not try them; their delivery count then
        stays as it was before. Flushes acknowledgements. Blocking, idempotent as ``basic_ack``.
        """
        self.flush()
        handles = self.qos.take(delivery_tags)
        if handles:
            self.backend.release(handles, attempted=attempted)

    def flush(self) -> int:
        """Have all acknowledgements so far take effect, in one round trip.

        Thread-safe, blocking. Returns how many messages were removed: fewer than acknowledged if
        some had been taken over. After an error the acknowledgements wait for the next flush.
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

    # -- leases and life -----------------------------------------------------------------------

    def queue_stats(self, queue: str) -> QueueStats:
        """Return how many messages are ready and leased, and the age of the oldest in seconds.

        Thread-safe, blocking. Raises: BusError if there is no such queue.
        """
        return self.backend.queue_stats(queue)

    def life(self) -> str:
        """Return which life of the broker this is; see ``Link.life``. Thread-safe, blocking."""
        return self.backend.life()

    def extend_leases(self) -> bool:
        """Start the lease time of all messages in flight again.

        A background thread does this every third of the lease, so only a caller that must know
        calls it. Thread-safe, blocking, idempotent. Returns False if another consumer has taken
        messages over; acknowledging those does nothing.
        """
        held = self.backend.extend()
        self._extended_at = time.monotonic()
        return held

    def keep_leases(self) -> None:
        """Do one round of upkeep: extend when due, take over from the dead, tidy.

        The background thread's; thread-safe, blocking, idempotent.
        """
        if self.closed:
            return
        if time.monotonic() - self._extended_at >= self.settings.lease / 3:
            self.extend_leases()
        self.backend.reclaim()
        self.backend.tidy()

    def close(self) -> None:
        """Flush acknowledgements, give back what is in flight, and leave. Idempotent, blocking."""
        if self.closed:
            return
        self.closed = True
        with ExitStack() as stack:
            stack.callback(self.connection.close_channel, self)
            stack.callback(self._backend.close)
            if self._upkeep is not None:
                self._upkeep.stop()
            self._subscriptions.clear()
            self._consumers.clear()
            self._tag_to_queue.clear()
            self._active_queues.clear()
            self._undelivered.clear()
            self.release(list(self.qos.in_flight), attempted=False)

    def _keep_up(self) -> None:
        """Have the background thread run, and raise here what it could not do there."""
        backend = self.backend  # in a forked child, this forgets the parent's thread
        if self._upkeep is None:
            interval = min(self.settings.reclaim_interval, self.settings.lease / 3)
            self._upkeep = LeaseUpkeep(self.keep_leases, interval)
            self._upkeep.start()
            backend.reclaim()
        elif self._upkeep.error is not None:
            raise self._upkeep.error


class LeasedTransport(virtual.Transport):
    """The kombu transport of a leased-queue channel; a subclass has ``settings`` and a backend.

    ``drain_events`` belongs to one thread at a time.
    """

    Channel = LeasedChannel
    settings: LeaseSettings
    #: Longest pause, in seconds, where there is not just one channel to wait on.
    polling_interval = 0.02
    connection_errors: Any = (*virtual.Transport.connection_errors, BusUnavailableError)
    channel_errors: Any = (*virtual.Transport.channel_errors, BusError)
    # What kombu's retries may try again: a foreign file or an unroutable message stays one.
    recoverable_connection_errors = (BusUnavailableError,)
    recoverable_channel_errors = ()
    implements = virtual.Transport.implements.extend(
        exchange_type=frozenset(virtual.Channel.exchange_types), batch_publish=True
    )

    @abstractmethod
    def open_backend(self) -> Backend:
        """Return a new backend, connected and checked. Blocking."""
        raise NotImplementedError

    def drain_events(self, connection: Any, timeout: float | None = None, **_kwargs: Any) -> None:
        """Deliver every message that is ready and fits the prefetch counts; wait for one if none.

        Blocking, for ``timeout`` seconds at most (0 does not wait, None waits for ever).
        Raises: TimeoutError (which socket.timeout is) if there was none.
        """
        deadline = None if timeout is None else time.monotonic() + timeout
        while True:
            channels: list[LeasedChannel] = list(self.channels)
            if sum(channel.deliver() for channel in channels):
                return
            left = _LONGEST_WAIT if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError("no message arrived in time")
            hungry = [channel for channel in channels if channel.hungry]
            if len(hungry) != 1:
                left = min(left, self.polling_interval)
            if hungry:
                hungry[0].backend.wait(left)
            else:
                time.sleep(left)

    def close_connection(self, connection: Any) -> None:
        """Close every channel, even if closing one fails; the failure is raised in the end."""
        self._avail_channels.clear()
        with ExitStack() as stack:
            for channel in list(self.channels):
                stack.callback(channel.close)
