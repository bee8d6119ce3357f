"""dlt: a pipeline from a table of one PostgreSQL into another, merged by its key."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from benchmarks.peer.batch import copied, databases, through_eventsync
from benchmarks.peer.environment import Environment
from benchmarks.peer.result import compared

__all__ = ["NAME", "measure"]

NAME = "dlt"

_BROKER = "redis-always"
_CASES = (("delete-insert", "sqlalchemy"), ("upsert", "pyarrow"))
"""How rows are merged, and how they are read: as dlt has it by default, and its fastest."""


def measure(folder: Path, events: int, factor: int) -> Iterator[dict[str, Any]]:
    """One incremental batch of ``events * factor`` rows, as dlt has it and as it is fastest."""
    environment = Environment(NAME, folder)
    count = events * factor
    beside = through_eventsync(_BROKER, count)
    for strategy, backend in _CASES:
        with databases() as (source, target), tempfile.TemporaryDirectory() as name:
            variables = {
                "SOURCE": source.url.replace("postgresql:", "postgresql+psycopg2:"),
                "DATABASE": target,
                "STRATEGY": strategy,
                "BACKEND": backend,
            }
            with environment.program(
                "-m", "dlt_app", variables=variables, folder=Path(name)
            ) as pipeline:
                pipeline.wait_for("ready")

                def run() -> None:
                    pipeline.go()  # called within this turn of the loop
                    pipeline.wait_for("ready")

                theirs, idle = copied(source, target, count, "crm.customer", run)
        yield compared(
            NAME,
            f"merge by {strategy}, read by {backend}",
            theirs,
            beside,
            broker=_BROKER,
            note=f"an incremental batch, {idle}; eventsync: relay and worker start, all is in "
            "the outbox",
        )
