"""The publisher: what a store needs of a message bus."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eventsync.changes.change import Change

__all__ = ["Backlog", "Publisher"]


@dataclass(slots=True, frozen=True)
class Backlog:
    """Envelopes that are still to be published: how many, and the age of the oldest in seconds."""

    waiting: int
    oldest: float | None


class Publisher(Protocol):
    """What a store needs of a bus."""

    def encode(self, change: Change) -> bytes:
        """The envelope of ``change``, signed when keys are configured."""

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Hand envelopes of one record type to the broker; they are safe there on return.

        Raises ``BusUnavailableError`` when the broker cannot take them now.
        """
