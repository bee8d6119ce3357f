"""The store ``cache``: the Redis cache that the website reads."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.redis import RedisAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """Return a store that keeps customers and orders as Redis hashes, without opening it.

    The hashes have keys such as ``customer:7`` and ``order:1042``, and only the fields that the
    website shows. An index allows a search for the orders of a customer.
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
