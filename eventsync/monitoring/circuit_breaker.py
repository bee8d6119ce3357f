"""The circuit breaker of one store: whether its worker may use it, and since when."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import StrEnum
from typing import Any

__all__ = ["CircuitBreaker", "CircuitState"]


class CircuitState(StrEnum):
    """The state of a circuit breaker."""

    CLOSED = "closed"
    """The store is in use: changes are taken from the broker and applied."""
    OPEN = "open"
    """The store is unreachable: nothing is taken, and messages wait in the broker."""
    HALF_OPEN = "half-open"
    """The store is being probed."""


class CircuitBreaker:
    """Records the failures and recoveries of one store. Thread-safe.

    ``since``: when the circuit opened or closed, in seconds since the epoch. ``opened``: how often
    it opened. ``error``: the error that opened it or of the last probe; empty when it is closed.
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
        """The current state."""
        return self._state

    def open(self, error: BaseException) -> None:
        """Open the circuit: the store failed beyond the retry budget, or a probe failed."""
        with self._lock:
            if self._state is CircuitState.CLOSED:
                self.opened += 1
            self._enter(CircuitState.OPEN)
            self.error = str(error)

    def probe(self) -> None:
        """Note that the store is being probed. Does nothing when the circuit is closed."""
        with self._lock:
            if self._state is CircuitState.OPEN:
                self._enter(CircuitState.HALF_OPEN)

    def close(self) -> None:
        """Close the circuit: the store answered."""
        with self._lock:
            self._enter(CircuitState.CLOSED)
            self.error = ""

    def to_json(self) -> dict[str, Any]:
        """Return its attributes, ready for ``json.dumps``."""
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
        # Probes in between do not change since when the store is unreachable.
        if CircuitState.CLOSED in (state, self._state):
            self.since = self._now()
        self._state = state
