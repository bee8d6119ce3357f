"""What databases take from their plain drivers: bulk upserts of rows, the fastest known ways.

Into the very tables that eventsync makes and uses, in batches, each one transaction. It knows
nothing of how eventsync writes them.
"""

from __future__ import annotations

from benchmarks.limit.raw import BATCHES, Fastest, Raw, Row, Way, Write, fastest, opened, rate

__all__ = ["BATCHES", "Fastest", "Raw", "Row", "Way", "Write", "fastest", "opened", "rate"]
