"""The life of the broker: whether it may have forgotten what it confirmed."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from eventsync.engine.publisher import Publisher

__all__ = ["Broker", "BrokerLife"]


class Broker(Publisher, Protocol):
    """A publisher that identifies the lives of its broker, as ``Bus`` does."""

    def life(self) -> str | None:
        """Return the identifier of the broker's life, see ``Bus.life``."""


class BrokerLife:
    """Notices that a broker was restarted and may have lost messages that it had confirmed.

    A broker that can tell has an identifier for each life. Of one that cannot, a lost connection is
    taken for a restart. Call ``confirm`` when everything that may be lost is published again. For
    one thread.
    """

    def __init__(self, broker: Broker, *, now: Callable[[], float] = time.time) -> None:
        self._broker = broker
        self._now = now
        self._life: str | None = None
        self._current: str | None = None
        self._was_interrupted = False
        self.seen_at: float | None = None
        """When the broker was last seen in its confirmed life, in seconds since the epoch; ``None``
        before the first look."""

    def interrupted(self) -> None:
        """Note that the connection to the broker was lost."""
        self._was_interrupted = True

    def forget(self) -> None:
        """Return to the state before the first look."""
        self.seen_at = None

    def may_have_forgotten(self) -> bool:
        """Return whether the broker may have lost messages that it confirmed around ``seen_at``.

        False at the first look. Raises ``BusUnavailableError``.
        """
        self._current = self._broker.life()
        if self.seen_at is None:
            return False
        is_unknown = self._current is None and self._was_interrupted
        return is_unknown or self._current != self._life

    def confirm(self) -> None:
        """Note that the broker now has everything, in the life that the last look found."""
        self._life, self.seen_at, self._was_interrupted = self._current, self._now(), False
