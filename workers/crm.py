"""The CRM's database. It knows nothing of the other stores."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.stores.sql import SqlAccessor
from workers.records import Customer

__all__ = ["store"]


def store() -> Store:
    """Whole customers, in the table ``customer`` of an SQLite database.

    The table is created if it is missing; an existing one is used as it stands, so long as its
    columns are those of the view.
    """
    customers = SqlAccessor(
        Customer,
        "sqlite:///crm.db",
        table="customer",
        create=True,
        view=View(rename={"id": "customer_id", "name": "full_name"}),
    )
    return Store("crm", customers)
