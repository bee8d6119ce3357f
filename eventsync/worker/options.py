"""How a worker goes about its work, as its settings say.

It owns the options and their defaults. It must not know who follows them, nor where they are set.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from eventsync.engine.apply import DEFAULT_LIMITS, Limits

__all__ = ["DEFAULT_OPTIONS", "Options"]


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """How a worker goes about its work. Times are in seconds.

    ``prefetch``: messages taken from the broker at a time. ``batch``: changes applied at a time, or
    so. ``retry_for``: how long it tries again before it lets go of a store that is down, and waits
    for it. ``hold_for``: how long a change from the future is tried again. ``max_deliveries``: how
    often a message may be taken by workers that then die. ``limits``: what the store refuses.
    ``rate``: changes a second at most, ``None`` for no limit. ``recycle_messages`` and
    ``recycle_growth``: after how many messages, or bytes of growth, the worker stops so that a new
    process takes its place; 0 for never. ``letter_retention``: how long dead letters are kept.
    ``republish_window``: when the broker comes back, what this store holds of changes made since so
    long before it was lost is published again; 0 for nothing.
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
