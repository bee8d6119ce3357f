"""The Redis broker: the contract of all transports, and what belongs to Redis only."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from servers.redis import RedisServer
from transports.contract import Broker, TransportContract, eventually

CONNECT = "eventsync.transports.redis:connect"


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    """Return a Redis that syncs everything, for all tests of this module."""
    with RedisServer(fsync="always") as server:
        yield server


@pytest.fixture
def url(server: RedisServer) -> str:
    """Return the URL of that server, emptied."""
    client = server.client()
    client.flushall()
    client.close()
    return server.url


@pytest.fixture
def broker(url: str) -> Iterator[Broker]:
    """Return a broker on that server."""
    with Broker.opened(CONNECT, url) as broker:
        yield broker


class TestRedisContract(TransportContract):
    """The conformance suite on a Redis server."""

    connect = CONNECT

    @pytest.fixture
    def url(self, server: RedisServer) -> str:
        """Return the URL of the server, emptied."""
        client = server.client()
        client.flushall()
        client.close()
        return server.url
