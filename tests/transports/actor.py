"""A process of its own at a broker, driven line by line; run as a script by ``contract.Actor``.

Each line on standard input is a JSON list: a command and its arguments. Each answer is one line
of JSON on standard output: ``["ok", result]`` or ``["error", type, message]``.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
from contextlib import suppress
from typing import Any

from eventsync.transports.leased.message import OutboundMessage


class Commands:
    """The commands of an actor."""

    def __init__(self, connect: Any, url: str, options: dict[str, Any]) -> None:
        self.connection = connect(url, **options)
        self.channel = self.connection.channel()
        self.messages: list[Any] = []

    def declare(self, queue: str, exchange: str, kind: str, key: str) -> None:
        """Declare an exchange and a queue bound to it."""
        self.channel.exchange_declare(exchange, kind, durable=True)
        self.channel.queue_declare(queue, durable=True)
        self.channel.queue_bind(queue, exchange, key)

    def publish(self, bodies: list[str], exchange: str, key: str) -> None:
        """Publish text bodies in one step."""
        self.channel.publish_many(
            [OutboundMessage(body.encode(), key, exchange, mandatory=True) for body in bodies]
        )

    def publish_singly(self, prefix: str, count: int, exchange: str, key: str) -> int:
        """Publish numbered bodies one by one."""
        for number in range(count):
            self.publish([f"{prefix}{number}"], exchange, key)
        return count

    def publish_until_killed(self, exchange: str, key: str) -> None:
        """Publish numbered bodies; print each number once its publish has returned."""
        for number in range(1_000_000):
            self.publish([str(number)], exchange, key)
            print(number, flush=True)

    def consume(self, queue: str, prefetch: int) -> None:
        """Start to consume without settling."""
        self.channel.basic_qos(0, prefetch, False)
        self.channel.basic_consume(queue, False, self.messages.append, f"actor-{os.getpid()}")

    def receive(self, count: int, timeout: float) -> list[str]:
        """Wait until that many messages are in flight and return their bodies."""
        deadline = time.monotonic() + timeout
        while len(self.messages) < count and time.monotonic() < deadline:
            self._drain()
        return [message.body.decode() for message in self.messages]

    def settle_until(self, quiet: float, patience: float) -> list[str]:
        """Acknowledge what comes until nothing came for ``quiet`` seconds; return the bodies.

        The first message may take ``patience`` seconds.
        """
        bodies: list[str] = []
        last = time.monotonic() + patience
        while time.monotonic() - last < quiet:
            self._drain()
            if self.messages:
                last = time.monotonic()
                bodies += [message.body.decode() for message in self.messages]
                self.acknowledge()
        return bodies

    def acknowledge(self) -> int:
        """Acknowledge what is in flight; return how many messages that removed."""
        for message in self.messages:
            message.ack()
        self.messages.clear()
        return int(self.channel.flush())

    def close(self) -> None:
        """Close the connection."""
        self.connection.release()

    def _drain(self) -> None:
        with suppress(TimeoutError):  # the caller looks at what has come
            self.connection.drain_events(timeout=0.05)


def main() -> None:
    """Run commands until standard input ends."""
    module, name, url, options = sys.argv[1:]
    commands = Commands(getattr(importlib.import_module(module), name), url, json.loads(options))
    print(json.dumps(["ok", os.getpid()]), flush=True)
    for line in sys.stdin:
        command, *arguments = json.loads(line)
        try:
            answer = ["ok", getattr(commands, command)(*arguments)]
        except Exception as error:  # told to the test, which decides
            answer = ["error", type(error).__name__, str(error)]
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
