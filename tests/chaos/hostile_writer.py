"""A hostile writer beside 50,000 good changes: all of these are applied, and nothing of the other.

Run it from the project's root, for example::

    python tests/chaos/hostile_writer.py --broker redis --good 50000 --hostile 2000 --seed 7

A producer signs its changes with a key. Beside it, a program that may write to the broker, but has
no key, sends what parsers, limits and terminals fear, also in the raw form of the broker. Two
workers apply. In the end the store must hold exactly what the producer published, every hostile
message must be a dead letter or refused by the broker, no worker may have ended, and the memory of
workers and broker must be bounded. It prints a report as JSON, and exits with 1 if it is not sound.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import amqp
import msgpack
import redis as redis_client
import structlog
from servers import Server
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer

from eventsync.broker.bus import EXCHANGE, Bus, store_queue
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock, Version
from eventsync.engine.store import Store
from eventsync.envelope import batch, codec
from eventsync.envelope.codec import Keyring
from eventsync.records.record import Field, Record
from eventsync.stores.sql import SqlAccessor
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

_context = multiprocessing.get_context("forkserver")
BROKERS = ("embedded", "redis", "rabbitmq")
_KEYS = "mine:" + "QUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUFBQUE="
_STOLEN = "mine:" + "QkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkJCQkI="
_LARGEST = 2 * 1024 * 1024
_MOST_MEMORY = 300 * 1024 * 1024
"""How much a worker may take, in bytes."""
_WORKERS = 2
_COMPARED = 500


class Account(Record):
    """What the producer publishes."""

    id: int = Field(key=True)
    name: str = ""
    amount: int = 0


@dataclass(frozen=True)
class Place:
    """Where everything is, for each process to open it by itself."""

    folder: Path
    broker: str

    def bus(self, keys: str | None = _KEYS) -> Bus:
        """A bus, with the key of the producer, another key, or none."""
        ring = None if keys is None else Keyring.parse(keys)
        return Bus(self.broker, keys=ring, max_message=_LARGEST, lease=10.0)

    def store(self) -> Store:
        """The store that the changes are for."""
        return Store("ledger", SqlAccessor(Account, f"sqlite:///{self.folder}/ledger.db",
                                           create=True))  # fmt: skip


def work(place: Place) -> None:
    """Apply, as a worker process does."""
    log = (place.folder / "worker.log").open("a", buffering=1, encoding="utf-8")
    structlog.configure(
        logger_factory=structlog.PrintLoggerFactory(log),
        processors=[structlog.processors.format_exc_info, structlog.processors.JSONRenderer()],
    )
    with place.bus() as bus:
        run(Worker(place.store(), bus, options=Options(prefetch=32)), grace=20.0)


# -- the hostile writer ----------------------------------------------------------------------------

Send = Callable[[bytes, dict[str, Any], str], None]
"""Puts a body with headers and a content type into the queue."""


def _unsigned(clock: Clock, key: int, **more: Any) -> bytes:
    data = {"id": key, "name": "hostile", "amount": -1}
    given = {
        "type": "Account", "key": str(key), "op": "put", "version": clock.tick(), "data": data,
        "source": "hostile", **more,
    }  # fmt: skip
    return codec.encode(Change(**given))


def bodies(rng: random.Random, stolen: Keyring, captured: bytes) -> dict[str, bytes]:
    """Return one hostile body of each kind. ``captured``: a good message that somebody saw."""
    clock = Clock()
    key = rng.randrange(1000)
    good = _unsigned(clock, key)
    signed = codec.encode(codec.decode(good), keys=stolen)
    flipped = bytearray(captured)
    flipped[rng.randrange(len(flipped))] ^= 1 << rng.randrange(8)
    future = _unsigned(clock, key, version=Version(b"\xff" * 16))
    return {
        "unsigned": good,
        "signed with another key": signed,
        "of the future": future,
        "a changed bit": bytes(flipped),
        "cut": captured[: rng.randrange(1, len(captured))],
        "text": b"GET / HTTP/1.1\r\n\r\n",
        "terminal": b"\x1b]0;owned\x07\x9b2J" * rng.randrange(1, 50),
        "nested": b"\x91" * rng.randrange(100, 100_000),
        "a long number": b'{"a": 1e' + b"9" * rng.randrange(10, 10_000) + b"}",
        "many empty envelopes": msgpack.packb([b""] * rng.choice((10, 1000, 65_535))),
        "a batch of rubbish": next(iter(batch.batches(
            [rng.randbytes(20) for _ in range(50)], max_count=500, max_bytes=1 << 20
        ))),
        "large": rng.randbytes(1000) * 1000,
        "too large": b"z" * (_LARGEST + rng.randrange(1, 1 << 20)),
        "random": rng.randbytes(rng.randrange(1, 2000)),
        "nothing": b"",
    }  # fmt: skip


def headers(rng: random.Random) -> dict[str, Any]:
    """Return hostile headers, often none."""
    deep: Any = 1
    for _ in range(80):
        deep = [deep]
    return rng.choice(
        (
            {}, {}, {}, {}, {"compression": "application/x-gzip"}, {"x-delivery-count": "many"},
            {"a": deep}, {"a": "y" * rng.randrange(1, 60_000)}, {"traceparent": "\x1b[2J"},
            {"x-death": [{"count": 10**15}]},
        )
    )  # fmt: skip


class Hostile:
    """Writes to the broker what it likes. ``refused``: what the broker did not take."""

    def __init__(self, place: Place, server: Server | None, rng: random.Random) -> None:
        self.sent: Counter[str] = Counter()
        self.refused: Counter[str] = Counter()
        self.expected: Counter[bytes] = Counter()
        """How the raw bytes begin that letters must have, and how many letters."""
        self.batches: list[set[bytes]] = []
        """The parts of messages with many envelopes: at least one is the content of a letter."""
        self._place, self._server, self._rng = place, server, rng
        self._stolen = Keyring.parse(_STOLEN)
        self._queue = store_queue("ledger")
        self._bus = place.bus(None)
        self._raw = self._redis() if isinstance(server, RedisServer) else None

    def close(self) -> None:
        """Close the connections."""
        self._bus.close()
        if self._raw is not None:
            self._raw.close()

    def write(self, captured: bytes) -> None:
        """Send one hostile message of each kind, by each way into the broker."""
        rng = self._rng
        for kind, body in bodies(rng, self._stolen, captured).items():
            if self._try(kind, lambda body=body: self._send(body, headers(rng))):
                if kind == "a batch of rubbish":
                    parts = [body, *msgpack.unpackb(body)]
                    self.batches.append({one[:_COMPARED] for one in parts})
                else:
                    self.expected[b"" if "empty" in kind else body[:_COMPARED]] += 1
        for kind, raw in self._raw_kinds().items():
            self._try(kind, raw)

    def _try(self, kind: str, send: Callable[[], Any]) -> bool:
        try:
            send()
        except Exception:
            # The broker or its client does not take it. So it is refused at the edge.
            self.refused[kind] += 1
            return False
        self.sent[kind] += 1
        return True

    def _send(self, body: bytes, given: dict[str, Any]) -> None:
        if isinstance(self._server, RabbitServer):
            host, port = "127.0.0.1", self._server.port
            with amqp.Connection(f"{host}:{port}") as connection, connection.channel() as channel:
                channel.confirm_select()
                message = amqp.Message(
                    body, content_type=codec.CONTENT_TYPE, application_headers=given
                )
                channel.basic_publish_confirm(message, "", self._queue)
            return
        from eventsync.transports.leased.message import OutboundMessage

        message = OutboundMessage(body, self._queue, headers=given, content_type=codec.CONTENT_TYPE)
        self._bus.declare("ledger", ["Account"])
        self._bus._link._channel.publish_many([message])

    def _raw_kinds(self) -> dict[str, Callable[[], Any]]:
        """What only one kind of broker takes."""
        rng = self._rng
        if self._raw is not None:
            client, name = self._raw, f"{{eventsync}}:queue:{self._queue}"
            return {
                "a deep label": lambda: client.xadd(name, {b"[" * 100_000: b"body"}),
                "no text": lambda: client.xadd(name, {b"\xff\x00": b"\xff"}),
                "deep headers": lambda: client.xadd(
                    name, {b"a": b"body", b"headers": b"[" * 100_000}
                ),
                "many fields": lambda: client.xadd(
                    name, {str(n).encode(): b"x" for n in range(rng.randrange(10, 9_000))}
                ),
            }
        if self._server is None:
            path = self._place.folder / "broker.db"
            self._bus.declare("spare", ["Account2"])

            def row() -> None:
                """Write a row of the broker's table, and put it into the queue."""
                self._bus.send_to("spare", [rng.randbytes(20)])
                with contextlib.closing(sqlite3.connect(path, timeout=20)) as file, file:
                    column, value = rng.choice(
                        (("headers", "[" * 50_000), ("headers", rng.randbytes(100)),
                         ("content_type", b"\xff"), ("body", "text"), ("body", 7),
                         ("routing_key", "x" * 100_000))
                    )  # fmt: skip
                    queues = dict(file.execute("SELECT name, id FROM queue"))
                    ours = queues[store_queue("spare")]
                    ((id,),) = file.execute("SELECT id FROM delivery WHERE queue = ?", (ours,))
                    file.execute(f"UPDATE message SET {column} = ? WHERE id = ?", (value, id))
                    file.execute(
                        "UPDATE delivery SET queue = ? WHERE id = ?", (queues[self._queue], id)
                    )

            return {"a strange row": row}
        return {
            "a strange binding": lambda: self._bind("#.#.#.#.#.#.#.#.#.#.#.#.x" * 5),
        }

    def _bind(self, pattern: str) -> None:
        assert isinstance(self._server, RabbitServer)
        with (
            amqp.Connection(f"127.0.0.1:{self._server.port}") as connection,
            connection.channel() as channel,
        ):
            channel.queue_bind(self._queue, EXCHANGE, pattern[:255])

    def _redis(self) -> Any:
        return redis_client.Redis.from_url(self._place.broker)


# -- the run ---------------------------------------------------------------------------------------


@dataclass
class Report:
    """What a run did and found."""

    broker: str
    seed: int
    good: int = 0
    applied: int = 0
    wrong: list[str] = field(default_factory=list)
    """Records that the store lacks, holds differently, or holds although nobody published them."""
    sent: Counter[str] = field(default_factory=Counter)
    refused: Counter[str] = field(default_factory=Counter)
    letters: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    missing: int = 0
    """Hostile messages of which no letter tells."""
    unexplained: list[str] = field(default_factory=list)
    """How these messages begin."""
    waiting: int = 0
    exits: list[int] = field(default_factory=list)
    worker_memory: int = 0
    broker_memory: int = 0
    broker_bytes: int = 0
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Whether all good changes are applied, and nothing hostile did harm."""
        harmed = self.wrong or self.missing or self.waiting or self.exits
        return not harmed and self.good > 0 and self.worker_memory < _MOST_MEMORY


def _memory(pid: int | None) -> int:
    """Return the resident memory of a process and its children, in bytes."""
    total, waiting = 0, [pid] if pid else []
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            total += int(Path(f"/proc/{one}/statm").read_text().split()[1]) * 4096
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return total


def run_all(options: argparse.Namespace, folder: Path) -> Report:
    """Run producer, hostile writer and workers, and compare."""
    rng = random.Random(options.seed)
    report = Report(options.broker, options.seed)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        server: Server | None = None
        if options.broker == "redis":
            server = stack.enter_context(RedisServer())
        elif options.broker == "rabbitmq":
            server = stack.enter_context(RabbitServer())
        place = Place(folder, server.url if server else f"sqlite:///{folder}/broker.db")
        bus = stack.enter_context(place.bus())
        bus.declare("ledger", ["Account"])
        workers = [_context.Process(target=work, args=(place,)) for _ in range(_WORKERS)]
        for worker in workers:
            worker.start()
            stack.callback(worker.join)
            stack.callback(worker.kill)
        hostile = Hostile(place, server, rng)
        stack.callback(hostile.close)
        expected = _publish(options, rng, bus, hostile, workers, server, report)
        _await_rest(bus, workers, server, report)
        report.exits = [w.exitcode for w in workers if w.exitcode is not None]
        for worker in workers:
            if worker.is_alive():
                os.kill(worker.pid or 0, signal.SIGTERM)
            worker.join(30)
        report.exits += [w.exitcode for w in workers if w.exitcode not in (0, None)]
        _compare(place, expected, report)
        _count_letters(place, hostile, report)
        report.broker_bytes = sum(f.stat().st_size for f in folder.glob("broker.db*"))
    report.seconds = round(time.monotonic() - began, 1)
    return report


def _publish(
    options: argparse.Namespace,
    rng: random.Random,
    bus: Bus,
    hostile: Hostile,
    workers: list[Any],
    server: Server | None,
    report: Report,
) -> dict[int, tuple[str, int]]:
    """Publish good changes in pieces, with hostile ones in between. Return what must be held."""
    clock, expected = Clock(), {}
    every = max(1, options.good // 100 // max(1, options.hostile))
    for piece in range(options.good // 100):
        envelopes = []
        for _ in range(100):
            key, name, amount = rng.randrange(5000), f"n{rng.random()}", rng.randrange(1000)
            expected[key] = (name, amount)
            change = Change(
                type="Account", key=str(key), op="put", version=clock.tick(), source="bank",
                data={"id": key, "name": name, "amount": amount},
            )  # fmt: skip
            envelopes.append(bus.encode(change))
        bus.publish("Account", envelopes)
        report.good += 100
        if piece % every == 0 and sum(hostile.sent.values()) < options.hostile:
            hostile.write(rng.choice(envelopes))
        _sample(workers, server, report)
    while sum(hostile.sent.values()) < options.hostile:
        hostile.write(envelopes[0])
        _sample(workers, server, report)
    return expected


def _sample(workers: list[Any], server: Server | None, report: Report) -> None:
    report.worker_memory = max(report.worker_memory, *(_memory(worker.pid) for worker in workers))
    if server is not None and server.process is not None:
        report.broker_memory = max(report.broker_memory, _memory(server.process.pid))


def _await_rest(bus: Bus, workers: list[Any], server: Server | None, report: Report) -> None:
    deadline, quiet_since = time.monotonic() + 180, 0.0
    while time.monotonic() < deadline:
        _sample(workers, server, report)
        states = bus.states("ledger")
        report.waiting = states["queue"].unsettled + states["held"].unsettled
        now = time.monotonic()
        if report.waiting:
            quiet_since = 0.0
        elif not quiet_since:
            quiet_since = now
        # RabbitMQ does not say what workers have in hand.
        elif now - quiet_since > (0.0 if states["queue"].leased is not None else 5.0):
            return
        time.sleep(0.1)


def _compare(place: Place, expected: dict[int, tuple[str, int]], report: Report) -> None:
    with place.store() as store:
        held = {r["id"]: (r["name"], r["amount"]) for r in store.find(Account)}
    report.applied = len(held)
    report.wrong = [
        f"{key}: {held.get(key)} instead of {expected.get(key)}"
        for key in held.keys() | expected.keys()
        if held.get(key) != expected.get(key)
    ][:20]


def _count_letters(place: Place, hostile: Hostile, report: Report) -> None:
    report.sent, report.refused = hostile.sent, hostile.refused
    told: set[bytes] = set()
    with place.bus() as bus, bus.letters("ledger") as browser:
        while chunk := browser.read(500):
            report.letters += len(chunk)
            told.update(letter.raw[:_COMPARED] for letter, _ in chunk)
            hostile.expected.subtract(letter.raw[:_COMPARED] for letter, _ in chunk)
            report.reasons.update(letter.reason for letter, _ in chunk)
            browser.settle(delivery for _, delivery in chunk)
    # Of a message with many envelopes there may be several letters, so count each by its content.
    left = {raw: count for raw, count in hostile.expected.items() if count > 0}
    report.missing = sum(left.values()) + sum(told.isdisjoint(one) for one in hostile.batches)
    report.unexplained = [repr(raw[:60]) for raw in left][:10]


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else "")
    parser.add_argument("--broker", choices=BROKERS, default="embedded")
    parser.add_argument("--good", type=int, default=50_000, help="changes of the producer")
    parser.add_argument("--hostile", type=int, default=2000, help="messages, about")
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="hostile-"))
    try:
        report = run_all(options, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    shown = vars(report) | {"sound": report.sound}
    print(json.dumps(shown, default=str))
    return 0 if report.sound else 1


if __name__ == "__main__":
    sys.exit(main())
