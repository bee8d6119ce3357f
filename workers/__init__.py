"""The deployment shipped with eventsync: defines the stores for ``eventsync --app``."""

from __future__ import annotations

from eventsync import StoreRegistry
from workers import cache, crm, documents

__all__ = ["registry"]


def registry() -> StoreRegistry:
    """Return a registry of the three stores. Does not open the stores.

    Raises ``ConfigError`` if the location of a store is not configured.
    """
    return StoreRegistry(crm.store(), cache.store(), documents.store())
