"""The worker group: the counters and states of the workers of one command."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from eventsync.broker.broker_life import Broker
from eventsync.engine.gate import Outcome
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.counting_publisher import CountingPublisher
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["StatusReporter", "WorkerGroup"]


class WorkerGroup:
    """The workers of one command, in this process or in others, by name. Thread-safe.

    When a worker ends, its state is removed and its counts stay. It observes the processes of a
    ``Supervisor``. ``counters``: the counts of all workers, past ones included.
    """

    def __init__(
        self, counters: Counters | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.counters = counters or Counters()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._stores: list[str] = []
        self._local: dict[str, WorkerStatus] = {}
        # The last report of each worker of another process, and when it arrived.
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        # By store, when a worker that has ended last settled a message.
        self._settled_at: dict[str, float] = {}

    @property
    def stores(self) -> list[str]:
        """The stores that are expected to have workers."""
        return list(self._stores)

    def expect(self, store: str, types: Iterable[str]) -> None:
        """Expect workers of a store, and start its counters at zero.

        A counter that appears with its first count shows no increase to whoever watches it.
        """
        self._stores.append(store)
        self.counters.add(catalogue.MESSAGES, 0, store)
        for type in (*types, catalogue.OTHER):
            self.counters.add(catalogue.COLLISIONS, 0, store, type)
            for outcome in Outcome:
                self.counters.add(catalogue.CHANGES, 0, store, type, str(outcome))

    def counted(self, store: str, broker: Broker) -> Broker:
        """Return a broker whose publishes are counted as those of a store or spool."""
        return CountingPublisher(broker, self.counters, store)

    def join(self, worker: str, status: WorkerStatus) -> None:
        """Add a worker of this process."""
        with self._lock:
            self._local[worker] = status

    def started(self, worker: str) -> None:
        """Count the start of a process for a worker."""
        self.counters.add(catalogue.STARTS, 1, worker.rpartition("-")[0], worker)

    def reported(self, worker: str, report: bytes) -> None:
        """Take in what the ``StatusReporter`` of a worker in another process sent."""
        content = json.loads(report)
        self.counters.merge(content["tally"])
        with self._lock:
            self._reports[worker] = (self._monotonic(), content["state"])

    def ended(self, worker: str) -> None:
        """Remove the state of a worker that has ended; its counts stay. Idempotent."""
        with self._lock:
            _, state = self._reports.pop(worker, (0.0, None))
            if state is not None and state["applied_at"] is not None:
                before = self._settled_at.get(state["store"], 0.0)
                self._settled_at[state["store"]] = max(before, state["applied_at"])

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the state of each running worker, in the form of ``WorkerStatus.to_json``."""
        with self._lock:
            states = {worker: status.to_json() for worker, status in self._local.items()}
            now = self._monotonic()
            for worker, (reported_at, state) in self._reports.items():
                # A process that is suspended sends no reports, so its silence grows here.
                silence = round(state["silence"] + max(0.0, now - reported_at - 1.0), 3)
                states[worker] = {**state, "silence": silence}
        return states

    def settled_at(self, store: str) -> float | None:
        """Return when a worker of a store last settled a message, in seconds since the epoch."""
        with self._lock:
            times = [self._settled_at.get(store)]
        times += [s["applied_at"] for s in self.states().values() if s["store"] == store]
        return max((moment for moment in times if moment is not None), default=None)


class StatusReporter:
    """Reports a worker of this process to a ``WorkerGroup`` in another one. Thread-safe.

    ``transmit``: sends bytes and returns ``True``, or returns ``False`` and sends none of them.
    """

    def __init__(
        self, counters: Counters, status: WorkerStatus, transmit: Callable[[bytes], bool]
    ) -> None:
        self._counters = counters
        self._status = status
        self._transmit = transmit

    def report(self) -> None:
        """Send the state, and what was counted since the last report that could be sent."""
        taken = self._counters.take()
        was_sent = False
        try:
            report = {"tally": taken, "state": self._status.to_json()}
            was_sent = self._transmit(json.dumps(report).encode())
        finally:
            if not was_sent:
                self._counters.merge(taken)

    def report_if_possible(self) -> None:
        """Do the same as ``report``, and ignore that the other process is gone."""
        with contextlib.suppress(OSError):
            self.report()
