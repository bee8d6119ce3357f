"""A kombu channel that declares queues, exchanges and bindings, and publishes to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from eventsync.errors import BusError, UnroutableError
from eventsync.transports.leased.backend import Backend, Binding, ExchangeDeclaration
from eventsync.transports.leased.message import OutboundMessage
from eventsync.transports.leased.routing import Routing
from eventsync.transports.leased.topic import TopicExchange

__all__ = ["PublishingChannel", "not_found"]


_EXCHANGE_TYPES: Any = {**virtual.Channel.exchange_types, "topic": TopicExchange}


class PublishingChannel(virtual.Channel):
    """A kombu channel that keeps its queues, exchanges and bindings in a ``Backend``.

    A declaration takes effect in all processes before its call returns. Declarations are
    idempotent and block.
    """

    supports_fanout = True
    exchange_types: Any = _EXCHANGE_TYPES
    # Annotated as Any, because kombu accepts more types here than its annotations say.
    from_transport_options: Any = ("deadletter_queue",)

    def __init__(self, connection: Any, backend: Backend, **kwargs: Any) -> None:
        self._backend = backend
        self._routing: Routing | None = None
        channel: Any = super()
        channel.__init__(connection, **kwargs)

    @property
    def backend(self) -> Backend:
        """The backend that stores the messages of this channel."""
        return self._backend

    @property
    def state(self) -> Any:
        """The routing tables in kombu's form, as this channel last read them."""
        return self.current_routing().state

    def current_routing(self) -> Routing:
        """Return the routing as this channel last read it; read it if it was never read."""
        return self._routing or self.refresh_routing()

    def refresh_routing(self) -> Routing:
        """Read the routing from the backend, keep it, and return it."""
        self._routing = Routing(self.backend.load_routing(), self.exchange_types)
        return self._routing

    # -- publishing ----------------------------------------------------------------------------

    def publish_many(self, messages: Iterable[OutboundMessage]) -> None:
        """Publish messages durably, in one atomic step. Thread-safe, blocks, not idempotent.

        If no queue receives a ``mandatory`` message, raises ``UnroutableError`` and publishes
        nothing. If no queue receives another message, the message goes to the queue that the
        transport option ``deadletter_queue`` names; without that option it is dropped, as in kombu.
        A message to the default exchange that is not ``mandatory`` creates a missing queue.
        """
        batch = list(messages)
        routing = self.current_routing()
        while batch:
            routed = [(message, self._route(routing, message)) for message in batch]
            unroutable = next((m for m, queues in routed if m.mandatory and not queues), None)
            if unroutable is None:
                if self.backend.store(routed, routing.epoch):
                    return
                routing = self.refresh_routing()
                continue
            fresh = self.refresh_routing()
            if fresh.epoch == routing.epoch:
                raise UnroutableError(
                    f"no queue receives messages of exchange {unroutable.exchange!r} with routing "
                    f"key {unroutable.routing_key!r}",
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
        """Publish one message that ``prepare_message`` returned, as ``publish_many`` does."""
        outbound = OutboundMessage.from_kombu(
            message, exchange=exchange, routing_key=routing_key, mandatory=mandatory
        )
        self.publish_many([outbound])

    def create_publish_batch(self, max_size: int) -> _PublishBatch:
        """Return an empty batch for kombu's ``Producer.batch()``.

        ``max_size``: the number of messages at which the batch publishes them by itself.
        """
        return _PublishBatch(self, max_size)

    def _route(self, routing: Routing, message: OutboundMessage) -> tuple[str, ...]:
        queues = routing.match(message.exchange, message.routing_key)
        if queues or message.mandatory:
            return queues
        fallback = self.deadletter_queue if message.exchange else message.routing_key
        if not fallback:
            return ()
        # A new queue changes the epoch. The backend then refuses the batch, and the caller routes
        # all messages again.
        self._new_queue(fallback)
        return (fallback,)

    # -- declaring -----------------------------------------------------------------------------

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",  # kombu names this parameter
        durable: bool = False,
        auto_delete: bool = False,
        arguments: Mapping[str, Any] | None = None,
        nowait: bool = False,
        passive: bool = False,
    ) -> None:
        """Create an exchange; with ``passive``, only check that it exists.

        Raises ``BusError`` if the exchange exists with other properties or if its type is not
        supported, and ``ChannelError`` if ``passive`` is true and the exchange does not exist.
        """
        name = exchange or f"amq.{type}"
        if not passive and type not in self.exchange_types:
            raise BusError(
                f"exchange {name!r}: type {type!r} is not supported",
                hint=f"use one of these types: {', '.join(sorted(self.exchange_types))}",
            )
        if not passive and name not in self.refresh_routing().state.exchanges:
            self.backend.declare_exchange(
                ExchangeDeclaration(name, type, durable, auto_delete, arguments or {})
            )
        self.refresh_routing()
        channel: Any = super()
        try:
            # kombu compares this declaration with the existing exchange.
            channel.exchange_declare(
                name, type, durable, auto_delete, arguments, nowait=nowait, passive=passive
            )
        except virtual.NotEquivalentError as error:
            raise BusError(
                f"exchange {name!r} exists with another type, durability or arguments",
                hint="declare the exchange with its existing properties, or delete it first",
            ) from error

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange and its bindings; with ``if_unused``, only if it has no bindings."""
        known = self.refresh_routing().state.exchanges.get(exchange)
        if known is not None and not (if_unused and known["table"]):
            self.backend.delete_exchange(exchange)
            self.refresh_routing()

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        """Create a queue and return (name, number of ready messages, 0).

        With ``passive``, do not create the queue: raise ``ChannelError`` if it does not exist.
        """
        self.refresh_routing()
        channel: Any = super()
        return channel.queue_declare(queue, passive=passive, **kwargs)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue, its bindings and its messages.

        ``if_unused``: only if this channel has no consumer of the queue. ``if_empty``: only if the
        queue has no ready messages.
        """
        if not (if_empty and self._size(queue)) and not (
            if_unused and queue in self._active_queues
        ):
            self._delete(queue)

    def queue_bind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Bind a queue to an exchange.

        Raises ``ChannelError`` if the queue or the exchange does not exist.
        """
        binding = Binding(queue, exchange or "amq.direct", routing_key, arguments or {})
        routing = self.refresh_routing()
        if queue not in routing.queues:
            raise not_found("queue", queue)
        if binding.exchange not in routing.state.exchanges:
            raise not_found("exchange", binding.exchange)
        if not routing.state.has_binding(queue, binding.exchange, routing_key):
            self.backend.bind(binding)
            self.refresh_routing()

    def queue_unbind(
        self,
        queue: str,
        exchange: str | None = None,
        routing_key: str = "",
        arguments: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Remove the binding of a queue to an exchange with ``routing_key``. Idempotent."""
        self.backend.unbind(Binding(queue, exchange or "amq.direct", routing_key, arguments or {}))
        self.refresh_routing()

    def list_bindings(self) -> Any:
        """Read all bindings and return them as (queue, exchange, routing key)."""
        self.refresh_routing()
        channel: Any = super()
        return channel.list_bindings()

    def _new_queue(self, queue: str, **kwargs: Any) -> None:
        if queue not in self.current_routing().queues:
            self.backend.declare_queue(queue)
            self.refresh_routing()

    def _delete(self, queue: str, *args: Any, **kwargs: Any) -> None:
        self.backend.delete_queue(queue)
        self.refresh_routing()

    def _has_queue(self, queue: str, **kwargs: Any) -> bool:
        return queue in self.refresh_routing().queues

    def _size(self, queue: str) -> int:
        return self.backend.size(queue)

    def _purge(self, queue: str) -> int:
        return self.backend.purge(queue)


class _PublishBatch:
    """Collects the messages of kombu's ``Producer.batch()`` and publishes them in atomic steps.

    Not thread-safe; kombu keeps one batch per thread.
    """

    def __init__(self, channel: PublishingChannel, max_size: int) -> None:
        self.channel = channel
        self._max_size = max_size
        self._pending: list[OutboundMessage] = []

    def publish(
        self,
        prepared: Mapping[str, Any],
        *,
        exchange: str,
        routing_key: str,
        mandatory: bool = False,
        **_ignored: Any,
    ) -> None:
        """Add a message that ``prepare_message`` returned; flush the batch if it is full."""
        self._pending.append(
            OutboundMessage.from_kombu(
                prepared, exchange=exchange, routing_key=routing_key, mandatory=mandatory
            )
        )
        if len(self._pending) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Publish the pending messages, all or none. Blocks until they are durable.

        If ``publish_many`` raises an error, the messages stay pending.
        """
        self.channel.publish_many(self._pending)
        self._pending = []

    def discard(self) -> None:
        """Forget the pending messages. Idempotent."""
        self._pending = []

    def close(self) -> None:
        """Forget the pending messages. Idempotent."""
        self._pending = []


def not_found(kind: str, name: str) -> ChannelError:
    """Return kombu's error for a queue or exchange that does not exist.

    ``kind``: "queue" or "exchange".
    """
    return ChannelError(
        f"NOT_FOUND - no {kind} {name!r} at this broker: declare the {kind} first",
        (50, 10),
        None,
        "404",
    )
