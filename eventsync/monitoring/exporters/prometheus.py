"""Prometheus: all metrics of a crew as its text, when somebody asks.

It knows how the catalogue is written for Prometheus, and nothing of how anything is counted. It
needs the extra ``metrics``.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any, Final

from eventsync.errors import ConfigError
from eventsync.monitoring import catalogue
from eventsync.monitoring.backlog import Survey
from eventsync.monitoring.catalogue import Metric
from eventsync.monitoring.circuit_breaker import CircuitState
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
        f"metrics need a package that is missing: {error}",
        hint="pip install 'eventsync[metrics]'",
    ) from error

__all__ = ["Exporter"]

_FAMILIES: Final[Mapping[str, Any]] = {
    "counter": CounterMetricFamily,
    "histogram": HistogramMetricFamily,
    "gauge": GaugeMetricFamily,
}


class Exporter:
    """The metrics of a crew and of what a survey sees. Thread-safe; reads and changes nothing."""

    def __init__(self, crew: WorkerGroup, survey: Survey) -> None:
        self._crew = crew
        self._survey = survey
        # One of its own: the library's global one would mix crews.
        self._registry = CollectorRegistry()
        self._registry.register(self)

    def answer(self, accept: str) -> HttpResponse:
        """The metrics as they stand, in the format that ``accept`` asks for."""
        encode, content_type = choose_encoder(accept)
        return HttpResponse(encode(self._registry), content_type)

    def collect(self) -> Iterator[Any]:
        """All metric families, as ``prometheus_client`` takes them."""
        families: dict[str, Any] = {}

        def family(one: Metric) -> Any:
            if one.name not in families:
                families[one.name] = _FAMILIES[one.kind](one.name, one.help, labels=one.labels)
            return families[one.name]

        for one, labels, total in self._crew.tally.totals():
            family(one).add_metric(labels, total)
        for one, labels, spread in self._crew.tally.spreads():
            buckets, so_far = [], 0
            for bound, count in zip([*one.bounds, float("inf")], spread.counts, strict=True):
                so_far += count
                buckets.append((f"{bound:g}" if bound != float("inf") else "+Inf", so_far))
            family(one).add_metric(labels, buckets, spread.sum)
        for one, labels, value in (*self._waiting(), *self._workers()):
            family(one).add_metric(labels, value)
        yield from families.values()

    def _waiting(self) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        now, broker = time.time(), self._survey.broker.answer
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
        for store, look in self._survey.stores.items():
            yield catalogue.STORE_UP, (store,), float(look.answer is not None)
        for name, look in self._survey.outboxes.items():
            outbox = look.answer
            if outbox is not None:
                yield catalogue.OUTBOX, (name,), outbox.waiting
                yield catalogue.OUTBOX_OLDEST, (name,), _age(outbox.oldest, now)
                if outbox.bytes is not None:
                    yield catalogue.SPOOL_BYTES, (name,), outbox.bytes

    def _workers(self) -> Iterator[tuple[Metric, tuple[str, ...], float]]:
        states = self._crew.states()
        lags: dict[str, float] = {}
        counts: dict[str, int] = dict.fromkeys(self._crew.stores, 0)
        for worker, state in states.items():
            store = state["store"]
            counts[store] = counts.get(store, 0) + 1
            lags[store] = max(lags.get(store, 0.0), state["lag"])
            for circuit in CircuitState:
                is_in = float(state["circuit"]["state"] == circuit)
                yield catalogue.CIRCUIT, (store, worker, str(circuit)), is_in
            yield catalogue.SILENCE, (store, worker), state["silence"]
            yield catalogue.MEMORY, (store, worker), state["memory"]
            yield catalogue.STARTED, (store, worker), state["started"]
        for store, lag in lags.items():
            yield catalogue.CURRENT_LAG, (store,), lag
        for store, count in counts.items():
            yield catalogue.WORKERS, (store,), count


def _age(moment: float | None, now: float) -> float:
    return 0.0 if moment is None else max(0.0, now - moment)
