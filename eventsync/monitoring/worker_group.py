"""The crew: what the workers of one command tell of themselves, in this process or in others.

It owns what outlives a worker (its counts) and what leaves with it (its state). It must not know
who starts workers, nor who reads what they tell.
"""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Callable, Iterable
from typing import Any

from eventsync.broker.relay import Broker, CountingPublisher
from eventsync.engine.gate import Outcome
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["Report", "WorkerGroup"]


class WorkerGroup:
    """The workers of one command, by the names of their places. Thread-safe.

    ``tally``: what all of them counted, those that are gone included.
    """

    def __init__(
        self, tally: Counters | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self.tally = tally or Counters()
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._stores: list[str] = []
        self._here: dict[str, WorkerStatus] = {}
        self._told: dict[str, tuple[float, dict[str, Any]]] = {}
        self._moved: dict[str, float] = {}

    @property
    def stores(self) -> list[str]:
        """The stores that are expected to have workers."""
        return list(self._stores)

    def expect(self, store: str, types: Iterable[str]) -> None:
        """A store has workers here: its counts are there from the start.

        Otherwise the first of a kind would be no increase for those who watch.
        """
        self._stores.append(store)
        self.tally.add(catalogue.MESSAGES, 0, store)
        for type in (*types, catalogue.OTHER):
            self.tally.add(catalogue.COLLISIONS, 0, store, type)
            for outcome in Outcome:
                self.tally.add(catalogue.CHANGES, 0, store, type, str(outcome))

    def counted(self, store: str, broker: Broker) -> Broker:
        """A broker to which publishes count as a store's (or a spool's)."""
        return CountingPublisher(
            broker, lambda type, count: self.tally.add(catalogue.PUBLISHED, count, store, type)
        )

    def join(self, worker: str, progress: WorkerStatus) -> None:
        """A worker of this process; its progress is read whenever somebody asks."""
        with self._lock:
            self._here[worker] = progress

    def started(self, worker: str) -> None:
        """A process was started to fill this place."""
        self.tally.add(catalogue.STARTS, 1, worker.rpartition("-")[0], worker)

    def heard(self, worker: str, report: bytes) -> None:
        """Take in what a worker of another process reported."""
        told = json.loads(report)
        self.tally.merge(told["tally"])
        with self._lock:
            self._told[worker] = (self._monotonic(), told["state"])

    def left(self, worker: str) -> None:
        """A worker is gone: its state goes with it, what it counted stays. Idempotent."""
        with self._lock:
            _, state = self._told.pop(worker, (0.0, None))
            if state is not None and state["applied_at"] is not None:
                before = self._moved.get(state["store"], 0.0)
                self._moved[state["store"]] = max(before, state["applied_at"])

    def states(self) -> dict[str, dict[str, Any]]:
        """How each worker that lives stands, as ``WorkerStatus.to_json`` says it."""
        with self._lock:
            states = {worker: progress.to_json() for worker, progress in self._here.items()}
            now = self._monotonic()
            for worker, (heard, state) in self._told.items():
                # Of a process that stands still nothing more is heard.
                silence = round(state["silence"] + max(0.0, now - heard - 1.0), 3)
                states[worker] = {**state, "silence": silence}
        return states

    def moved(self, store: str) -> float | None:
        """When a worker of a store last settled something, in seconds since the epoch."""
        with self._lock:
            times = [self._moved.get(store)]
        times += [s["applied_at"] for s in self.states().values() if s["store"] == store]
        return max((moment for moment in times if moment is not None), default=None)


class Report:
    """Tells a crew in another process how a worker of this one gets on. Thread-safe.

    ``send``: hands bytes over, or says that it cannot now, and then has sent none of them.
    """

    def __init__(
        self, tally: Counters, progress: WorkerStatus, send: Callable[[bytes], bool]
    ) -> None:
        self._tally = tally
        self._progress = progress
        self._send = send

    def __call__(self) -> None:
        """Tell what was counted since the last time. What cannot be told now goes with the next."""
        taken = self._tally.take()
        told = False
        try:
            report = {"tally": taken, "state": self._progress.to_json()}
            told = self._send(json.dumps(report).encode())
        finally:
            if not told:
                self._tally.merge(taken)

    def quietly(self) -> None:
        """As a call; whether anybody still listens is for others to notice."""
        with contextlib.suppress(OSError):
            self()
