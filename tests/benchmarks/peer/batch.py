"""What tools that copy in batches are given: a table with a mark of what changed, and one batch."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import psycopg
from benchmarks.broker import seconds
from benchmarks.customer import COLUMNS, row
from benchmarks.peer import ours
from benchmarks.peer.queued import BACKLOG
from benchmarks.peer.result import NotRunError, Taken, spent
from benchmarks.peer.source import upsert
from benchmarks.peer.target import Target, create, plain
from servers.postgres import PostgresServer

__all__ = ["Source", "copied", "made", "through_eventsync"]

Row = dict[str, Any]


def made(count: int, seed: int = 1) -> tuple[list[Row], list[Row]]:
    """Records that are there already, and a batch of ``count``: half of it those, changed."""
    rng = random.Random(seed)
    before = [row(rng, key) for key in range(count // 2)]
    batch = [row(rng, key) for key in range(count)]
    rng.shuffle(batch)
    return before, batch


@dataclass(frozen=True)
class Source:
    """The table at the source; ``changed`` in it grows with each change."""

    url: str

    def __post_init__(self) -> None:
        create(self.url)
        with psycopg.connect(self.url, autocommit=True) as connection:
            connection.execute("CREATE SEQUENCE change")
            connection.execute("ALTER TABLE customer ADD changed bigint")
            connection.execute(
                "CREATE FUNCTION mark() RETURNS trigger LANGUAGE plpgsql AS"
                " $$ BEGIN NEW.changed := nextval('change'); RETURN NEW; END $$"
            )
            connection.execute(
                "CREATE TRIGGER mark BEFORE INSERT OR UPDATE ON customer"
                " FOR EACH ROW EXECUTE FUNCTION mark()"
            )

    def write(self, rows: Sequence[Row]) -> None:
        """Insert or update them."""
        statement = upsert(f"VALUES ({', '.join(f'%({name})s' for name in COLUMNS)})")
        with psycopg.connect(self.url) as connection, connection.cursor() as cursor:
            cursor.executemany(statement, rows)


@contextmanager
def databases() -> Iterator[tuple[Source, str]]:
    """The source, and the URL of an empty target; servers of their own, durable."""
    with PostgresServer(durable=True) as source, PostgresServer(durable=True) as target:
        # Some insist on a password; the servers take any.
        source_url, target_url = (
            plain(server.url).replace("@", ":any@") for server in (source, target)
        )
        yield Source(source_url), target_url


def copied(
    source: Source, target: str, events: int, table: str, run: Callable[[], None]
) -> tuple[Taken, str]:
    """One incremental batch, and a note of what a run takes that finds nothing to do.

    That is not counted in what the batch took: it is the same whatever the number of rows.
    ``run``: copies what changed since it was last called. ``table``: where it copies it to.
    """
    before, batch = made(events)
    source.write(before)
    run()
    spent_before = spent()
    idle = min(seconds(run), seconds(run))
    idle_processor = (spent() - spent_before) / 2
    source.write(batch)
    spent_before = spent()
    taken = seconds(run)
    processor = spent() - spent_before
    if taken <= idle:
        raise NotRunError(f"a batch of {events:,} takes no longer than none; take more events")
    with Target(target, table=table) as reached:
        wrong = reached.wrong([*before, *batch])
    note = f"{events / taken:,.0f}/s with the {idle:.1f} s of a run that finds nothing"
    return Taken(events, taken - idle, processor - idle_processor, wrong), note


def through_eventsync(broker: str, events: int) -> Taken:
    """The same batch waiting in the source's outbox, when relay and worker begin."""
    before, batch = made(events)
    return ours.from_outbox(batch, broker=broker, size=1000, mode=BACKLOG, before=before)
