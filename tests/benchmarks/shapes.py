"""Events of unusual shape, through Redis into PostgreSQL, beside psycopg on the same tables.

- a hot key: one record changes again and again. A worker writes only the last change of a batch;
  psycopg writes each of them, for it is not told beforehand which will be the last.
- wide records, of 200 fields; large ones, of a text of 100 KB
- deletes: the rows go, the versions stay
- patches, under the per-field rule: two of twelve fields. eventsync keeps a version of each field
  then; psycopg keeps one of the record.
"""

from __future__ import annotations

import random
import statistics
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from decimal import Decimal
from pathlib import Path
from typing import Any

from benchmarks import limit
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, row
from benchmarks.database import emptied, running_store
from benchmarks.limit.postgres import Postgres
from benchmarks.load import Load, change
from benchmarks.passage import passed
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import DELETE, PATCH
from eventsync.records.record import Field, Record

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("shape", "shape"),
    Column("events", "events"),
    Column("applied_per_s", "applied/s"),
    Column("raw_per_s", "raw, same tables"),
    Column("ratio", "ratio", 2),
    Column("raw_how", "raw, how"),
)
_KINDS: Sequence[type] = (str, str, int, float, Decimal)
_WIDTH = 200
_LENGTH = 100_000


Wide = Record.derive(
    "Wide",
    {"id": Field(type=int, key=True)}
    | {
        f"field{number:03}": Field(type=_KINDS[number % len(_KINDS)]) for number in range(1, _WIDTH)
    },
)
Patched = Record.derive("Patched", Customer.__record__.fields, rule="field")


class Document(Record):
    id: int = Field(key=True)
    body: str


@dataclass(frozen=True, kw_only=True)
class Shape(Load):
    """A load, and what psycopg writes in its place."""

    name: str = ""
    hows: Sequence[str] = ()
    batches: Sequence[int] = limit.BATCHES
    each: bool = False

    def rows(self) -> Iterator[limit.Row]:
        """The rows, as far as they change something."""
        raise NotImplementedError

    def rows_before(self) -> Iterator[limit.Row]:
        """The rows that are there already."""
        return iter(())

    def changes(self, clock: Clock) -> Iterator[Change]:
        for values in self.rows():
            yield change(clock, self.type, values["id"], values)

    def before(self, clock: Clock) -> Iterator[Change]:
        for values in self.rows_before():
            yield change(clock, self.type, values["id"], values)


@dataclass(frozen=True, kw_only=True)
class HotKey(Shape):
    name: str = "a hot key"
    hows: Sequence[str] = ("one_by_one",)
    each: bool = True

    @property
    def type(self) -> type[Record]:
        return Customer

    def rows(self) -> Iterator[limit.Row]:
        rng = random.Random(3)
        return (row(rng, 1) for _ in range(self.events))


@dataclass(frozen=True, kw_only=True)
class WideRecords(Shape):
    name: str = f"{_WIDTH} fields"
    batches: Sequence[int] = (200, 1000)

    @property
    def type(self) -> type[Record]:
        return Wide

    def rows(self) -> Iterator[limit.Row]:
        rng = random.Random(3)
        made = {str: lambda: f"text {rng.randrange(10**9)}", int: lambda: rng.randrange(10**9)}
        made |= {float: rng.random, Decimal: lambda: Decimal(rng.randrange(10**9)) / 100}
        kinds = {name: field.type for name, field in Wide.__record__.fields.items()}
        for number in range(self.events):
            yield {name: made[kind]() for name, kind in kinds.items()} | {"id": number}


@dataclass(frozen=True, kw_only=True)
class LargeValues(Shape):
    name: str = "100 KB"
    batches: Sequence[int] = (20, 100)

    @property
    def type(self) -> type[Record]:
        return Document

    def rows(self) -> Iterator[limit.Row]:
        rng = random.Random(3)
        for number in range(self.events):
            yield {"id": number, "body": rng.randbytes(_LENGTH // 2).hex()}


@dataclass(frozen=True, kw_only=True)
class Deletes(Shape):
    name: str = "deletes"
    hows: Sequence[str] = ("deletes",)

    @property
    def type(self) -> type[Record]:
        return Customer

    def rows(self) -> Iterator[limit.Row]:
        return ({"id": number} for number in range(self.events))

    def rows_before(self) -> Iterator[limit.Row]:
        rng = random.Random(3)
        return (row(rng, number) for number in range(self.events))

    def changes(self, clock: Clock) -> Iterator[Change]:
        for number in range(self.events):
            yield change(clock, Customer, number, None, op=DELETE)


@dataclass(frozen=True, kw_only=True)
class Patches(Deletes):
    name: str = "patches, per field"
    hows: Sequence[str] = ("patches",)

    @property
    def type(self) -> type[Record]:
        return Patched

    def rows(self) -> Iterator[limit.Row]:
        for number in range(self.events):
            yield {"id": number, "visits": number * 3, "balance": Decimal(number) / 4}

    def changes(self, clock: Clock) -> Iterator[Change]:
        for values in self.rows():
            key = values.pop("id")
            yield change(clock, Patched, key, values, op=PATCH)


class Shaped(Postgres):
    """psycopg, for changes that are no upserts of whole rows."""

    def deletes(self, way: limit.Way) -> limit.Write:
        """COPY of keys; one statement, which puts the versions and deletes those that won."""
        won = f"WITH won AS ({self.newer_entries(presence=2)} RETURNING key)"
        gone = f"{won} DELETE FROM {self.table} USING incoming i JOIN won ON won.key = i.entry"
        return self.staged([f"{gone} WHERE {self.table}.id = i.id"], ["id"])

    def patches(self, way: limit.Way) -> limit.Write:
        """COPY of what changed; one statement, which puts the versions and those that won."""
        won = f"WITH won AS ({self.newer_entries()} RETURNING key)"
        changed = (
            f"{won} UPDATE {self.table} SET visits = i.visits, balance = i.balance"
            f" FROM incoming i JOIN won ON won.key = i.entry WHERE {self.table}.id = i.id"
        )
        return self.staged([changed], ["id", "visits", "balance"])


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    rounds: int = 2
    shapes: Sequence[Shape] = (
        HotKey(events=10_000),
        WideRecords(events=2_000, chunk=200),
        LargeValues(events=400, chunk=20),
        Deletes(events=20_000),
        Patches(events=20_000),
    )


QUICK = Scale(
    rounds=1,
    shapes=(
        HotKey(events=1_000),
        WideRecords(events=200, chunk=200),
        LargeValues(events=40, chunk=20),
        Deletes(events=1_000),
        Patches(events=1_000),
    ),
)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each shape; tells each when it is known."""
    found = []
    with (
        tempfile.TemporaryDirectory() as name,
        running_store("postgres", Path(name)) as url,
    ):
        for shape in scale.shapes:
            found.append(_measured(shape, url, scale.rounds))
            tell(found[-1])
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    title = "events applied a second, of those that the plain driver writes to the same tables"
    return [Bars(title, {row["shape"]: {"": row["ratio"]} for row in rows}, digits=2, target=1.0)]


def _measured(shape: Shape, url: str, rounds: int) -> dict[str, Any]:
    rows, before = list(shape.rows()), list(shape.rows_before())
    way = limit.Way.TABLES
    raw_rates, rates = [], []
    best: limit.Fastest | None = None
    for _ in range(rounds):
        raw = Shaped(emptied(url), shape.type)
        tried = [best.batch] if best else shape.batches
        hows = [best.how] if best else shape.hows
        best = limit.fastest(
            raw, rows, way=way, hows=hows, batches=tried, before=before, each=shape.each
        )
        raw.close()
        raw_rates.append(best.rate)
        with running_broker("redis-always") as broker:
            passage = passed(shape, broker, emptied(url))
        assert not passage.dead, passage
        rates.append(passage.rate)
    assert best is not None
    raw_rate, rate = statistics.median(raw_rates), statistics.median(rates)
    return {
        "shape": shape.name,
        "events": shape.events,
        "applied_per_s": round(rate),
        "raw_per_s": round(raw_rate),
        "ratio": round(rate / raw_rate, 3),
        "raw_how": f"{best.how}, {best.batch} rows",
        "outcomes": passage.outcomes,
    }
