"""The circuit breaker of one store: whether the worker may use the store, and since when."""

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
    """The store is in use: the worker takes changes from the broker and applies them."""
    OPEN = "open"
    """The store is unreachable: the worker takes no messages, and messages wait in the broker."""
    HALF_OPEN = "half-open"
    """The worker checks whether the store is reachable again."""


class CircuitBreaker:
    """Records the failures and recoveries of one store. Thread-safe.

    ``since``: when the circuit last opened or closed, in seconds since the epoch. ``opened``: how
    often the circuit has opened. ``error``: the store's last error while the circuit is open; empty
    while it is closed.
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
        """The current state of the circuit."""
        return self._state

    def open(self, error: BaseException) -> None:
        """Open the circuit and keep the text of ``error``.

        Call this when the store failed for longer than the retry budget, or when a probe failed.
        """
        with self._lock:
            if self._state is CircuitState.CLOSED:
                self.opened += 1
            self._enter(CircuitState.OPEN)
            self.error = str(error)

    def probe(self) -> None:
        """Change an open circuit to half-open, because the worker probes the store."""
        with self._lock:
            if self._state is CircuitState.OPEN:
                self._enter(CircuitState.HALF_OPEN)

    def close(self) -> None:
        """Close the circuit, because the store answered."""
        with self._lock:
            self._enter(CircuitState.CLOSED)
            self.error = ""

    def to_json(self) -> dict[str, Any]:
        """Return the state, ``since``, ``opened`` and ``error`` as a dict for ``json.dumps``."""
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
        # A probe does not change the time since which the store is unreachable.
        if CircuitState.CLOSED in (state, self._state):
            self.since = self._now()
        self._state = state
