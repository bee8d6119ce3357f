"""The conformance suite on a REST service, with record keys as ids or with ids of the service."""

from __future__ import annotations

import itertools

import pytest
from servers.objects import ObjectServer

from eventsync.index import FileIndex
from eventsync.stores.identity import IdentityMap
from eventsync.stores.rest import Links, Resource, RestAccessor, Service
from eventsync.stores.rest import accessor as rest
from eventsync.testing import StoreContract

NUMBERS = itertools.count()


class OverHttp(StoreContract):
    """The suite over HTTP; each folder is a list of its own at the service."""

    examples = 3
    ids = False
    etags = True

    @pytest.fixture(autouse=True)
    def _server(self):
        with ObjectServer(ids=self.ids, etags=self.etags) as self.server:
            self.names = {}
            yield

    def kind(self, folder, record_type):
        place = folder, record_type.__record__.name
        return self.names.setdefault(place, f"kind{next(NUMBERS)}")

    def service(self):
        return Service(self.server.url, allow=["127.0.0.1"])

    def index(self, accessor, folder):
        return FileIndex(folder / "versions.db")


class TestKeysInUrls(OverHttp):
    """Objects at their keys, created and replaced by conditional PUTs."""

    def accessor(self, record_type, folder, view=None):
        kind = self.kind(folder, record_type)
        resource = Resource(
            items=f"/{kind}",
            item=f"/{kind}/{{key}}",
            pages=Links(size=30),
            create="PUT",
            update="PUT",
            returns=True,
        )
        return RestAccessor(record_type, self.service(), resource, view=view)


@pytest.mark.slow
class TestIdsOfTheService(OverHttp):
    """Objects with ids of the service, created by POST and found by a marker; no entity tags."""

    ids = True
    etags = False

    def accessor(self, record_type, folder, view=None):
        kind = self.kind(folder, record_type)
        resource = Resource(
            items=f"/{kind}",
            item=f"/{kind}/{{id}}",
            id="id",
            marker="meta_ref",
            pages=Links(size=30),
        )
        identity = IdentityMap(folder / "identity.db", name="service")
        return RestAccessor(record_type, self.service(), resource, view=view, identity=identity)

    def steps(self, store):
        maps = [a.identity for a in store.accessors.values()]
        return [(m, name) for m in maps for name in ("begin", "bind")] + [
            (rest.RestAccessor, "create")
        ]
