"""The conformance suite for issue trackers.

Extend ``TrackerContract`` to test a tracker store of your own. This package needs the extras
``testing`` and ``rest``.
"""

from __future__ import annotations

from eventsync.testing.tracker.contract import TrackerContract
from eventsync.testing.tracker.harness import captured
from eventsync.testing.tracker.line import FAILURES, Failure, Line

__all__ = ["FAILURES", "Failure", "Line", "TrackerContract", "captured"]
