"""The tally: totals and distributions that only grow, and can be carried to another process.

It owns how they are added up. It must not know what any of them means, nor who reads them.
"""

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
    """How values are spread: how many up to each bound (and beyond the last), and their sum."""

    counts: list[int]
    sum: float = 0.0

    def add(self, other: Spread) -> None:
        """Take in another of the same bounds."""
        self.counts = [
            ours + theirs for ours, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.sum += other.sum


class Counters:
    """What was counted so far, by metric and label values. Thread-safe.

    Made for batches: who counts sums up first, and adds the sums.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals: dict[_Series, float] = {}
        self._spreads: dict[_Series, Spread] = {}

    def add(self, metric: Metric, count: float, *labels: str) -> None:
        """So many more of a counter."""
        series = (metric.name, labels)
        with self._lock:
            self._totals[series] = self._totals.get(series, 0) + count

    def observe(self, metric: Metric, value: float, *labels: str) -> None:
        """One more value of a histogram."""
        counts = [0] * (len(metric.bounds) + 1)
        counts[bisect_left(metric.bounds, value)] = 1
        self.spread(metric, Spread(counts, value), *labels)

    def spread(self, metric: Metric, values: Spread, *labels: str) -> None:
        """Many more values of a histogram."""
        series = (metric.name, labels)
        with self._lock:
            held = self._spreads.get(series)
            if held is None:
                self._spreads[series] = Spread(list(values.counts), values.sum)
            else:
                held.add(values)

    def take(self) -> dict[str, Any]:
        """All of it, ready for ``json.dumps``, and begin again at nothing."""
        with self._lock:
            totals, self._totals = self._totals, {}
            spreads, self._spreads = self._spreads, {}
        return {
            "totals": [[name, labels, count] for (name, labels), count in totals.items()],
            "spreads": [
                [name, labels, held.counts, held.sum] for (name, labels), held in spreads.items()
            ],
        }

    def merge(self, taken: Mapping[str, Any]) -> None:
        """Add what another tally, or this one, gave away by ``take``."""
        for name, labels, count in taken["totals"]:
            self.add(COUNTED[name], count, *labels)
        for name, labels, counts, total in taken["spreads"]:
            self.spread(COUNTED[name], Spread(counts, total), *labels)

    def totals(self) -> Iterator[tuple[Metric, Sequence[str], float]]:
        """Every counter as it stands, with its labels' values."""
        with self._lock:
            held = list(self._totals.items())
        for (name, labels), count in held:
            yield COUNTED[name], labels, count

    def spreads(self) -> Iterator[tuple[Metric, Sequence[str], Spread]]:
        """Every histogram as it stands, with its labels' values."""
        with self._lock:
            held = [(s, Spread(list(one.counts), one.sum)) for s, one in self._spreads.items()]
        for (name, labels), one in held:
            yield COUNTED[name], labels, one
