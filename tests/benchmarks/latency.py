"""How long an event takes from where it is committed until others see it in PostgreSQL.

Events come by a schedule that waits for nobody: one that is sent late, since the one before took
long, counts from when it was due. What is due at once is sent in one call. One worker process.
``commit``: from where the call returned that published or edited. ``due``: from the schedule.

When an event is seen tells PostgreSQL itself: a trigger notifies of each row, notifications go out
when the transaction has committed and is visible, and a process of its own listens. Nothing polls.

Three ways in: ``Bus.publish``; an edit through a store in SQLite, which commits there and publishes
from the outbox before it returns; and an edit in a transaction of the caller's, which a relay
process publishes. Beside them the plain clients of Redis and PostgreSQL do the same: XADD, a
process that blocks on XREADGROUP, one statement that looks at the version, puts it and the row,
XACK and XDEL.
"""

from __future__ import annotations

import math
import multiprocessing
import pickle
import random
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
import redis
from benchmarks import limit, process
from benchmarks.broker import running_broker
from benchmarks.customer import Customer, row
from benchmarks.database import running_store
from benchmarks.deployment import made, table_of
from benchmarks.plot import Bars, Panel
from benchmarks.sender import QUEUE, Editing, Plain, Publishing, Relayed, Sender
from benchmarks.table import Column, Tell
from support.waiting import eventually

from eventsync.broker.bus import Bus

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "paced", "panels", "percentile"]

COLUMNS = (
    Column("way", "way"),
    Column("broker", "broker"),
    Column("per_s", "events/s"),
    Column("p50_ms", "p50 from commit, ms", 1),
    Column("p99_ms", "p99", 1),
    Column("due_p50_ms", "p50 from due, ms", 1),
    Column("due_p99_ms", "p99", 1),
    Column("raw_p50_ms", "raw p50 from due, ms", 1),
    Column("ratio", "ratio", 1),
)
_TELL = f"""
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('seen', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON {table_of(Customer)}
FOR EACH ROW EXECUTE FUNCTION tell();
"""
_WARM = 20


@dataclass(frozen=True, kw_only=True)
class Scale:
    """For how many seconds each pace, in events a second, is kept; which of them for edits."""

    seconds: tuple[tuple[int, float], ...] = ((10, 15.0), (100, 10.0), (1000, 8.0))
    brokers: tuple[str, ...] = ("redis-always", "embedded", "rabbitmq")
    edit_paces: tuple[int, ...] = (10, 100)


QUICK = Scale(seconds=((10, 2.0), (100, 2.0), (1000, 2.0)), edit_paces=(100,))


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each way in, broker and pace; tells each when it is known."""
    raw: dict[int, float] = {}
    found = []

    def note(one: dict[str, Any]) -> None:
        if one["way"] == Plain.way:
            raw[one["per_s"]] = one["due_p50_ms"]
        one["raw_p50_ms"] = raw[one["per_s"]]
        one["ratio"] = round(one["due_p50_ms"] / raw[one["per_s"]], 2)
        found.append(one)
        tell(one)

    for one in _plainly(scale):
        note(one)
    for number, broker in enumerate(scale.brokers):
        with (
            _target() as store,
            running_broker(broker) as url,
            _listener(store) as listener,
            Bus(url) as bus,
            process.workers(1, broker=url, store=store),
        ):
            bus.declare("crm", ["Customer"])
            for one in _at_paces(Publishing(bus), broker, listener, scale.seconds):
                note(one)
            if number == 0:
                for one in _edited(bus, url, broker, listener, scale):
                    note(one)
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    groups = {
        f"{row['way']}, {row['broker']}, {row['per_s']:,}/s": {
            "p50": row["due_p50_ms"],
            "p99": row["due_p99_ms"],
        }
        for row in rows
    }
    title = "milliseconds from when an event was due until it is seen (logarithmic)"
    return [Bars(title, groups, digits=1, logarithmic=True)]


def _plainly(scale: Scale) -> Iterator[dict[str, Any]]:
    broker = scale.brokers[0]
    with _target() as store, running_broker(broker) as url, _listener(store) as listener:
        context = multiprocessing.get_context("spawn")
        with redis.Redis.from_url(url) as client:
            client.xgroup_create(QUEUE, "g", "0", mkstream=True)
        worker = context.Process(target=_work_plainly, args=(url, store), daemon=True)
        worker.start()
        try:
            yield from _at_paces(Plain(url), broker, listener, scale.seconds)
        finally:
            worker.kill()
            worker.join()


def _edited(
    bus: Bus, url: str, broker: str, listener: _Listener, scale: Scale
) -> Iterator[dict[str, Any]]:
    paces = [(pace, seconds) for pace, seconds in scale.seconds if pace in scale.edit_paces]
    with tempfile.TemporaryDirectory() as folder:
        shop = f"sqlite:///{folder}/shop.db"
        yield from _at_paces(Editing(bus, shop), broker, listener, paces)
        with process.relays(broker=url, store=shop):
            yield from _at_paces(Relayed(bus, shop), broker, listener, paces)


def _at_paces(
    sender: Sender, broker: str, listener: _Listener, paces: Sequence[tuple[int, float]]
) -> Iterator[dict[str, Any]]:
    rng = random.Random(7)

    def new() -> dict[str, Any]:
        listener.expected += 1
        return row(rng, listener.expected)

    for _ in range(_WARM):
        sender.send([new()])
        listener.wait()
    for pace, seconds in paces:
        rows = [new() for _ in range(round(pace * seconds))]
        due, committed = paced(sender, rows, pace)
        listener.wait()
        seen = listener.taken()
        from_commit = [seen[number] - committed[number] for number in due]
        from_due = [seen[number] - due[number] for number in due]
        yield {
            "way": sender.way,
            "broker": broker,
            "per_s": pace,
            "events": len(rows),
            "p50_ms": percentile(from_commit, 0.50),
            "p99_ms": percentile(from_commit, 0.99),
            "due_p50_ms": percentile(from_due, 0.50),
            "due_p99_ms": percentile(from_due, 0.99),
            "due_max_ms": percentile(from_due, 1.0),
        }


def paced(
    sender: Sender, rows: Sequence[dict[str, Any]], pace: int
) -> tuple[dict[int, float], dict[int, float]]:
    """Send the rows at a pace; when each was due, and when the call that sent it returned."""
    due: dict[int, float] = {}
    committed: dict[int, float] = {}
    began = time.monotonic() + 0.1
    sent = 0
    while sent < len(rows):
        time.sleep(max(0.0, began + sent / pace - time.monotonic()))
        until = min(len(rows), int((time.monotonic() - began) * pace) + 1)
        some = rows[sent:until]
        if not some:
            continue  # woken a moment too early
        sender.send(some)
        returned = time.monotonic()
        for number, one in enumerate(some, start=sent):
            due[one["id"]] = began + number / pace
            committed[one["id"]] = returned
        sent = until
    return due, committed


def percentile(seconds: Sequence[float], share: float) -> float:
    """That of the sorted values, in milliseconds, which that share of them does not exceed."""
    ranked = sorted(seconds)
    return round(ranked[math.ceil(share * len(ranked)) - 1] * 1000, 2)


# -- the other processes -------------------------------------------------------------------------


@contextmanager
def _target() -> Iterator[str]:
    """A PostgreSQL server with eventsync's tables, which tells of each row."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        url = stack.enter_context(running_store("postgres", folder))
        made(url, Customer).open().close()
        with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
            connection.execute(_TELL)
        yield url


class _Listener:
    """The process that is told, and what it has seen so far."""

    def __init__(self, url: str) -> None:
        context = multiprocessing.get_context("spawn")
        self._seen = context.Value("q", 0)
        self._pipe, theirs = context.Pipe()
        self.process = context.Process(target=_listen, args=(url, self._seen, theirs), daemon=True)
        self.process.start()
        self._pipe.recv()
        self.expected = 0

    def wait(self) -> None:
        """Wait until all that is expected was seen."""
        eventually(
            lambda: self._seen.value >= self.expected, timeout=120.0, what="all events are seen"
        )

    def taken(self) -> dict[int, float]:
        """When each record was seen, of those not taken yet."""
        self._pipe.send(None)
        seen: dict[int, float] = self._pipe.recv()
        return seen


@contextmanager
def _listener(url: str) -> Iterator[_Listener]:
    listener = _Listener(url)
    try:
        yield listener
    finally:
        listener.process.kill()
        listener.process.join()


def _listen(url: str, count: Any, pipe: Any) -> None:
    seen: dict[int, float] = {}
    with psycopg.connect(url.replace("+psycopg", ""), autocommit=True) as connection:
        connection.execute("LISTEN seen")
        pipe.send(None)
        while True:
            for notified in connection.notifies(timeout=0.1):
                seen[int(notified.payload)] = time.monotonic()
                count.value += 1
            if pipe.poll():
                pipe.recv()
                pipe.send(seen)
                seen = {}


def _work_plainly(broker: str, store: str) -> None:
    client = redis.Redis.from_url(broker)
    number = 0
    with limit.opened("postgres", store, Customer) as raw:
        write = raw.one_by_one(limit.Way.TABLES)
        while True:
            answer = client.xreadgroup("g", "c", {QUEUE: ">"}, count=500, block=1000)
            if not answer:
                continue
            ids, rows = [], []
            for id, fields in answer[0][1]:
                ids.append(id)
                number += 1
                rows.append((pickle.loads(fields[b"b"]), number.to_bytes(16, "big") + bytes(33)))
            write(rows)
            with client.pipeline(transaction=False) as pipe:
                pipe.xack(QUEUE, "g", *ids)
                pipe.xdel(QUEUE, *ids)
                pipe.execute()
