"""The stores that the chaos harness breaks: two databases and files, each with its own view.

It knows nothing of faults.
"""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from pathlib import Path

from eventsync.record import Field, Record
from eventsync.registry import StoreRegistry
from eventsync.store import Store
from eventsync.stores.files import JsonFolderAccessor, JsonLinesAccessor
from eventsync.stores.sql import SqlAccessor
from eventsync.view import Convert, View


class Item(Record):
    """Merged per record: every store holds all of it."""

    id: int = Field(key=True)
    name: str
    amount: Decimal
    day: dt.date | None = None


class Contact(Record, rule="field"):
    """Merged per field: no store but the documents holds all of it."""

    id: int = Field(key=True)
    name: str = ""
    email: str | None = None
    balance: Decimal = Decimal(0)
    active: bool = True
    city: str = ""


def stores(folder: Path) -> StoreRegistry:
    """The stores below ``folder``, not opened."""
    left = f"sqlite:///{folder / 'left.db'}?timeout=60"
    right = f"sqlite:///{folder / 'right.db'}?timeout=60"
    return StoreRegistry(
        Store(
            "left",
            SqlAccessor(Item, left, create=True),
            SqlAccessor(
                Contact, left, create=True, view=View(only=("id", "name", "email", "active"))
            ),
        ),
        Store(
            "right",
            SqlAccessor(
                Item,
                right,
                table="article",
                create=True,
                view=View(
                    rename={"name": "title", "amount": "cents"},
                    convert={"amount": Convert(lambda v: int(v * 100), lambda v: Decimal(v) / 100)},
                ),
            ),
            SqlAccessor(
                Contact,
                right,
                table="person",
                create=True,
                view=View(
                    only=("id", "name", "balance", "city"),
                    rename={"name": "full_name"},
                    constant={"origin": "chaos"},
                ),
            ),
        ),
        Store(
            "docs",
            JsonLinesAccessor(Item, folder / "docs" / "items.jsonl"),
            JsonFolderAccessor(
                Contact, folder / "docs" / "contacts", view=View(where={"active": True})
            ),
            index=folder / "docs" / "versions.db",
        ),
    )
