"""The applier: which errors are retried, held, rejected or raised."""

from __future__ import annotations

import pytest
from support.worker_harness import put, worker_parts

from eventsync.engine.gate import Outcome
from eventsync.errors import StoreUnavailableError
from eventsync.worker.options import Options


@pytest.fixture
def applier(store, bus):
    _, applier, _ = worker_parts(store, bus, Options(retry_for=0.1))
    return applier


def outcomes(settled):
    return [str(item.outcome) for item in settled]


def test_an_unreachable_store_is_retried_and_then_raised(applier, store):
    """Within the budget all changes are retried together; then the error is raised."""
    changes = [put(store.clock, n) for n in range(3)]
    accessor = store.accessors["Product"]
    accessor.away = True
    with pytest.raises(StoreUnavailableError, match="away"):
        applier.apply(changes)
    assert accessor.writes > 1


def test_an_unexpected_error_rejects_one_change(applier, store, monkeypatch):
    """A fault that meets one change, wherever it is raised, rejects that change alone."""

    def faulty(changes, publisher):
        if any(change.key == "2" for change in changes):
            raise ZeroDivisionError("a fault")

    store.capture_every = 1.0
    monkeypatch.setattr(store, "capture_before", faulty)
    settled = applier.apply([put(store.clock, n) for n in range(4)])
    assert outcomes(settled) == ["applied", "applied", "rejected", "applied"]
    assert settled[2].error.message == "unexpected ZeroDivisionError: a fault"


def test_a_suspected_change_is_held(applier, store):
    """Once one change is suspected, a change that fails by itself is held and the others go on."""
    applier.suspect_one_change()
    changes = [put(store.clock, n, "busy" if n == 1 else "a") for n in range(4)]
    settled = applier.apply(changes)
    assert outcomes(settled) == ["applied", "held", "applied", "applied"]
    assert settled[1].error.reason == "unavailable"
    assert applier.take_touched_types() == {"Product"}
    assert applier.take_touched_types() == set()


def test_isolation_ends_when_nothing_is_held(applier, store):
    """After a batch of which nothing is held an error is retried and raised again."""
    applier.suspect_one_change()
    assert outcomes(applier.apply([put(store.clock, 1)])) == ["applied"]
    with pytest.raises(StoreUnavailableError):
        applier.apply([put(store.clock, 2, "busy"), put(store.clock, 3)])


def test_a_single_change_may_mean_the_store(applier, store):
    """A change that fails alone is raised until the store has taken another one."""
    busy = put(store.clock, 1, "busy")
    applier.suspect_one_change()
    with pytest.raises(StoreUnavailableError):
        applier.apply([busy])
    applier.apply([put(store.clock, 2), busy])
    assert outcomes(applier.apply([busy])) == ["held"]


def test_many_failures_mean_the_store(applier, store):
    """Fifty changes that fail one after the other are the store's failure, also if held before."""
    accessor = store.accessors["Product"]
    changes = [put(store.clock, n, "busy") for n in range(60)]
    with pytest.raises(StoreUnavailableError):
        applier.apply_held(changes)
    assert accessor.writes < 150


def test_held_changes_are_not_retried_at_once(applier, store):
    """A held change that fails again is held again, after one attempt."""
    busy = put(store.clock, 1, "busy")
    assert outcomes(applier.apply_held([busy])) == [Outcome.HELD]
    assert store.accessors["Product"].writes == 1


def test_held_changes_wait_for_a_store_that_answers(applier, store):
    """While the store does not answer nothing held is tried."""
    store.accessors["Product"].away = True
    with pytest.raises(StoreUnavailableError):
        applier.apply_held([put(store.clock, 1)])
    assert store.accessors["Product"].writes == 0
