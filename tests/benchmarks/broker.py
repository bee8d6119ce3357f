"""Messages per second through each broker, beside its plain client in the same run.

Run it from the project's root: ``python tests/benchmarks/broker.py``. It starts servers of its own.
One process publishes first and consumes then, so that the two do not compete. Use the ratios: the
rest depends on the machine.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import sqlite3
import sys
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

import amqp
import redis
from servers import Server
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer

from eventsync.broker.bus import Bus

__all__ = ["BROKERS", "Plain", "plain_client", "running_broker", "seconds"]

BROKERS = ("embedded", "redis", "redis-always", "rabbitmq")
_QUEUE = "plain"
_WINDOW = 1000


class Plain(ABC):
    """A broker's plain client, used as its documentation shows it, with nothing left unsafe."""

    @abstractmethod
    def publish(self, bodies: Sequence[bytes]) -> None:
        """Send messages at once; they are durable when this returns."""

    @abstractmethod
    def consume(self, count: int, step: int) -> None:
        """Take that many messages, up to ``step`` at a time, and acknowledge them."""


class PlainRedis(Plain):
    """Streams: pipelined XADD; XREADGROUP with XACK and XDEL."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)
        self._client.xgroup_create(_QUEUE, "g", "0", mkstream=True)

    def publish(self, bodies: Sequence[bytes]) -> None:
        with self._client.pipeline(transaction=False) as pipe:
            for body in bodies:
                pipe.xadd(_QUEUE, {"b": body})
            pipe.execute()

    def consume(self, count: int, step: int) -> None:
        taken = 0
        while taken < count:
            ((_, entries),) = self._client.xreadgroup("g", "c", {_QUEUE: ">"}, count=step)
            ids = [id for id, _ in entries]
            with self._client.pipeline(transaction=False) as pipe:
                pipe.xack(_QUEUE, "g", *ids)
                pipe.xdel(_QUEUE, *ids)
                pipe.execute()
            taken += len(ids)


class PlainAmqp(Plain):
    """A quorum queue: confirms awaited a thousand messages apart; one acknowledgement for many."""

    def __init__(self, url: str) -> None:
        host = url.rpartition("@")[2].strip("/")
        self._connection = amqp.Connection(host)
        self._connection.connect()
        self._channel = self._connection.channel()
        self._channel.queue_declare(
            _QUEUE, durable=True, auto_delete=False, arguments={"x-queue-type": "quorum"}
        )
        self._channel.confirm_select()
        self._open = 0
        self._last = 0
        self._channel.events["basic_ack"].add(self._confirmed)

    def _confirmed(self, tag: int, multiple: bool) -> None:
        self._open -= tag - self._last if multiple else 1
        self._last = max(tag, self._last)

    def publish(self, bodies: Sequence[bytes]) -> None:
        for start in range(0, len(bodies), _WINDOW):
            some = bodies[start : start + _WINDOW]
            self._open += len(some)
            for body in some:
                self._channel._basic_publish(amqp.Message(body, delivery_mode=2), "", _QUEUE)
            while self._open > 0:
                self._connection.drain_events(timeout=30)

    def consume(self, count: int, step: int) -> None:
        taken = 0

        def take(message: amqp.Message) -> None:
            nonlocal taken
            taken += 1
            if taken % step == 0 or taken == count:
                self._channel.basic_ack(message.delivery_tag, multiple=True)

        self._channel.basic_qos(0, 2 * step, False)
        tag = self._channel.basic_consume(_QUEUE, callback=take)
        while taken < count:
            self._connection.drain_events(timeout=30)
        self._channel.basic_cancel(tag)


class PlainSqlite(Plain):
    """A table: inserted, and read and deleted, so many in one transaction."""

    def __init__(self, url: str) -> None:
        path = f"{url.removeprefix('sqlite:///')}.plain"
        self._connection = sqlite3.connect(path, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute("CREATE TABLE m (id INTEGER PRIMARY KEY, body BLOB)")

    def publish(self, bodies: Sequence[bytes]) -> None:
        self._connection.execute("BEGIN IMMEDIATE")
        self._connection.executemany("INSERT INTO m (body) VALUES (?)", [(b,) for b in bodies])
        self._connection.execute("COMMIT")

    def consume(self, count: int, step: int) -> None:
        taken = 0
        while taken < count:
            self._connection.execute("BEGIN IMMEDIATE")
            rows = self._connection.execute(
                "SELECT id, body FROM m ORDER BY id LIMIT ?", (step,)
            ).fetchall()
            self._connection.execute("DELETE FROM m WHERE id <= ?", (rows[-1][0],))
            self._connection.execute("COMMIT")
            taken += len(rows)


def plain_client(broker: str, url: str) -> Plain:
    """The plain client of a broker at its URL; its queue is made and empty."""
    if broker == "embedded":
        return PlainSqlite(url)
    return PlainAmqp(url) if broker == "rabbitmq" else PlainRedis(url)


@contextlib.contextmanager
def running_broker(broker: str) -> Iterator[str]:
    """The URL of a broker that is there for the block."""
    servers: dict[str, Callable[[], Server]] = {
        "redis": lambda: RedisServer(fsync="everysec"),
        "redis-always": lambda: RedisServer(fsync="always"),
        "rabbitmq": RabbitServer,
    }
    if broker in servers:
        with servers[broker]() as server:
            yield server.url
        return
    with tempfile.TemporaryDirectory() as folder:
        yield f"sqlite:///{folder}/broker.db"


def seconds(work: Callable[[], object]) -> float:
    """How long it takes."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def through_plain(broker: str, url: str, body: bytes, count: int, step: int) -> tuple[float, float]:
    """Seconds to publish, and to consume and acknowledge, with the plain client."""
    client = plain_client(broker, url)

    def publish() -> None:
        for _ in range(0, count, step):
            client.publish([body] * step)

    return seconds(publish), seconds(lambda: client.consume(count, step))


def through_eventsync(url: str, body: bytes, count: int, step: int) -> tuple[float, float]:
    """The same through the bus."""
    with Bus(url, message_envelopes=1) as bus:
        bus.declare("ours", ["T"])
        if bus.transport == "amqp":
            bus.publish("T", [body])  # a new queue rests before it confirms

        def publish() -> None:
            for _ in range(0, count, step):
                bus.publish("T", [body] * step)

        published = seconds(publish)
        subscription = bus.subscribe("ours", ["T"], prefetch=2 * step)

        def consume() -> None:
            taken = 0
            while taken < count:
                deliveries = subscription.fetch(timeout=30.0, limit=step)
                subscription.acknowledge(deliveries)
                taken += len(deliveries)

        consumed = seconds(consume)
        subscription.close()
    return published, consumed


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--brokers", nargs="+", choices=BROKERS, default=BROKERS)
    parser.add_argument("--count", type=int, default=50_000, help="messages in one run")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = []
    for broker in options.brokers:
        for label, length, step, share in (
            ("300 bytes, one at a time", 300, 1, 25),
            ("300 bytes, 500 at a time", 300, 500, 1),
            ("100 envelopes each, 64 at a time", 30_000, 64, 10),
        ):
            count = options.count // share // step * step
            body = os.urandom(length)
            for name in ("plain client", "eventsync"):
                with running_broker(broker) as url:
                    if name == "eventsync":
                        taken = through_eventsync(url, body, count, step)
                    else:
                        taken = through_plain(broker, url, body, count, step)
                found.append((broker, label, name, *(round(count / one) for one in taken)))
    if options.json:
        keys = ("broker", "messages", "client", "published_per_s", "consumed_per_s")
        print(json.dumps([dict(zip(keys, row, strict=True)) for row in found]))
        return 0
    print(f"{'messages/s':<62}{'publish':>10}{'consume':>10}")
    for broker, label, name, published, consumed in found:
        print(f"{f'{broker}: {label}, {name}':<62}{published:>10,}{consumed:>10,}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
