"""The records of the shipped deployment. They know nothing of the stores that hold them."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum

from eventsync import Field, Record

__all__ = ["Customer", "Order", "Standing", "State"]


class Standing(StrEnum):
    """How we stand with a customer."""

    LEAD = "lead"
    ACTIVE = "active"
    FORMER = "former"


class State(StrEnum):
    """How far an order has come."""

    OPEN = "open"
    SHIPPED = "shipped"
    PAID = "paid"
    CANCELLED = "cancelled"


class Customer(Record, rule="field"):
    """Somebody who buys. Merged per field, since no store but the CRM holds all of it."""

    id: int = Field(key=True)
    name: str = Field(length=120)
    email: str | None = Field(default=None, length=254)
    city: str = Field(default="", length=80)
    standing: Standing = Standing.LEAD
    balance: Decimal = Decimal(0)
    since: date | None = None


class Order(Record, rule="field"):
    """What a customer ordered."""

    number: int = Field(key=True)
    customer: int = Field(description="The id of the one who ordered")
    placed: date | None = None
    state: State = State.OPEN
    total: Decimal = Decimal(0)
