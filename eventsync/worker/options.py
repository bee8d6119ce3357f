"""The options of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventsync.engine.apply import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_OPTIONS", "Options"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """The options of a worker. Times are in seconds.

    - ``prefetch``: how many messages it takes from the broker at a time.
    - ``batch``: about how many changes it applies at a time.
    - ``retry_for``: how long it retries a store that fails before its circuit opens.
    - ``hold_for``: how long a held change is retried before it becomes a dead letter.
    - ``max_deliveries``: how often workers may take a message without settling it.
    - ``limits``: which changes the store refuses.
    - ``rate``: how many changes a second at most; ``None`` for no limit.
    - ``recycle_messages``, ``recycle_growth``: after how many messages, or bytes of memory growth,
      the worker stops so that a new process replaces it; 0 for never.
    - ``letter_retention``: how long dead letters are kept.
    - ``republish_window``: after a restart of the broker, the changes that the store published
      since so long before the restart are published again; 0 for none.
    """

    prefetch: int = 64
    batch: int = 5000
    retry_for: float = 30.0
    hold_for: float = 300.0
    max_deliveries: int = 50
    limits: Limits = DEFAULT_LIMITS
    rate: float | None = None
    recycle_messages: int = 0
    recycle_growth: int = 0
    letter_retention: float = 7 * 86_400.0
    republish_window: float = 10.0


DEFAULT_OPTIONS: Final = Options()
