"""The stores that benchmarks write to, and the registry that ``eventsync worker`` finds them by.

It knows nothing of servers: workers import it, and nothing else of the benchmarks.
"""

from __future__ import annotations

from benchmarks.customer import Customer

from eventsync import Bus, Record, Store, StoreRegistry
from eventsync.config import location

__all__ = ["made", "registry", "source", "table_of"]


def table_of(type: type[Record]) -> str:
    """The name of the table that keeps records of a type."""
    return type.__record__.name.lower()


def made(url: str, type: type[Record], *, name: str = "crm", publisher: Bus | None = None) -> Store:
    """A store of one type of records in a database; its tables are made when they are missing."""
    if url.startswith("redis:"):
        from eventsync.stores.redis import RedisAccessor

        return Store(name, RedisAccessor(type, url), publisher=publisher)
    from eventsync.stores.sql import SqlAccessor

    return Store(
        name, SqlAccessor(type, url, table=table_of(type), create=True), publisher=publisher
    )


def registry() -> StoreRegistry:
    """The store that is written to."""
    return StoreRegistry(made(location("crm"), Customer))


def source() -> StoreRegistry:
    """The store whose edits are published, by a relay."""
    return StoreRegistry(made(location("shop"), Customer, name="shop"))
