"""The lookout: how stores and workers stand right now, and how fast they get on.

It owns where each fact comes from, and what follows from two looks. It must not know how anything
is shown. What is not known is ``None``.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eventsync.cli.health import ask, parse_url
from eventsync.monitoring.backlog import BacklogMonitor, Poller
from eventsync.monitoring.worker_status import read_states

if TYPE_CHECKING:
    from eventsync.cli.deployment import Deployment

__all__ = ["Lookout", "Snapshot", "StoreSight", "WorkerSight"]


@dataclass(slots=True)
class WorkerSight:
    """One worker process. Ages and spans in seconds; ``rate`` in changes a second."""

    worker: str
    store: str
    pid: int
    where: str
    doing: str
    silence: float
    lag: float
    in_hand: int
    messages: int
    changes: int
    memory: int
    started: float
    circuit: str
    error: str
    rate: float | None = None


@dataclass(slots=True)
class StoreSight:
    """One store: its queues, its outbox, and its workers taken together.

    ``workers``: how many are known; ``None`` when there is nobody to tell.
    """

    store: str
    waiting: int | None = None
    in_hand: int | None = None
    oldest: float | None = None
    held: int | None = None
    dead: int | None = None
    outbox: int | None = None
    outbox_oldest: float | None = None
    workers: int | None = None
    lag: float | None = None
    rate: float | None = None
    circuit: str | None = None


@dataclass(slots=True)
class Snapshot:
    """One look at a deployment. ``problems``: what could not be asked, or what workers wait for."""

    at: float
    broker: bool
    stores: list[StoreSight]
    workers: list[WorkerSight]
    problems: list[str] = field(default_factory=list)


class Lookout:
    """Looks at a deployment again and again. Usable as a context manager. For one thread.

    Queues and outboxes are asked for directly. Of workers tell the ``endpoints`` that are named
    (each stands for all addresses of its name), and the state files of this host, if there are any.
    """

    def __init__(self, deployment: Deployment, endpoints: Sequence[str], *, every: float) -> None:
        """Raises ``ConfigError``."""
        for url in endpoints:
            parse_url(url)
        settings = deployment.settings
        self._folder: Path | None = settings.state_dir
        self._survey = BacklogMonitor(settings.bus(), list(deployment.registry), every=every)
        self._endpoints = {
            url: Poller(url, lambda url=url: list(_ask_all(url)), every=every)  # type: ignore[misc]
            for url in endpoints
        }
        self._stopping = threading.Event()
        self._told_of: set[str] = set()
        self._before: dict[tuple[str, int, float], tuple[float, int]] = {}

    @property
    def knows_workers(self) -> bool:
        """Whether there is anybody to tell of workers."""
        return bool(self._endpoints) or self._folder is not None

    def __enter__(self) -> Lookout:
        self._survey.__enter__()
        for look in self._endpoints.values():
            threading.Thread(target=look.run, args=(self._stopping,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._survey.__exit__(*exc_info)

    def wait(self, seconds: float) -> None:
        """Until all that is asked has answered, or for so many seconds."""
        looks: list[Poller[Any]] = [self._survey.broker, *self._survey.outboxes.values()]
        looks += self._endpoints.values()
        deadline = time.monotonic() + seconds
        while not all(look.is_known for look in looks) and time.monotonic() < deadline:
            time.sleep(0.02)

    def look(self) -> Snapshot:
        """How it stands. Rates are those since the look before; unknown at the first."""
        now = time.time()
        broker = self._survey.broker
        workers = self._workers()
        sight = Snapshot(now, broker.answer is not None, [], workers)
        if broker.error:
            sight.problems.append(broker.error)
        for name, look in self._survey.stores.items():
            if look.error:
                sight.problems.append(f"{name}: {look.error}")
            sight.stores.append(self._store(name, [w for w in workers if w.store == name], now))
        sight.problems += [look.error for look in self._endpoints.values() if look.error]
        told = (f"{w.store}: circuit open: {w.error}" for w in workers if w.error)
        sight.problems += dict.fromkeys(told)
        return sight

    def _store(self, name: str, workers: list[WorkerSight], now: float) -> StoreSight:
        seen = StoreSight(name)
        queues = (self._survey.broker.answer or {}).get(name)
        if queues is not None:
            seen.waiting, seen.in_hand = queues.work, queues.in_hand
            seen.held, seen.dead = queues.held, queues.dead
            if queues.oldest is not None:
                seen.oldest = max(0.0, now - queues.oldest)
            elif not queues.work:
                seen.oldest = 0.0
        outbox = self._survey.stores[name].answer
        if outbox is not None:
            seen.outbox = outbox.waiting
            seen.outbox_oldest = 0.0 if outbox.oldest is None else max(0.0, now - outbox.oldest)
        if workers or name in self._told_of:
            seen.workers = len(workers)
        lags = [worker.lag for worker in workers]
        seen.lag = max([*lags, *([] if seen.oldest is None else [seen.oldest])], default=None)
        if workers:
            rates = [worker.rate for worker in workers if worker.rate is not None]
            seen.rate = sum(rates) if rates else None
            seen.circuit = next((w.circuit for w in workers if w.circuit != "closed"), "closed")
        return seen

    def _workers(self) -> list[WorkerSight]:
        found: dict[tuple[str, int, float], WorkerSight] = {}
        told = [] if self._folder is None else [("", s) for s in read_states(self._folder)]
        self._told_of = set()
        for look in self._endpoints.values():
            for where, body in look.answer or ():
                self._told_of.update(body["stores"])
                told += [(where, state) for state in body["workers"]]
        moment = time.monotonic()
        for where, state in told:
            sight = _worker(where, state)
            # One that both an endpoint and a state file tell of is one worker.
            found[sight.store, sight.pid, sight.started] = sight
        for process, sight in found.items():
            at, changes = self._before.get(process, (moment, 0))
            if moment > at:
                sight.rate = (sight.changes - changes) / (moment - at)
        self._before = {process: (moment, sight.changes) for process, sight in found.items()}
        return sorted(found.values(), key=lambda sight: (sight.store, sight.worker, sight.pid))


def _worker(where: str, state: dict[str, Any]) -> WorkerSight:
    silence = float(state["silence"])
    if not where:
        # Of a process that stands still its file says less and less.
        silence += max(0.0, time.time() - state["written"] - 1.0)
    return WorkerSight(
        worker=state.get("worker", state["store"]),
        store=state["store"],
        pid=state["pid"],
        where=where or "this host",
        doing=state["doing"],
        silence=silence,
        lag=state.get("lag", 0.0),
        in_hand=state["in_hand"],
        messages=state["messages"],
        changes=sum(state["outcomes"].values()),
        memory=state["memory"],
        started=state["started"],
        circuit=state["circuit"]["state"],
        error=state["circuit"]["error"],
    )


def _ask_all(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """What every command tells that listens at an address of this name, and where that is.

    Raises ``OSError`` when nobody answers, ``ConfigError``.
    """
    parts = parse_url(url)
    try:
        found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    except OSError as error:
        raise OSError(f"{url}: {error}") from error
    addresses = dict.fromkeys(str(info[4][0]) for info in found)
    answered, failed = 0, ""
    for address in addresses:
        try:
            _, told = ask(url, timeout=3.0, address=address)
        except (OSError, ValueError) as error:
            failed = str(error)
            continue
        answered += 1
        yield f"{address}:{parts.port}", told
    if not answered:
        raise OSError(f"{url}: {failed}")
