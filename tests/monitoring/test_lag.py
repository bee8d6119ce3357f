"""The lag of changes: by which time, and in which bound it is counted."""

from __future__ import annotations

import time

import pytest

from eventsync.changes.change import Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import PUT
from eventsync.monitoring import lag


def test_lag_is_counted_by_bounds():
    """Each age, by the time in the id, is counted in the first bound that it does not exceed."""
    now = 1_700_000_000.0
    ages = [0.0, 0.5, 1.0, 1.001, 60.0, 1e6]

    def change(age):
        made = int((now - age) * 1000)
        id = made.to_bytes(6) + b"\x70" + bytes(9)
        # Its version may be much older.
        version = Version.of(min(made, 1_000_000))
        return Change(type="T", key="1", op=PUT, version=version, data={}, id=id)

    found = lag.spread(lag.times(map(change, ages)), (1.0, 60.0), now=now)
    assert found.counts == [3, 2, 1]
    assert found.sum == pytest.approx(sum(ages))
    assert lag.oldest([]) is None
    assert lag.oldest(lag.times(map(change, ages))) == pytest.approx(now - 1e6)


@pytest.mark.parametrize("id", [b"\x40" * 16, b"\x70" * 16, bytes(6) + b"\x70" + bytes(9)])
def test_lag_by_version_when_the_id_tells_no_time(id):
    """A foreign producer's id may be anything; then the version says when the change was made."""
    made = int(time.time()) - 100
    version = Version.of(made * 1000)
    change = Change(type="T", key="1", op=PUT, version=version, data={}, id=id)
    assert lag.oldest(lag.times([change])) == made


def test_a_clock_ahead_makes_no_negative_lag():
    """A change that was made after now, by its producer's clock, has no lag."""
    now = time.time()
    change = Change(type="T", key="1", op=PUT, version=Version.of(int(now * 1000) + 9), data={})
    assert lag.spread(lag.times([change]), (1.0,), now=now).sum == 0.0
