"""The JSON documents that other programs read and people edit."""

from __future__ import annotations

from pathlib import Path

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.files import JsonFolderAccessor
from workers.records import Customer, Standing

__all__ = ["store"]


def store() -> Store:
    """Return a store of active customers without their balance, one JSON document each.

    Every five seconds the worker captures the edits that people made to the documents.
    """
    customers = JsonFolderAccessor(
        Customer,
        Path(location("documents"), "customers"),
        view=View(omit=("balance",), where={"standing": Standing.ACTIVE}),
    )
    return Store("documents", customers, capture_every=5.0)
