"""Exports metrics in the text format of Prometheus. Needs the extra ``metrics``."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from eventsync.errors import ConfigError
from eventsync.monitoring import catalogue
from eventsync.monitoring.backlog import BacklogMonitor
from eventsync.monitoring.catalogue import Metric
from eventsync.monitoring.circuit_breaker import CircuitState
from eventsync.monitoring.following import FollowingState
from eventsync.monitoring.http_server import HttpResponse
from eventsync.monitoring.worker_group import WorkerGroup

try:
    from prometheus_client import CollectorRegistry
    from prometheus_client.core import (
        CounterMetricFamily,
        GaugeMetricFamily,
        HistogramMetricFamily,
    )
    from prometheus_client.exposition import choose_encoder
except ImportError as error:
    raise ConfigError(
        f"metrics need the extra 'metrics', which is not installed: {error}",
        hint="pip install 'eventsync[metrics]'",
    ) from error

__all__ = ["Exporter"]

_FAMILIES: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
    "gauge": GaugeMetricFamily,
}


class Exporter:
    """Exports the metrics of a worker group and of the backlog to Prometheus. Thread-safe."""

    def __init__(self, workers: WorkerGroup, backlog: BacklogMonitor) -> None:
        self._workers = workers
        self._backlog = backlog
        # A separate registry: the global one would mix the metrics of several worker groups.
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answer(self, accept: str) -> HttpResponse:
        """Return a response with the current metrics, in a format that ``accept`` allows.

        ``accept``: the ``Accept`` header of the request.
        """
        encode, content_type = choose_encoder(accept)
        return HttpResponse(encode(self._registry), content_type)

    def collect(self) -> Iterator[Any]:
        """Yield the current metric families. ``prometheus_client`` calls this method."""
        families: dict[str, Any] = {}

        def family(one: Metric) -> Any:
            if one.name not in families:
                families[one.name] = _FAMILIES[one.kind](one.name, one.help, labels=one.labels)
            return families[one.name]

        for one, labels, total in self._workers.counters.totals():
            family(one).add_metric(labels, total)
        for one, labels, spread in self._workers.counters.spreads():
            buckets, so_far = [], 0
            for bound, count in zip([*one.bounds, float("inf")], spread.counts, strict=True):
                so_far += count
                buckets.append((f"{bound:g}" if bound != float("inf") else "+Inf", so_far))
            family(one).add_metric(labels, buckets, spread.sum)
        for one, labels, value in (*self._backlog_values(), *self._worker_values()):
            family(one).add_metric(labels, value)
        yield from families.values()

    def _backlog_values(self) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        now, broker = time.time(), self._backlog.broker.answer
        yield catalogue.BROKER_UP, (), float(broker is not None)
        for store, queues in (broker or {}).items():
            if queues is None:
                continue
            yield catalogue.QUEUE, (store, "work"), queues.work
            yield catalogue.QUEUE, (store, "held"), queues.held
            yield catalogue.QUEUE, (store, "dead"), queues.dead
            if queues.in_hand is not None:
                yield catalogue.IN_HAND, (store,), queues.in_hand
            if queues.oldest is not None or not queues.work:
                yield catalogue.OLDEST, (store,), _age(queues.oldest, now)
        for store, poller in self._backlog.stores.items():
            yield catalogue.STORE_UP, (store,), float(poller.answer is not None)
        for name, outbox_poller in self._backlog.outboxes.items():
            outbox = outbox_poller.answer
            if outbox is not None:
                yield catalogue.OUTBOX, (name,), outbox.waiting
                yield catalogue.OUTBOX_OLDEST, (name,), _age(outbox.oldest, now)
                for type, count in outbox.unreadable.items():
                    yield catalogue.UNREADABLE, (name, type), count
                if outbox.following is not None:
                    yield from _following_values(name, outbox.following, now)
                if outbox.bytes is not None:
                    yield catalogue.SPOOL_BYTES, (name,), outbox.bytes

    def _worker_values(self) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        states = self._workers.states()
        lags: dict[str, float] = {}
        seconds: dict[str, float] = {}
        counts: dict[str, int] = dict.fromkeys(self._workers.stores, 0)
        problems = dict.fromkeys(self._workers.possible_problems, 0.0)
        for worker, state in states.items():
            store = state["store"]
            if state["role"] == "worker":
                counts[store] = counts.get(store, 0) + 1
            lags[store] = max(lags.get(store, 0.0), state["lag"])
            for circuit in CircuitState:
                is_in = float(state["circuit"]["state"] == circuit)
                yield catalogue.CIRCUIT, (store, worker, str(circuit)), is_in
            yield catalogue.SILENCE, (store, worker), state["silence"]
            yield catalogue.MEMORY, (store, worker), state["memory"]
            yield catalogue.STARTED, (store, worker), state["started"]
            problems |= {(store, one["type"], one["kind"]): 1.0 for one in state["problems"]}
            if state["capture_seconds"] is not None:
                seconds[store] = max(seconds.get(store, 0.0), state["capture_seconds"])
        for store, lag in lags.items():
            yield catalogue.CURRENT_LAG, (store,), lag
        for store, took in seconds.items():
            yield catalogue.CAPTURE_SECONDS, (store,), took
        for store, count in counts.items():
            yield catalogue.WORKERS, (store,), count
        for labels, is_present in problems.items():
            yield catalogue.PROBLEM, labels, is_present


def _following_values(
    store: str, following: FollowingState, now: float
) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
    state, of_store = following.state, (store,)
    yield catalogue.CAPTURE_INSTALLED, (store, following.source), float(state.installed)
    # Without a mark nothing was ever captured: the age since the epoch, which any alert notices.
    yield catalogue.CAPTURE_AGE, of_store, max(0.0, now - (following.caught_up_at or 0.0))
    for metric, value in (
        (catalogue.CAPTURE_WAITING, state.waiting),
        (catalogue.CAPTURE_BEHIND, state.lag_bytes),
        (catalogue.CAPTURE_RETAINED, state.retained_bytes),
    ):
        if value is not None:
            yield metric, of_store, value


def _age(moment: float | None, now: float) -> float:
    return 0.0 if moment is None else max(0.0, now - moment)
