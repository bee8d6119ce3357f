"""The Redis store, against a real server."""

from __future__ import annotations

import itertools

import pytest
from servers.redis import RedisServer

from eventsync.stores.redis import RedisAccessor
from eventsync.testing import StoreContract


@pytest.fixture(scope="module")
def server():
    with RedisServer() as running:
        yield running


class _OnRedis(StoreContract):
    """A folder of the suite is a hash tag of the server."""

    layout = "hash"

    @pytest.fixture(autouse=True)
    def _server(self, server):
        self.url = server.url
        self.tags = {}
        self.numbers = itertools.count()
        with server.client() as client:
            client.flushdb()

    def accessor(self, record_type, folder, view=None):
        tag = self.tags.setdefault(folder, f"s{next(self.numbers)}")
        return RedisAccessor(
            record_type,
            self.url,
            key=f"{{{{{tag}}}}}:{record_type.__record__.name}:{{key}}",
            layout=self.layout,
            view=view,
        )


class TestHashes(_OnRedis):
    """The conformance suite on hashes."""


class TestJson(_OnRedis):
    """The conformance suite on JSON strings."""

    layout = "json"
