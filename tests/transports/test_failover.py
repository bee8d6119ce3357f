"""Failover of Redis servers, seen from a publisher."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from servers import Server, free_port, program
from servers.redis import RedisServer
from support.waiting import eventually

from eventsync.broker.bus import Bus
from eventsync.errors import BusUnavailableError

pytestmark = pytest.mark.slow


class _Redis(RedisServer):
    """A Redis server with additional settings."""

    def __init__(self, *settings: object) -> None:
        super().__init__(fsync="always")
        self._settings = [str(setting) for setting in settings]

    def command(self) -> list[str]:
        return [*super().command(), *self._settings]


class _Sentinel(Server):
    """A sentinel of one service, ``main``, that decides alone."""

    def __init__(self, primary: RedisServer) -> None:
        super().__init__()
        self._primary = primary

    @property
    def url(self) -> str:
        return f"sentinel://127.0.0.1:{self.port}/main"

    def prepare(self) -> None:
        (self.folder / "sentinel.conf").write_text(
            f"sentinel monitor main 127.0.0.1 {self._primary.port} 1\n"
            "sentinel down-after-milliseconds main 500\n"
            "sentinel failover-timeout main 2000\n"
        )

    def command(self) -> list[str]:
        config = str(self.folder / "sentinel.conf")
        return [program("redis-server"), config, "--sentinel", "--port", str(self.port)]

    def is_ready(self) -> bool:
        made = subprocess.run(
            [program("redis-cli"), "-p", str(self.port), "ping"], capture_output=True, check=False
        )
        return made.stdout.strip() == b"PONG"


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    """Collect servers that stop at the end of the test."""
    with ExitStack() as stack:
        yield stack


def _published(bus: Bus, body: bytes) -> bool:
    try:
        bus.publish("Product", [body])
    except BusUnavailableError:
        return False
    return True


def _bodies(bus: Bus) -> list[bytes]:
    subscription = bus.subscribe("crm", ["Product"], prefetch=10)
    deliveries = subscription.fetch(timeout=5.0, limit=10)
    subscription.acknowledge(deliveries)
    subscription.close()
    return [delivery.body for delivery in deliveries]


def _fail_over(bus: Bus, primary: RedisServer, replica: RedisServer) -> None:
    """Fail over; check that replicated messages are kept and that publishing continues."""
    bus.declare("crm", ["Product"])
    bus.publish("Product", [b"before"])
    reached = primary.client().info("replication")["master_repl_offset"]
    eventually(
        lambda: replica.client().info("replication")["slave_repl_offset"] >= reached,
        what="it is replicated",
    )
    before = bus.life()
    primary.kill()
    eventually(lambda: _published(bus, b"after"), what="another server takes it")
    assert bus.life() != before
    before, after = _bodies(bus)
    assert (before[-6:], after[-5:]) == (b"before", b"after")


def test_sentinels_name_another_server(stack: ExitStack) -> None:
    """When the primary is killed, the bus continues at the promoted replica."""
    primary = stack.enter_context(_Redis())
    replica = stack.enter_context(_Redis("--replicaof", "127.0.0.1", primary.port))
    sentinel = stack.enter_context(_Sentinel(primary))
    eventually(lambda: primary.client().info("replication")["connected_slaves"] == 1)
    asked: Any = sentinel

    def knows_the_replica() -> bool:
        told = subprocess.run(
            [program("redis-cli"), "-p", str(asked.port), "sentinel", "replicas", "main"],
            capture_output=True,
            check=True,
        )
        return str(replica.port).encode() in told.stdout

    eventually(knows_the_replica)
    bus = stack.enter_context(Bus(sentinel.url))
    _fail_over(bus, primary, replica)


def test_a_cluster_promotes_a_replica(stack: ExitStack) -> None:
    """When the cluster node with the keys is killed, the bus continues at its replica."""
    settings = ("--cluster-enabled", "yes", "--cluster-node-timeout", 1000)
    settings += ("--cluster-announce-ip", "127.0.0.1")
    nodes = [
        stack.enter_context(_Redis(*settings, "--cluster-port", free_port())) for _ in range(4)
    ]
    clients: list[Any] = [node.client() for node in nodes]
    names = [client.execute_command("CLUSTER MYID").decode() for client in clients]
    for client, (first, last) in zip(
        clients, [(0, 5460), (5461, 10922), (10923, 16383)], strict=False
    ):
        client.execute_command("CLUSTER", "ADDSLOTSRANGE", first, last)
    for number, client in enumerate(clients, start=1):
        client.execute_command("CLUSTER", "SET-CONFIG-EPOCH", number)
    for node in nodes[1:]:
        port = node.command()[node.command().index("--cluster-port") + 1]
        clients[0].execute_command("CLUSTER", "MEET", "127.0.0.1", node.port, port)
    for client in clients:
        eventually(lambda client=client: len(client.execute_command("CLUSTER NODES")) == 4)
        eventually(
            lambda client=client: client.execute_command("CLUSTER INFO")["cluster_state"] == "ok"
        )
    slot = clients[0].execute_command("CLUSTER", "KEYSLOT", "{eventsync}:epoch")
    owner = min(int(slot) // 5461, 2)
    clients[3].execute_command("CLUSTER", "REPLICATE", names[owner])
    eventually(lambda: clients[3].info("replication")["master_link_status"] == "up")
    for client in clients:
        client.close()
    bus = stack.enter_context(Bus(f"redis+cluster://127.0.0.1:{nodes[(owner + 1) % 3].port}"))
    _fail_over(bus, nodes[owner], nodes[3])
