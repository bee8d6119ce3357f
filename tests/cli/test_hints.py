"""Hints from end to end: a worker and its capture, a watched file, a webhook over HTTP."""

from __future__ import annotations

import base64
import hashlib
import hmac
import http.client
import json
import signal
import time
import urllib.error
import urllib.request

import pytest
from servers import free_port
from servers.objects import ObjectServer
from support.project import Cli
from support.waiting import eventually

SECRET = "a-secret-of-ours"
STORES = """
from eventsync import Field, Record, Store, StoreRegistry
from eventsync.stores.files import CsvAccessor
from eventsync.stores.rest import Resource, RestAccessor, Service
from eventsync.stores.memory import MemoryAccessor
from eventsync.index import MemoryIndex


class Product(Record):
    id: int = Field(key=True)
    name: str


service = Service("{url}", allow=["127.0.0.0/8"])
registry = StoreRegistry(
    Store(
        "sheet",
        CsvAccessor(Product, "sheet.csv"),
        capture="watch",
        capture_every=300.0,
    ),
    Store(
        "shop",
        RestAccessor(Product, service, Resource(items="/products", item="/products/{{id}}")),
        index="shop.db",
        capture="webhooks",
        capture_every=300.0,
    ),
    Store("cache", MemoryAccessor(Product), index=MemoryIndex()),
)
"""


@pytest.fixture
def service():
    with ObjectServer() as running:
        running.objects["products"] = {"1": {"id": 1, "name": "Lamp"}}
        yield running


@pytest.fixture
def project(bare: Cli, service):
    (bare.folder / "workers.py").write_text(STORES.format(url=service.url), encoding="utf-8")
    (bare.folder / "sheet.csv").write_text("id,name\n1,Lamp\n", encoding="utf-8")
    secrets = bare.folder / "secrets"
    secrets.mkdir()
    (secrets / "eventsync_webhook_shop").write_text(f"an-old-one {SECRET}\n", encoding="utf-8")
    return bare


def waiting(cli, store="cache"):
    return cli("status", "--json").json["stores"][store]["queues"]["ready"]


def listened(cli, store):
    """Whether hints of a store are heard now."""
    from eventsync.engine.listening import listening_since
    from eventsync.index import FileIndex

    names = {"sheet": ".sheet.csv.eventsync.db", "shop": "shop.db"}
    path = cli.folder / names[store]
    return path.exists() and listening_since(FileIndex(path)) is not None


class Working:
    """A worker of a store, in processes of its own."""

    def __init__(self, cli, store):
        self.cli, self.store, self.port = cli, store, free_port()

    def __enter__(self):
        self.process = self.cli.start(
            *("worker", self.store, "--listen", f"127.0.0.1:{self.port}"),
            EVENTSYNC_SECRETS_DIR=str(self.cli.folder / "secrets"),
        )
        eventually(lambda: listened(self.cli, self.store), timeout=30)
        return self

    def __exit__(self, *exc_info):
        self.process.send_signal(signal.SIGTERM)
        try:
            self.err = self.process.communicate(timeout=30)[1]
        finally:
            self.process.kill()
            self.process.communicate()
        assert self.process.returncode == 0, self.err

    def post(self, body, headers):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        connection.request("POST", f"/webhooks/{self.store}", body, headers)
        status = connection.getresponse().status
        connection.close()
        return status


def test_a_saved_file_is_captured_at_once(project):
    """The next look of the worker would come five minutes later."""
    with Working(project, "sheet"):
        eventually(lambda: waiting(project) == 1, timeout=30)
        (project.folder / "sheet.csv").write_text("id,name\n1,Lamp\n2,Chair\n")
        eventually(lambda: waiting(project) == 2, timeout=20)
        state = project("capture", "status", "sheet", "--json").check().json
        assert state["source"] == "watch"
    assert not listened(project, "sheet")


def test_a_webhook_is_captured_at_once(project, service):
    with Working(project, "shop") as worker:
        eventually(lambda: waiting(project) == 1, timeout=30)
        service.objects["products"]["2"] = {"id": 2, "name": "Chair"}
        body = json.dumps({"type": "Product", "key": "2"}).encode()
        moment = str(int(time.time()))
        signed = b".".join([b"msg_1", moment.encode(), body])
        digest = base64.b64encode(hmac.digest(SECRET.encode(), signed, hashlib.sha256)).decode()
        headers = {"webhook-id": "msg_1", "webhook-timestamp": moment}
        assert worker.post(body, {**headers, "webhook-signature": f"v1,{digest}"}) == 202
        assert worker.post(body, {**headers, "webhook-signature": "v1,abcd"}) == 401
        eventually(lambda: waiting(project) == 2, timeout=20)
        with urllib.request.urlopen(f"http://127.0.0.1:{worker.port}/metrics") as answer:
            text = answer.read().decode()
        for outcome in ("accepted", "refused"):
            assert f'eventsync_webhooks_total{{outcome="{outcome}",store="shop"}} 1.0' in text
    assert SECRET not in worker.err


def test_check_says_what_webhooks_need(project):
    told = project("check", "--create", "--json").json
    texts = [found["text"] for found in told]
    assert any("EVENTSYNC_WEBHOOK_SHOP" in text for text in texts)


def test_check_says_that_hints_need_a_poll(project):
    path = project.folder / "workers.py"
    path.write_text(path.read_text().replace("        capture_every=300.0,\n", ""))
    told = project("check", "--create", "--json").json
    texts = [found["text"] for found in told if found["level"] == "risk"]
    assert sum("may miss writes" in text for text in texts) == 2
