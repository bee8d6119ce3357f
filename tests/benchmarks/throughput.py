"""Published-to-applied events per second, beside what the broker and the store take by themselves.

For some brokers and stores: ``python tests/benchmarks/throughput.py --broker embedded --store
sqlite``; for all: ``run.py --only throughput``.

One publisher process and one worker process; servers of its own. The raw limits are measured in the
same run, by turns with it: the same rows, in the same order, in bulk upserts with the plain driver,
by the fastest of some ways and sizes of batches, without a version check, with a version in the
row, and with the same versions in the same tables as eventsync has them; the same messages with the
broker's plain client. Of several rounds the median counts. With ``--metrics`` the worker reports
each batch, as a supervised one does, and is scraped each second. Where others work too, the
worker's processor time an event says the most.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from benchmarks import limit, table
from benchmarks.broker import BROKERS, plain_client, running_broker, seconds
from benchmarks.customer import Customer, rows
from benchmarks.database import STORES, emptied, running_store
from benchmarks.load import Customers
from benchmarks.passage import Passage, passed
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

from eventsync.broker.bus import Bus
from eventsync.envelope import batch

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("broker", "broker"),
    Column("store", "store"),
    Column("applied_per_s", "applied/s"),
    Column("raw_tables_per_s", "raw, same tables"),
    Column("ratio_tables", "ratio", 2),
    Column("raw_in_row_per_s", "raw, version in row"),
    Column("ratio_in_row", "ratio", 2),
    Column("raw_plain_per_s", "raw, no version"),
    Column("ratio_plain", "ratio", 2),
    Column("raw_broker_per_s", "raw broker"),
    Column("ratio_broker", "ratio", 3),
    Column("cpu_us", "worker, µs an event"),
)
_KEYS = {limit.Way.PLAIN: "plain", limit.Way.IN_ROW: "in_row", limit.Way.TABLES: "tables"}


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done."""

    events: int = 40_000
    rounds: int = 3
    brokers: Sequence[str] = ("embedded", "redis-always", "rabbitmq")
    stores: Sequence[str] = STORES
    batches: Sequence[int] = limit.BATCHES
    """Of the raw limits."""
    poison: int = 0
    metrics: bool = False


QUICK = Scale(events=4_000, rounds=1, batches=(2000,))


@dataclass
class _Store:
    """A running store, the fastest ways into it, and what each round found."""

    url: str
    ways: list[limit.Fastest]
    rates: dict[limit.Way, list[float]] = field(default_factory=lambda: defaultdict(list))


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each pair of a broker and a store; tells each when it is known."""
    made = rows(scale.events, 1)
    load = Customers(events=scale.events, poison=scale.poison)
    found = []
    broker_rates = {name: _broker_rate(name, load) for name in scale.brokers}
    with ExitStack() as brokers:
        # They are empty again after each passage.
        urls = {name: brokers.enter_context(running_broker(name)) for name in scale.brokers}
        for name in scale.stores:
            with ExitStack() as stack:
                folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
                store = stack.enter_context(_known(name, folder, made, scale))
                ours: dict[str, list[Passage]] = defaultdict(list)
                for _ in range(scale.rounds):
                    _again(name, store, made)
                    for broker, url in urls.items():
                        target = emptied(store.url)
                        ours[broker].append(passed(load, url, target, metrics=scale.metrics))
            for broker, rate in broker_rates.items():
                found.append(_row(broker, name, ours[broker], store, rate, scale))
                tell(found[-1])
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    groups: dict[str, dict[str, float]] = defaultdict(dict)
    for row in rows:
        groups[row["store"]][row["broker"]] = row["ratio_tables"]
    title = "events applied a second, of the rows that the plain driver writes to the same tables"
    return [Bars(title, groups, digits=2, target=1.0)]


@contextmanager
def _known(name: str, folder: Path, made: Sequence[limit.Row], scale: Scale) -> Iterator[_Store]:
    """A running store, of which is known how it is written to at its fastest."""
    with running_store(name, folder) as url:
        with limit.opened(name, url, Customer) as raw:
            ways = [limit.fastest(raw, made, way=way, batches=scale.batches) for way in limit.Way]
        yield _Store(url, ways)


def _again(name: str, store: _Store, made: Sequence[limit.Row]) -> None:
    with limit.opened(name, emptied(store.url), Customer) as raw:
        for one in store.ways:
            rate = limit.rate(raw, made, way=one.way, how=one.how, batch=one.batch)
            store.rates[one.way].append(rate)


def _broker_rate(broker: str, load: Customers) -> float:
    """Envelopes a second published, and consumed at once, with the plain client, in messages as
    eventsync's own: what passes where one process does the one and then the other."""
    bus = Bus("sqlite://")
    chunks = [
        list(batch.batches(map(bus.encode, chunk), max_count=500, max_bytes=512 * 1024))
        for chunk in load.chunks()
    ]
    with running_broker(broker) as url:
        client = plain_client(broker, url)
        published = seconds(lambda: [client.publish(bodies) for bodies in chunks])
        consumed = seconds(lambda: client.consume(sum(map(len, chunks)), len(chunks[0])))
    # Two processes do this side by side: the slower of them sets the pace.
    return load.events / max(published, consumed)


def _row(
    broker: str,
    store: str,
    ours: Sequence[Passage],
    known: _Store,
    broker_rate: float,
    scale: Scale,
) -> dict[str, Any]:
    rate = statistics.median(one.rate for one in ours)
    found: dict[str, Any] = {
        "broker": broker,
        "store": store,
        "events": scale.events,
        "applied_per_s": round(rate),
        "cpu_us": round(statistics.median(one.cpu for one in ours) * 1e6, 1),
        "raw_broker_per_s": round(broker_rate),
        "ratio_broker": round(rate / broker_rate, 4),
        "outcomes": ours[-1].outcomes,
        "dead_letters": ours[-1].dead,
    }
    for one in known.ways:
        raw, key = statistics.median(known.rates[one.way]), _KEYS[one.way]
        found[f"raw_{key}_per_s"] = round(raw)
        found[f"ratio_{key}"] = round(rate / raw, 3)
        found[f"raw_{key}_how"] = f"{one.how}, {one.batch} rows"
    return found


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--broker", nargs="+", choices=BROKERS, default=["embedded"])
    parser.add_argument("--store", nargs="+", choices=STORES, default=["sqlite"])
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--poison", type=int, default=0, help="of them cannot be applied")
    parser.add_argument("--metrics", action="store_true", help="report batches, and be scraped")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    scale = Scale(
        events=options.events,
        rounds=options.rounds,
        brokers=options.broker,
        stores=options.store,
        poison=options.poison,
        metrics=options.metrics,
    )
    found = measure(lambda row: None, scale)
    print(json.dumps(found) if options.json else table.text(COLUMNS, found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
