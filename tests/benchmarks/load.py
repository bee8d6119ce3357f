"""What is published in a benchmark: changes of one record type, in chunks.

It knows nothing of brokers or stores. Loads are told to other processes, which make the changes.
"""

from __future__ import annotations

import itertools
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.customer import Customer, each_row

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT, Op
from eventsync.records.record import Record

__all__ = ["Customers", "Load", "change"]


def change(
    clock: Clock, type: type[Record], key: int, data: Mapping[str, Any] | None, *, op: Op = PUT
) -> Change:
    """A change at a fresh version."""
    return Change(
        type=type.__record__.name,
        key=str(key),
        op=op,
        version=clock.tick(),
        data=data,
        source="benchmark",
    )


@dataclass(frozen=True, kw_only=True)
class Load(ABC):
    """So many events, published ``chunk`` at a time."""

    events: int
    chunk: int = 2000

    @property
    @abstractmethod
    def type(self) -> type[Record]:
        """The type of the records."""

    @abstractmethod
    def changes(self, clock: Clock) -> Iterator[Change]:
        """The changes, in the order in which they are published."""

    def before(self, clock: Clock) -> Iterator[Change]:
        """What is in the store already."""
        return iter(())

    def chunks(self) -> Iterator[list[Change]]:
        """The changes as they are published."""
        return _in_chunks(self.changes(Clock()), self.chunk)

    def chunks_before(self) -> Iterator[list[Change]]:
        """What is in the store already, of an hour ago."""
        return _in_chunks(self.before(Clock(now=lambda: time.time() - 3600.0)), self.chunk)


def _in_chunks(changes: Iterator[Change], size: int) -> Iterator[list[Change]]:
    while chunk := list(itertools.islice(changes, size)):
        yield chunk


@dataclass(frozen=True, kw_only=True)
class Customers(Load):
    """Puts of customers, half of them new, half changing one that came before.

    ``poison``: so many of them are of a record that no store can take.
    """

    seed: int = 1
    poison: int = 0

    @property
    def type(self) -> type[Record]:
        return Customer

    def changes(self, clock: Clock) -> Iterator[Change]:
        spoilt = set(random.Random(self.seed).sample(range(self.events), self.poison))
        for number, values in enumerate(each_row(self.events, self.seed)):
            if number in spoilt:
                values = values | {"id": 10**9 + number, "balance": "no number"}
            yield change(clock, Customer, values["id"], values)
