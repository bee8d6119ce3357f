"""The cache that the website reads. It knows nothing of the other stores."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.redis import RedisAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """What a page shows: hashes ``customer:7`` and ``order:1042``, orders also by customer."""
    server = location("cache")
    customers = RedisAccessor(
        Customer, server, key="customer:{id}", view=View(only=("id", "name", "city", "standing"))
    )
    orders = RedisAccessor(
        Order,
        server,
        key="order:{number}",
        view=View(only=("number", "customer", "state", "total")),
        indexes=("customer",),
    )
    return Store("cache", customers, orders)
