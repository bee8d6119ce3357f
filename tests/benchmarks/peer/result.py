"""What a run took, and a peer's beside eventsync's."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["NotRunError", "Taken", "compared", "left_out", "spent"]


class NotRunError(Exception):
    """A peer cannot be run here; why, in one line."""


@dataclass(frozen=True)
class Taken:
    """What one run took. ``processor``: seconds of all its processes, servers included."""

    events: int
    seconds: float
    processor: float
    wrong: int
    """How many records of the target are not, in the end, what they were last made."""

    @property
    def per_s(self) -> float:
        """Events per second."""
        return self.events / self.seconds

    @property
    def us(self) -> float:
        """Processor time an event, in microseconds."""
        return round(self.processor / self.events * 1e6, 1)


def compared(
    peer: str,
    case: str,
    theirs: Taken,
    ours: Taken,
    *,
    broker: str | None,
    note: str,
    store: str = "postgres",
) -> dict[str, Any]:
    """One line of the table. ``broker``: eventsync's, and the peer's where that has one."""
    for name, taken in ((peer, theirs), ("eventsync", ours)):
        if taken.wrong:
            note = f"{name} left {taken.wrong:,} records wrong; {note}"
    return {
        "peer": peer,
        "case": case,
        "store": store,
        "broker": broker,
        "events": theirs.events,
        "eventsync_events": ours.events,
        "peer_per_s": round(theirs.per_s),
        "eventsync_per_s": round(ours.per_s),
        "ratio": round(ours.per_s / theirs.per_s, 2),
        "peer_cpu_us_per_event": theirs.us,
        "eventsync_cpu_us_per_event": ours.us,
        "note": note,
    }


def left_out(peer: str, reason: str) -> dict[str, Any]:
    """The line of a peer that could not be run, of the same keys."""
    line: dict[str, Any] = dict.fromkeys(
        compared("", "", *[Taken(1, 1, 1, 0)] * 2, broker="", note="")
    )
    return line | {"peer": peer, "case": "", "note": f"not run: {reason}"}


def spent() -> float:
    """Seconds of processor time of this process and all it started, those that ended included.

    Read from ``/proc``, so on Linux only.
    """
    tick = os.sysconf("SC_CLK_TCK")
    parents: dict[int, int] = {}
    times: dict[int, int] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
        except OSError:  # it ended meanwhile, and its parent has its time
            continue
        parents[int(folder.name)] = int(fields[1])
        times[int(folder.name)] = sum(map(int, fields[11:15]))

    def is_ours(pid: int) -> bool:
        while pid and pid != os.getpid():
            pid = parents.get(pid, 0)
        return bool(pid)

    return sum(time for pid, time in times.items() if is_ours(pid)) / tick
