"""The Redis cache that the website reads."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.redis import RedisAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """Return a store of hashes ``customer:7`` and ``order:1042`` with the fields that a page shows.

    Orders can also be found by customer.
    """
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
