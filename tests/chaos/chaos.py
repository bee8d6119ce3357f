"""The chaos harness: producers and workers as processes, faults from a seeded schedule.

Run it from the project's root, for example::

    python tests/chaos/chaos.py --events 50000 --kills 300 --seed 7
    python tests/chaos/chaos.py --scenario plain --broker redis --events 100000 --kills 100 \
        --restarts 10 --runs 10

Brokers other than the embedded one are servers of its own, reached through a proxy of its own;
``--restarts`` kills them with SIGKILL and starts them again on what they have on disk. It prints
what it did and what it found, its seed first, and exits with 1 if anything was lost or differs.
"""

from __future__ import annotations

import argparse
import contextlib
import heapq
import json
import multiprocessing
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import fault
import sqlalchemy as sa
from fault import FAULTS
from journal import Applied, Journal, Timeline, percentile
from plan import Plan, patiently, produce, relay, work
from proxy import Proxy
from servers import Server
from servers.postgres import PostgresServer
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer

from eventsync.broker.bus import Bus
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.envelope import batch, codec
from eventsync.index import Presence
from eventsync.stores.sql.index import SqlIndex

_context = multiprocessing.get_context("forkserver")
_TAP = "tap"
_POISON = 10**9
_PRODUCERS = 2
_SERVERS: dict[str, Callable[[], Server]] = {
    "redis": lambda: RedisServer(fsync="everysec"),
    "redis-always": lambda: RedisServer(fsync="always"),
    "redis-stock": lambda: RedisServer(fsync="always"),
    "rabbitmq": RabbitServer,
}


# Under the rule by fields a stamp is not what decides, so those may do as they like.
_WATCH = {
    "sqlite": [
        "CREATE TABLE fallen (type, key)",
        "CREATE TRIGGER watch BEFORE UPDATE ON eventsync_version"
        " WHEN NEW.type <> 'Contact' AND NEW.stamp < OLD.stamp"
        " BEGIN INSERT INTO fallen VALUES (OLD.type, OLD.key); END",
    ],
    "postgresql": [
        "CREATE TABLE fallen (type text, key text)",
        "CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS"
        " $$ BEGIN INSERT INTO fallen VALUES (OLD.type, OLD.key); RETURN NEW; END $$",
        "CREATE TRIGGER watch BEFORE UPDATE ON eventsync_version FOR EACH ROW"
        " WHEN (NEW.type <> 'Contact' AND NEW.stamp < OLD.stamp) EXECUTE FUNCTION watch()",
    ],
}


@dataclass
class Report:
    """What one run or several did and found."""

    seed: int
    published: int = 0
    forgotten: int = 0
    """Published and confirmed, but not to be found in the tap's queue: lost by the broker."""
    echoes: int = 0
    """Versions on the bus that no producer issued, where producers issue all of them."""
    received: int = 0
    """By the tap: what was published more than once, too."""
    resent: int = 0
    poison: int = 0
    faults: Counter[str] = field(default_factory=Counter)
    letters: Counter[str] = field(default_factory=Counter)
    """Refused changes that each store has as dead letters, each counted once."""
    strays: list[str] = field(default_factory=list)
    """Dead letters of something else than poison."""
    pending: int = 0
    fallen: int = 0
    """Times that a stored version was replaced by a lower one."""
    records: Counter[str] = field(default_factory=Counter)
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0
    lags: dict[str, list[float]] = field(default_factory=dict)
    recoveries: dict[str, list[float]] = field(default_factory=dict)
    megabytes: dict[str, list[float]] = field(default_factory=dict)
    """Of the workers of each store, once a second."""

    def add(self, other: Report) -> None:
        """Count another run in."""
        for name, held in vars(other).items():
            if name == "seed":
                continue
            if isinstance(held, dict) and not isinstance(held, Counter):
                for key, values in held.items():
                    getattr(self, name).setdefault(key, []).extend(values)
            else:
                setattr(self, name, getattr(self, name) + held)

    @property
    def sound(self) -> bool:
        """Nothing is lost, differs or is pending, and each store refused the poison and no more."""
        wrong = (self.differing, self.strays, self.pending, self.fallen, self.echoes)
        return not any(wrong) and all(n == self.poison for n in self.letters.values())

    def shown(self) -> dict[str, Any]:
        """As JSON has it; times are in seconds."""
        shown = vars(self) | {
            "differing": len(self.differing),
            "strays": len(self.strays),
            "seconds": round(self.seconds, 1),
            "sound": self.sound,
            "lags": {name: _spread(values) for name, values in self.lags.items()},
            "recoveries": {name: _spread(values) for name, values in self.recoveries.items()},
            "megabytes": {name: _spread(values) for name, values in self.megabytes.items()},
        }
        return {name: held for name, held in shown.items() if held not in ({}, Counter())}


def _spread(values: Iterable[float]) -> dict[str, float | int | None]:
    ordered = sorted(values)
    shares = {"p50": 0.5, "p99": 0.99, "max": 1.0}
    return {"count": len(ordered)} | {n: percentile(ordered, s) for n, s in shares.items()}


@dataclass
class _Member:
    """One process of the crew, and how to start another in its place."""

    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: Any = None

    def start(self) -> None:
        self.process = _context.Process(target=self.target, args=self.arguments, daemon=True)
        self.process.start()


class Harness:
    """One run, in a folder of its own. It is the scene of its faults (``fault.Scene``)."""

    def __init__(
        self, folder: Path, options: argparse.Namespace, seed: int, stack: contextlib.ExitStack
    ) -> None:
        self.folder = folder
        self.options = options
        self.rng = random.Random(seed)
        self.seed = seed
        self.lease = 2.0
        self.outage = options.outage
        self.report = Report(seed)
        self.server: Server | None = None
        self.proxy: Proxy | None = None
        self.database: Server | None = None
        self._crew: dict[str, _Member] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._clock = Clock()
        self._struck: list[tuple[str, float, fault.Struck]] = []
        self._weighed_at = 0.0
        direct, url = self._start_broker(stack)
        stores = {}
        if options.store == "postgres":
            self.database = stack.enter_context(PostgresServer())
            stores["right"] = self.database.url
        self.plan = Plan(
            scenario=options.scenario,
            broker=url,
            events=options.events // _PRODUCERS,
            keys=options.keys,
            pace=options.pace / _PRODUCERS,
            through=options.through,
            lease=self.lease,
            stores=stores,
        )
        self.plan.save(folder)
        self.scenario = self.plan.module()
        self.bus = stack.enter_context(Bus(direct, lease=self.lease))

    def _start_broker(self, stack: contextlib.ExitStack) -> tuple[str, str]:
        """The broker's URL, and the one through the proxy."""
        if self.options.broker == "embedded":
            url = f"sqlite:///{self.folder / 'broker.db'}"
            return url, url
        self.server = stack.enter_context(_SERVERS[self.options.broker]())
        if isinstance(self.server, RedisServer):
            # A log that is written anew would not be the one whose end is cut off.
            self.server.client().config_set("auto-aof-rewrite-percentage", 0)
        self.proxy = stack.enter_context(Proxy(self.server.port))
        url = self.server.url
        if self.options.broker == "redis-stock":
            url = url.replace("redis://", "stock://")
        return url, url.replace(f":{self.server.port}", f":{self.proxy.port}")

    # -- the scene -----------------------------------------------------------------------------

    def processes(self, role: str) -> list[str]:
        """The names of the processes of a role that run."""
        return [
            name
            for name, member in self._crew.items()
            if name.startswith(role) and member.process.is_alive()
        ]

    def process(self, name: str) -> Any:
        """The process that now goes by a name."""
        return self._crew[name].process

    def replace(self, name: str) -> None:
        """Wait for a process to end, and start another in its place."""
        member = self._crew[name]
        member.process.join(40)
        # One told to leave before it has begun knows no better than to end.
        if member.process.exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM, 70):
            raise RuntimeError(f"{name} left with {member.process.exitcode}")
        member.start()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""
        heapq.heappush(self._due, (time.monotonic() + seconds, len(self._struck), action))

    def poison(self) -> None:
        """Publish a change that no store can take."""
        type, values = self.scenario.POISON
        key = _POISON + self.report.poison
        bad = Change(
            type=type,
            key=str(key),
            op="put",
            version=self._clock.tick(),
            data={"id": key, "name": "poison", **values},
            source="chaos",
        )
        patiently(lambda: self.bus.publish(type, [self.bus.encode(bad)]))
        self.report.poison += 1

    # -- the run -------------------------------------------------------------------------------

    def run(self) -> Report:
        """Produce and break until both are done, let it settle, and compare."""
        begun = time.monotonic()
        registry = self.plan.registry(self.folder)
        with registry.open(), contextlib.ExitStack() as stack:
            stack.callback(self._kill_crew)
            for store in registry:
                self.bus.declare(store.name, store.accessors)
            self.types = sorted({type for store in registry for type in store.accessors})
            self.bus.declare(_TAP, self.types)
            self._watch_versions(registry)
            self._hire(registry)
            self._break()
            self._await_quiet(registry)
            history = self._history()
            self._resend(history)
            self._await_quiet(registry)
            self._dismiss()
            self._compare(registry, history)
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _hire(self, registry: Any) -> None:
        for number in range(_PRODUCERS):
            self._crew[f"producer:{number}"] = _Member(produce, (self.folder, number, self.seed))
        for store in registry:
            for number in range(self.options.workers):
                self._crew[f"worker:{store.name}:{number}"] = _Member(
                    work, (self.folder, store.name)
                )
        if self.options.through == "spool":
            self._crew["relay:0"] = _Member(relay, (self.folder,))
        for member in self._crew.values():
            member.start()

    def _dismiss(self) -> None:
        names = [name for name in self._crew if not name.startswith("producer")]
        for name in names:
            # The relay knows no signals of its own here; it has nothing left to do.
            number = signal.SIGKILL if name.startswith("relay") else signal.SIGTERM
            os.kill(self.process(name).pid, number)
        for name in names:
            self.process(name).join(40)
            # One told to leave before it has begun knows no better than to end.
            if self.process(name).exitcode not in (0, -signal.SIGKILL, -signal.SIGTERM):
                raise RuntimeError(f"{name} left with {self.process(name).exitcode}")

    def _kill_crew(self) -> None:
        for member in self._crew.values():
            if member.process is not None:
                member.process.kill()

    def _schedule(self) -> list[tuple[float, str]]:
        """Which fault strikes when so many events have been made, in that order."""
        options = self.options
        counts = Counter({"restart": 0 if options.power_cuts else options.restarts})
        counts["cut_power"] = options.restarts if options.power_cuts else 0
        chosen = options.faults or list(FAULTS)
        for name in chosen:
            if FAULTS[name].fits(self):
                once = int(name in options.each)
                counts[name] = max(once, round(options.kills * FAULTS[name].share))
        outage = [(0.1 * options.events, "outage")] if options.outage else []
        return sorted(
            outage
            + [
                (self.rng.uniform(0.02, 1.0) * options.events * 0.98, name)
                for name in sorted(counts)
                for _ in range(counts[name])
            ]
        )

    def _made(self) -> int:
        """How many events the producers have made so far."""
        return sum(Journal.made_by(path) for path in self.folder.glob("*.told"))

    def _weigh(self) -> None:
        """Note how much memory each worker has, in megabytes, a second after the last look."""
        if time.monotonic() - self._weighed_at < 1.0:
            return
        self._weighed_at = time.monotonic()
        for name in self.processes("worker"):
            held = _resident(self.process(name).pid) / 1e6
            self.report.megabytes.setdefault(name.split(":")[1], []).append(held)

    def _break(self) -> None:
        schedule = self._schedule()
        while schedule or self.processes("producer") or self._due:
            while self._due and self._due[0][0] <= time.monotonic():
                heapq.heappop(self._due)[2]()
            self._look_after_crew()
            self._weigh()
            if schedule and (self._made() >= schedule[0][0] or not self.processes("producer")):
                self._strike(schedule.pop(0)[1])
            else:
                time.sleep(0.005)
            _tell(f"{self._made():,} of {self.options.events:,} events, {dict(self.report.faults)}")

    def _strike(self, name: str) -> None:
        strike = getattr(fault, name, None) or FAULTS[name].strike
        # A worker that is gone is replaced at once, so the moment is that of the blow. Of a broker
        # it is when it is back.
        moment = time.time()
        store = strike(self)
        if name in ("restart", "cut_power"):
            moment = time.time()
        self.report.faults[name] += 1
        self._struck.append((name, moment, store))

    def note(self, kind: str, store: fault.Struck) -> None:
        """What strikes ``store`` (or all of them) strikes now."""
        self._struck.append((kind, time.time(), store))

    def _look_after_crew(self) -> None:
        for name, member in self._crew.items():
            if member.process.is_alive():
                continue
            if name.startswith("producer") and member.process.exitcode == 0:
                continue
            raise RuntimeError(f"{name} left by itself with {member.process.exitcode}")

    def _await_quiet(self, registry: Any) -> None:
        """Wait until no queue, outbox, spool or pending record is left."""
        deadline = time.monotonic() + self.options.settle
        while time.monotonic() < deadline:
            waiting = Counter()
            for store in registry:
                states = patiently(partial(self.bus.states, store.name))
                waiting["queue"] += states["queue"].ready + (states["queue"].leased or 0)
                waiting["held"] += states["held"].unsettled
                waiting["outbox"] += len(patiently(partial(store.index.outgoing, 1)))
                waiting["pending"] += sum(
                    store.index.counts(type)[Presence.PENDING] for type in store.accessors
                )
            waiting["spool"] = self.plan.waiting_in_spool(self.folder)
            if not any(waiting.values()):
                return
            time.sleep(0.1)
        self.report.differing.append(f"not settled in time: {dict(waiting)}")

    def _history(self) -> list[Change]:
        """Every change that any publish put on the bus, as the tap's queue got it, and of those
        that were confirmed to their producer also what is not there."""
        subscription = self.bus.subscribe(_TAP, self.types, prefetch=100)
        history: dict[bytes, Change] = {}
        while deliveries := subscription.fetch(timeout=1.0, limit=100):
            for delivery in deliveries:
                for raw in batch.split_batch(delivery.body):
                    change = codec.decode(raw)
                    history[change.id] = change
                    self.report.received += 1
            subscription.acknowledge(deliveries)
        subscription.close()
        found = {change.version for change in history.values()}
        issued = set()
        for _, confirmed, change in Journal.read(self.folder):
            issued.add(change.version)
            if confirmed and change.version not in found:
                history[change.id] = change
                self.report.forgotten += 1
        self.report.published = len(found) + self.report.forgotten
        if not self.scenario.EDITS_STORES:
            self.report.echoes = len(found - issued) - self.report.poison
        return list(history.values())

    def _resend(self, history: list[Change]) -> None:
        """Some of it again, shuffled: every store must take it for what it is."""
        good = [c for c in history if int(c.key) < _POISON]
        again = self.rng.sample(good, len(good) // 10)
        self.rng.shuffle(again)
        self.report.resent = len(again)
        for name in self.scenario.STORES:
            self.bus.send_to(name, [self.bus.encode(change) for change in again])

    # -- what is found -------------------------------------------------------------------------

    def _watch_versions(self, registry: Any) -> None:
        """Have the databases count the versions that fall, which none ever may."""
        for store in registry:
            for engine in self._engines(store):
                with engine.begin() as connection:
                    for statement in _WATCH[engine.dialect.name]:
                        connection.exec_driver_sql(statement)

    def _count_fallen(self, registry: Any) -> int:
        count = 0
        for store in registry:
            for engine in self._engines(store):
                with engine.connect() as connection:
                    count += connection.exec_driver_sql("SELECT count(*) FROM fallen").scalar_one()
        return count

    def _engines(self, store: Any) -> Iterable[sa.Engine]:
        """The database of a store that has one."""
        return [store.index.engine] if isinstance(store.index, SqlIndex) else []

    def _compare(self, registry: Any, history: list[Change]) -> None:
        expected = self.scenario.expected(c for c in history if int(c.key) < _POISON)
        for store in registry:
            for record_type, records in expected.items():
                self._compare_one(store, record_type, records)
            with self.bus.letters(store.name) as letters:
                dead = [letter for letter, _ in letters.read()]
            # A worker that dies between the letter and the acknowledgement stores a second letter.
            refused = {(letter.type, letter.key, letter.version) for letter in dead}
            self.report.letters[store.name] += len(refused)
            for letter in dead:
                if letter.key is None or int(letter.key) < _POISON:
                    self.report.strays.append(f"{store.name}: {letter.message}")
            self.report.pending += sum(
                store.index.counts(type)[Presence.PENDING] for type in store.accessors
            )
        self.report.fallen = self._count_fallen(registry)
        if not self.scenario.EDITS_STORES:
            self._time()

    def _compare_one(self, store: Any, record_type: Any, expected: dict[str, Any]) -> None:
        view = store.accessor(record_type).view
        want = {
            key: {name: values[name] for name in view.fields}
            for key, values in expected.items()
            if view.matches(values)
        }
        have = {record.key: record.raw() for record in store.find(record_type)}
        self.report.records[f"{store.name}.{record_type.__name__}"] = len(have)
        for key in sorted(want.keys() | have.keys()):
            if want.get(key) != have.get(key):
                self.report.differing.append(
                    f"{store.name} {record_type.__name__} {key}: "
                    f"expected {want.get(key)}, found {have.get(key)}"
                )

    def _time(self) -> None:
        """How long changes took to each store, and how long each fault was felt."""
        published = {change.version: moment for moment, _, change in Journal.read(self.folder)}
        for name in self.scenario.STORES:
            timeline = Timeline(published, Applied.read(self.folder, name))
            self.report.lags[name] = timeline.lags
            for kind, moment, store in self._struck:
                if store in (None, name):
                    held = self.report.recoveries.setdefault(kind, [])
                    held.append(timeline.recovery(moment))


def _resident(pid: int) -> int:
    """How much memory a process has in use, in bytes."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def _tell(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--events", type=int, default=50_000, help="in each run")
    parser.add_argument("--kills", type=int, default=300, help="of workers, in each run")
    parser.add_argument(
        "--scenario",
        choices=["mixed", "plain"],
        default="mixed",
        help="mixed: three unlike stores, edits and views; plain: one type in two databases, fast",
    )
    parser.add_argument("--broker", choices=["embedded", *_SERVERS], default="embedded")
    parser.add_argument("--restarts", type=int, default=0, help="of the broker, with SIGKILL")
    parser.add_argument(
        "--power-cuts", action="store_true", help="it loses what was not synced, too (redis)"
    )
    parser.add_argument(
        "--store", choices=["sqlite", "postgres"], default="sqlite", help="of the plain scenario"
    )
    parser.add_argument(
        "--outage", type=float, default=0.0, help="seconds without the postgres store, in one go"
    )
    parser.add_argument("--through", choices=["bus", "spool"], default="bus", help="of producers")
    parser.add_argument("--workers", type=int, default=1, help="of each store")
    parser.add_argument("--pace", type=float, default=0.0, help="events a second; 0: no limit")
    parser.add_argument("--keys", type=int, default=500, help="records of each type")
    parser.add_argument("--faults", nargs="+", choices=list(FAULTS), help="only these")
    parser.add_argument(
        "--each", nargs="+", choices=list(FAULTS), default=[], help="once at least, in each run"
    )
    parser.add_argument("--seed", type=int, default=int(time.time()), help="of the first run")
    parser.add_argument("--runs", type=int, default=1, help="one after another, each from nothing")
    parser.add_argument("--settle", type=float, default=300.0, help="seconds to settle at most")
    parser.add_argument("--folder", type=Path, help="work here, and leave it")
    options = parser.parse_args(arguments)
    if options.restarts and options.broker == "embedded":
        parser.error("the embedded broker is a file: there is nothing to restart")
    if options.power_cuts and not options.broker.startswith("redis"):
        parser.error("only Redis can be asked what it had not synced yet")
    if options.outage and options.store != "postgres":
        parser.error("only the postgres store has a server that can be away")
    if options.store != "sqlite" and options.scenario != "plain":
        parser.error("the stores of the mixed scenario are files")
    return options


def main(arguments: list[str] | None = None) -> Report:
    """All the runs that are asked for; prints their report."""
    options = parse(arguments)
    _context.set_forkserver_preload(["plan", options.scenario])
    total = Report(options.seed)
    for seed in range(options.seed, options.seed + options.runs):
        with contextlib.ExitStack() as stack:
            name = options.folder or stack.enter_context(tempfile.TemporaryDirectory())
            folder = Path(name) / str(seed)
            folder.mkdir(parents=True)
            report = Harness(folder, options, seed, stack).run()
        total.add(report)
        if options.runs > 1:
            print(json.dumps(report.shown(), ensure_ascii=False), flush=True)
        for line in [*report.differing[:20], *report.strays[:20]]:
            print(line if len(line) < 300 else f"{line[:300]}...", file=sys.stderr)
    _tell("")
    print(json.dumps(total.shown(), ensure_ascii=False))
    return total


if __name__ == "__main__":
    sys.exit(0 if main().sound else 1)
