"""Messages per second through a broker: published and consumed, one by one and in batches.

Run it from the project's root: ``python tests/benchmarks/transport.py redis://localhost/9`` (it
deletes the queue ``benchmark`` there). For a Redis URL the plain client does the same beside it in
the same run, pipelined XADD, and XREADGROUP with XACK and XDEL. Use the ratio: the rest depends on
the machine. One process, publishing first and then consuming, so that the two do not compete.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from eventsync.bus import Bus
from eventsync.transports.message import Outgoing

QUEUE = "benchmark"


def batches(count: int, size: int, body: bytes) -> Iterator[list[bytes]]:
    """The bodies to publish, in steps of ``size``."""
    for start in range(0, count, size):
        yield [body] * min(size, count - start)


def through_eventsync(url: str, body: bytes, count: int, size: int) -> tuple[float, float]:
    """Seconds to publish, and to consume and acknowledge."""
    connection = Bus(url)._new_connection()
    channel = connection.default_channel
    channel.queue_declare(QUEUE, durable=True)
    channel.queue_purge(QUEUE)
    start = time.perf_counter()
    for bodies in batches(count, size, body):
        channel.publish_many([Outgoing(each, QUEUE) for each in bodies])
    published = time.perf_counter() - start
    got: list[Any] = []
    channel.basic_qos(0, size, False)
    channel.basic_consume(QUEUE, False, got.append, "benchmark")
    consumed = 0
    start = time.perf_counter()
    while consumed < count:
        connection.drain_events(timeout=30)
        consumed += len(got)
        for message in got:
            message.ack()
        got.clear()
    channel.flush()
    taken = time.perf_counter() - start
    channel.queue_delete(QUEUE)
    connection.release()
    return published, taken


def through_the_client(url: str, body: bytes, count: int, size: int) -> tuple[float, float]:
    """The same with redis-py alone."""
    import redis

    client = redis.Redis.from_url(url)
    client.delete(QUEUE)
    client.xgroup_create(QUEUE, "g", "0", mkstream=True)
    start = time.perf_counter()
    for bodies in batches(count, size, body):
        with client.pipeline(transaction=False) as pipe:
            for each in bodies:
                pipe.xadd(QUEUE, {"b": each})
            pipe.execute()
    published = time.perf_counter() - start
    start = time.perf_counter()
    while True:
        reply: Any = client.xreadgroup("g", "c", {QUEUE: ">"}, count=size)
        if not reply:
            break
        ids = [id_ for id_, _ in reply[0][1]]
        with client.pipeline(transaction=False) as pipe:
            pipe.xack(QUEUE, "g", *ids)
            pipe.xdel(QUEUE, *ids)
            pipe.execute()
    taken = time.perf_counter() - start
    client.delete(QUEUE)
    client.close()
    return published, taken


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url", help="of a broker with the eventsync or the client's transport")
    parser.add_argument("--count", type=int, default=50_000, help="of messages in one run")
    parser.add_argument("--rounds", type=int, default=3, help="the best one counts")
    parser.add_argument("--profile", action="store_true", help="show where the time goes")
    options = parser.parse_args()
    ways: dict[str, Callable[[str, bytes, int, int], tuple[float, float]]]
    ways = {"eventsync": through_eventsync}
    if options.url.startswith("redis://"):
        ways["redis-py"] = through_the_client
    if options.profile:
        import cProfile

        profile = cProfile.Profile()
        profile.runcall(through_eventsync, options.url, os.urandom(300), options.count, 500)
        profile.print_stats("tottime")
        return 0
    print(f"{'':42}{'publish/s':>14}{'consume/s':>14}")
    for label, length, size, share in (
        ("300 bytes, one at a time", 300, 1, 10),
        ("300 bytes, 500 at a time", 300, 500, 1),
        ("100 envelopes each, 64 at a time", 30_000, 64, 10),
    ):
        count = max(1, options.count // share)
        body = os.urandom(length)
        for name, way in ways.items():
            times = [way(options.url, body, count, size) for _ in range(options.rounds)]
            publish, consume = (count / min(each) for each in zip(*times, strict=True))
            print(f"{label + ', ' + name:42}{publish:14,.0f}{consume:14,.0f}", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
