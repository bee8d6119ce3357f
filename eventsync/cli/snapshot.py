"""Snapshots of a deployment for ``eventsync top``: the state of stores and workers, and rates.

``None`` means not known.
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

__all__ = ["Sampler", "Snapshot", "StoreSnapshot", "WorkerSnapshot"]


@dataclass(slots=True)
class WorkerSnapshot:
    """The state of one worker process.

    ``where``: the endpoint that reported it, or ``this host`` for a state file. ``silence`` and
    ``lag`` are in seconds, ``started`` is in seconds since the epoch, ``memory`` is in bytes,
    ``rate`` is in changes a second.
    """

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
class StoreSnapshot:
    """The state of one store: its queues, its outbox, and its workers together.

    ``workers``: the number of known workers, or ``None`` if no source reports workers of this
    store. ``oldest``, ``outbox_oldest`` and ``lag`` are ages in seconds; ``rate`` is in changes a
    second.
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
    """The state of a deployment at one moment.

    ``at``: seconds since the epoch. ``broker``: whether it is reachable. ``problems``: sources that
    could not be read, and the errors of stores whose circuit breaker is open.
    """

    at: float
    broker: bool
    stores: list[StoreSnapshot]
    workers: list[WorkerSnapshot]
    problems: list[str] = field(default_factory=list)


class Sampler:
    """Takes snapshots of a deployment. A context manager, which reads the sources in threads.

    Queues and outboxes are read from the broker and the stores. Workers are read from
    ``endpoints``, where a host name with several addresses stands for all of them, and from the
    state files on this host. Not thread-safe.
    """

    def __init__(self, deployment: Deployment, endpoints: Sequence[str], *, every: float) -> None:
        """Raise ``ConfigError`` for a wrong URL."""
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
        self._reported_stores: set[str] = set()
        self._before: dict[tuple[str, int, float], tuple[float, int]] = {}

    @property
    def has_worker_sources(self) -> bool:
        """Whether an endpoint or a folder of state files is configured."""
        return bool(self._endpoints) or self._folder is not None

    def __enter__(self) -> Sampler:
        self._survey.__enter__()
        for look in self._endpoints.values():
            threading.Thread(target=look.run, args=(self._stopping,), daemon=True).start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._stopping.set()
        self._survey.__exit__(*exc_info)

    def wait(self, seconds: float) -> None:
        """Wait until all sources have answered, at most ``seconds``."""
        looks: list[Poller[Any]] = [self._survey.broker, *self._survey.outboxes.values()]
        looks += self._endpoints.values()
        deadline = time.monotonic() + seconds
        while not all(look.is_known for look in looks) and time.monotonic() < deadline:
            time.sleep(0.02)

    def take(self) -> Snapshot:
        """Return a snapshot. Its rates are averages since the snapshot before, if any."""
        now = time.time()
        broker = self._survey.broker
        workers = self._workers()
        snapshot = Snapshot(now, broker.answer is not None, [], workers)
        if broker.error:
            snapshot.problems.append(broker.error)
        for name, look in self._survey.stores.items():
            if look.error:
                snapshot.problems.append(f"{name}: {look.error}")
            snapshot.stores.append(self._store(name, [w for w in workers if w.store == name], now))
        snapshot.problems += [look.error for look in self._endpoints.values() if look.error]
        errors = (f"{w.store}: circuit breaker open: {w.error}" for w in workers if w.error)
        snapshot.problems += dict.fromkeys(errors)
        return snapshot

    def _store(self, name: str, workers: list[WorkerSnapshot], now: float) -> StoreSnapshot:
        store = StoreSnapshot(name)
        queues = (self._survey.broker.answer or {}).get(name)
        if queues is not None:
            store.waiting, store.in_hand = queues.work, queues.in_hand
            store.held, store.dead = queues.held, queues.dead
            if queues.oldest is not None:
                store.oldest = max(0.0, now - queues.oldest)
            elif not queues.work:
                store.oldest = 0.0
        outbox = self._survey.stores[name].answer
        if outbox is not None:
            store.outbox = outbox.waiting
            store.outbox_oldest = 0.0 if outbox.oldest is None else max(0.0, now - outbox.oldest)
        if workers or name in self._reported_stores:
            store.workers = len(workers)
        lags = [worker.lag for worker in workers]
        store.lag = max([*lags, *([] if store.oldest is None else [store.oldest])], default=None)
        if workers:
            rates = [worker.rate for worker in workers if worker.rate is not None]
            store.rate = sum(rates) if rates else None
            store.circuit = next((w.circuit for w in workers if w.circuit != "closed"), "closed")
        return store

    def _workers(self) -> list[WorkerSnapshot]:
        found: dict[tuple[str, int, float], WorkerSnapshot] = {}
        states = [] if self._folder is None else [("", s) for s in read_states(self._folder)]
        self._reported_stores = set()
        for look in self._endpoints.values():
            for where, body in look.answer or ():
                self._reported_stores.update(body["stores"])
                states += [(where, state) for state in body["workers"]]
        moment = time.monotonic()
        for where, state in states:
            worker = _worker(where, state)
            # An endpoint and a state file may report the same worker.
            found[worker.store, worker.pid, worker.started] = worker
        for process, worker in found.items():
            at, changes = self._before.get(process, (moment, 0))
            if moment > at:
                worker.rate = (worker.changes - changes) / (moment - at)
        self._before = {process: (moment, worker.changes) for process, worker in found.items()}
        return sorted(found.values(), key=lambda worker: (worker.store, worker.worker, worker.pid))


def _worker(where: str, state: dict[str, Any]) -> WorkerSnapshot:
    silence = float(state["silence"])
    if not where:
        # A worker that is stuck does not update its file either.
        silence += max(0.0, time.time() - state["written"] - 1.0)
    return WorkerSnapshot(
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
    """Yield the answers of all endpoints at the addresses of this host name, with the address.

    Raises ``OSError`` if none answers, and ``ConfigError`` for a wrong URL.
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
            _, answer = ask(url, timeout=3.0, address=address)
        except (OSError, ValueError) as error:
            failed = str(error)
            continue
        answered += 1
        yield f"{address}:{parts.port}", answer
    if not answered:
        raise OSError(f"{url}: {failed}")
