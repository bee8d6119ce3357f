"""Record types that the tests of several packages use."""

from __future__ import annotations

from eventsync import Field, Record


class Product(Record):
    """A product, which merges per record."""

    id: int = Field(key=True)
    name: str
