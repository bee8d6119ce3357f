"""Since when a process hears the hints of a store's change source, noted for its workers."""

from __future__ import annotations

import json
import time
from typing import Final

from eventsync.index import Index

__all__ = ["forget_listening", "listening_since", "note_listening"]

_MARK: Final = "follow/listening"
# A note that is older than so many seconds is that of a dead process.
_LIFETIME: Final = 15.0


def note_listening(index: Index, since: float) -> None:
    """Note that hints are heard now, and have been since a time in seconds since the epoch."""
    index.save_mark(_MARK, json.dumps([since, time.time()]))


def forget_listening(index: Index) -> None:
    """Note that nobody hears hints any more."""
    index.save_mark(_MARK, "")


def listening_since(index: Index) -> float | None:
    """Return since when hints have been heard without a gap; ``None`` if nobody hears them now."""
    text = index.load_mark(_MARK)
    if not text:
        return None
    since, noted = json.loads(text)
    return float(since) if abs(time.time() - noted) < _LIFETIME else None
