"""The rate limit: at most so many actions a second."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from eventsync.errors import ConfigError

__all__ = ["RateLimit"]


class RateLimit:
    """Allows ``rate`` actions a second on average (a token bucket). Thread-safe.

    Actions that were not used are kept, up to ``burst`` of them (by default those of one second).
    ``credit``: the actions that are allowed at once in the beginning. More actions may be taken
    than there are; the debt is then waited out.
    """

    def __init__(
        self,
        rate: float,
        *,
        burst: float | None = None,
        credit: float = 0.0,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Raise ``ConfigError`` if the rate is not positive."""
        if not rate > 0:
            raise ConfigError(
                f"the rate is {rate!r}; expected a number a second above 0",
                hint="leave the rate out for no limit",
            )
        self.rate = rate
        self._burst = rate if burst is None else burst
        self._credit = credit
        self._now = now
        self._at = now()
        self._lock = threading.Lock()

    def take(self, count: float = 1.0) -> float:
        """Take ``count`` actions and return the seconds to wait until they are paid for.

        Wait before the actions to limit single requests, or after them to limit batches.
        """
        with self._lock:
            now = self._now()
            earned = (now - self._at) * self.rate
            self._credit = min(self._burst, self._credit + earned) - count
            self._at = now
            return max(0.0, -self._credit / self.rate)
