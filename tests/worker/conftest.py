"""Fixtures: an embedded broker with the queues of store ``crm``, and that store."""

from __future__ import annotations

import pytest
from support.worker_harness import Fussy, Product

from eventsync.broker.bus import Bus
from eventsync.engine.store import Store


@pytest.fixture
def bus(tmp_path):
    with Bus(f"sqlite:///{tmp_path / 'broker.db'}") as bus:
        bus.declare("crm", ["Product"])
        yield bus


@pytest.fixture
def store():
    return Store("crm", Fussy(Product)).open()
