"""The stores and worker processes of the demo, and functions that wait for a state of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from eventsync.cli.demo.ledger import LedgerPublisher
from eventsync.cli.demo.process import Commands, WorkerProcess
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import plural
from eventsync.errors import EventSyncError
from eventsync.index import Presence

__all__ = ["Stage"]

_TIMEOUT = 60.0
_POLL = 0.05
_GRACE = 10.0


class Stage:
    """The stores in ``folder``, opened, and the worker processes of these stores.

    ``publisher`` records the changes that are made through the stores. ``broker``: the URL of the
    broker for the workers.
    """

    def __init__(self, deployment: Deployment, folder: Path, broker: str) -> None:
        self.bus = deployment.bus
        self.publisher = LedgerPublisher(self.bus)
        self.registry = deployment.registry.open(publisher=self.publisher)
        deployment.declare()
        self.workers: dict[str, WorkerProcess] = {}
        self.failed: list[str] = []
        """A text for each worker that did not end with exit code 0 when it was stopped."""
        self._commands = Commands(folder, broker)
        self._logs = folder / "logs"

    # -- workers -----------------------------------------------------------------------------------

    def start_workers(self, *names: str, **settings: dict[str, str]) -> None:
        """Start a worker for each named store, by default for all, and wait for their start.

        ``settings``: for each store, the settings of its worker by name. Raises ``EventSyncError``
        if a worker ends, or has not started in 60 seconds.
        """
        for name in names or self.registry.stores:
            self.workers[name] = self._commands.worker(name, **settings.get(name, {}))
        for name in names or self.registry.stores:
            worker = self.workers[name]
            self.await_that(partial(_has_started, worker), f"the worker of {name} has started")

    def stop_workers(self) -> None:
        """Stop all workers, after each has finished its current work, and wait for their end."""
        stopping = list(self.workers.values())
        self.workers.clear()
        for worker in stopping:
            worker.terminate()
        for worker in stopping:
            code = worker.wait(_GRACE)
            if code:
                self.failed.append(f"the worker of {worker.store} ended with exit code {code}")

    def frozen_half_way(self, worker: WorkerProcess, most: int) -> bool:
        """Freeze a worker, and return whether it is half-way through its work.

        If it is not, let it continue. A worker is half-way if it has settled a change, has messages
        in hand, and has between 1 and ``most`` messages waiting in its queue.
        """
        worker.freeze()
        state = self.bus.states(worker.store)["queue"]
        if (
            state.leased
            and 0 < state.ready <= most
            and any("version" in event for event in worker.logged())
        ):
            return True
        worker.thaw()
        return False

    def run_json(self, *arguments: str) -> Any:
        """Run a command with ``--json``, and return the decoded output.

        Raises ``EventSyncError`` if the command fails.
        """
        done = self._commands.run(*arguments, "--json")
        if done.returncode:
            raise EventSyncError(
                f"eventsync {' '.join(arguments)} ended with exit code {done.returncode}: "
                f"{done.stderr.strip()}"
            )
        return json.loads(done.stdout)

    # -- waiting -----------------------------------------------------------------------------------

    def waiting(self) -> str:
        """Return a text with the number of waiting messages in the queue of each store."""
        ready = {s.name: self.bus.states(s.name)["queue"].ready for s in self.registry}
        return ", ".join(f"{name} {plural(count, 'message')}" for name, count in ready.items())

    def await_quiet(self) -> None:
        """Wait until all changes are applied in all stores.

        Raises ``EventSyncError`` if that takes longer than 60 seconds.
        """
        self.await_that(self.quiet, "all queues are empty")

    def quiet(self) -> bool:
        """Return whether all queues and outboxes are empty, and no change is held or pending."""
        for store in self.registry:
            states = self.bus.states(store.name)
            # A worker leases held changes while it tries them again.
            if states["queue"].unsettled or states["held"].unsettled:
                return False
            if store.index.outgoing(1) or store.index.counts("Element")[Presence.PENDING]:
                return False
        return True

    def await_that(self, is_so: Callable[[], bool], what: str, *, every: float = _POLL) -> None:
        """Wait until ``is_so()`` returns true.

        ``what``: the expected state, for the error. ``every``: the seconds between two calls.
        Raises ``EventSyncError`` after 60 seconds, or if a worker ends.
        """
        deadline = time.monotonic() + _TIMEOUT
        while not is_so():
            if time.monotonic() > deadline:
                raise EventSyncError(
                    f"after {_TIMEOUT:g} seconds this is not yet so: {what}",
                    hint=f"read the logs of the workers in {self._logs}",
                )
            for worker in self.workers.values():
                if not worker.running:
                    raise EventSyncError(
                        f"the worker of {worker.store} has ended unexpectedly",
                        hint=f"read the log {self._logs / worker.store}.log",
                    )
            time.sleep(every)


def _has_started(worker: WorkerProcess) -> bool:
    return any(event["event"] == "worker started" for event in worker.logged())
