"""The rate limit of one store: how long to wait after so many changes.

It owns the arithmetic. It must not know what is counted, nor how one waits.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from eventsync.errors import ConfigError

__all__ = ["RateLimit"]


class RateLimit:
    """At most ``rate`` changes a second, over any time that is long against one second.

    What was done already is paid for by waiting: a batch that is larger than the rate is done
    whole, and the next one begins later. For one thread.
    """

    def __init__(self, rate: float, *, now: Callable[[], float] = time.monotonic) -> None:
        """Raises ``ConfigError`` for a rate that is not positive."""
        if not rate > 0:
            raise ConfigError(
                f"a rate of {rate:g} changes a second", hint="leave it out for no limit"
            )
        self.rate = rate
        self._now = now
        self._free_at = now()

    def pause(self, count: int) -> float:
        """How many seconds to wait now that ``count`` changes more were done."""
        now = self._now()
        # Time that was not used is kept for one second, so that a steady trickle never waits.
        self._free_at = max(self._free_at, now - 1.0) + count / self.rate
        return max(0.0, self._free_at - now)
