"""The account of all changes of the demo: which were published, and their outcome at each store.

The outcomes are read from the logs of the workers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.engine.gate import Outcome

__all__ = ["LedgerPublisher", "StoreTotals", "captured_in", "totals_of", "versions_in"]

# By outcome: the log events that mean this outcome. If several outcomes are logged for a change at
# one store, the first in this order counts.
_OUTCOMES: Sequence[tuple[str, frozenset[str]]] = (
    ("applied", frozenset({Outcome.APPLIED, Outcome.PENDING})),
    ("superseded", frozenset({Outcome.SUPERSEDED, Outcome.STALE})),
    ("already there", frozenset({Outcome.DUPLICATE})),
    ("dead-lettered", frozenset({"dead letter"})),
)
_WORDS = (*(word for word, _ in _OUTCOMES), "lost")


class LedgerPublisher:
    """A publisher that publishes over a bus and records the envelope of each encoded change."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.envelopes: dict[str, bytes] = {}
        """The envelopes that were encoded, by the version of the change in hexadecimal digits."""

    def encode(self, change: Change) -> bytes:
        raw = self._bus.encode(change)
        self.envelopes[change.version.hex()] = raw
        return raw

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        self._bus.publish(type, envelopes)


@dataclass(slots=True)
class StoreTotals:
    """The outcomes of the published changes at one store, and the comparison of its records.

    ``counts``: the number of changes by outcome. A change is *already there* if the store itself
    made it, or if a worker applied it and was killed before it could log that. A change is *lost*
    if no worker logged an outcome. ``again``: how many deliveries were repetitions. ``foreign``:
    the number of dead letters that hold no change. ``records``, ``fields``: how many the store
    should hold. ``differing``: how many fields and records differ.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_WORDS, 0))
    again: int = 0
    foreign: int = 0
    records: int = 0
    fields: int = 0
    differing: int = 0


def versions_in(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the versions, in hexadecimal digits, of all changes for which an outcome is logged."""
    return {event["version"] for event in events if _settles(event) and event.get("version")}


def captured_in(events: Iterable[Mapping[str, Any]]) -> int:
    """Return how many foreign writes the workers have captured, according to the log."""
    return sum(
        int(event["count"]) for event in events if event.get("event") == "captured foreign writes"
    )


def totals_of(events: Iterable[Mapping[str, Any]], published: Iterable[str]) -> StoreTotals:
    """Count what the workers of one store logged about the published changes.

    The caller adds the comparison of the store's records.

    ``events``: the log of the store's workers. ``published``: the versions of all published
    changes, in hexadecimal digits.
    """
    totals = StoreTotals()
    logged: dict[str, list[str]] = {version: [] for version in published}
    for event in events:
        if not _settles(event):
            continue
        version = event.get("version")
        if version is None:
            totals.foreign += 1
        elif version in logged:
            logged[version].append(event["event"])
    for names in logged.values():
        totals.again += max(0, len(names) - 1)
        outcome = next((word for word, these in _OUTCOMES if these.intersection(names)), "lost")
        totals.counts[outcome] += 1
    return totals


def _settles(event: Mapping[str, Any]) -> bool:
    return any(event.get("event") in names for _, names in _OUTCOMES)
