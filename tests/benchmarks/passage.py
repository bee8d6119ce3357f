"""A passage: events of a load through a broker into a store, and how long that takes.

One process publishes, one or several work as ``eventsync worker`` does. It owns those processes and
the clock. It must not know which servers there are.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import structlog
from benchmarks.deployment import made
from benchmarks.load import Load

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.engine.apply import apply
from eventsync.worker.worker import Worker

__all__ = ["Passage", "passed", "publish"]

_LONGEST = 1800.0


@dataclass(frozen=True)
class Passage:
    """What came of a passage."""

    rate: float
    """Events a second, from the first publish, when the workers look at their queue already, or
    from where they begin if all waited by then, to the last applied."""
    cpu: float
    """Seconds of the workers' processor time for an event."""
    outcomes: dict[str, int]
    dead: int
    """How many dead letters came of it."""


class _Shared:
    """What the processes of a passage tell one another."""

    def __init__(self, workers: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.ready = context.Barrier(workers + 1)
        self.settled = context.Value("q", 0)
        self.began = context.Value("d", 0.0)
        self.ended = context.Value("d", 0.0)
        self.done = context.Event()
        self.told = context.Queue()


def passed(
    load: Load,
    broker: str,
    store: str,
    *,
    workers: int = 1,
    waiting: bool = False,
    metrics: bool = False,
) -> Passage:
    """Take a load through a broker, whose queue is empty, into an empty store, by their URLs.

    ``waiting``: all of it is published before the workers begin. ``metrics``: workers report each
    batch, as supervised ones do, and are scraped each second. Blocks. Raises ``RuntimeError`` if a
    process ends too early.
    """
    shared = _Shared(workers)
    context = multiprocessing.get_context("spawn")
    with Bus(broker) as bus:
        bus.declare("crm", [load.type.__record__.name])
        before = bus.states("crm")["dead"].ready
    made(store, load.type).open().close()
    publisher = context.Process(target=_publish, args=(load, broker, shared, waiting))
    processes = [publisher]
    for _ in range(workers):
        arguments = (load, broker, store, shared, waiting, metrics)
        processes.append(context.Process(target=_work, args=arguments))
    for process in processes:
        process.start()
    try:
        results = []
        deadline = time.monotonic() + _LONGEST
        while len(results) < workers:
            with contextlib.suppress(queue.Empty):
                results.append(shared.told.get(timeout=0.5))
            if any(process.exitcode for process in processes) or time.monotonic() > deadline:
                raise RuntimeError(f"not all of {load} was applied")
    except BaseException:
        for process in processes:
            process.kill()
        raise
    finally:
        for process in processes:
            process.join()
    taken = shared.ended.value - shared.began.value
    outcomes: Counter[str] = sum((Counter(found) for found, _ in results), Counter())
    with Bus(broker) as bus:
        dead = bus.states("crm")["dead"].ready - before
    busy = sum(spent for _, spent in results)
    return Passage(load.events / taken, busy / load.events, dict(outcomes), dead)


def publish(load: Load, broker: str) -> None:
    """Publish a load, without keeping any of it. Blocks."""
    with Bus(broker) as bus:
        _send(load, bus, load.chunks())


def _send(load: Load, bus: Bus, chunks: Iterable[list[Change]]) -> None:
    name = load.type.__record__.name
    for chunk in chunks:
        bus.publish(name, bus.encode_all(chunk))


def _publish(load: Load, broker: str, shared: _Shared, waiting: bool) -> None:
    with Bus(broker) as bus:
        chunks = [] if waiting else list(load.chunks())
        if waiting:
            _send(load, bus, load.chunks())
        shared.ready.wait(_LONGEST)
        shared.began.value = time.monotonic()
        _send(load, bus, chunks)


def _work(load: Load, broker: str, url: str, shared: _Shared, waiting: bool, metrics: bool) -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    store = made(url, load.type)
    with store, Bus(broker) as bus:
        for chunk in load.chunks_before():
            apply(store, chunk, clock=Clock())
        worker = Worker(store, bus)

        def watch() -> None:
            if not waiting:
                while worker.progress.doing != "waiting":
                    time.sleep(0.01)
                shared.ready.wait(_LONGEST)
            shared.done.wait()
            worker.stop()

        with _watched(worker, broker) if metrics else contextlib.nullcontext(lambda: None) as tell:
            worker.before_acknowledge = _counting(worker, load, shared, tell)
            if waiting:
                shared.ready.wait(_LONGEST)
            threading.Thread(target=watch, daemon=True).start()
            before = time.process_time()
            worker.run()
            spent = time.process_time() - before
        shared.told.put(({str(name): n for name, n in worker.outcomes.items()}, spent))


def _counting(
    worker: Worker, load: Load, shared: _Shared, tell: Callable[[], object]
) -> Callable[[], None]:
    """What is called when messages are settled: notes when the last of all events was."""
    seen = 0

    def count() -> None:
        nonlocal seen
        tell()
        total = worker.outcomes.total()
        with shared.settled.get_lock():
            shared.settled.value += total - seen
            seen = total
            if shared.settled.value >= load.events and not shared.done.is_set():
                shared.ended.value = time.monotonic()
                shared.done.set()

    return count


@contextlib.contextmanager
def _watched(worker: Worker, broker: str) -> Iterator[Callable[[], object]]:
    """Have the worker scraped while the block runs; gives what is to be called at each batch."""
    from eventsync.monitoring.backlog import BacklogMonitor
    from eventsync.monitoring.exporters.prometheus import Exporter
    from eventsync.monitoring.worker_group import StatusReporter, WorkerGroup

    crew = WorkerGroup()

    def heard(line: bytes) -> bool:
        crew.reported("crm-1", line)
        return True

    report = StatusReporter(worker.counters, worker.progress, heard).report
    stopping = threading.Event()
    with BacklogMonitor(Bus(broker), [worker.store]) as backlog:
        exporter = Exporter(crew, backlog)

        def scrape() -> None:
            while not stopping.wait(1.0):
                exporter.answer("")

        thread = threading.Thread(target=scrape)
        thread.start()
        try:
            yield report
        finally:
            stopping.set()
            thread.join()
