"""The contract of a plain driver at its best, and how the fastest of its ways is found.

It knows no database.
"""

from __future__ import annotations

import hashlib
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from typing import Any, ClassVar

from eventsync.records.record import Record

__all__ = ["BATCHES", "Fastest", "Raw", "Row", "Way", "Ways", "Write", "fastest", "opened", "rate"]

BATCHES = (500, 2000, 5000)

Row = dict[str, Any]
Stamped = Sequence[tuple[Row, bytes]]
"""Rows, each with its stamp of 49 bytes; a greater one is newer."""
Write = Callable[[Stamped], None]


class Way(StrEnum):
    """What is looked at before a row is written."""

    PLAIN = "no version"
    IN_ROW = "a version in the row"
    TABLES = "versions in a table of their own"
    """As eventsync has to, which may not add a column to a table that is another's."""


Ways = Mapping[Way, Sequence[str]]


class Raw(ABC):
    """The plain driver of a database, connected. Only the newest of a record's rows stays."""

    ways: ClassVar[Ways]
    """How rows may be written, the names of the methods that make a ``Write``, by what is looked
    at before."""

    def __init__(self, url: str, type: type[Record]) -> None:
        self.url = url
        self.fields = type.__record__.fields
        self.names = list(self.fields)
        self.type = type.__record__.name

    @abstractmethod
    def prepare(self, way: Way) -> None:
        """Have the tables there, and empty."""

    @abstractmethod
    def close(self) -> None:
        """Disconnect."""


@dataclass(frozen=True)
class Fastest:
    """The fastest of the ways to write with a plain driver, and how many rows a second it made."""

    way: Way
    how: str
    batch: int
    rate: float


@contextmanager
def opened(store: str, url: str, type: type[Record]) -> Iterator[Raw]:
    """The plain driver of a store, ``sqlite``, ``postgres``, ``mariadb`` or ``redis``."""
    from benchmarks.limit.mariadb import Mariadb
    from benchmarks.limit.postgres import Postgres
    from benchmarks.limit.redis import Redis
    from benchmarks.limit.sqlite import Sqlite

    kinds = {"sqlite": Sqlite, "postgres": Postgres, "mariadb": Mariadb, "redis": Redis}
    raw = kinds[store](url, type)
    try:
        yield raw
    finally:
        raw.close()


def stamped(rows: Sequence[Row], *, first: int = 0) -> list[tuple[Row, bytes]]:
    """The rows with the stamps that changes to them would have, each newer than the last."""
    found = []
    for number, row in enumerate(rows, start=first):
        text = number.to_bytes(16, "big")
        found.append((row, text + b"\1" + hashlib.sha256(text).digest()))
    return found


def rate(
    raw: Raw,
    rows: Iterable[Row],
    *,
    way: Way,
    how: str,
    batch: int,
    before: Sequence[Row] = (),
    each: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> float:
    """Rows per second, the conversion of values included; they are taken batch by batch.

    ``before``: what the tables hold already. ``each``: all changes of a record in a batch are
    written, not the last one only, as workers do it.
    """
    raw.prepare(way)
    if before:
        getattr(raw, raw.ways[way][0])(way)(stamped(before))
    write: Write = getattr(raw, how)(way)
    source, first, written, spent = iter(rows), len(before), 0, 0.0
    while some := list(islice(source, batch)):
        made = stamped(some, first=first + written)
        started = clock()
        write(made if each else list({one[0]["id"]: one for one in made}.values()))
        spent += clock() - started
        written += len(made)
    return written / spent


def fastest(
    raw: Raw,
    rows: Sequence[Row],
    *,
    way: Way,
    hows: Sequence[str] = (),
    batches: Sequence[int] = BATCHES,
    before: Sequence[Row] = (),
    each: bool = False,
) -> Fastest:
    """The fastest of all that can be tried, each once; ``hows``: not the usual ones."""
    found = []
    for how in hows or raw.ways[way]:
        for batch in batches:
            made = rate(raw, rows, way=way, how=how, batch=batch, before=before, each=each)
            found.append(Fastest(way, how, batch, made))
    return max(found, key=lambda one: one.rate)
