"""The shipped deployment: puts the stores together for ``eventsync --app``."""

from __future__ import annotations

from eventsync import StoreRegistry
from workers import cache, crm, documents

__all__ = ["registry"]


def registry() -> StoreRegistry:
    """Return the stores of the deployment, not yet opened. Raises ``ConfigError``."""
    return StoreRegistry(crm.store(), cache.store(), documents.store())
