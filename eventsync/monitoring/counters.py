"""Counters and histograms of a process, which can be sent to another process and added there."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from eventsync.monitoring.catalogue import COUNTED, Metric

__all__ = ["Counters", "Spread"]

_Series = tuple[str, tuple[str, ...]]


@dataclass(slots=True)
class Spread:
    """The content of a histogram.

    ``counts``: the number of values in each bucket; the last bucket has the values above the
    largest bound. ``sum``: the sum of all values.
    """

    counts: list[int]
    sum: float = 0.0

    def add(self, other: Spread) -> None:
        """Add the counts of another histogram with the same bounds to this one."""
        self.counts = [
            ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.sum += other.sum


class Counters:
    """The current values of counters and histograms, by metric and label values. Thread-safe.

    Each call takes a lock, so callers should add up the values of a batch first.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[_Series, float] = {}
        self._spreads: dict[_Series, Spread] = {}

    def add(self, metric: Metric, count: float, *labels: str) -> None:
        """Add ``count`` to the counter ``metric`` with these label values."""
        series = (metric.name, labels)
        with self._lock:
            self._totals[series] = self._totals.get(series, 0) + count

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """Add one value to the histogram ``metric`` with these label values."""
        counts = [0] * (len(metric.bounds) + 1)
        counts[bisect_left(metric.bounds, value)] = 1
        self.spread(metric, Spread(counts, value), *labels)

    def spread(self, metric: Metric, values: Spread, *labels: str) -> None:
        """Add a batch of values to the histogram ``metric`` with these label values."""
        series = (metric.name, labels)
        with self._lock:
            known = self._spreads.get(series)
            if known is None:
                self._spreads[series] = Spread(list(values.counts), values.sum)
            else:
                known.add(values)

    def take(self) -> dict[str, Any]:
        """Return all values as a dict for ``json.dumps``, and reset them to zero."""
        with self._lock:
            totals, self._totals = self._totals, {}
            spreads, self._spreads = self._spreads, {}
        return {
            "totals": [[name, labels, count] for (name, labels), count in totals.items()],
            "spreads": [
                [name, labels, one.counts, one.sum] for (name, labels), one in spreads.items()
            ],
        }

    def merge(self, taken: Mapping[str, Any]) -> None:
        """Add the values that ``take`` returned, in this or in another process."""
        for name, labels, count in taken["totals"]:
            self.add(COUNTED[name], count, *labels)
        for name, labels, counts, total in taken["spreads"]:
            self.spread(COUNTED[name], Spread(counts, total), *labels)

    def totals(self) -> Iterator[tuple[Metric, Sequence[str], float]]:
        """Yield (metric, label values, total) of each counter."""
        with self._lock:
            totals = list(self._totals.items())
        for (name, labels), count in totals:
            yield COUNTED[name], labels, count

    def spreads(self) -> Iterator[tuple[Metric, Sequence[str], Spread]]:
        """Yield (metric, label values, copy of the content) of each histogram."""
        with self._lock:
            spreads = [(s, Spread(list(one.counts), one.sum)) for s, one in self._spreads.items()]
        for (name, labels), one in spreads:
            yield COUNTED[name], labels, one
