"""What authors of stores for issue trackers test theirs with: the conformance suite for these.

It needs the extras ``eventsync[testing,rest]``.
"""

from __future__ import annotations

from eventsync.testing.tracker.contract import TrackerContract
from eventsync.testing.tracker.harness import captured
from eventsync.testing.tracker.line import FAILURES, Failure, Line

__all__ = ["FAILURES", "Failure", "Line", "TrackerContract", "captured"]
