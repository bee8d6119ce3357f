"""The ways in: how an event is committed, of which is measured when others see it.

It knows nothing of the pace, nor of what is seen.
"""

from __future__ import annotations

import pickle
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import redis
import sqlalchemy as sa
from benchmarks.customer import Customer
from benchmarks.deployment import made
from benchmarks.load import change

from eventsync.broker.bus import Bus
from eventsync.changes.clock import Clock

__all__ = ["QUEUE", "Editing", "Plain", "Publishing", "Relayed", "Sender"]

QUEUE = "plain"
"""The stream of the plain client."""


class Sender(ABC):
    """What has events sent, by their numbers, which are the keys of new records."""

    way: str

    @abstractmethod
    def send(self, rows: Sequence[dict[str, Any]]) -> None:
        """Send one event for each row, all in one call; they are committed when this returns."""


class Publishing(Sender):
    """By the bus, without a store."""

    way = "publish"

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self._clock = Clock()

    def send(self, rows: Sequence[dict[str, Any]]) -> None:
        changes = [change(self._clock, Customer, row["id"], row) for row in rows]
        self._bus.publish("Customer", self._bus.encode_all(changes))


class Editing(Sender):
    """Through a store, which publishes."""

    way = "edit"

    def __init__(self, bus: Bus, url: str) -> None:
        self._store = made(url, Customer, name="shop", publisher=bus).open()

    def send(self, rows: Sequence[dict[str, Any]]) -> None:
        self._store.add(Customer(**row) for row in rows)


class Relayed(Sender):
    """In a transaction of one's own; a relay publishes."""

    way = "edit, relay"

    def __init__(self, bus: Bus, url: str) -> None:
        self._store = made(url, Customer, name="shop", publisher=bus).open()
        self._engine = sa.create_engine(url)

    def send(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._engine.begin() as connection:
            self._store.using(connection).add(Customer(**row) for row in rows)


class Plain(Sender):
    """By the plain client of Redis."""

    way = "plain clients"

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    def send(self, rows: Sequence[dict[str, Any]]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for row in rows:
                pipe.xadd(QUEUE, {"b": pickle.dumps(row)})
            pipe.execute()
