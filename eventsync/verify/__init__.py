"""The comparison of stores: whether they hold the same records with the same field values."""

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
