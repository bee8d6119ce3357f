"""The loss of a store as a whole: most of its records are gone, and nobody deleted them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Final, TypeAlias

from eventsync.index import Index, Presence

__all__ = ["There", "gone", "told_of"]

There: TypeAlias = Callable[[Sequence[str]], Collection[str]]
"""Returns those of some keys whose records exist, readable or not."""

_SAMPLE: Final = 500
_FEW: Final = 10  # so many may be gone without a suspicion


def told_of(index: Index, type: str, there: There, place: str) -> str | None:
    """Return a sentence if most of some known records are gone, else ``None``."""
    known = [key for key, _ in index.scan(type, presence=Presence.PRESENT, limit=_SAMPLE)]
    if len(known) <= _FEW:
        return None
    missing = len(known) - len(there(known))
    if missing <= max(_FEW, len(known) // 2):
        return None
    return f"{missing} of {len(known)} records of {type} that were looked for at {place} are gone"


def gone(index: Index, type: str, there: There) -> Iterator[list[str]]:
    """Yield the keys of known records that are not there any more, many at a time."""
    after = ""
    while known := index.scan(type, after=after, presence=Presence.PRESENT):
        after = known[-1][0]
        keys = [key for key, _ in known]
        found = set(there(keys))
        if missing := [key for key in keys if key not in found]:
            yield missing
