"""By hand: one Celery task a change, which writes it with SQLAlchemy and commits."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peer import ours
from benchmarks.peer.environment import Environment
from benchmarks.peer.queued import BACKLOG, LIVE, through_queue
from benchmarks.peer.result import compared

__all__ = ["NAME", "measure"]

NAME = "celery"

_CASES = (
    ("redis-always", "merge", LIVE),
    ("redis-always", "merge", BACKLOG),
    ("redis-always", "upsert", BACKLOG),
    ("rabbitmq", "merge", BACKLOG),
)
_WORKER = ("celery", "-A", "celery_app", "worker", "--concurrency", "1", "--loglevel", "warning")


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """Each case beside eventsync; ``factor``: how many times as many events that gets."""
    environment = Environment(NAME, folder)
    beside = {}
    for broker, write, mode in _CASES:
        if (broker, mode) not in beside:
            beside[broker, mode] = ours.through_queue(
                broker=broker, events=events * factor, mode=mode
            )
        theirs = through_queue(
            environment,
            broker=broker,
            events=events,
            mode=mode,
            worker=_WORKER,
            publisher=("python", "-m", "celery_app"),
            variables={"WRITE": write},
        )
        yield compared(
            NAME,
            f"{write}, {mode}",
            theirs,
            beside[broker, mode],
            broker=broker,
            note="a task a change, acknowledged late, one prefork process; eventsync: one "
            "worker, changes published one at a time through BatchPublisher",
        )
