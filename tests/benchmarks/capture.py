"""What it costs and how long it takes to capture the writes of a program that knows no eventsync.

The program writes to PostgreSQL with plain psycopg, to two tables that differ only in that one of
them is captured.

``rate``: the program commits as fast as it can, alternately to both tables; the rows of one
transaction are one statement. Nothing else runs. ``latency``: the program commits one row at a
time by a schedule. ``eventsync worker crm`` with its capturing process, a worker of the other
store, and Redis as broker run as processes. A trigger in the other database notifies of each row
when the transaction has committed there. ``backlog``: the program has written while nothing
captured; measured is the capturing process alone, until the change table is empty or the log is
read. Beside capture by the log, the latency of PostgreSQL's own logical replication into the same
other database is measured in the same way.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psycopg
from benchmarks.broker import running_broker
from benchmarks.customer import COLUMNS as FIELDS
from benchmarks.customer import Customer, row
from benchmarks.database import running_store
from benchmarks.plot import Bars, Panel
from benchmarks.table import Column, Tell
from support.waiting import eventually

from eventsync.engine.store import Store
from eventsync.stores.sql import SqlAccessor

__all__ = ["COLUMNS", "QUICK", "Scale", "measure", "panels"]

COLUMNS = (
    Column("what", "what"),
    Column("source", "source"),
    Column("case", "case"),
    Column("per_s", "rows/s"),
    Column("raw_per_s", "not captured, rows/s"),
    Column("ratio", "ratio", 2),
    Column("p50_ms", "p50 from commit, ms", 1),
    Column("p99_ms", "p99", 1),
    Column("peak_mib", "peak memory, MiB", 1),
)
_ROOT = Path(__file__).parents[2]
_STORES = """
from eventsync import Store, StoreRegistry
from eventsync.stores.sql import SqlAccessor
from benchmarks.customer import Customer

registry = StoreRegistry(
    Store("crm", SqlAccessor(Customer, {crm!r}, table="captured"), capture={source!r}),
    Store("copy", SqlAccessor(Customer, {copy!r}, table="copied")),
)
"""
_TABLE = """
CREATE TABLE {} (id bigint PRIMARY KEY, name text NOT NULL, email text NOT NULL,
    street text NOT NULL, city text NOT NULL, country text NOT NULL, balance numeric NOT NULL,
    visits bigint NOT NULL, score double precision NOT NULL, active boolean NOT NULL,
    born date NOT NULL, token uuid NOT NULL)
"""
_TELL = """
CREATE FUNCTION tell() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN PERFORM pg_notify('seen', NEW.id::text); RETURN NULL; END $$;
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON copied FOR EACH ROW EXECUTE FUNCTION tell();
"""
_TELL_REPLICATED = """
CREATE TRIGGER tell AFTER INSERT OR UPDATE ON plain FOR EACH ROW EXECUTE FUNCTION tell();
ALTER TABLE plain ENABLE ALWAYS TRIGGER tell;
"""
_WAITING = {
    "triggers": "SELECT sum(count) FROM eventsync_change WHERE number > 0",
    "log": "SELECT greatest(0, %s::pg_lsn - confirmed_flush_lsn) FROM pg_replication_slots"
    " WHERE slot_name LIKE 'eventsync%%'",
}
_WARM = 50


@dataclass(frozen=True, kw_only=True)
class Scale:
    """How much is done.

    ``rounds`` of ``seconds`` for each size of a transaction; so many ``commits`` at a ``pace``, a
    second; ``backlog``: how many rows wait.
    """

    sources: tuple[str, ...] = ("triggers", "log")
    rows: tuple[int, ...] = (1, 10, 1000)
    rounds: int = 9
    seconds: float = 1.5
    pace: int = 100
    commits: int = 2000
    backlog: int = 1_000_000


QUICK = Scale(rounds=1, seconds=0.3, commits=50, backlog=2000)


def measure(tell: Tell, scale: Scale = Scale()) -> list[dict[str, Any]]:
    """A row for each source and case; tells each when it is known."""
    found: list[dict[str, Any]] = []
    for source in scale.sources:
        with tempfile.TemporaryDirectory() as folder, _databases(Path(folder)) as urls:
            (Path(folder) / "workers.py").write_text(_STORES.format(**urls, source=source))
            with _installed(urls["crm"], source):
                for one in _rates(urls["crm"], source, scale):
                    tell(one)
                    found.append(one)
                with _processes(Path(folder), "worker crm", "worker copy"):
                    one = _latency(urls, source, scale)
                tell(one)
                found.append(one)
                if source == "log":
                    with _replicated(urls):
                        one = _latency(urls, "built-in replication", scale, table="plain")
                    tell(one)
                    found.append(one)
                one = _backlog(Path(folder), urls, source, scale)
                tell(one)
                found.append(one)
    return found


def panels(rows: Sequence[dict[str, Any]]) -> list[Panel]:
    """What is drawn of the rows."""
    groups = {
        f"{row['source']}: {row['case']}": {
            "not captured": row["raw_per_s"],
            "captured": row["per_s"],
        }
        for row in rows
        if row["what"] == "rate"
    }
    title = "rows a second that the program commits (logarithmic)"
    return [Bars(title, groups, logarithmic=True)] if groups else []


# -- the deployment --------------------------------------------------------------------------------


@contextlib.contextmanager
def _databases(folder: Path) -> Iterator[dict[str, str]]:
    """The URLs of two databases with their tables: ``crm`` and ``copy``."""
    with running_store("postgres", folder, options=("wal_level=logical",)) as crm:
        copy = crm.replace("/test", "/copy")
        with _connected(crm, autocommit=True) as connection:
            connection.execute("CREATE DATABASE copy")
        with _connected(crm) as connection:
            connection.execute(_TABLE.format("captured"))
            connection.execute(_TABLE.format("plain"))
        with _connected(copy) as connection:
            connection.execute(_TABLE.format("copied"))
            connection.execute(_TELL)
        yield {"crm": crm, "copy": copy}


@contextlib.contextmanager
def _replicated(urls: dict[str, str]) -> Iterator[None]:
    """Let the server itself replicate the table that eventsync does not capture."""
    server = urls["crm"].replace("+psycopg", "")
    with _connected(urls["crm"], autocommit=True) as connection:
        connection.execute("TRUNCATE plain")
        connection.execute("CREATE PUBLICATION beside FOR TABLE plain")
        # Both databases are on one server, which could not create the slot for itself.
        connection.execute("SELECT pg_create_logical_replication_slot('beside', 'pgoutput')")
    with _connected(urls["copy"], autocommit=True) as connection:
        connection.execute(_TABLE.format("plain"))
        connection.execute(_TELL_REPLICATED)
        connection.execute(
            f"CREATE SUBSCRIPTION beside CONNECTION '{server}' PUBLICATION beside"
            " WITH (create_slot = false, slot_name = 'beside', copy_data = false)"
        )
        yield
        connection.execute("DROP SUBSCRIPTION beside")


@contextlib.contextmanager
def _installed(url: str, source: str) -> Iterator[None]:
    """Install the source for the block."""
    accessor = SqlAccessor(Customer, url, table="captured")
    with Store("crm", accessor, capture=source) as store:
        store.change_source().install()
        yield
        store.change_source().remove()


@contextlib.contextmanager
def _processes(folder: Path, *commands: str) -> Iterator[list[subprocess.Popen[bytes]]]:
    """Run these commands of eventsync, with a broker of their own."""
    with running_broker("redis-always") as broker, (folder / "log").open("ab") as log:
        environment = {
            **os.environ,
            "PYTHONPATH": f"{_ROOT}{os.pathsep}{_ROOT / 'tests'}",
            "EVENTSYNC_BROKER": broker,
        }
        running = [
            subprocess.Popen(
                [sys.executable, "-m", "eventsync", *command.split()],
                cwd=folder,
                env=environment,
                stdout=log,
                stderr=log,
            )
            for command in commands
        ]
        try:
            yield running
        finally:
            for one in running:
                one.terminate()
            for one in running:
                one.wait(30)


def _connected(url: str, **options: Any) -> Any:
    return psycopg.connect(url.replace("+psycopg", ""), **options)


# -- the program -----------------------------------------------------------------------------------


class _Program:
    """Inserts customers into a table, so many with each commit."""

    def __init__(self, url: str, table: str, *, first: int = 0) -> None:
        self._connection = _connected(url)
        self._table = table
        self._rng = random.Random(first)
        # The values are made before, because it is the database that is measured.
        self._values = [tuple(row(self._rng, 0).values())[1:] for _ in range(1000)]
        self.next = first

    def commit(self, count: int) -> None:
        one = f"({', '.join(['%s'] * len(FIELDS))})"
        statement = f"INSERT INTO {self._table} VALUES {', '.join([one] * count)}"
        parameters: list[Any] = []
        for number in range(count):
            parameters += (self.next + number, *self._values[number % 1000])
        self._connection.execute(statement, parameters)
        self._connection.commit()
        self.next += count

    def rate(self, count: int, seconds: float) -> float:
        """Commit for so many seconds; return rows a second."""
        began, first = time.perf_counter(), self.next
        while time.perf_counter() - began < seconds:
            self.commit(count)
        return (self.next - first) / (time.perf_counter() - began)


def _rates(url: str, source: str, scale: Scale) -> Iterator[dict[str, Any]]:
    programs = {table: _Program(url, table) for table in ("plain", "captured")}
    for count in scale.rows:
        rates: dict[str, list[float]] = {"plain": [], "captured": []}
        for number in range(scale.rounds + 1):
            # The first round warms up; the order changes.
            for table in sorted(rates, reverse=number % 2 == 0):
                rate = programs[table].rate(count, scale.seconds if number else 0.2)
                if number:
                    rates[table].append(rate)
        ratios = [one / raw for one, raw in zip(rates["captured"], rates["plain"], strict=True)]
        yield {
            "what": "rate",
            "source": source,
            "case": f"{count:,} rows a transaction" if count > 1 else "1 row a transaction",
            "per_s": round(statistics.median(rates["captured"])),
            "raw_per_s": round(statistics.median(rates["plain"])),
            "ratio": round(statistics.median(ratios), 3),
        }
    with _connected(url) as connection:
        connection.execute("TRUNCATE captured, plain")


def _latency(
    urls: dict[str, str], source: str, scale: Scale, *, table: str = "captured"
) -> dict[str, Any]:
    """Commit by a schedule; return how long after its commit each row was seen."""
    first = 10**9
    program = _Program(urls["crm"], table, first=first)
    seen: dict[int, float] = {}
    stopping = threading.Event()
    listener = threading.Thread(target=_listen, args=(urls["copy"], seen, stopping))
    listener.start()
    committed: dict[int, float] = {}
    try:
        program.commit(1)
        eventually(lambda: first in seen, timeout=60, what="the first row is seen")
        began = time.time()
        for number in range(scale.commits + _WARM):
            due = began + number / scale.pace
            while (left := due - time.time()) > 0:
                time.sleep(left)
            key = program.next
            program.commit(1)
            committed[key] = time.time()
        eventually(lambda: len(seen) > len(committed), timeout=60, what="all rows are seen")
    finally:
        stopping.set()
        listener.join()
    took = sorted(seen[key] - at for key, at in list(committed.items())[_WARM:])
    return {
        "what": "latency",
        "source": source,
        "case": f"1 row a transaction, {scale.pace}/s",
        "p50_ms": round(1000 * took[len(took) // 2], 1),
        "p99_ms": round(1000 * took[min(len(took) - 1, math.floor(len(took) * 0.99))], 1),
    }


def _listen(url: str, seen: dict[int, float], stopping: threading.Event) -> None:
    with _connected(url, autocommit=True) as connection:
        connection.execute("LISTEN seen")
        while not stopping.is_set():
            for notice in connection.notifies(timeout=0.2):
                seen.setdefault(int(notice.payload), time.time())


def _backlog(folder: Path, urls: dict[str, str], source: str, scale: Scale) -> dict[str, Any]:
    program = _Program(urls["crm"], "captured", first=2 * 10**9)
    for _ in range(scale.backlog // 1000):
        program.commit(1000)
    with _connected(urls["crm"], autocommit=True) as connection:
        end = connection.execute("SELECT pg_current_wal_insert_lsn()").fetchone()

        def waiting() -> int:
            """Return the rows in the change table, or the bytes of the log, that wait."""
            found = connection.execute(_WAITING[source], end if source == "log" else None)
            return int(found.fetchone()[0] or 0)

        began = time.perf_counter()
        with _processes(folder, "capture run crm") as (process,):
            eventually(lambda: waiting() == 0, timeout=3600, what="all is captured")
            # The start of the process is contained.
            took = time.perf_counter() - began
            peak = _peak(process.pid)
    return {
        "what": "backlog",
        "source": source,
        "case": f"{scale.backlog:,} rows wait",
        "per_s": round(scale.backlog / took),
        "peak_mib": round(peak / (1 << 20), 1),
    }


def _peak(pid: int) -> int:
    """The peak of a process's memory, in bytes."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmHWM")
