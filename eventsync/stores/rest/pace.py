"""The pace of requests to a REST service: its rate limit, and the pauses that it asks for."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from eventsync.engine.rate_limit import RateLimit

__all__ = ["Throttle", "delay_asked"]

_LONGEST: Final = 3600.0


class Throttle:
    """Sends at most ``rate`` requests a second, and none while the service asks for a pause.

    ``burst``: how many requests may be sent at once after a rest. Thread-safe.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        burst = max(1, burst)
        self._limit = None if rate is None else RateLimit(rate, burst=burst, credit=burst, now=now)
        self._now, self._sleep = now, sleep
        self._lock = threading.Lock()
        self._resume = 0.0

    def wait(self) -> None:
        """Block until a request may be sent under the rate."""
        pause = 0.0 if self._limit is None else self._limit.take()
        if pause > 0:
            self._sleep(pause)

    def hold(self, seconds: float) -> None:
        """Send nothing for so many seconds."""
        with self._lock:
            self._resume = max(self._resume, self._now() + seconds)

    def held(self) -> float:
        """Return for how many seconds nothing may be sent; 0 for none."""
        with self._lock:
            return max(0.0, self._resume - self._now())


def delay_asked(headers: Mapping[str, str], *, now: Callable[[], float] = time.time) -> float:
    """Return the pause that a service asks for, in seconds, at most an hour; 0 for none.

    The pause is in ``Retry-After``, as seconds or a date (RFC 9110). Where the service's quota is
    used up it is in ``X-RateLimit-Reset``, as seconds since the epoch.
    """
    seconds = 0.0
    after = headers.get("retry-after", "").strip()
    try:
        if after.isdigit():
            seconds = float(after)
        elif after:
            seconds = parsedate_to_datetime(after).timestamp() - now()
        elif headers.get("x-ratelimit-remaining", "").strip() == "0":
            seconds = float(headers.get("x-ratelimit-reset", "0")) - now()
    except (ValueError, TypeError, OverflowError):
        return 0.0  # not a time; the caller's own backoff is good enough
    return min(_LONGEST, max(0.0, seconds))
