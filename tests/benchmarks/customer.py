"""The record that benchmarks and long chaos runs send: twelve fields of mixed types.

It knows nothing of stores or brokers.
"""

from __future__ import annotations

import datetime as dt
import random
from collections.abc import Iterator
from decimal import Decimal
from typing import Any
from uuid import UUID

from eventsync.records.record import Field, Record

__all__ = ["COLUMNS", "Customer", "each_row", "row", "rows"]

_CITIES = ["Łódź", "Zürich", "Reykjavík", "Paris", "São Paulo"]
_COUNTRIES = ["PL", "CH", "IS", "FR", "BR"]


class Customer(Record):
    """Twelve fields of mixed types, about 300 bytes as JSON."""

    id: int = Field(key=True)
    name: str
    email: str
    street: str
    city: str
    country: str
    balance: Decimal
    visits: int
    score: float
    active: bool
    born: dt.date
    token: UUID


COLUMNS = list(Customer.__record__.fields)


def row(rng: random.Random, key: int) -> dict[str, Any]:
    """The values of one customer."""
    return {
        "id": key,
        "name": f"Customer Number {key} of the {rng.randrange(10**6)} Street Band",
        "email": f"customer.{key}@example.org",
        "street": f"{rng.randrange(1, 300)} Long Straight Avenue, Building {key % 40}",
        "city": rng.choice(_CITIES),
        "country": rng.choice(_COUNTRIES),
        "balance": Decimal(rng.randrange(-(10**7), 10**7)) / 100,
        "visits": rng.randrange(10**6),
        "score": rng.random(),
        "active": rng.random() < 0.5,
        "born": dt.date(1950, 1, 1) + dt.timedelta(days=rng.randrange(20000)),
        "token": UUID(int=rng.getrandbits(128)),
    }


def rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Half of the rows are new records, half change one that came before."""
    return list(each_row(count, seed))


def each_row(count: int, seed: int) -> Iterator[dict[str, Any]]:
    """As ``rows``, one after the other."""
    rng = random.Random(seed)
    for number in range(count):
        yield row(rng, number // 2 if number % 2 == 0 else rng.randrange(number // 2 + 1))
