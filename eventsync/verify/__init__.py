"""Verification: whether stores hold the same records, field by field."""

from eventsync.verify.comparison import Comparison, StoreCounts, compare
from eventsync.verify.side_by_side import Difference, Kind, SideBySide, StoreState, look

__all__ = [
    "Comparison",
    "Difference",
    "Kind",
    "SideBySide",
    "StoreCounts",
    "StoreState",
    "compare",
    "look",
]
