"""How the same work is done by other means, beside eventsync in the same run, on the same machine.

Run it from the project's root, for all or for some::

    python tests/benchmarks/peers.py
    python tests/benchmarks/peers.py --peer celery faststream --events 500

- ``celery``: by hand, one task a change, written with SQLAlchemy.
- ``faststream``: a consumer, one message a change, written with psycopg.
- ``replication``: PostgreSQL's own, from one server to another.
- ``debezium``: its engine (Java 17), and an upsert a batch.
- ``singer``, ``dlt``: an incremental batch, merged.

The record is the same for all, half are inserted and half change one that came before, and at the
end every record of the target is compared with what it should be. Servers of its own, all durable.
Each peer gets a virtual environment of its own, which pip fills; with ``--environments`` they stay
for the next run. One that cannot be run is listed with the reason. Use the ratios: the rest depends
on the machine. The processor time is of all processes, servers and publishers included.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import pytest
from benchmarks.peer.result import NotRunError, left_out

__all__ = ["PEERS", "measure"]

PEERS = ("celery", "faststream", "replication", "debezium", "singer", "dlt")


def measure(
    names: Sequence[str] = PEERS,
    *,
    events: int = 1000,
    factor: int = 25,
    environments: Path | None = None,
    tell: Callable[[dict[str, Any]], None] = lambda line: None,
) -> list[dict[str, Any]]:
    """One line a peer and case, all of the same keys; ``tell`` gets each as soon as it is there.

    ``events``: how many changes a peer applies that takes them one at a time; ``factor``: how many
    times as many the others, and eventsync, so that theirs last long enough to be measured.
    ``environments``: where the peers' packages are kept; ``None`` for the time of the run.
    """
    if environments is None:
        with tempfile.TemporaryDirectory() as name:
            return measure(names, events=events, factor=factor, environments=Path(name), tell=tell)
    found = []
    for name in names:
        peer = import_module(f"benchmarks.peer.{name}")
        for line in _lines(name, peer.measure(environments.resolve(), events, factor)):
            found.append(line)
            tell(line)
    return found


def _lines(name: str, lines: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """The lines of a peer, and at the end one that says why, if it could not go on."""
    try:
        yield from lines
    except (NotRunError, TimeoutError, AssertionError, OSError, pytest.skip.Exception) as error:
        yield left_out(name, " ".join(str(error).split()))


def _show(line: dict[str, Any]) -> None:
    title = f"{line['peer']}: {line['case']}" if line["case"] else line["peer"]
    if line["ratio"] is None:
        print(f"{title:<52}{line['note']}", flush=True)
        return
    print(
        f"{title:<52}{line['broker']:>13}{line['events']:>9,}{line['peer_per_s']:>9,}"
        f"{line['eventsync_per_s']:>11,}{line['ratio']:>8.2f}"
        f"{line['peer_cpu_us_per_event']:>10,.0f}{line['eventsync_cpu_us_per_event']:>11,.0f}\n"
        f"    {line['note']}",
        flush=True,
    )


def main() -> int:
    """Print a table, or JSON."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer", nargs="+", choices=PEERS, default=PEERS)
    parser.add_argument("--events", type=int, default=1000, help="of a peer that takes them singly")
    parser.add_argument("--factor", type=int, default=25, help="times as many for the others")
    parser.add_argument("--environments", type=Path, help="keep the peers' packages here")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    # Told to end, it ends the servers that it started as well.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    if not options.json:
        print(f"{'':<65}{'events':>9}{'events/s':>20}{'ratio':>8}{'µs CPU an event':>21}")
        print(f"{'':<74}{'peer':>9}{'eventsync':>11}{'':>8}{'peer':>10}{'eventsync':>11}")
    measure(
        options.peer,
        events=options.events,
        factor=options.factor,
        environments=options.environments,
        tell=(lambda line: print(json.dumps(line), flush=True)) if options.json else _show,
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
