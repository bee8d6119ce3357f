"""The shipped deployment: a registry of its stores, each made in a module of its own.

This is where everything is put together; nothing may import it but ``eventsync --app``.
"""

from __future__ import annotations

from eventsync import StoreRegistry
from workers import crm, documents, report

__all__ = ["registry"]

registry = StoreRegistry(crm.store(), documents.store(), report.store())
