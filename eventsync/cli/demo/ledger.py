"""The count of every change of the demo: what was published, and its outcome at each store.

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

# The log events of each outcome. If a change has several, the first in this order counts.
_OUTCOMES: Sequence[tuple[str, frozenset[str]]] = (
    ("applied", frozenset({Outcome.APPLIED, Outcome.PENDING})),
    ("superseded", frozenset({Outcome.SUPERSEDED, Outcome.STALE})),
    ("already there", frozenset({Outcome.DUPLICATE})),
    ("dead-lettered", frozenset({"dead letter"})),
)
_WORDS = (*(word for word, _ in _OUTCOMES), "lost")


class LedgerPublisher:
    """A publisher that passes everything on to a bus and remembers the envelopes."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.envelopes: dict[str, bytes] = {}
        """The encoded envelopes, by the version of their change."""

    def encode(self, change: Change) -> bytes:
        raw = self._bus.encode(change)
        self.envelopes[change.version.hex()] = raw
        return raw

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        self._bus.publish(type, envelopes)


@dataclass(slots=True)
class StoreTotals:
    """What happened to the published changes at one store, and what the store holds.

    ``counts``: the number of changes by outcome. *Already there* are the store's own changes, and
    those applied by a worker that was killed before it could log them. *Lost* are those that no
    worker logged. ``again``: changes that were delivered more than once. ``foreign``: dead letters
    that hold no change. ``records``, ``fields``, ``differing``: the result of the comparison.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_WORDS, 0))
    again: int = 0
    foreign: int = 0
    records: int = 0
    fields: int = 0
    differing: int = 0


def versions_in(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """Return the versions of all changes that workers have settled."""
    return {event["version"] for event in events if _settles(event) and event.get("version")}


def captured_in(events: Iterable[Mapping[str, Any]]) -> int:
    """Return the number of foreign writes that workers have captured."""
    return sum(
        int(event["count"]) for event in events if event.get("event") == "captured foreign writes"
    )


def totals_of(events: Iterable[Mapping[str, Any]], published: Iterable[str]) -> StoreTotals:
    """Return the totals of one store, from the log events of its workers."""
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
