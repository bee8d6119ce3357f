"""The circuit breaker of one store: whether its worker may use it, and since when.

It owns the three states and what leads from one to the other. It knows nothing of stores or of how
one is probed.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

__all__ = ["CircuitBreaker", "CircuitState"]


class CircuitState(StrEnum):
    """Whether a store is used."""

    CLOSED = "closed"
    """It is: changes are taken from the broker and applied."""
    OPEN = "open"
    """It is away: nothing is taken, the work waits in the broker."""
    HALF_OPEN = "half-open"
    """It is being probed."""


class CircuitBreaker:
    """A circuit breaker that is told what happened, and shows it. Thread-safe.

    ``since``: when the state began; ``opened``: how often it opened; ``error``: what opened it, or
    the last probe's, empty once it is closed. Times are in seconds since the epoch.
    """

    def __init__(self, *, now: Callable[[], float] = time.time) -> None:
        self._now = now
        self._lock = threading.Lock()
        self._state = CircuitState.CLOSED
        self.since = now()
        self.opened = 0
        self.error = ""

    @property
    def state(self) -> CircuitState:
        """The state it is in."""
        return self._state

    def open(self, error: BaseException) -> None:
        """The store failed for longer than it is tried again, or a probe did."""
        with self._lock:
            if self._state is CircuitState.CLOSED:
                self.opened += 1
            self._enter(CircuitState.OPEN)
            self.error = str(error)

    def probe(self) -> None:
        """The store is about to be tried. Does nothing to a circuit that is closed."""
        with self._lock:
            if self._state is CircuitState.OPEN:
                self._enter(CircuitState.HALF_OPEN)

    def close(self) -> None:
        """The store answered."""
        with self._lock:
            self._enter(CircuitState.CLOSED)
            self.error = ""

    def to_json(self) -> dict[str, Any]:
        """How it stands, ready for ``json.dumps``."""
        with self._lock:
            return {
                "state": str(self._state),
                "since": self.since,
                "opened": self.opened,
                "error": self.error,
            }

    def _enter(self, state: CircuitState) -> None:
        if state is self._state:
            return
        # Between two probes of a store that is away it has been open all the while.
        if CircuitState.CLOSED in (state, self._state):
            self.since = self._now()
        self._state = state
