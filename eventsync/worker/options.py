"""The options of a worker."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventsync.engine.apply import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_OPTIONS", "Options"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """The options of a worker. Times are in seconds.

    - ``prefetch``: how many messages the worker takes from the broker at a time.
    - ``batch``: about how many changes the worker applies at a time.
    - ``retry_for``: how long the worker retries a failing store before the circuit opens.
    - ``hold_for``: how long a held change is retried before it becomes a dead letter.
    - ``max_deliveries``: how often a message may be delivered without being settled. After that the
      message becomes a dead letter.
    - ``limits``: by which limits changes are refused or held; see ``Limits``.
    - ``rate``: the largest number of changes applied per second; ``None`` for no limit.
    - ``recycle_messages``: after how many messages the worker stops, so that a new process replaces
      it; 0 for never. ``recycle_growth``: the same, after how many bytes of memory growth.
    - ``letter_retention``: how long dead letters are kept.
    - ``republish_window``: after a restart of the broker, the store publishes its changes of the
      last seconds before the restart again. This is the number of these seconds; 0 for none.
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
