"""Events per second through RabbitMQ, beside a plain AMQP client in the same run.

Run it from the project's root: ``PYTHONPATH=tests python tests/benchmarks/broker.py``. It starts a
RabbitMQ of its own. Publishing waits for the broker's confirms, consuming acknowledges; messages
carry 100 envelopes of 300 bytes. The plain client is py-amqp on the same kind of queue: once with a
confirm awaited for each message, once without any. Use the ratios: the rest is the machine.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable

import amqp
from servers.rabbitmq import RabbitServer

from eventsync import framing
from eventsync.bus import Bus

_ENVELOPES = 100
_PREFETCH = 100
_QUORUM = {"x-queue-type": "quorum"}


def per_second(count: int, work: Callable[[], None]) -> float:
    """Run it, and say how many envelopes a second that is."""
    started = time.perf_counter()
    work()
    return count * _ENVELOPES / (time.perf_counter() - started)


def ours(url: str, count: int) -> tuple[float, float]:
    """Publish and consume through the bus."""
    envelopes = [os.urandom(300) for _ in range(_ENVELOPES)] * count
    with Bus(url, message_envelopes=_ENVELOPES) as bus:
        bus.declare("ours", ["T"])
        published = per_second(count, lambda: bus.publish("T", envelopes))
        subscription = bus.subscribe("ours", ["T"], prefetch=_PREFETCH)

        def consume() -> None:
            got = 0
            while got < count:
                deliveries = subscription.fetch(timeout=5.0, limit=_PREFETCH)
                subscription.acknowledge(deliveries)
                got += len(deliveries)

        consumed = per_second(count, consume)
        subscription.close()
    return published, consumed


def plain(server: RabbitServer, count: int, *, confirm: bool) -> tuple[float, float]:
    """Publish and consume with py-amqp, as its documentation shows it."""
    body = framing.join_batch([os.urandom(300) for _ in range(_ENVELOPES)])
    queue = f"plain.{confirm}"
    with amqp.Connection(f"127.0.0.1:{server.port}") as connection:
        channel = connection.channel()
        channel.queue_declare(queue, durable=True, auto_delete=False, arguments=_QUORUM)
        if confirm:
            channel.confirm_select()
        send = channel.basic_publish_confirm if confirm else channel.basic_publish

        def publish() -> None:
            for _ in range(count):
                send(amqp.Message(body, delivery_mode=2), "", queue)

        published = per_second(count, publish)
        while channel.queue_declare(queue, passive=True).message_count < count:
            time.sleep(0.05)  # what was not confirmed is still on its way
        got = 0

        def take(message: amqp.Message) -> None:
            nonlocal got
            got += 1
            channel.basic_ack(message.delivery_tag)

        def consume() -> None:
            while got < count:
                connection.drain_events(timeout=5)

        channel.basic_qos(0, _PREFETCH, False)
        channel.basic_consume(queue, callback=take)
        consumed = per_second(count, consume)
    return published, consumed


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=2000)
    count = parser.parse_args().messages
    print(f"{count:,} messages of {_ENVELOPES} envelopes; envelopes/s")
    print(f"{'':36}{'publish':>12}{'consume':>12}")
    with RabbitServer() as server:
        rows = {
            "eventsync, confirmed": ours(server.url, count),
            "py-amqp, each confirm awaited": plain(server, count, confirm=True),
            "py-amqp, no confirms": plain(server, count, confirm=False),
        }
    for name, (published, consumed) in rows.items():
        print(f"{name:36}{published:12,.0f}{consumed:12,.0f}")


if __name__ == "__main__":
    main()
