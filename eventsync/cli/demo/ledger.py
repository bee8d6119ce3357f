"""The count of every change: what was published, and what became of it at each store.

It owns the accounts, kept from what was published and what the workers logged, so that nothing is
counted that did not happen. It must not know the story.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.engine.gate import Outcome

__all__ = ["Account", "LedgerPublisher", "account_of", "captured_in", "versions_in"]

# What became of a change is the first of these that a worker ever said of it.
_BECAME: Sequence[tuple[str, frozenset[str]]] = (
    ("applied", frozenset({Outcome.APPLIED, Outcome.PENDING})),
    ("superseded", frozenset({Outcome.SUPERSEDED, Outcome.STALE})),
    ("already there", frozenset({Outcome.DUPLICATE})),
    ("dead-lettered", frozenset({"dead letter"})),
)
_WORDS = (*(word for word, _ in _BECAME), "lost")


class LedgerPublisher:
    """A publisher that passes everything on to a bus, and remembers each change's version."""

    def __init__(self, bus: Bus) -> None:
        self._bus = bus
        self.envelopes: dict[str, bytes] = {}
        """The envelopes that were made, by the version of their change."""

    def encode(self, change: Change) -> bytes:
        raw = self._bus.encode(change)
        self.envelopes[change.version.hex()] = raw
        return raw

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        self._bus.publish(type, envelopes)


@dataclass(slots=True)
class Account:
    """What became of the published changes at one store, and of the store.

    ``counts``: how many changes were applied, superseded, already there (the store's own, or
    applied by a worker that died before it could say so), dead-lettered, and lost: of those no
    worker has said anything. ``again``: how many came more than once. ``foreign``: dead letters
    that are no change. ``records``, ``fields``, ``differing``: what was compared in the store.
    """

    counts: dict[str, int] = field(default_factory=lambda: dict.fromkeys(_WORDS, 0))
    again: int = 0
    foreign: int = 0
    records: int = 0
    fields: int = 0
    differing: int = 0


def versions_in(events: Iterable[Mapping[str, Any]]) -> set[str]:
    """The versions of all changes that workers have settled."""
    return {event["version"] for event in events if _settles(event) and event.get("version")}


def captured_in(events: Iterable[Mapping[str, Any]]) -> int:
    """How many edits made behind eventsync's back workers have found."""
    return sum(
        int(event["count"]) for event in events if event.get("event") == "captured foreign writes"
    )


def account_of(events: Iterable[Mapping[str, Any]], published: Iterable[str]) -> Account:
    """The account of one store, from all that its workers logged."""
    account = Account()
    said: dict[str, list[str]] = {version: [] for version in published}
    for event in events:
        if not _settles(event):
            continue
        version = event.get("version")
        if version is None:
            account.foreign += 1
        elif version in said:
            said[version].append(event["event"])
    for names in said.values():
        account.again += max(0, len(names) - 1)
        became = next((word for word, these in _BECAME if these.intersection(names)), "lost")
        account.counts[became] += 1
    return account


def _settles(event: Mapping[str, Any]) -> bool:
    return any(event.get("event") in names for _, names in _BECAME)
