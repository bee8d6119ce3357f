"""The database of the CRM."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.config import location
from eventsync.stores.sql import SqlAccessor
from workers.records import Customer, Order

__all__ = ["store"]


def store() -> Store:
    """Return a store of all customers and orders, in the CRM's tables and under its names.

    ``create`` creates the tables if they are missing; existing tables are used as they are. Every
    ten seconds a worker captures the edits that the CRM, or a person at an SQL prompt, made.
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
