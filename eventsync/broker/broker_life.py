"""Detects restarts of a broker after which confirmed messages may be lost."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Protocol

from eventsync.engine.publisher import Publisher

__all__ = ["Broker", "BrokerLife"]


class Broker(Publisher, Protocol):
    """A publisher with a method ``life``, which shows restarts of the broker, such as ``Bus``."""

    def life(self) -> str | None:
        """Return an id that changes when a restart of the broker may have lost messages.

        Returns ``None`` if the transport has no such id.
        """


class BrokerLife:
    """Detects that a broker was restarted and may have lost confirmed messages.

    A restart is detected by a new value of ``Broker.life``. If that is ``None``, a lost connection
    counts as a restart. After a detected restart, publish the messages that may be lost again, then
    call ``confirm``. Not thread-safe.
    """

    def __init__(self, broker: Broker, *, now: Callable[[], float] = time.time) -> None:
        self._broker = broker
        self._now = now
        self._life: str | None = None
        self._current: str | None = None
        self._was_interrupted = False
        self.seen_at: float | None = None
        """When ``confirm`` was last called, in seconds since the epoch; ``None`` if never, or after
        ``forget``."""

    def interrupted(self) -> None:
        """Record that the connection to the broker was lost."""
        self._was_interrupted = True

    def forget(self) -> None:
        """Set ``seen_at`` to ``None``. Call this if later restarts cannot be detected."""
        self.seen_at = None

    def may_have_forgotten(self) -> bool:
        """Ask the broker for its life; return whether it may have lost confirmed messages.

        Returns False as long as ``seen_at`` is ``None``. Raises ``BusUnavailableError`` if the
        broker cannot be reached.
        """
        self._current = self._broker.life()
        if self.seen_at is None:
            return False
        is_unknown = self._current is None and self._was_interrupted
        return is_unknown or self._current != self._life

    def confirm(self) -> None:
        """Record that the broker has all messages in its current life.

        The current life is the one that ``may_have_forgotten`` found last.
        """
        self._life, self.seen_at, self._was_interrupted = self._current, self._now(), False
