"""What the demo's story plays on: the stores, their workers, and the waiting for either.

It must not know the story.
"""

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

_PATIENCE = 60.0
_POLL = 0.05
_GRACE = 10.0


class Stage:
    """The stores of ``folder``, opened, whose edits are counted, and processes that serve them."""

    def __init__(self, deployment: Deployment, folder: Path, broker: str) -> None:
        self.bus = deployment.bus
        self.publisher = LedgerPublisher(self.bus)
        self.registry = deployment.registry.open(publisher=self.publisher)
        deployment.declare()
        self.workers: dict[str, WorkerProcess] = {}
        self.failed: list[str] = []
        """What was wrong with workers that were stopped."""
        self._commands = Commands(folder, broker)
        self._logs = folder / "logs"

    # -- workers -----------------------------------------------------------------------------------

    def start_workers(self, *names: str, **settings: dict[str, str]) -> None:
        """Start the workers of these stores, or of all, and wait until they are at work.

        ``settings``: by store, settings by their names.
        """
        for name in names or self.registry.stores:
            self.workers[name] = self._commands.worker(name, **settings.get(name, {}))
        for name in names or self.registry.stores:
            worker = self.workers[name]
            self.await_that(partial(_has_started, worker), f"the worker of {name} has started")

    def stop_workers(self) -> None:
        """Have all workers finish what they have in hand and leave."""
        stopping = list(self.workers.values())
        self.workers.clear()
        for worker in stopping:
            worker.terminate()
        for worker in stopping:
            code = worker.wait(_GRACE)
            if code:
                self.failed.append(f"the worker of {worker.store} ended with {code}")

    def frozen_half_way(self, worker: WorkerProcess, most: int) -> bool:
        """Freeze a worker; let it go on unless it has settled some work, has more in hand, and at
        most ``most`` messages, but some, are still waiting.
        """
        worker.freeze()
        state = self.bus.states(worker.store)["queue"]
        if (
            state.leased
            and 0 < state.ready <= most
            and any("version" in event for event in worker.said())
        ):
            return True
        worker.thaw()
        return False

    def ask(self, *arguments: str) -> Any:
        """The answer of a command in a process of its own. Raises ``EventSyncError``."""
        done = self._commands.run(*arguments, "--json")
        if done.returncode:
            said = done.stderr.strip()
            raise EventSyncError(f"eventsync {arguments[0]} ended with {done.returncode}: {said}")
        return json.loads(done.stdout)

    # -- waiting -----------------------------------------------------------------------------------

    def waiting(self) -> str:
        """What waits in the queues, for people."""
        ready = {s.name: self.bus.states(s.name)["queue"].ready for s in self.registry}
        return ", ".join(f"{name} {plural(count, 'message')}" for name, count in ready.items())

    def await_quiet(self) -> None:
        """Wait until nothing is under way any more."""
        self.await_that(self.quiet, "all queues are empty")

    def quiet(self) -> bool:
        """Whether nothing is under way any more."""
        for store in self.registry:
            states = self.bus.states(store.name)
            if states["queue"].ready or states["queue"].leased or states["held"].ready:
                return False
            if store.index.outgoing(1) or store.index.counts("Element")[Presence.PENDING]:
                return False
        return True

    def await_that(
        self, come_about: Callable[[], bool], what: str, *, every: float = _POLL
    ) -> None:
        """Wait until ``come_about``. Raises ``EventSyncError`` if it does not, or a worker ends."""
        deadline = time.monotonic() + _PATIENCE
        while not come_about():
            if time.monotonic() > deadline:
                raise EventSyncError(
                    f"after {_PATIENCE:g} seconds it is not so that {what}",
                    hint=f"see the workers' logs in {self._logs}",
                )
            for worker in self.workers.values():
                if not worker.running:
                    raise EventSyncError(
                        f"the worker of {worker.store} has ended",
                        hint=f"see {self._logs / worker.store}.log",
                    )
            time.sleep(every)


def _has_started(worker: WorkerProcess) -> bool:
    return any(event["event"] == "worker started" for event in worker.said())
