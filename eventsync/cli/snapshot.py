"""Snapshots of a deployment for ``eventsync top``: the state and rates of stores and workers.

A value of ``None`` is not known.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from eventsync.cli.health import ask, parse_url
from eventsync.monitoring.backlog import BacklogMonitor, Poller, stall_of
from eventsync.monitoring.health import problem_text
from eventsync.monitoring.worker_status import read_crashes, read_states

if TYPE_CHECKING:
    from eventsync.cli.deployment import Deployment

__all__ = ["Sampler", "Snapshot", "StoreSnapshot", "WorkerSnapshot"]

# What a state raises that another program wrote, or that an endpoint made up.
_WRONG: Final = (KeyError, TypeError, ValueError, AttributeError, OverflowError)


@dataclass(slots=True)
class WorkerSnapshot:
    """The state of one worker process.

    ``where``: the address of the endpoint that reported this state, or ``this host`` if it comes
    from a state file. ``silence``: the seconds since the worker last made progress. ``lag``: the
    age in seconds of the oldest change that the worker has in hand or applied last; 0 if there is
    none. ``in_hand``: messages that the worker has taken and not settled. ``messages``,
    ``changes``: how many the worker has settled. ``memory``: in bytes. ``started``: in seconds
    since the epoch. ``circuit``: the state of the circuit breaker, and ``error`` the error that
    opened it. ``role``: ``worker``, or ``capture`` for a process that only captures. ``rate``:
    settled changes per second.
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
    role: str = "worker"
    rate: float | None = None


@dataclass(slots=True)
class StoreSnapshot:
    """The state of one store: its queues, its outbox, and its workers together.

    ``waiting``: messages that no worker has taken. ``in_hand``: messages that a worker has taken.
    ``oldest``: how long the oldest message has waited, in seconds. ``held``, ``dead``: held changes
    and dead letters. ``outbox``: unpublished changes. ``outbox_oldest``: how long the oldest of the
    unpublished changes has waited, in seconds. ``workers``: the number of known workers, or
    ``None`` if no source reports workers of this store. ``lag``: the age in seconds of the oldest
    change that is not applied, as far as known. ``rate``: changes per second that all workers
    settle. ``circuit``: the state of a circuit breaker that is not closed, else ``closed``.
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

    ``at``: the time of the snapshot, in seconds since the epoch. ``broker``: whether the broker is
    reachable. ``problems``: a text for each source that could not be read, for each open circuit
    breaker, for each worker that crashes again and again, and for each problem of a store.
    """

    at: float
    broker: bool
    stores: list[StoreSnapshot]
    workers: list[WorkerSnapshot]
    problems: list[str] = field(default_factory=list)


class Sampler:
    """Takes snapshots of a deployment.

    The state of queues comes from the broker, the state of outboxes from the stores, and the state
    of workers from ``endpoints`` and from the state files on this host. If the host name of an
    endpoint has several addresses, all of them are asked.

    ``every``: how often the sources are read, in seconds. Use the sampler as a context manager:
    within the block, threads read the sources. Not thread-safe.
    """

    def __init__(self, deployment: Deployment, endpoints: Sequence[str], *, every: float) -> None:
        """Check the URLs in ``endpoints``. Raises ``ConfigError`` if one is wrong."""
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
        # The problems that workers report, and the workers that crash.
        self._told: list[str] = []
        self._stall_after = settings.stall_after
        self._before: dict[tuple[str, int, float], tuple[float, int]] = {}

    @property
    def has_worker_sources(self) -> bool:
        """Whether workers can be known, from an endpoint or from a folder of state files."""
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
        """Wait until all sources have answered once, or ``seconds`` have passed."""
        looks: list[Poller[Any]] = [self._survey.broker, *self._survey.outboxes.values()]
        looks += self._endpoints.values()
        deadline = time.monotonic() + seconds
        while not all(look.is_known for look in looks) and time.monotonic() < deadline:
            time.sleep(0.02)

    def take(self) -> Snapshot:
        """Return a snapshot of the present state. Does not block.

        Rates are averages since the previous snapshot, and ``None`` in the first one.
        """
        now = time.time()
        broker = self._survey.broker
        workers = self._workers()
        snapshot = Snapshot(now, broker.answer is not None, [], workers)
        if broker.error:
            snapshot.problems.append(broker.error)
        for name, look in self._survey.stores.items():
            if look.error:
                snapshot.problems.append(f"{name}: {look.error}")
            own = [w for w in workers if w.store == name and w.role == "worker"]
            snapshot.stores.append(self._store(name, own, now))
        snapshot.problems += [look.error for look in self._endpoints.values() if look.error]
        errors = (f"{w.store}: circuit breaker open: {w.error}" for w in workers if w.error)
        snapshot.problems += dict.fromkeys([*errors, *self._told, *self._stalls(now)])
        return snapshot

    def _stalls(self, now: float) -> Iterator[str]:
        for name, look in self._survey.stores.items():
            queue, outbox = (self._survey.broker.answer or {}).get(name), look.answer
            if queue is not None and outbox is not None:
                stall = stall_of(
                    queue.work,
                    None if queue.oldest is None else now - queue.oldest,
                    outbox.progress_at,
                    now=now,
                    stall_after=self._stall_after,
                )
                if stall is not None:
                    yield f"{name}: {stall}"

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
        crashes = [] if self._folder is None else read_crashes(self._folder)
        self._told = []
        for look in self._endpoints.values():
            for where, body in look.answer or ():
                try:
                    self._reported_stores.update(map(str, body["stores"]))
                    crashes += body["crashes"]
                    states += [(where, state) for state in body["workers"]]
                except _WRONG:
                    self._told.append(f"{where} answers something else than its workers' states")
        moment = time.monotonic()
        for crash in crashes:
            with suppress(*_WRONG):  # another program's file or answer
                self._told.append(f"{crash['store']}: {crash['text']}")
        for where, state in states:
            try:
                worker = _worker(where, state)
                problems = [problem_text(worker.store, one) for one in state["problems"]]
            except _WRONG:
                self._told.append(f"the state of a worker at {where or 'this host'} is malformed")
                continue
            self._told += problems
            # The key is unique: an endpoint and a state file may report the same worker.
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
        # A stuck worker does not update its state file: add the time since the last update, which
        # is at most 1 second ago in a healthy worker.
        silence += max(0.0, time.time() - state["written"] - 1.0)
    return WorkerSnapshot(
        worker=str(state.get("worker", state["store"])),
        store=str(state["store"]),
        pid=int(state["pid"]),
        where=where or "this host",
        doing=str(state["doing"]),
        silence=silence,
        lag=float(state.get("lag", 0.0)),
        in_hand=int(state["in_hand"]),
        messages=int(state["messages"]),
        changes=int(sum(state["outcomes"].values())),
        memory=int(state["memory"]),
        started=float(state["started"]),
        circuit=str(state["circuit"]["state"]),
        error=str(state["circuit"]["error"] or ""),
        role=str(state.get("role", "worker")),
    )


def _ask_all(url: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Ask each address of the host name in ``url``, and yield ``(address, answer)`` pairs.

    Addresses that do not answer are left out. Raises ``OSError`` if no address answers, and
    ``ConfigError`` if ``url`` is wrong.
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
