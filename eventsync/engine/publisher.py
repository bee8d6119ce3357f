"""The publisher: the part of a message bus that a store uses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from eventsync.changes.change import Change

__all__ = ["Backlog", "Publisher"]


@dataclass(slots=True, frozen=True)
class Backlog:
    """How many envelopes wait to be published, and for how long.

    ``waiting``: the number of envelopes. ``oldest``: the age of the oldest one in seconds; ``None``
    if no envelope waits.
    """

    waiting: int
    oldest: float | None


class Publisher(Protocol):
    """The part of a message bus that a store uses."""

    def encode(self, change: Change) -> bytes:
        """Return the envelope of ``change``, signed if keys are configured.

        Raises ``ValueRefusedError`` if the change may not travel.
        """

    def publish(self, type: str, envelopes: Sequence[bytes]) -> None:
        """Publish envelopes of one record type. Return when the broker has confirmed all of them.

        ``type``: the record type. Raises ``BusUnavailableError`` if the broker is unreachable or
        accepts no messages.
        """
