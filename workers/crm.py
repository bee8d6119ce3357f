"""The CRM's database. It knows nothing of the other stores."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.sql import SqlAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """All of customers and orders, in the tables that the CRM has for them, under its own names.

    ``create`` makes the tables if they are missing; existing ones are used as they stand. Every
    ten seconds a worker looks for edits that the CRM, or somebody at its prompt, made.
    """
    database = location("crm")
    customer = View(rename={"id": "customer_id", "name": "full_name", "since": "customer_since"})
    order = View(rename={"number": "order_id", "customer": "customer_id", "placed": "placed_on"})
    return Store(
        "crm",
        SqlAccessor(Customer, database, table="customer", create=True, view=customer),
        SqlAccessor(Order, database, table="sales_order", create=True, view=order),
        capture_every=10.0,
    )
