"""The lag of changes: how long ago they were made, computed for many at once."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from eventsync.changes.change import Change
from eventsync.monitoring.counters import Spread

__all__ = ["oldest", "spread", "times"]


def times(changes: Iterable[Change]) -> list[bytes]:
    """Return when each change was made, in milliseconds since the epoch, as 6 bytes.

    The time is taken from the id of the change, a UUIDv7. A version may be much older, because
    ``eventsync sync`` publishes changes with the versions that they have. The version counts only
    if the id is no UUIDv7 or its time lies before the version or in the future.
    """
    latest = int(time.time() * 1000).to_bytes(6)
    return [
        id[:6] if id[6] >> 4 == 7 and version[:6] <= id[:6] <= latest else version[:6]
        for id, version in [(change.id, change.version) for change in changes]
    ]


def oldest(times: Iterable[bytes]) -> float | None:
    """Return the oldest of ``times`` in seconds since the epoch; ``None`` if there are none."""
    first = min(times, default=None)
    return None if first is None else int.from_bytes(first) / 1000


def spread(times: Iterable[bytes], bounds: Sequence[float], *, now: float | None = None) -> Spread:
    """Return the histogram of the ages of ``times``; ``bounds`` in seconds.

    A time in the future, from a clock that is ahead, counts as age 0.
    """
    moment = int((time.time() if now is None else now) * 1000)
    latest = moment.to_bytes(6)
    # Sorted and searched as bytes, because to make numbers of them takes longer.
    made = sorted(times)
    ahead = bisect_left(made, latest)
    made[ahead:] = [latest] * (len(made) - ahead)
    up_to = [
        len(made) - bisect_left(made, max(0, moment - round(bound * 1000)).to_bytes(6))
        for bound in bounds
    ]
    counts = [this - before for before, this in zip([0, *up_to], [*up_to, len(made)], strict=True)]
    return Spread(counts, (len(made) * moment - sum(map(int.from_bytes, made))) / 1000)
