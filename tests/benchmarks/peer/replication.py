"""PostgreSQL's built-in logical replication, by a publication and a subscription."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.customer import rows
from benchmarks.peer import ours
from benchmarks.peer.queued import BACKLOG, LIVE
from benchmarks.peer.result import Taken, compared, spent
from benchmarks.peer.source import FollowedServer, commit, commit_by_server
from benchmarks.peer.target import Target, warm_row

__all__ = ["NAME", "measure"]

NAME = "replication"

_BROKER = "redis-always"
_SIZES = (1, 10, 1000)
"""Rows a transaction."""


@contextmanager
def _subscribed() -> Iterator[tuple[FollowedServer, FollowedServer]]:
    """A server and one that follows it, with a change that has come through."""
    with FollowedServer() as source, FollowedServer() as target:
        source.run("CREATE PUBLICATION p FOR TABLE customer")
        url = f"host=127.0.0.1 port={source.port} user=eventsync dbname=test"
        target.run(f"CREATE SUBSCRIPTION s CONNECTION '{url}' PUBLICATION p")
        commit_by_server([warm_row()], source, 1)
        with Target(target.url) as reached:
            reached.wait(warm_row(), timeout=60.0)
        yield source, target
        # Otherwise the source waits, at its end, for one that is gone.
        target.run("DROP SUBSCRIPTION s")


def replicated(events: int, size: int, mode: str, seed: int = 1) -> Taken:
    """From the first commit at the source, ``size`` rows a transaction, to all seen at the target.

    As a backlog, from the first transaction that is seen to the last, for the subscription takes a
    while to start.
    """
    made = rows(events, seed)
    with _subscribed() as (source, target), Target(target.url, pause=0.005) as reached:
        if mode == BACKLOG:
            target.run("ALTER SUBSCRIPTION s DISABLE")
            commit_by_server(made, source, size)
            target.run("ALTER SUBSCRIPTION s ENABLE")
            reached.wait_for_first()
            events -= min(size, events - 1)
            before, begun = spent(), time.perf_counter()
        else:
            context = multiprocessing.get_context("spawn")
            started = context.Barrier(2, timeout=120.0)
            context.Process(
                target=commit, args=(made, source.url, size, started), daemon=True
            ).start()
            started.wait()
            before, begun = spent(), time.perf_counter()
        reached.wait(made[-1])
        taken = time.perf_counter() - begun
        return Taken(events, taken, spent() - before, reached.wrong(made))


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """Live and as a backlog, for transactions of several sizes; ``folder`` is not needed."""
    for size in _SIZES:
        # Small transactions are slow at the source, whoever does them.
        count = events * min(size, factor)
        theirs = replicated(count, size, LIVE)
        beside = ours.from_outbox(rows(count, 1), broker=_BROKER, size=size, mode=LIVE)
        note = (
            "an application commits plain rows; eventsync: it commits them through "
            "Store.using(transaction) with their envelopes, and relay and worker run"
        )
        yield _line(f"{size} a transaction, live", theirs, beside, note)
    count = events * factor
    made = rows(count, 1)
    worker = ours.through_queue(broker=_BROKER, events=count, mode=BACKLOG)
    whole = ours.from_outbox(made, broker=_BROKER, size=1000, mode=BACKLOG)
    enabled = "the subscription, by default not waiting for the disk, goes on; eventsync: "
    for size in _SIZES:
        theirs = replicated(count, size, BACKLOG)
        for case, beside, note in (
            (BACKLOG, worker, "a worker starts on the full queue"),
            (f"{BACKLOG} in the outbox", whole, "relay and worker start, all is in the outbox"),
        ):
            yield _line(f"{size} a transaction, {case}", theirs, beside, enabled + note)


def _line(case: str, theirs: Taken, beside: Taken, note: str) -> dict[str, Any]:
    return compared(NAME, case, theirs, beside, broker=_BROKER, note=note)
