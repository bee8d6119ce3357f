"""The store ``documents``: JSON documents that other programs read and that people edit."""

from __future__ import annotations

from pathlib import Path

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.files import JsonFolderAccessor
from workers.records import Customer, Standing

__all__ = ["store"]


def store() -> Store:
    """Return a store that keeps each active customer as one JSON document, without opening it.

    The field ``balance`` is left out. Every five seconds a worker captures the edits that people
    have made to the documents.
    """
    customers = JsonFolderAccessor(
        Customer,
        Path(location("documents"), "customers"),
        view=View(omit=("balance",), where={"standing": Standing.ACTIVE}),
    )
    return Store("documents", customers, capture_every=5.0)
