"""The store ``crm``: the database of the CRM (customer relationship management)."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.sql import SqlAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """Return a store that keeps customers and orders in the tables of the CRM, without opening it.

    The views map the fields to the column names of the CRM. Missing tables are created; existing
    tables are used unchanged. What other programs write there is captured as it happens; every ten
    minutes a worker looks at all rows, too.
    """
    database = location("crm")
    customer = View(rename={"id": "customer_id", "name": "full_name", "since": "customer_since"})
    order = View(rename={"number": "order_id", "customer": "customer_id", "placed": "placed_on"})
    return Store(
        "crm",
        SqlAccessor(Customer, database, table="customer", create=True, view=customer),
        SqlAccessor(Order, database, table="sales_order", create=True, view=order),
        capture="auto",
        capture_every=600.0,
    )
