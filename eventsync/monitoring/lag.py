"""The lag of changes: how long ago they were made, for many at once.

It owns which time of a change counts. It must not know who asks.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Iterable, Sequence

from eventsync.changes.change import Change
from eventsync.monitoring.counters import Spread

__all__ = ["oldest", "spread", "times"]


def times(changes: Iterable[Change]) -> list[bytes]:
    """When each change was made, in milliseconds since the epoch, as 6 bytes.

    Its id says it: a version may be much older, for what ``eventsync sync`` publishes keeps its
    own. An id that is no UUIDv7, of a foreign producer, or one that cannot be right says nothing.
    """
    latest = int(time.time() * 1000).to_bytes(6)
    return [
        id[:6] if id[6] >> 4 == 7 and version[:6] <= id[:6] <= latest else version[:6]
        for id, version in [(change.id, change.version) for change in changes]
    ]


def oldest(times: Iterable[bytes]) -> float | None:
    """The oldest of ``times``, in seconds since the epoch; ``None`` for none."""
    first = min(times, default=None)
    return None if first is None else int.from_bytes(first) / 1000


def spread(times: Iterable[bytes], bounds: Sequence[float], *, now: float | None = None) -> Spread:
    """How ages are spread over ``bounds``, those in seconds, of what was made at ``times``.

    What a clock ahead of ours made has the age 0.
    """
    moment = int((time.time() if now is None else now) * 1000)
    latest = moment.to_bytes(6)
    # As bytes: sorted and searched without a number made of each.
    made = sorted(times)
    ahead = bisect_left(made, latest)
    made[ahead:] = [latest] * (len(made) - ahead)
    up_to = [
        len(made) - bisect_left(made, max(0, moment - round(bound * 1000)).to_bytes(6))
        for bound in bounds
    ]
    counts = [this - before for before, this in zip([0, *up_to], [*up_to, len(made)], strict=True)]
    return Spread(counts, (len(made) * moment - sum(map(int.from_bytes, made))) / 1000)
