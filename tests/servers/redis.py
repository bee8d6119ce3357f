"""A Redis server, and a Redis Cluster."""

from __future__ import annotations

from typing import Literal

import redis

from servers import Server, free_port, program

__all__ = ["ClusterServer", "RedisServer"]


class RedisServer(Server):
    """Redis with an append-only file. ``fsync``: how often it is synced to the disk."""

    def __init__(self, *, fsync: Literal["always", "everysec"] = "everysec") -> None:
        super().__init__()
        self.fsync = fsync

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def command(self) -> list[str]:
        return [
            program("redis-server"),
            *("--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)),
            *("--appendonly", "yes", "--appendfsync", self.fsync, "--save", ""),
            *("--maxmemory-policy", "noeviction"),
        ]

    def client(self) -> redis.Redis:
        """Return a new client of the server."""
        return redis.Redis(port=self.port)

    def is_ready(self) -> bool:
        client = self.client()
        try:
            return bool(client.ping())
        except redis.RedisError:
            return False
        finally:
            client.close()


class ClusterServer(RedisServer):
    """A Redis Cluster of one node, which has all slots."""

    def command(self) -> list[str]:
        # By default its nodes talk on a port 10,000 higher, which there may not be.
        more = ("--cluster-enabled", "yes", "--cluster-port", str(free_port()))
        return [*super().command(), *more]

    def is_ready(self) -> bool:
        if not super().is_ready():
            return False
        with self.client() as client:
            if client.info("cluster")["cluster_enabled"] and not client.cluster("slots"):
                client.cluster("addslotsrange", 0, 16383)
            return bool(client.cluster("info")["cluster_state"] == "ok")
