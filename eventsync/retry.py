"""Retries: the pauses between attempts, and the point at which to give up."""

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
    """Exponential backoff: each pause is twice the previous pause, up to ``longest`` seconds.

    ``first``: the pause after the first failure, in seconds. ``jitter``: how much a pause may be
    shortened at random, from 0 (not at all) to 1 (down to 0 seconds).
    """

    first: float
    longest: float
    jitter: float = 0.0

    def pause(self, failures: int) -> float:
        """Return the pause, in seconds, after ``failures`` failures in a row (1 or more)."""
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
    retryable: Callable[[BaseException], bool] = is_retryable,
) -> T:
    """Call ``call``, repeat it after each retryable error, and return its result.

    Gives up if the next pause would end more than ``budget`` seconds after the first attempt, or
    if ``give_up()`` returns True after a failed attempt. The last error is then raised. An error
    that is not retryable is raised at once.

    ``wait``: sleeps for the given number of seconds; it may return early. ``before_wait``: called
    before each pause with the error, the number of the failed attempt (from 1) and the pause in
    seconds. If the error has a longer ``retry_after``, the pause is that long. ``retryable``:
    returns whether to call again after an error.
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
        retry=tenacity.retry_if_exception(retryable),
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
