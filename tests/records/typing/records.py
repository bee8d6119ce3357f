"""What a type checker sees of a declared record; read by ``test_record.py``, never run.

An ignore that is not needed is an error of its own, so each says that the line is refused.
"""

from __future__ import annotations

from decimal import Decimal
from typing import assert_type

from eventsync.records.record import Field, Record


class Customer(Record, name="customer", rule="field", schema=2):
    """A declared record type."""

    id: int = Field(key=True)
    name: str = Field(length=120)
    balance: Decimal = Decimal(0)
    tags: list[str] = Field(default_factory=list)


customer = Customer(id=1, name="Ann")
assert_type(customer.name, str)
assert_type(customer.balance, Decimal)
assert_type(customer.tags, list[str])
assert_type(customer.copy(id=2), Customer)
assert_type(Customer.load({"id": 1}, partial=True), Customer)
customer.name = "Bob"
customer.name = 5  # type: ignore[assignment]
Customer(id=1)  # type: ignore[call-arg]
Customer(id="1", name="Ann")  # type: ignore[arg-type]
Customer(id=1, name="Ann", age=3)  # type: ignore[call-arg]
