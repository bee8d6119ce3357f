"""The context of a worker: the objects that its parts share."""

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
    """The objects that the parts of one worker share.

    ``publisher``: publishes to the bus and counts the published changes. ``broker_life``: detects
    restarts of the broker. ``stopping``: is set when the worker shall stop.
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
        """Pause for ``seconds``, or until the worker shall stop."""
        self.status.beat(pause=seconds)
        self.stopping.wait(seconds)
        self.status.beat()

    def log_retry(self, event: str, error: BaseException, attempt: int, pause: float) -> None:
        """Log that an attempt failed and will be repeated after ``pause`` seconds.

        ``event``: the text of the log line. ``attempt``: the number of the failed attempt.
        """
        self.log.warning(event, error=str(error), attempt=attempt, wait=round(pause, 2))
