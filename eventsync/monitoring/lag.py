"""The lag of changes: how long ago each change was made, computed for whole batches."""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from eventsync.changes.change import Change
from eventsync.monitoring.counters import Spread

__all__ = ["oldest", "spread", "times"]


def times(changes: Iterable[Change]) -> list[bytes]:
    """Return when each change was made, as milliseconds since the epoch in 6 big-endian bytes.

    The time is that of the change's id, a UUIDv7. The time of the version is used only if the id is
    not a UUIDv7, or if its time is before the version or in the future. Versions may be much older
    than changes, because ``eventsync sync`` publishes changes with existing versions.
    """
    latest = int(time.time() * 1000).to_bytes(6)
    return [
        id[:6] if id[6] >> 4 == 7 and version[:6] <= id[:6] <= latest else version[:6]
        for id, version in [(change.id, change.version) for change in changes]
    ]


def oldest(times: Iterable[bytes]) -> float | None:
    """Return the oldest of ``times`` in seconds since the epoch; ``None`` if ``times`` is empty."""
    first = min(times, default=None)
    return None if first is None else int.from_bytes(first) / 1000


def spread(times: Iterable[bytes], bounds: Sequence[float], *, now: float | None = None) -> Spread:
    """Return a histogram of the ages of ``times``, in seconds.

    ``times``: in the form that ``times()`` returns. ``bounds``: the upper bounds of the buckets, in
    seconds. ``now``: the time to compute the ages, in seconds since the epoch; by default the
    current time. A time in the future counts as age 0.
    """
    moment = int((time.time() if now is None else now) * 1000)
    latest = moment.to_bytes(6)
    # Sorted and searched as bytes, because converting them to numbers would be slower.
    made = sorted(times)
    ahead = bisect_left(made, latest)
    made[ahead:] = [latest] * (len(made) - ahead)
    up_to = [
        len(made) - bisect_left(made, max(0, moment - round(bound * 1000)).to_bytes(6))
        for bound in bounds
    ]
    counts = [this - before for before, this in zip([0, *up_to], [*up_to, len(made)], strict=True)]
    return Spread(counts, (len(made) * moment - sum(map(int.from_bytes, made))) / 1000)
