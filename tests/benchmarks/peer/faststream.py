"""A FastStream consumer: one message a change, an upsert with psycopg and a commit each."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peer import ours
from benchmarks.peer.environment import Environment
from benchmarks.peer.queued import BACKLOG, LIVE, through_queue
from benchmarks.peer.result import compared

__all__ = ["NAME", "measure"]

NAME = "faststream"

_CASES = (("redis-always", LIVE), ("redis-always", BACKLOG), ("rabbitmq", BACKLOG))
_PROGRAM = ("python", "-m", "faststream_app")


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """Each case beside eventsync; ``factor``: how many times as many events that gets."""
    environment = Environment(NAME, folder)
    for broker, mode in _CASES:
        theirs = through_queue(
            environment,
            broker=broker,
            events=events,
            mode=mode,
            worker=_PROGRAM,
            publisher=(*_PROGRAM, "publish"),
        )
        beside = ours.through_queue(broker=broker, events=events * factor, mode=mode)
        yield compared(
            NAME,
            mode,
            theirs,
            beside,
            broker=broker,
            note="a message a change, handled one at a time, in order; eventsync: one worker, "
            "changes published one at a time through BatchPublisher",
        )
