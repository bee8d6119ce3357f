"""What a measurement has, and where each is found by its name.

It knows nothing of what is done with the figures. A module is imported when it is asked for, so
that what one needs is not needed for the others.
"""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell

__all__ = ["MEASUREMENTS", "USUAL", "Measurement", "measurement"]

USUAL = ("throughput", "latency", "shapes", "backlog", "workers", "start")
MEASUREMENTS = (*USUAL, "capture", "soak", "peers")


class Measurement(Protocol):
    """A module that measures one thing.

    ``Scale`` says how much is done, ``QUICK`` as little as shows that it works.
    """

    COLUMNS: Sequence[Column]
    QUICK: Any
    Scale: type[Any]

    def measure(self, tell: Tell, scale: Any) -> list[dict[str, Any]]:
        """Blocks. Tells each row when it is known, and gives all of them."""

    def panels(self, rows: Sequence[dict[str, Any]]) -> list[Panel]:
        """What is drawn of the rows."""


def measurement(name: str) -> Measurement:
    """A measurement by its name."""
    if name == "peers":
        return _Peers()
    return cast(Measurement, importlib.import_module(f"benchmarks.{name}"))


@dataclass(frozen=True, kw_only=True)
class _PeersScale:
    """How many events peers get that take them one by one, and how many times as many others."""

    events: int = 1000
    factor: int = 40


class _Peers:
    """``peers.py``, which has a command of its own with its own options, as the others are."""

    COLUMNS = (
        Column("peer", "peer"),
        Column("case", "case"),
        Column("broker", "broker"),
        Column("peer_per_s", "peer, events/s"),
        Column("eventsync_per_s", "eventsync, events/s"),
        Column("ratio", "ratio", 2),
        Column("peer_cpu_us_per_event", "peer, µs an event", 1),
        Column("eventsync_cpu_us_per_event", "eventsync, µs an event", 1),
        Column("note", "note"),
    )
    Scale = _PeersScale
    QUICK = _PeersScale(events=200, factor=5)

    def measure(self, tell: Tell, scale: _PeersScale) -> list[dict[str, Any]]:
        peers = importlib.import_module("benchmarks.peers")
        found: list[dict[str, Any]] = peers.measure(
            events=scale.events, factor=scale.factor, tell=tell
        )
        return found

    def panels(self, rows: Sequence[dict[str, Any]]) -> list[Panel]:
        groups = {
            f"{row['peer']}: {row['case']}": {
                "peer": row["peer_per_s"],
                "eventsync": row["eventsync_per_s"],
            }
            for row in rows
            if row["ratio"] is not None
        }
        return [Bars("events a second (logarithmic)", groups, logarithmic=True)] if groups else []
