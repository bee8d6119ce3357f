"""Retries: how long to pause between attempts, and when to give up."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final, TypeVar

import tenacity

from eventsync.errors import StoreUnavailableError, is_retryable

__all__ = ["Backoff", "retrying"]

T = TypeVar("T")


@dataclass(slots=True, frozen=True)
class Backoff:
    """Exponential backoff: each pause is twice the one before, up to ``longest`` seconds.

    ``first``: the pause after the first failure, in seconds. ``jitter``: the share of a pause that
    is drawn at random, from 0 (none of it) to 1 (all of it).
    """

    first: float
    longest: float
    jitter: float = 0.0

    def pause(self, failures: int) -> float:
        """Return the pause in seconds after so many failures in a row, counted from 1."""
        seconds = min(self.longest, self.first * 2.0 ** min(failures - 1, 60))
        return seconds * (1.0 - self.jitter * random.random()) if self.jitter else seconds


_BACKOFF: Final = Backoff(0.05, 5.0, jitter=1.0)


def retrying(
    call: Callable[[], T],
    *,
    budget: float,
    wait: Callable[[float], None],
    give_up: Callable[[], bool] = lambda: False,
    before_wait: Callable[[BaseException, int, float], None] = lambda error, attempt, seconds: None,
) -> T:
    """Return the result of ``call``, retried while it fails retryably, for ``budget`` seconds.

    ``wait`` sleeps for so many seconds, and may return early. ``give_up`` is asked before each new
    attempt. ``before_wait`` is given the error, the number of the attempt and the coming pause. A
    store's ``retry_after`` lengthens the pause. Raises the last error when the budget is spent, and
    at once an error that is not retryable.
    """

    def report(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        before_wait(error, state.attempt_number, state.next_action.sleep)

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, StoreUnavailableError) else 0.0
        return max(_BACKOFF.pause(state.attempt_number), asked)

    is_spent = tenacity.stop_before_delay(budget)

    def stop(state: tenacity.RetryCallState) -> bool:
        return give_up() or is_spent(state)

    retryer = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_retryable),
        wait=pause,
        stop=stop,
        sleep=wait,
        before_sleep=report,
        reraise=True,
    )
    try:
        return retryer(call)
    finally:
        # The retryer refers to itself through its state. Without this reset everything that
        # ``call`` refers to, a batch of changes for example, would stay in memory until the next
        # full garbage collection.
        retryer.iter_state.reset()
