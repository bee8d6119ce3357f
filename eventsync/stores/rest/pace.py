"""How fast a REST service may be asked, and when again.

It owns the client's own rate limit and what the service says of its own. It knows no requests.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from email.utils import parsedate_to_datetime
from typing import Final

from eventsync.errors import ConfigError

__all__ = ["Throttle", "delay_asked"]

_LONGEST: Final = 3600.0


class Throttle:
    """At most ``rate`` requests a second from this process, and none while told to wait.

    Up to ``burst`` may go at once after a rest. Thread-safe.
    """

    def __init__(
        self,
        rate: float | None,
        burst: int,
        *,
        now: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        if rate is not None and rate <= 0:
            raise ConfigError(f"rate={rate!r}: it is a number of requests a second above 0")
        self._rate, self._burst = rate, max(1, burst)
        self._now, self._sleep = now, sleep
        self._lock = threading.Lock()
        self._credit, self._at = float(self._burst), now()
        self._resume = 0.0

    def wait(self) -> None:
        """Block until a request may be sent under the rate."""
        if self._rate is None:
            return
        with self._lock:
            now = self._now()
            self._credit = min(self._burst, self._credit + (now - self._at) * self._rate)
            self._at = now
            self._credit -= 1.0
            # In debt: each that comes gets a later turn.
            pause = -self._credit / self._rate
        if pause > 0:
            self._sleep(pause)

    def hold(self, seconds: float) -> None:
        """Have ``held`` say no for so long."""
        with self._lock:
            self._resume = max(self._resume, self._now() + seconds)

    def held(self) -> float:
        """For how many seconds nothing may be sent; 0 for none."""
        with self._lock:
            return max(0.0, self._resume - self._now())


def delay_asked(headers: Mapping[str, str], *, now: Callable[[], float] = time.time) -> float:
    """How many seconds a service asks to be left alone; 0 if it does not. At most an hour.

    In ``Retry-After``, as seconds or a date (RFC 9110), or where its quota is used up in
    ``X-RateLimit-Reset``, as seconds since the epoch.
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
        return 0.0  # not a time; the ordinary backoff is good enough
    return min(_LONGEST, max(0.0, seconds))
