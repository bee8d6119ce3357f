"""Foreign writers on three databases, their capture killed again and again, the copies compared.

Run it from the project's root, for example::

    python tests/chaos/captured.py --seconds 600 --kills 300 --crashes 30 --seed 7

For each database and change source there is a program that writes plain SQL, a process (or two)
that captures, and a worker that applies the changes to a copy. Capturing processes and servers are
killed, slots are dropped and made anew, logs are purged. In the end each copy must equal its
database, and eventsync's own writes must have caused no change. It prints a report as JSON, and
exits with 1 if anything is lost, differs, or echoes.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import psycopg
from captured_scenario import TYPES, Customer, Place, capture, work
from captured_writer import MariaWriter, PostgresWriter, SqliteWriter, Writer
from servers import Server
from servers.mariadb import MariaServer
from servers.postgres import PostgresServer

from eventsync.engine.registry import StoreRegistry
from eventsync.monitoring.following import caught_up_at

_context = multiprocessing.get_context("forkserver")
SOURCES = (
    "postgres-log", "postgres-triggers", "mariadb-log", "mariadb-triggers", "sqlite-triggers",
)  # fmt: skip
_REST = 120.0


@dataclass
class Found:
    """What a run did to one database, and what it found."""

    writes: Counter[str] = field(default_factory=Counter)
    unwritten: int = 0
    """Transactions that failed, because the server was killed."""
    faults: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    """Processes that ended by themselves, by role and exit code."""
    records: int = 0
    lost: list[str] = field(default_factory=list)
    """Records that the copy lacks."""
    differing: list[str] = field(default_factory=list)
    extra: list[str] = field(default_factory=list)
    """Records that the copy holds although they were deleted."""
    echoes: int = 0
    """Changes that were published because of what eventsync wrote itself."""
    dead_letters: int = 0
    rested: bool = True

    @property
    def sound(self) -> bool:
        """Whether nothing is lost, differs or echoes."""
        wrong = self.lost or self.differing or self.extra or self.echoes or self.dead_letters
        return self.rested and not wrong and self.records > 0

    def shown(self) -> dict[str, Any]:
        """As JSON has it."""
        cut = {name: getattr(self, name)[:10] for name in ("lost", "differing", "extra")}
        return vars(self) | cut | {"sound": self.sound}


class Side:
    """One database with its writer, its processes and its faults."""

    def __init__(
        self, name: str, folder: Path, server: Server | None, writer: Writer, url: str
    ) -> None:
        folder.mkdir()
        self.name, self.server, self.writer = name, server, writer
        self.place = Place(name, name.partition("-")[2], url, folder)
        self.found = Found()
        self.processes: dict[str, Any] = {}

    def begin(self) -> None:
        """Create tables, install the source and start all processes."""
        self.writer.setup()
        with self.place.source() as store:
            store.change_source().install()
        with self.place.bus() as bus:
            for name in ("source", "copy"):
                bus.declare(name, [one.__record__.name for one in TYPES])
        self.start("copy", work, self.place, "copy")
        self.start("source", work, self.place, "source")
        self.start("capture", capture, self.place)

    def start(self, role: str, target: Callable[..., None], *arguments: Any) -> None:
        """Start a process of a role."""
        process = _context.Process(target=target, args=arguments, daemon=True)
        process.start()
        self.processes[role] = process

    def tend(self) -> None:
        """Start processes again that have ended."""
        for role, process in list(self.processes.items()):
            if process.is_alive():
                continue
            if process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM):
                self.found.exits[f"{role}: {process.exitcode}"] += 1
            if role.startswith("capture"):
                self.start(role, capture, self.place)
            else:
                self.start(role, work, self.place, role)

    def kill(self, role: str) -> None:
        """SIGKILL a process."""
        process = self.processes.get(role)
        if process is not None and process.is_alive():
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            self.found.faults[f"kill {role}"] += 1

    def end(self) -> None:
        """Kill all processes."""
        for process in self.processes.values():
            if process.is_alive():
                process.kill()
            process.join()

    # -- faults ----------------------------------------------------------------------------------

    def second(self) -> None:
        """Start a second capturing process, or kill it."""
        if "capture-2" in self.processes:
            process = self.processes.pop("capture-2")
            process.kill()
            process.join()
        else:
            self.start("capture-2", capture, self.place)
        self.found.faults["second capture"] += 1

    def forget_log(self, rng: random.Random) -> None:
        """Drop the slot, make it anew under its name, or purge the log."""
        if self.name == "postgres-log":
            self.kill("capture")
            with psycopg.connect(
                self.place.url.replace("+psycopg", ""), autocommit=True, connect_timeout=5
            ) as connection:
                slots = connection.execute(
                    "SELECT slot_name, active_pid FROM pg_replication_slots"
                ).fetchall()
                for slot, pid in slots:
                    if pid:
                        connection.execute("SELECT pg_terminate_backend(%s)", (pid,))
                    _until(lambda s=slot: _inactive(connection, s))
                    connection.execute("SELECT pg_drop_replication_slot(%s)", (slot,))
                    if rng.random() < 0.5:
                        connection.execute(
                            "SELECT pg_create_logical_replication_slot(%s, 'pgoutput')", (slot,)
                        )
                        self.found.faults["slot made anew"] += 1
                    else:
                        self.found.faults["slot dropped"] += 1
        elif self.name == "mariadb-log":
            self.kill("capture")
            assert isinstance(self.writer, MariaWriter)
            connection = self.writer.connect()
            with connection, connection.cursor() as cursor:
                cursor.execute("FLUSH BINARY LOGS")
                cursor.execute("SHOW MASTER STATUS")
                cursor.execute(f"PURGE BINARY LOGS TO '{cursor.fetchone()[0]}'")
            self.found.faults["log purged"] += 1

    # -- the end ---------------------------------------------------------------------------------

    def rest(self) -> None:
        """Wait until everything is captured and applied."""
        written = time.time()
        with self.place.source() as source, self.place.copy() as copy, self.place.bus() as bus:

            def is_quiet() -> bool:
                self.tend()
                caught = caught_up_at(source.index) or 0.0
                if caught < written + 1.0 or source.whole_reads() or source.index.waiting():
                    return False
                if copy.index.waiting():
                    return False
                states = [bus.states(name) for name in ("source", "copy")]
                return not any(one[q].unsettled for one in states for q in ("queue", "held"))

            try:
                _until(is_quiet, _REST)
            except TimeoutError:
                self.found.rested = False

    def compare(self) -> None:
        """Compare the copy with the database, and look for echoes."""
        found = self.found
        found.writes, found.unwritten = self.writer.did, self.writer.lost
        held = self.writer.rows()
        with self.place.copy() as copy, self.place.bus() as bus:
            for one in TYPES:
                name = one.__record__.name
                rows = [tuple(record.raw().values()) for record in copy.find(one)]
                ours = {row[0]: row[1:] for row in rows}
                theirs = held[name]
                found.records += len(theirs)
                found.lost += [f"{name} {key!r}" for key in theirs.keys() - ours.keys()]
                found.extra += [f"{name} {key!r}" for key in ours.keys() - theirs.keys()]
                found.differing += [
                    f"{name} {key!r}: {theirs[key]} is {ours[key]}"
                    for key in theirs.keys() & ours.keys()
                    if theirs[key] != ours[key]
                ]
            found.dead_letters = sum(bus.states(n)["dead"].unsettled for n in ("source", "copy"))

    def look_for_echoes(self) -> None:
        """Edit the copy through eventsync: the source must publish nothing about it."""
        with self.place.source() as source, self.place.copy() as copy, self.place.bus() as bus:
            registry = StoreRegistry(source, copy)
            registry.open(publisher=bus)
            some = [record for record, _ in zip(copy.find(Customer), range(200), strict=False)]
            for record in some:
                record["name"] = f"edited {record['id']}"
            before = {record.key: None for record in some}
            copy.update(some)
        self.rest()
        versions = {}
        with self.place.source() as source, self.place.copy() as copy:
            for store in (source, copy):
                entries = dict(store.index.entries("Customer"))
                versions[store.name] = {key: entries[key].version for key in before}
            held = {r.key: r["name"] for r in source.find(Customer) if r.key in before}
        self.found.echoes = sum(
            versions["source"][key] != versions["copy"][key] or held.get(key) != f"edited {key}"
            for key in before
        )


def _inactive(connection: Any, slot: str) -> bool:
    row = connection.execute(
        "SELECT active FROM pg_replication_slots WHERE slot_name = %s", (slot,)
    ).fetchone()
    return row is not None and not row[0]


def _until(is_so: Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not is_so():
        if time.monotonic() > deadline:
            raise TimeoutError("this did not come about in time")
        time.sleep(0.05)


def sides(names: list[str], folder: Path, stack: contextlib.ExitStack, seed: int) -> list[Side]:
    """Start the servers that these sources need, and return their sides."""
    made = []
    for number, name in enumerate(names):
        rng = random.Random(seed * 1000 + number)
        database = name.partition("-")[0]
        server: Server | None = None
        writer: Writer
        if database == "postgres":
            server = stack.enter_context(PostgresServer(options=("wal_level=logical",)))
            writer, url = PostgresWriter(rng, server.url), server.url
        elif database == "mariadb":
            server = stack.enter_context(
                MariaServer(
                    options=("--log-bin=binlog", "--binlog-format=ROW", "--server-id=1",
                             "--binlog-row-metadata=FULL")
                )
            )  # fmt: skip
            writer, url = MariaWriter(rng, server.port), server.url
        else:
            path = folder / f"{name}.db"
            writer, url = SqliteWriter(rng, str(path)), f"sqlite:///{path}"
        made.append(Side(name, folder / name, server, writer, url))
    return made


def run(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Run everything, and return the report."""
    rng = random.Random(options.seed)
    began = time.monotonic()
    with contextlib.ExitStack() as stack:
        made = sides(options.sources, folder, stack, options.seed)
        for side in made:
            stack.callback(side.end)
            side.begin()
        due = _schedule(rng, options, made)
        start = time.monotonic()
        while (now := time.monotonic() - start) < options.seconds:
            for side in made:
                side.writer.step()
                side.tend()
            while due and due[0][0] <= now:
                due.pop(0)[1]()
            time.sleep(rng.uniform(0.0, options.pause))
        for _, action in due:
            action()
        for side in made:
            side.tend()
            side.rest()
            side.compare()
        for side in made:
            side.look_for_echoes()
    found = {side.name: side.found.shown() for side in made}
    return {
        "seed": options.seed,
        "sources": found,
        "seconds": round(time.monotonic() - began, 1),
        "sound": all(one["sound"] for one in found.values()),
    }


def _schedule(
    rng: random.Random, options: argparse.Namespace, made: list[Side]
) -> list[tuple[float, Callable[[], None]]]:
    due: list[tuple[float, Callable[[], None]]] = []

    def at(count: int, action: Callable[[Side], None], fitting: list[Side]) -> None:
        for number in range(count if fitting else 0):
            side = fitting[number % len(fitting)]
            moment = rng.uniform(0.05, 0.95) * options.seconds
            due.append((moment, lambda side=side: action(side)))  # type: ignore[misc]

    def crash(side: Side) -> None:
        assert side.server is not None
        side.server.kill()
        side.found.faults["kill server"] += 1
        # Its children may outlive it for a moment, and keep a new server from starting.
        for attempt in range(5):
            try:
                side.server.start()
                return
            except AssertionError:
                if attempt == 4:
                    raise
                time.sleep(1.0)

    at(options.kills, lambda side: side.kill("capture"), made)
    at(options.kills // 10, lambda side: side.kill("copy"), made)
    at(options.crashes, crash, [side for side in made if side.server is not None])
    at(options.second, Side.second, made)
    at(
        options.forgotten,
        lambda side: side.forget_log(rng),
        [side for side in made if side.name.endswith("-log")],
    )
    return sorted(due, key=lambda one: one[0])


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--kills", type=int, default=30, help="of capturing processes")
    parser.add_argument("--crashes", type=int, default=3, help="of database servers")
    parser.add_argument("--forgotten", type=int, default=4, help="slots dropped, logs purged")
    parser.add_argument("--second", type=int, default=4, metavar="COUNT",
                        help="how often a second capturing process comes or goes")  # fmt: skip
    parser.add_argument("--pause", type=float, default=0.01, help="at most, between transactions")
    parser.add_argument("--sources", nargs="+", choices=SOURCES, default=list(SOURCES))
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--folder", type=Path, help="kept for looking into; otherwise a new one")
    options = parser.parse_args()
    folder = options.folder or Path(tempfile.mkdtemp(prefix="captured-"))
    folder.mkdir(parents=True, exist_ok=True)
    report = run(options, folder)
    print(json.dumps(report, default=str))
    if report["sound"] and not options.folder:
        shutil.rmtree(folder, ignore_errors=True)
    return 0 if report["sound"] else 1


if __name__ == "__main__":
    sys.exit(main())
