"""The documents that other programs read. It knows nothing of the other stores."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.stores.files import JsonFolderAccessor
from workers.records import Customer

__all__ = ["store"]


def store() -> Store:
    """Active customers without their balance, one JSON document each.

    Every five seconds the worker looks for documents that somebody edited.
    """
    customers = JsonFolderAccessor(
        Customer, "documents", view=View(omit=("balance",), where={"active": True})
    )
    return Store("documents", customers, index="documents.versions.db", capture_every=5.0)
