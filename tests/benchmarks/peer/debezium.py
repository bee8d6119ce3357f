"""Debezium's engine following a PostgreSQL, and an upsert of each batch into another."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.customer import rows
from benchmarks.peer import ours
from benchmarks.peer.environment import Environment
from benchmarks.peer.queued import BACKLOG
from benchmarks.peer.result import Taken, compared, spent
from benchmarks.peer.source import FollowedServer, commit_by_server
from benchmarks.peer.target import Target, warm_row
from support.waiting import eventually

__all__ = ["NAME", "measure"]

NAME = "debezium"

_BROKER = "redis-always"


def followed(environment: Environment, events: int, size: int, seed: int = 1) -> Taken:
    """A backlog, committed ``size`` rows a transaction while the engine, warm, stood still."""
    made = rows(events, seed)
    with (
        tempfile.TemporaryDirectory() as name,
        FollowedServer() as source,
        FollowedServer() as target,
        Target(target.url, pause=0.005) as reached,
    ):
        variables = {"SOURCE_PORT": str(source.port), "DATABASE": target.url}
        with environment.program(
            "-m", "debezium_app", variables=variables, folder=Path(name)
        ) as engine:
            engine.wait_for("ready")
            eventually(
                lambda: source.ask("SELECT count(*) FROM pg_replication_slots WHERE active"),
                timeout=60.0,
                what=f"Debezium follows: {engine.last_words()}",
            )
            warming = [warm_row(number) for number in range(1000)]
            commit_by_server(warming, source, size)
            reached.wait(warming[-1], timeout=60.0)
            engine.pause()
            commit_by_server(made, source, size)
            before, begun = spent(), time.perf_counter()
            engine.resume()
            reached.wait(made[-1])
            taken = time.perf_counter() - begun
            return Taken(events, taken, spent() - before, reached.wrong(made))


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """A backlog beside eventsync, which has it in its queue, or in the source's outbox."""
    environment = Environment(NAME, folder)
    count = events * factor
    worker = ours.through_queue(broker=_BROKER, events=count, mode=BACKLOG)
    whole = ours.from_outbox(rows(count, 1), broker=_BROKER, size=1000, mode=BACKLOG)
    for size in (1, 1000):
        theirs = followed(environment, count, size)
        for case, beside, note in (
            (BACKLOG, worker, "a worker starts on the full queue"),
            (f"{BACKLOG} in the outbox", whole, "relay and worker start, all is in the outbox"),
        ):
            yield compared(
                NAME,
                f"{size} a transaction, {case}",
                theirs,
                beside,
                broker=_BROKER,
                note="the engine, started and warm, goes on with what was committed; "
                f"eventsync: {note}",
            )
