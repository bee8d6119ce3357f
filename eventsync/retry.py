"""When to try again: one policy and one classification for the whole package.

This module is the only user of tenacity. It knows nothing of what is tried.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

import tenacity

from eventsync.errors import StoreUnavailableError, is_retryable

__all__ = ["retrying"]

T = TypeVar("T")


def retrying(
    call: Callable[[], T],
    *,
    budget: float,
    wait: Callable[[float], None],
    give_up: Callable[[], bool] = lambda: False,
    before_wait: Callable[[BaseException, int, float], None] = lambda error, attempt, seconds: None,
) -> T:
    """The result of ``call``, tried again while it fails retryably, for at most ``budget`` seconds.

    ``wait`` sleeps for so many seconds, and may return early; ``give_up`` is asked before each new
    attempt; ``before_wait`` is told the error, the attempt's number and the coming wait. A store
    that says when to come back is not tried before. Raises the last error when the budget is spent
    or the error is not retryable.
    """

    def tell(state: tenacity.RetryCallState) -> None:
        assert state.outcome is not None
        assert state.next_action is not None
        error = state.outcome.exception()
        assert error is not None
        before_wait(error, state.attempt_number, state.next_action.sleep)

    backoff = tenacity.wait_random_exponential(multiplier=0.05, max=5.0)

    def pause(state: tenacity.RetryCallState) -> float:
        error = state.outcome.exception() if state.outcome else None
        asked = error.retry_after if isinstance(error, StoreUnavailableError) else 0.0
        return max(backoff(state), asked)

    spent = tenacity.stop_before_delay(budget)

    def stop(state: tenacity.RetryCallState) -> bool:
        return give_up() or spent(state)

    retryer = tenacity.Retrying(
        retry=tenacity.retry_if_exception(is_retryable),
        wait=pause,
        stop=stop,
        sleep=wait,
        before_sleep=tell,
        reraise=True,
    )
    try:
        return retryer(call)
    finally:
        # It refers to itself through these, and so would keep all that the call has in hand, such
        # as a batch of changes, until the next full collection of garbage.
        retryer.iter_state.reset()
