"""The shipped deployment: its stores, each made in a module of its own.

This is where everything is put together; nothing may import it but ``eventsync --app``.
"""

from __future__ import annotations

from eventsync import StoreRegistry
from workers import cache, crm, documents

__all__ = ["registry"]


def registry() -> StoreRegistry:
    """All stores of the deployment, none of them opened. Raises ``ConfigError``."""
    return StoreRegistry(crm.store(), cache.store(), documents.store())
