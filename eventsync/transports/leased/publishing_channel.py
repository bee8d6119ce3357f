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

__all__ = ["PublishingChannel", "not_found"]


class PublishingChannel(virtual.Channel):
    """A kombu channel whose queues, exchanges and bindings are those of a ``Backend``.

    When a declaration returns, it holds in all processes. Declaring is idempotent and blocks.
    """

    supports_fanout = True
    # kombu's annotations are narrower than its behaviour.
    from_transport_options: Any = ("deadletter_queue",)

    def __init__(self, connection: Any, backend: Backend, **kwargs: Any) -> None:
        self._backend = backend
        self._routing: Routing | None = None
        channel: Any = super()
        channel.__init__(connection, **kwargs)

    @property
    def backend(self) -> Backend:
        """The place where the messages are kept."""
        return self._backend

    @property
    def state(self) -> Any:
        """Kombu's routing tables, as this channel last read them."""
        return self.current_routing().state

    def current_routing(self) -> Routing:
        """Return the routing as this channel last read it."""
        return self._routing or self.refresh_routing()

    def refresh_routing(self) -> Routing:
        """Read the routing again and return it."""
        self._routing = Routing(self.backend.load_routing(), self.exchange_types)
        return self._routing

    # -- publishing ----------------------------------------------------------------------------

    def publish_many(self, messages: Iterable[OutboundMessage]) -> None:
        """Publish messages in one atomic step; they are durable when this returns.

        Thread-safe, blocking, not idempotent.

        A message that no queue takes is dropped, as by kombu's virtual transports, unless it is
        ``mandatory`` or the transport option ``deadletter_queue`` names a queue for it. A message
        to the default exchange that is not ``mandatory`` creates its queue if there is none.

        Raises: UnroutableError, with nothing published, if no queue takes a mandatory message.
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
                    f"no queue takes a message of exchange {unroutable.exchange!r} under routing "
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
        """Publish one prepared message; see ``publish_many``."""
        outbound = OutboundMessage.from_kombu(
            message, exchange=exchange, routing_key=routing_key, mandatory=mandatory
        )
        self.publish_many([outbound])

    def create_publish_batch(self, max_size: int) -> _PublishBatch:
        """Return a batch for kombu's ``Producer.batch()``."""
        return _PublishBatch(self, max_size)

    def _route(self, routing: Routing, message: OutboundMessage) -> tuple[str, ...]:
        queues = routing.match(message.exchange, message.routing_key)
        if queues or message.mandatory:
            return queues
        fallback = self.deadletter_queue if message.exchange else message.routing_key
        if not fallback:
            return ()
        # A new queue changes the epoch. The backend then refuses the batch, which is routed again.
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
        """Declare an exchange.

        Raises: BusError if it exists with other properties or its type is not supported;
        ChannelError if ``passive`` and it does not exist.
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
                hint="declare it with the same properties, or delete the existing one first",
            ) from error

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings; with ``if_unused`` only if it has none."""
        known = self.refresh_routing().state.exchanges.get(exchange)
        if known is not None and not (if_unused and known["table"]):
            self.backend.delete_exchange(exchange)
            self.refresh_routing()

    def queue_declare(self, queue: str | None = None, passive: bool = False, **kwargs: Any) -> Any:
        """Declare a queue and return (name, ready messages, 0).

        Raises: ChannelError if ``passive`` and it does not exist.
        """
        self.refresh_routing()
        channel: Any = super()
        return channel.queue_declare(queue, passive=passive, **kwargs)

    def queue_delete(
        self, queue: str, if_unused: bool = False, if_empty: bool = False, **kwargs: Any
    ) -> None:
        """Delete a queue with its bindings and messages.

        ``if_unused`` considers only the consumers of this channel.
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
        """Bind a queue to an exchange. Raises: ChannelError if either does not exist."""
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
        """Remove a binding."""
        self.backend.unbind(Binding(queue, exchange or "amq.direct", routing_key, arguments or {}))
        self.refresh_routing()

    def list_bindings(self) -> Any:
        """Return (queue, exchange, routing key) of every current binding."""
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
    """The messages of kombu's ``Producer.batch()``; each flush is one atomic publish.

    Not thread-safe; kombu keeps one per thread.
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
        """Add one prepared message; flush if the batch is full."""
        self._pending.append(
            OutboundMessage.from_kombu(
                prepared, exchange=exchange, routing_key=routing_key, mandatory=mandatory
            )
        )
        if len(self._pending) >= self._max_size:
            self.flush()

    def flush(self) -> None:
        """Publish the pending messages, all or none. Blocks until they are durable.

        Raises: the errors of ``publish_many``; the messages then stay pending.
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
    """Return AMQP's error for a queue or exchange that does not exist."""
    return ChannelError(
        f"NOT_FOUND - no {kind} {name!r} at this broker: declare it first", (50, 10), None, "404"
    )
