"""A peer that takes one message a change from a queue, in one worker process, into a database."""

from __future__ import annotations

import pickle
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.broker import running_broker
from benchmarks.customer import rows
from benchmarks.peer.environment import Environment
from benchmarks.peer.result import Taken, spent
from benchmarks.peer.target import Target, database, warm_row

__all__ = ["BACKLOG", "LIVE", "through_queue"]

LIVE = "live"
"""The worker runs while the changes are published; from the first publish to the last applied."""

BACKLOG = "backlog"
"""All changes are in the queue before the worker, already connected, takes the first."""


def through_queue(
    environment: Environment,
    *,
    broker: str,
    events: int,
    mode: str,
    worker: Sequence[str],
    publisher: Sequence[str],
    variables: Mapping[str, str] | None = None,
    seed: int = 1,
) -> Taken:
    """Have a peer apply ``events`` changes.

    ``worker`` and ``publisher``: their commands, of which the latter gets the path of a file of
    rows besides. They find broker and database in ``BROKER`` and ``DATABASE``.
    """
    made = rows(events, seed)
    with (
        tempfile.TemporaryDirectory() as name,
        running_broker(broker) as queue,
        database(Path(name)) as url,
        Target(url) as target,
    ):
        folder = Path(name)
        settings = {"BROKER": queue, "DATABASE": url, **(variables or {})}

        def publishing(rows: list[dict[str, Any]]) -> Any:
            path = folder / f"{len(rows)}.pickle"
            path.write_bytes(pickle.dumps(rows))
            command, *arguments = [*publisher, str(path)]
            return environment.program(*arguments, name=command, variables=settings, folder=folder)

        command, *arguments = worker
        with environment.program(
            *arguments, name=command, variables=settings, folder=folder
        ) as working:
            working.wait_for("ready")
            with publishing([warm_row()]) as warming:
                warming.wait_for("ready")
                warming.go()
                target.wait(warm_row(), timeout=60.0)
                warming.finish()
            with publishing(made) as published:
                published.wait_for("ready")
                if mode == BACKLOG:
                    working.pause()
                    published.go()
                    published.finish()
                before, begun = spent(), time.perf_counter()
                if mode == BACKLOG:
                    working.resume()
                else:
                    published.go()
                target.wait(made[-1])
                taken = time.perf_counter() - begun
                return Taken(events, taken, spent() - before, target.wrong(made))
