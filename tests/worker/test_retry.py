"""Retries: the pauses between attempts, and when they end."""

from __future__ import annotations

import pytest

from eventsync.errors import RejectedError, StoreUnavailableError
from eventsync.retry import Backoff, retrying


def test_pauses_double_up_to_the_longest():
    """Each pause is twice the one before, and none is longer than the longest."""
    backoff = Backoff(0.5, 30.0)
    pauses = [backoff.pause(failures) for failures in range(1, 9)]
    assert pauses == [0.5, 1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert backoff.pause(1_000_000) == 30.0


def test_jitter_shortens_a_pause_by_its_share_at_most():
    """With a jitter of a half a pause is between half of itself and all of it."""
    pauses = [Backoff(1.0, 8.0, jitter=0.5).pause(3) for _ in range(200)]
    assert 2.0 <= min(pauses) < 2.5 < 3.5 < max(pauses) <= 4.0


def test_retries_until_it_succeeds():
    """A retryable failure is repeated after a pause, which is reported before."""
    waits, reports = [], []

    def call():
        if len(waits) < 3:
            raise StoreUnavailableError("away")
        return "done"

    assert (
        retrying(
            call, budget=60.0, wait=waits.append, before_wait=lambda *report: reports.append(report)
        )
        == "done"
    )
    assert [(str(error), attempt) for error, attempt, _ in reports] == [
        ("away", 1),
        ("away", 2),
        ("away", 3),
    ]
    assert [pause for _, _, pause in reports] == waits


def test_a_store_that_asks_for_a_pause_gets_it():
    """A pause is never shorter than the store's ``retry_after``."""
    waits = []

    def call():
        if not waits:
            raise StoreUnavailableError("busy", retry_after=7.0)

    retrying(call, budget=60.0, wait=waits.append)
    assert waits == [7.0]


@pytest.mark.parametrize("error", [RejectedError("no"), ZeroDivisionError()])
def test_what_is_not_retryable_is_raised_at_once(error):
    """An error that another attempt cannot mend is raised after the first."""
    attempts = []

    def call():
        attempts.append(1)
        raise error

    with pytest.raises(type(error)):
        retrying(call, budget=60.0, wait=lambda seconds: None)
    assert len(attempts) == 1


def test_the_last_error_is_raised_when_the_budget_is_spent():
    """Without a budget there is one attempt; its error is raised."""
    with pytest.raises(ConnectionResetError):
        retrying(lambda: _raise(ConnectionResetError()), budget=0.0, wait=lambda seconds: None)


def _raise(error):
    raise error
