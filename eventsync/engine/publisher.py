"""The publisher: what a store needs of a message bus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eventsync.changes.change import Change

__all__ = ["Backlog", "Publisher"]


@dataclass(slots=True, frozen=True)
class Backlog:
    """The envelopes that wait to be published: their number, and the oldest one's age in seconds.

    ``oldest`` is ``None`` if none waits.
    """

    waiting: int
    oldest: float | None


class Publisher(Protocol):
    """What a store needs of a message bus."""

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change``, signed if keys are configured."""

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes of one record type. On return the broker has confirmed them.

        Raises ``BusUnavailableError`` if the broker cannot take them now.
        """
