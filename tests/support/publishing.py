"""Changes for tests, and their publishing."""

from __future__ import annotations

import time
from typing import Any

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.changes.stamp import PUT
from eventsync.errors import BusUnavailableError

__all__ = ["publish", "publish_patiently", "put"]


def put(
    key: int, name: str = "x", *, clock: Clock | None = None, type: str = "Product", **more: Any
) -> Change:
    """Return a put of a record with the fields ``id`` and ``name``."""
    return Change(
        type=type,
        key=str(key),
        op=PUT,
        version=(clock or Clock()).tick(),
        data={"id": key, "name": name},
        source="test",
        **more,
    )


def publish(bus: Bus, *changes: Change) -> None:
    """Publish changes of one record type."""
    bus.publish(changes[0].type, [bus.encode(change) for change in changes])


def publish_patiently(bus: Bus, *changes: Change, timeout: float = 30.0) -> None:
    """Publish changes; retry while the broker is unreachable."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            return publish(bus, *changes)
        except BusUnavailableError:
            assert time.monotonic() < deadline
            time.sleep(0.02)
