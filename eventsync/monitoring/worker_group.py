"""The worker group: the counters and states of all workers that one command runs."""

from __future__ import annotations

import contextlib
import json
import os
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import Any, Final

from eventsync.broker.broker_life import Broker
from eventsync.engine.gate import Outcome
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.counting_publisher import CountingPublisher
from eventsync.monitoring.problem import ProblemKind
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["Crash", "StatusReporter", "WorkerGroup"]


CRASHES: Final = 3
"""After so many failures in a row, a worker counts as one that crashes again and again."""
CRASH_WINDOW: Final = 60.0
"""A worker that has run for so many seconds no longer counts as one."""


@dataclass(slots=True, frozen=True)
class Crash:
    """A worker process that ended with an error.

    ``failures``: how often in a row. ``code``: the last exit code. ``at``: when it ended last, in
    seconds since the epoch.
    """

    worker: str
    store: str
    failures: int
    code: int
    at: float

    def __str__(self) -> str:
        return (
            f"worker {self.worker} has ended {self.failures} times in a row, the "
            f"last time with exit code {self.code}; its log says why"
        )


class WorkerGroup:
    """Collects the counters and states of workers in this and other processes. Thread-safe.

    It is an observer of a ``Supervisor``: worker processes report to it. When a worker ends, its
    state is removed, but its counts stay in ``counters``.
    """

    def __init__(
        self,
        counters: Counters | None = None,
        *,
        monotonic: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self.counters = counters or Counters()
        self._monotonic = monotonic
        self._now = now
        self._lock = threading.Lock()
        self._stores: list[str] = []
        self.possible_problems: list[tuple[str, str, str]] = []
        """The store, record type and kind of each problem that a worker may report."""
        self._local: dict[str, WorkerStatus] = {}
        # The last report of each worker in another process, with the monotonic time of its arrival.
        self._reports: dict[str, tuple[float, dict[str, Any]]] = {}
        self._crashes: dict[str, Crash] = {}
        # When an ended worker of each store last settled a message, by store name.
        self._settled_at: dict[str, float] = {}

    @property
    def stores(self) -> list[str]:
        """The names of the stores that should have workers."""
        return list(self._stores)

    def expect(self, store: str, types: Iterable[str]) -> None:
        """Add a store that should have workers, and set its counters to zero.

        ``types``: the record types of the store. The counters must exist from the start: if a
        counter appeared with its first count, a monitoring system would not see an increase.
        """
        self._stores.append(store)
        types = list(types)
        for kind in ProblemKind:
            of_all = ("",) if kind in (ProblemKind.OVERRUN, ProblemKind.FOLLOW) else types
            self.possible_problems += [(store, type, str(kind)) for type in of_all]
        self.counters.add(catalogue.OVERRUNS, 0, store)
        self.counters.add(catalogue.OWN_WRITES, 0, store)
        for outcome in catalogue.WEBHOOK_OUTCOMES:
            self.counters.add(catalogue.WEBHOOKS, 0, store, outcome)
        self.counters.add(catalogue.MESSAGES, 0, store)
        for type in (*types, catalogue.OTHER):
            self.counters.add(catalogue.COLLISIONS, 0, store, type)
            self.counters.add(catalogue.CAPTURED, 0, store, type)
            for outcome in Outcome:
                self.counters.add(catalogue.CHANGES, 0, store, type, str(outcome))

    def counted(self, store: str, broker: Broker) -> Broker:
        """Return a broker that passes all calls on to ``broker`` and counts published envelopes.

        ``store``: the name of the store or spool under which the envelopes are counted.
        """
        return CountingPublisher(broker, self.counters, store)

    def join(self, worker: str, status: WorkerStatus) -> None:
        """Add a worker that runs in this process."""
        with self._lock:
            self._local[worker] = status

    def started(self, worker: str) -> None:
        """Count the start of a worker process."""
        self.counters.add(catalogue.STARTS, 1, worker.rpartition("-")[0], worker)

    def reported(self, worker: str, report: bytes) -> None:
        """Add the counts of a report to ``counters``, and keep the state of the worker.

        ``report``: the JSON text that a ``StatusReporter`` in another process has sent.
        """
        content = json.loads(report)
        self.counters.merge(content["tally"])
        with self._lock:
            self._reports[worker] = (self._monotonic(), content["state"])

    def ended(self, worker: str) -> None:
        """Remove the state of a worker that has ended, but keep its counts. Idempotent."""
        with self._lock:
            _, state = self._reports.pop(worker, (0.0, None))
            if state is not None and state["applied_at"] is not None:
                before = self._settled_at.get(state["store"], 0.0)
                self._settled_at[state["store"]] = max(before, state["applied_at"])

    def restarting(self, worker: str, code: int, failures: int) -> None:
        """Note that a worker process ended, and how often in a row it ended with an error.

        ``code``: its exit code. ``failures``: 0 if it ended without an error.
        """
        with self._lock:
            if failures:
                self._crashes[worker] = Crash(
                    worker, worker.rpartition("-")[0], failures, code, self._now()
                )
            else:
                self._crashes.pop(worker, None)

    def crashes(self) -> list[Crash]:
        """Return the workers that end with an error again and again, by their last end.

        A worker that has run for a minute since, or that settled a message, is left out.
        """
        with self._lock:
            crashes, reports = list(self._crashes.values()), dict(self._reports)
        found = []
        for crash in crashes:
            _, state = reports.get(crash.worker, (0.0, None))
            works = state is not None and (
                state["applied_at"] is not None or self._now() - state["started"] > CRASH_WINDOW
            )
            if crash.failures >= CRASHES and not works:
                found.append(crash)
        return found

    def to_json(self) -> dict[str, Any]:
        """Return the crashes as the content of a supervisor's state file."""
        crashes = [{**asdict(crash), "text": str(crash)} for crash in self.crashes()]
        return {"pid": os.getpid(), "crashes": crashes}

    def states(self) -> dict[str, dict[str, Any]]:
        """Return the state of each running worker by worker name.

        A state has the form of ``WorkerStatus.to_json``.
        """
        with self._lock:
            states = {worker: status.to_json() for worker, status in self._local.items()}
            now = self._monotonic()
            for worker, (reported_at, state) in self._reports.items():
                # A suspended process sends no reports. Therefore add the age of the last report.
                silence = round(state["silence"] + max(0.0, now - reported_at - 1.0), 3)
                states[worker] = {**state, "silence": silence}
        return states

    def settled_at(self, store: str) -> float | None:
        """Return when any worker of a store last settled a message, in seconds since the epoch.

        Returns ``None`` if no worker has settled a message.
        """
        with self._lock:
            times = [self._settled_at.get(store)]
        times += [s["applied_at"] for s in self.states().values() if s["store"] == store]
        return max((moment for moment in times if moment is not None), default=None)


class StatusReporter:
    """Sends the counts and the status of a worker to a ``WorkerGroup`` in another process.

    ``transmit``: sends bytes and returns True, or sends nothing and returns False. Thread-safe.
    """

    def __init__(
        self, counters: Counters, status: WorkerStatus, transmit: Callable[[bytes], bool]
    ) -> None:
        self._counters = counters
        self._status = status
        self._transmit = transmit

    def report(self) -> None:
        """Send the worker's state and the counts since the last report that was sent.

        If the report cannot be sent, the counts are kept for the next report.
        """
        taken = self._counters.take()
        was_sent = False
        try:
            report = {"tally": taken, "state": self._status.to_json()}
            was_sent = self._transmit(json.dumps(report).encode())
        finally:
            if not was_sent:
                self._counters.merge(taken)

    def report_if_possible(self) -> None:
        """Do the same as ``report``, but ignore an ``OSError``: the other process may be dead."""
        with contextlib.suppress(OSError):
            self.report()
