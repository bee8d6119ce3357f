"""The rate limit: limits how many actions are done per second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from eventsync.errors import ConfigError

__all__ = ["RateLimit"]


class RateLimit:
    """A token bucket: allows ``rate`` actions a second on average. Thread-safe.

    Unused actions are saved for later, at most ``burst`` of them (by default ``rate``).
    ``credit``: how many actions are saved at the start. ``take`` may take more actions than are
    saved; the caller must then wait. ``now``: a function that returns seconds and never goes back.
    """

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        credit: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Create a limit. Raises ``ConfigError`` if ``rate`` is not greater than 0."""
        if not rate > 0:
            raise ConfigError(
                f"the rate limit is {rate!r}; it must be a number of actions a second, greater "
                "than 0",
                hint="omit the rate if there is no limit",
            )
        self.rate = rate
        self._burst = rate if burst is None else burst
        self._credit = credit
        self._now = now
        self._at = now()
        self._lock = threading.Lock()

    def take(self, count: float = 1.0) -> float:
        """Take ``count`` actions. Return how many seconds to wait to keep the average rate.

        The method itself does not wait. The caller may wait before the actions or after them.
        """
        with self._lock:
            now = self._now()
            earned = (now - self._at) * self.rate
            self._credit = min(self._burst, self._credit + earned) - count
            self._at = now
            return max(0.0, -self._credit / self.rate)
