"""The record types of the shipped deployment. They do not depend on the stores."""

from __future__ import annotations

from datetime import date
from decimal import Decimal
from enum import StrEnum

from eventsync import Field, Record

__all__ = ["Customer", "Order", "Standing", "State"]


class Standing(StrEnum):
    """The relation of a customer to the company: not yet, currently, or no longer a customer."""

    LEAD = "lead"
    ACTIVE = "active"
    FORMER = "former"


class State(StrEnum):
    """The state of an order."""

    OPEN = "open"
    SHIPPED = "shipped"
    PAID = "paid"
    CANCELLED = "cancelled"


class Customer(Record, rule="field"):
    """A customer. Changes are merged per field, because only the store ``crm`` holds all fields."""

    id: int = Field(key=True)
    name: str = Field(length=120)
    email: str | None = Field(default=None, length=254)
    city: str = Field(default="", length=80)
    standing: Standing = Standing.LEAD
    balance: Decimal = Decimal(0)
    since: date | None = None


class Order(Record, rule="field"):
    """An order of a customer. Changes are merged per field."""

    number: int = Field(key=True)
    customer: int = Field(description="The id of the customer")
    placed: date | None = None
    state: State = State.OPEN
    total: Decimal = Decimal(0)
