"""The accountants' table. It knows nothing of the other stores."""

from __future__ import annotations

from eventsync import Store, View
from eventsync.stores.files import CsvAccessor
from workers.records import Customer

__all__ = ["store"]


def store() -> Store:
    """Four fields of every customer, under the headings of a CSV file."""
    customers = CsvAccessor(
        Customer,
        "report.csv",
        view=View(
            only=("id", "name", "city", "balance"),
            rename={"id": "No.", "name": "Customer", "city": "City", "balance": "Balance"},
        ),
    )
    return Store("report", customers, index="report.versions.db")
