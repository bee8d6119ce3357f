"""The lag of changes: how long ago they were made, for many at once.

It owns which time of a change counts. It must not know who asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from eventsync.change import Change
from eventsync.tally import Spread

__all__ = ["oldest", "spread"]


def oldest(changes: Iterable[Change]) -> float | None:
    """When the oldest of ``changes`` was made, in seconds since the epoch; ``None`` for none."""
    latest = int(time.time() * 1000).to_bytes(6)
    first = min(_times(changes, latest), default=None)
    return None if first is None else int.from_bytes(first) / 1000


def spread(
    changes: Iterable[Change], bounds: Sequence[float], *, now: float | None = None
) -> Spread:
    """How the ages of ``changes`` are spread over ``bounds``, all in seconds.

    One that a clock ahead of ours made has the age 0.
    """
    moment = int((time.time() if now is None else now) * 1000)
    latest = moment.to_bytes(6)
    # As bytes: sorted and searched without a number made of each.
    times = sorted(_times(changes, latest))
    ahead = bisect_left(times, latest)
    times[ahead:] = [latest] * (len(times) - ahead)
    up_to = [
        len(times) - bisect_left(times, max(0, moment - round(bound * 1000)).to_bytes(6))
        for bound in bounds
    ]
    counts = [this - before for before, this in zip([0, *up_to], [*up_to, len(times)], strict=True)]
    return Spread(counts, (len(times) * moment - sum(map(int.from_bytes, times))) / 1000)


def _times(changes: Iterable[Change], latest: bytes) -> list[bytes]:
    """When each change was made, in milliseconds since the epoch, as 6 bytes.

    Its id says it: a version may be much older, for what ``eventsync sync`` publishes keeps its
    own. An id that is no UUIDv7, of a foreign producer, or one that cannot be right says nothing.
    """
    return [
        id[:6] if id[6] >> 4 == 7 and version[:6] <= id[:6] <= latest else version[:6]
        for id, version in [(change.id, change.version) for change in changes]
    ]
