"""Chooses the queues of a message by kombu's rules for exchanges and bindings."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from kombu.transport import virtual

from eventsync.errors import BusError
from eventsync.transports.leased.backend import RoutingTables

__all__ = ["Routing"]

# eventsync uses few routing keys, the names of record types. Other publishers may use many.
_MAX_CACHED_ROUTES = 4096

_kombu: Any = virtual  # annotated in part only


class Routing:
    """The queues, exchanges and bindings of a broker at one epoch. Thread-safe.

    Patterns are matched by kombu's rules: ``a.#`` does not match ``a``, although it does in AMQP.
    """

    def __init__(self, tables: RoutingTables, exchange_types: Mapping[str, Any]) -> None:
        self.epoch = tables.epoch
        self.queues = frozenset(tables.queues)
        #: The structure that kombu's virtual channel reads.
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
            exchange = exchanges.get(binding.exchange)
            try:
                exchange_type = exchange_types[exchange["type"]]
                exchange["table"].append(exchange_type.prepare_bind(*binding))
            except (LookupError, TypeError, ValueError, re.error) as error:
                raise BusError(
                    f"{tables.place} has a binding of the queue {binding.queue[:80]!r} to the "
                    f"exchange {binding.exchange[:80]!r} that cannot be used: there is no such "
                    "exchange, or its type or the routing key is unknown to eventsync",
                    hint="another program wrote it; remove the binding",
                ) from error

    def match(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        """Return the sorted names of the queues that receive messages with ``routing_key``.

        An empty ``exchange`` is AMQP's default exchange: the routing key is the name of the queue.
        """
        if not exchange:
            return (routing_key,) if routing_key in self.queues else ()
        route = self._routes.get((exchange, routing_key))
        if route is None:
            route = self._lookup(exchange, routing_key)
            if len(self._routes) >= _MAX_CACHED_ROUTES:
                self._routes.clear()
            self._routes[exchange, routing_key] = route
        return route

    def _lookup(self, exchange: str, routing_key: str) -> tuple[str, ...]:
        declared = self.state.exchanges.get(exchange)
        if declared is None:
            return ()
        exchange_type = self._exchange_types.get(declared["type"])
        if exchange_type is None:
            raise BusError(
                f"the exchange {exchange[:80]!r} has the type {declared['type'][:80]!r}, which "
                "eventsync does not know",
                hint="another program declared it; delete the exchange",
            )
        try:
            found = exchange_type.lookup(declared["table"], exchange, routing_key, None)
        except re.error as error:  # kombu makes a regular expression of the key of a binding
            raise BusError(
                f"the exchange {exchange[:80]!r} has a binding with a routing key that is no "
                f"pattern: {error}",
                hint="another program wrote it; remove the binding",
            ) from error
        return tuple(sorted(found))
