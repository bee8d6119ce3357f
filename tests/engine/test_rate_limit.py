"""The rate limit: how long actions are to wait."""

from __future__ import annotations

import pytest

from eventsync.engine.rate_limit import RateLimit
from eventsync.errors import ConfigError


def test_rate_limit():
    """Actions are followed by a pause, and unused actions are kept for one second only."""
    now = [100.0]
    limit = RateLimit(10.0, now=lambda: now[0])
    assert limit.take(5) == pytest.approx(0.5)
    now[0] += 60.0
    assert limit.take(10) == 0.0
    assert limit.take(20) == pytest.approx(2.0)
    with pytest.raises(ConfigError):
        RateLimit(0.0)
