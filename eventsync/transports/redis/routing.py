"""The names of the Redis keys, and the part of the backend that stores the routing."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, TypeVar

from eventsync.errors import BusError
from eventsync.transports.leased.backend import Backend, Binding, ExchangeDeclaration, RoutingTables
from eventsync.transports.leased.json_object import decode_object, encode_object
from eventsync.transports.redis.client import RedisClient
from eventsync.transports.redis.scripts import ALTER, LOAD

__all__ = ["RedisRouting"]

_T = TypeVar("_T")
_Command = tuple[str, ...]


class RedisRouting(Backend):
    """The part of ``Backend`` that stores queues, exchanges and bindings on a Redis server."""

    def __init__(self, client: RedisClient, *, prefix: str) -> None:
        self._client = client
        self._epoch_key = f"{prefix}epoch"
        self._queues_key = f"{prefix}queues"
        self._exchanges_key = f"{prefix}exchanges"
        self._bindings_key = f"{prefix}bindings"
        self._consumers_key = f"{prefix}consumers"
        self._streams = f"{prefix}queue:"

    def load_routing(self) -> RoutingTables:
        """Read all queues, exchanges and bindings in one consistent step and return them."""
        epoch, queues, exchanges, bindings = self._client.run(LOAD, self._routing_keys(), ())
        declared = []
        for name, raw in zip(exchanges[::2], exchanges[1::2], strict=True):
            about = decode_object(raw)
            arguments = about.get("arguments")
            declared.append(
                ExchangeDeclaration(
                    self._read(self._exchanges_key, name, bytes.decode),
                    str(about.get("type", "direct")),
                    bool(about.get("durable")),
                    bool(about.get("auto_delete")),
                    arguments if isinstance(arguments, dict) else {},
                )
            )
        bound = []
        for name, raw in zip(bindings[::2], bindings[1::2], strict=True):
            queue, exchange, routing_key = self._read(self._bindings_key, name, _binding_names)
            bound.append(Binding(queue, exchange, routing_key, decode_object(raw)))
        names = [self._read(self._queues_key, queue, bytes.decode) for queue in queues]
        number = self._read(self._epoch_key, epoch, int)
        place = f"the Redis server {self._client.place}"
        return RoutingTables(number, names, declared, bound, place)

    def _read(self, key: str, raw: Any, read: Callable[[Any], _T]) -> _T:
        """Return ``read(raw)``; ``raw`` is an entry of the control key ``key``."""
        try:
            return read(raw)
        except (ValueError, TypeError, RecursionError) as error:
            raise BusError(
                f"the key {key!r} of the Redis server {self._client.place} has an entry that is "
                f"not the broker's: {bytes(raw)[:80]!r}",
                hint="another program wrote it; remove it, or choose another prefix in the "
                "broker URL",
            ) from error

    def declare_queue(self, queue: str) -> None:
        """Create a durable queue. Idempotent. The first message creates the queue's stream."""
        self._alter(
            lambda tables: [] if queue in tables.queues else [("SADD", self._queues_key, queue)]
        )

    def delete_queue(self, queue: str) -> None:
        """Remove a queue, its bindings and its messages. Idempotent."""

        def commands(tables: RoutingTables) -> list[_Command]:
            if queue not in tables.queues:
                return []
            return [
                ("DEL", self._stream(queue)),
                ("SREM", self._queues_key, queue),
                *self._unbound(bound for bound in tables.bindings if bound.queue == queue),
            ]

        self._alter(commands)

    def declare_exchange(self, exchange: ExchangeDeclaration) -> None:
        """Create a durable exchange, unless an exchange of that name exists. Idempotent."""
        about = exchange._asdict()
        name = about.pop("name")
        value = encode_object("arguments", {**about, "arguments": dict(exchange.arguments)})

        def commands(tables: RoutingTables) -> list[_Command]:
            if any(known.name == name for known in tables.exchanges):
                return []
            return [("HSET", self._exchanges_key, name, value)]

        self._alter(commands)

    def delete_exchange(self, exchange: str) -> None:
        """Remove an exchange and its bindings. Idempotent."""

        def commands(tables: RoutingTables) -> list[_Command]:
            if all(known.name != exchange for known in tables.exchanges):
                return []
            return [
                ("HDEL", self._exchanges_key, exchange),
                *self._unbound(bound for bound in tables.bindings if bound.exchange == exchange),
            ]

        self._alter(commands)

    def bind(self, binding: Binding) -> None:
        """Create a durable binding. Does nothing if queue or exchange do not exist."""
        value = encode_object("arguments", binding.arguments)

        def commands(tables: RoutingTables) -> list[_Command]:
            # Check queue and exchange again: they may have been deleted since the caller checked.
            if (
                any(bound[:3] == binding[:3] for bound in tables.bindings)
                or binding.queue not in tables.queues
                or all(known.name != binding.exchange for known in tables.exchanges)
            ):
                return []
            return [("HSET", self._bindings_key, _binding_name(binding), value)]

        self._alter(commands)

    def unbind(self, binding: Binding) -> None:
        """Remove a binding. Idempotent."""
        self._alter(
            lambda tables: self._unbound(
                bound for bound in tables.bindings if bound[:3] == binding[:3]
            )
        )

    def _alter(self, commands_for: Callable[[RoutingTables], list[_Command]]) -> None:
        """Change the routing atomically.

        ``commands_for``: returns the Redis commands that change the given routing. It is called
        again if the routing has changed before the commands could run.
        """
        while True:
            tables = self.load_routing()
            commands = commands_for(tables)
            if not commands:
                return
            words: list[Any] = [tables.epoch]
            for command in commands:
                words += [len(command), *command]
            keys = [self._epoch_key, *{command[1]: None for command in commands}]
            if self._client.run(ALTER, keys, words):
                return

    def _unbound(self, bindings: Any) -> list[_Command]:
        return [("HDEL", self._bindings_key, _binding_name(binding)) for binding in bindings]

    def _routing_keys(self) -> list[str]:
        return [self._epoch_key, self._queues_key, self._exchanges_key, self._bindings_key]

    def _stream(self, queue: str) -> str:
        return f"{self._streams}{queue}"


def _binding_names(raw: bytes) -> tuple[str, str, str]:
    queue, exchange, routing_key = json.loads(raw)
    if not all(isinstance(name, str) for name in (queue, exchange, routing_key)):
        raise TypeError("a name is not text")
    return queue, exchange, routing_key


def _binding_name(binding: Binding) -> str:
    return json.dumps(binding[:3])
