"""Owns how a message finds its queues: kombu's routing tables, kept by a backend for all processes.

It must not know where the backend keeps them, nor how messages are leased.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from kombu.exceptions import ChannelError
from kombu.transport import virtual

from eventsync.errors import BusError
from eventsync.transports.leased.backend import Backend, Binding, ExchangeDeclaration, RoutingTables

__all__ = ["RoutedChannel", "Routing"]

# Routing keys come from record types, so they are few; a publisher of random keys stays bounded.
_REMEMBERED_ROUTES = 4096

# kombu is annotated in part only: what it leaves out is called through Any.
_kombu: Any = virtual


class Routing:
    """An unchanging picture of a broker's routing. Thread-safe.

    Matching is kombu's own: its ``#`` needs the dot before it (``a.#`` does not match ``a``),
    unlike AMQP's.
    """

    def __init__(self, tables: RoutingTables, exchange_types: Mapping[str, Any]) -> None:
        self.epoch = tables.epoch
        self.queues = frozenset(tables.queues)
        #: kombu's own structure, which its virtual channel reads.
        self.state: Any = _kombu.BrokerState()
        self._exchange_types = exchange_types
        self._routes: dict[tuple[str, str], tuple[str, ...]] = {}
        exchanges = self.state.exchanges
        for declared in tables.exchanges:
            exchanges[declared.name] = {
                "type": declared.type,
                "durable": declared.durable,
                "auto_delete": declared.auto_delete,
                "arguments": dict(declared.arguments),
                "table": [],
            }
        for binding in tables.bindings:
            self.state.binding_declare(*binding)
            exchange = exchanges[binding.exchange]
            exchange["table"].append(exchange_types[exchange["type"]].prepare_bind(*binding))

    def match(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the names of the queues that take this message, sorted; maybe none."""
        if not exchange:
            return (routing_key,) if routing_key in self.queues else ()
        route = self._routes.get((exchange, routing_key))
        if route is None:
            route = self._lookup(exchange, routing_key)
            if len(self._routes) >= _REMEMBERED_ROUTES:
                self._routes.clear()
            self._routes[exchange, routing_key] = route
        return route

    def _lookup(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        declared = self.state.exchanges.get(exchange)
        if declared is None:
            return ()
        exchange_type = self._exchange_types[declared["type"]]
        return tuple(sorted(exchange_type.lookup(declared["table"], exchange, routing_key, None)))


class RoutedChannel(virtual.Channel):
    """A kombu channel whose queues, exchanges and bindings are those of a ``Backend``.

    A declaration made in one process holds in all of them as soon as it returns. Declaring is
    idempotent and blocking.
    """

    supports_fanout = True

    def __init__(self, connection: Any, backend: Backend, **kwargs: Any) -> None:
        self._backend = backend
        self._routing: Routing | None = None
        channel: Any = super()
        channel.__init__(connection, **kwargs)

    @property
    def backend(self) -> Backend:
        """Where the messages are kept."""
        return self._backend

    @property
    def state(self) -> Any:
        """Kombu's routing tables, as this channel last read them."""
        return self.current_routing().state

    def current_routing(self) -> Routing:
        """Return the routing as this channel last read it."""
        return self._routing or self.refresh_routing()

    def refresh_routing(self) -> Routing:
        """Read the routing anew and return it."""
        self._routing = Routing(self.backend.load_routing(), self.exchange_types)
        return self._routing

    def exchange_declare(
        self,
        exchange: str | None = None,
        type: str = "direct",  # kombu's name of the parameter
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
                hint=f"use one of {', '.join(sorted(self.exchange_types))}",
            )
        if not passive and name not in self.refresh_routing().state.exchanges:
            self.backend.declare_exchange(
                ExchangeDeclaration(name, type, durable, auto_delete, arguments or {})
            )
        self.refresh_routing()
        channel: Any = super()
        try:
            # kombu's part: compare with what is there, whoever has declared it.
            channel.exchange_declare(
                name, type, durable, auto_delete, arguments, nowait=nowait, passive=passive
            )
        except virtual.NotEquivalentError as error:
            raise BusError(
                f"exchange {name!r} exists with another type, durability or arguments",
                hint="declare it as it is, or delete it first",
            ) from error

    def exchange_delete(self, exchange: str, if_unused: bool = False, nowait: bool = False) -> None:
        """Delete an exchange with its bindings, unless ``if_unused`` and it has any."""
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

        ``if_unused`` sees the consumers of this channel only.
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
        """Return (queue, exchange, routing key) of every binding, as they are now."""
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


def not_found(kind: str, name: str) -> ChannelError:
    """Return AMQP's error for a queue or exchange that does not exist."""
    return ChannelError(
        f"NOT_FOUND - no {kind} {name!r} at this broker: declare it first", (50, 10), None, "404"
    )
