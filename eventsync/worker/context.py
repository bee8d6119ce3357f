"""The context of a worker: what its parts share."""

from __future__ import annotations

import threading
from typing import Any

from eventsync.broker.broker_life import BrokerLife
from eventsync.broker.bus import Bus
from eventsync.engine.store import Store
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.counting_publisher import CountingPublisher
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.options import Options

__all__ = ["WorkerContext"]


class WorkerContext:
    """The store, bus, options, status, counters and log of one worker, and the request to stop.

    ``publisher``: publishes to the bus and counts it. ``broker_life``: the broker's restarts.
    ``stopping``: set when the worker is to stop.
    """

    def __init__(
        self, store: Store, bus: Bus, *, options: Options, counters: Counters, log: Any
    ) -> None:
        self.store = store
        self.bus = bus
        self.options = options
        self.counters = counters
        self.log = log
        self.status = WorkerStatus(store.name)
        self.publisher = CountingPublisher(bus, counters, store.name, self.status)
        self.broker_life = BrokerLife(self.publisher)
        self.stopping = threading.Event()

    def wait(self, seconds: float) -> None:
        """Pause for so many seconds, or until the worker is to stop."""
        self.status.beat(pause=seconds)
        self.stopping.wait(seconds)
        self.status.beat()

    def log_retry(self, event: str, error: BaseException, attempt: int, pause: float) -> None:
        """Log that an attempt failed and is repeated after a pause."""
        self.log.warning(event, error=str(error), attempt=attempt, wait=round(pause, 2))
