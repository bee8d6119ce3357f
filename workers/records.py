"""The records of the shipped deployment. They know nothing of the stores that hold them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal

from eventsync import Field, Record

__all__ = ["Customer"]


class Customer(Record, rule="field"):
    """Somebody who buys. Merged per field, since no store but the CRM holds all of it."""

    id: int = Field(key=True)
    name: str = Field(length=120)
    email: str | None = Field(default=None, length=254)
    city: str = ""
    balance: Decimal = Decimal(0)
    since: date | None = None
    active: bool = True
