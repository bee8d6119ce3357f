"""Three stores with foreign writers on all sides, workers killed, the last write compared.

Run it from the project's root, for example::

    python tests/chaos/foreign_writers.py --seconds 1800 --kills 600 --seed 7

People and programs that know nothing of eventsync write to PostgreSQL, to a CSV file and JSON
documents, and to Redis: they insert, edit, delete, lock, truncate, alter, empty and flush. Workers
capture and apply, and are killed, ended and stopped. At each checkpoint nobody writes until all is
at rest; then each store, read without eventsync, must hold what was written last. Two sides write
to one record or field at a time only where a conflict is meant. In the end differences are planted
for ``eventsync verify`` to find. It prints a report, and exits with 1 if a write was lost.
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
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import disaster
import fault
from foreign_scenario import (
    CONFIGURATION,
    FIELDS,
    RULES,
    TABLE,
    Places,
    accept_deletes,
    synchronize,
    work,
)
from last_writer import LastWriter
from servers.postgres import PostgresServer
from servers.redis import RedisServer
from side import Cache, Documents, Rows
from writers import Writers

from eventsync.cli.dead_letters import envelopes_in
from eventsync.engine.registry import StoreRegistry
from eventsync.verify import compare

_context = multiprocessing.get_context("forkserver")
_LEAVING = (0, -signal.SIGKILL, -signal.SIGTERM, 70)


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    writes: Counter[str] = field(default_factory=Counter)
    """By side and kind, as they were committed."""
    faults: Counter[str] = field(default_factory=Counter)
    disasters: Counter[str] = field(default_factory=Counter)
    exits: Counter[str] = field(default_factory=Counter)
    """Workers that ended by themselves, by store and exit code."""
    checkpoints: int = 0
    checked: int = 0
    """Records or fields that were compared, at all checkpoints together."""
    explained: Counter[str] = field(default_factory=Counter)
    """Where another value than the last one won, by the rule that allows it."""
    dead_letters: Counter[str] = field(default_factory=Counter)
    """By store and reason; all were replayed."""
    wrong: list[str] = field(default_factory=list)
    planted: int = 0
    found: int = 0
    """Of the planted differences, by ``verify``."""
    others: list[str] = field(default_factory=list)
    """What ``verify`` found that nobody planted."""
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Nothing is lost, and ``verify`` found what was planted and nothing else."""
        worked = self.checkpoints and self.planted == self.found
        return bool(worked) and not self.wrong and not self.others

    def shown(self) -> dict[str, Any]:
        """As JSON has it."""
        shown = vars(self) | {"seconds": round(self.seconds, 1), "sound": self.sound}
        return shown | {"wrong": self.wrong[:20], "others": self.others[:20]}


@dataclass
class _Member:
    target: Callable[..., None]
    arguments: tuple[Any, ...]
    process: Any = None

    def start(self) -> None:
        self.process = _context.Process(target=self.target, args=self.arguments, daemon=True)
        self.process.start()


class Harness:
    """One run, in a folder of its own. It is the scene of faults and of disasters."""

    lease = 3.0

    def __init__(
        self, options: argparse.Namespace, folder: Path, stack: contextlib.ExitStack
    ) -> None:
        self.options, self.folder = options, folder
        self.rng = random.Random(options.seed)
        self.report = Report(options.seed)
        self.postgres = stack.enter_context(PostgresServer())
        self.redis = stack.enter_context(RedisServer())
        self.places = Places(folder, self.postgres.url, self.redis.url)
        self.models = {
            name: LastWriter(name, rule, FIELDS[name])
            for name, rule in RULES.items()
            if options.rule in ("both", rule)
        }
        self.bus = stack.enter_context(self.places.bus())
        stack.callback(self._kill_crew)
        self._crew: dict[str, _Member] = {}
        self._due: list[tuple[float, int, Callable[[], None]]] = []
        self._planned = 0
        self._emptied: set[str] = set()
        self._refilled: set[str] = set()
        """Sides to be filled once more, from what their sources had not applied the first time."""
        self.busy: set[str] = set()
        """Sides on which a disaster is going on."""
        self.may_end: set[str] = set()
        """Stores whose workers may end with 78 just now, since their configuration is wrong."""

    # -- the scene -----------------------------------------------------------------------------

    def processes(self, role: str) -> list[str]:
        """The names of the processes of a role that run."""
        return [n for n, m in self._crew.items() if n.startswith(role) and m.process.is_alive()]

    def process(self, name: str) -> Any:
        """The process that now goes by a name."""
        return self._crew[name].process

    def replace(self, name: str) -> None:
        """Wait for a process to end, and start another in its place."""
        member = self._crew[name]
        member.process.join(40)
        self._note_exit(name, member.process.exitcode)
        member.start()

    def later(self, seconds: float, action: Callable[[], None]) -> None:
        """Do something after a while."""
        self._planned += 1
        heapq.heappush(self._due, (time.monotonic() + seconds, self._planned, action))

    def refill(self, side: str, *, again: bool = False) -> None:
        """Have an operator fill a store again from the others, and unblock it when that is done.

        ``again``: for the second time, with empty queues.
        """
        name = f"operator:{self.writers.new()}"
        # From the stores that are whole: what is suspicious in a source stops a synchronization.
        self._emptied.add(side)
        sources = [one for one in Places.STORES if one not in self._emptied]
        self._crew[name] = _Member(synchronize, (self.places, sources, side))
        self._crew[name].start()
        self.later(0.2, lambda: self._look_after_operator(name, side, again))

    def accept(self, side: str) -> None:
        """Have an operator say that what is missing in a restored store was deleted there.

        The delete guard stays tripped until then: eventsync cannot know whether the owner restored
        everything that was not deleted.
        """
        name = f"operator:{self.writers.new()}"
        self._crew[name] = _Member(accept_deletes, (self.places, side))
        self._crew[name].start()
        self.later(0.2, lambda: self._look_after_acceptance(name, side))

    def _look_after_acceptance(self, name: str, side: str) -> None:
        member = self._crew[name]
        if member.process.is_alive():
            self.later(0.2, lambda: self._look_after_acceptance(name, side))
            return
        del self._crew[name]
        self.report.exits[f"deletes of {side} accepted: {member.process.exitcode}"] += 1
        if member.process.exitcode != 0:
            self.later(1.0, lambda: self.accept(side))
            return
        self.writers.blocked -= {one for one in self.writers.blocked if one[0] == side}
        self.busy.discard(side)

    def _look_after_operator(self, name: str, side: str, again: bool) -> None:
        member = self._crew[name]
        if member.process.is_alive():
            self.later(0.2, lambda: self._look_after_operator(name, side, again))
            return
        del self._crew[name]
        self.report.exits[f"sync to {side}: {member.process.exitcode}"] += 1
        self.writers.note(f"sync to {side} ended with {member.process.exitcode}")
        if member.process.exitcode != 0:
            self.later(1.0, lambda: self.refill(side, again=again))
            return
        self._emptied.discard(side)
        self._refilled = self._refilled - {side} if again else self._refilled | {side}
        self.writers.blocked -= {one for one in self.writers.blocked if one[0] == side}
        self.busy.discard(side)

    def _note_exit(self, name: str, code: int) -> None:
        store = name.split(":")[1]
        if code not in _LEAVING:
            self.report.exits[f"worker of {store}: {code}"] += 1
            if not (code == CONFIGURATION and store in self.may_end):
                self.report.wrong.append(f"{name} ended by itself with {code}")

    # -- the run -------------------------------------------------------------------------------

    def run(self) -> Report:
        """Write and break, compare at checkpoints, plant differences and verify."""
        begun = time.monotonic()
        with contextlib.ExitStack() as stack:
            self._make_tables()
            stores = [self.places.store(name) for name in Places.STORES]
            registry = StoreRegistry(*stores)
            for store in stores:
                stack.enter_context(store)
                self.bus.declare(store.name, store.accessors)
            for name in Places.STORES:
                for number in range(self.options.workers):
                    member = _Member(work, (self.places, name))
                    self._crew[f"worker:{name}:{number}"] = member
                    member.start()
            self._write_and_break(registry, begun)
            self._dismiss()
            self._verify(registry)
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _make_tables(self) -> None:
        """The application's own tables and documents, and those who write to them."""
        self.postgres.run_sql(Path(__file__).with_name("foreign_writers.sql"))
        (self.places.documents / "Person").mkdir(parents=True)
        header = ",".join(["id", *FIELDS[TABLE]])
        (self.places.documents / f"{TABLE}.csv").write_text(f"{header}\n", encoding="utf-8")
        self.writers = Writers(
            self.rng,
            self.models,
            Rows(self.postgres.url, FIELDS),
            Documents(self.places.documents, FIELDS, TABLE, self.rng),
            Cache(self.redis.url, FIELDS),
            keys=self.options.keys,
            log=self.folder / "harness.log",
        )
        self.report.writes = self.writers.writes

    def _write_and_break(self, registry: StoreRegistry, begun: float) -> None:
        options = self.options
        end = begun + options.seconds
        kills = self._moments(begun, end, options.kills)
        disasters = self._moments(begun + 3.0, end, options.disasters)
        polled = checked = time.monotonic()
        while (now := time.monotonic()) < end:
            self._do_what_is_due(now)
            self._look_after_crew()
            for _ in range(self.rng.randrange(4)):
                self.writers.write()
            if kills and now >= kills[0]:
                kills.pop(0)
                self._strike()
            if disasters and now >= disasters[0]:
                disasters.pop(0)
                disaster.strike(self, options.without)
            if now - polled > 0.4:
                polled = now
                self.writers.settle()
            if now - checked > options.every:
                self._checkpoint(registry)
                checked = time.monotonic()
            self._wait(1.5 / options.pace)
        self._checkpoint(registry)

    def _moments(self, begun: float, end: float, count: int) -> list[float]:
        return sorted(self.rng.uniform(begun, end) for _ in range(count))

    def _wait(self, seconds: float) -> None:
        time.sleep(seconds)  # the pace of the writers, not a condition

    def _do_what_is_due(self, now: float) -> None:
        while self._due and self._due[0][0] <= now:
            heapq.heappop(self._due)[2]()

    def _look_after_crew(self) -> None:
        for name in [n for n in self._crew if n.startswith("worker")]:
            if not self.process(name).is_alive():
                self.replace(name)

    def _strike(self) -> None:
        kind = self.rng.choices(["kill", "term", "pause"], [10, 2, 1])[0]
        store = fault.FAULTS[kind].strike(self)
        self.writers.note(f"{kind} a worker of {store}")
        self.report.faults[kind] += 1

    # -- checkpoints ---------------------------------------------------------------------------

    def _checkpoint(self, registry: StoreRegistry) -> None:
        """Nobody writes until all is at rest; then compare every store with the model."""
        deadline = time.monotonic() + self.options.settle
        quiet_since: float | None = None
        wrong: list[str] = ["the run did not come to rest"]
        while time.monotonic() < deadline:
            now = time.monotonic()
            self._do_what_is_due(now)
            self._look_after_crew()
            if self._due or self.busy or self._is_at_work(registry):
                quiet_since = None
            elif self._refilled:
                quiet_since = None
                for side in self._refilled:
                    self.busy.add(side)
                    self.refill(side, again=True)
            else:
                quiet_since = quiet_since or now
                # Every store was captured as a whole meanwhile.
                if now - quiet_since > self.options.rest:
                    wrong = self._compare()
                    if not wrong:
                        break
            self._wait(0.1)
        waiting = self._is_at_work(registry)
        self.report.wrong += [f"checkpoint {self.report.checkpoints}: {w}" for w in wrong]
        if wrong:
            self.report.wrong.append(f"waiting: {waiting}, busy: {sorted(self.busy)}")
        for model in self.models.values():
            _, explained = model.check(self.writers.read(model.name))
            self.report.explained += explained
            self.report.checked += model.count()
            model.settle(self.writers.read(model.name), final=True)
        self.report.checkpoints += 1

    def _compare(self) -> list[str]:
        wrong = [w for m in self.models.values() for w in m.check(self.writers.read(m.name))[0]]
        return wrong + self.writers.rows.check_remarks()

    def _is_at_work(self, registry: StoreRegistry) -> str:
        """What still waits somewhere; dead letters are replayed, as an operator does."""
        for store in registry:
            states = self.bus.states(store.name)
            if states["dead"].ready:
                self._replay(store.name)
                return f"dead letters of {store.name}"
            for name in ("queue", "held"):
                if states[name].ready or states[name].leased:
                    return f"{name} of {store.name}"
            if store.index.outgoing(1):
                return f"outbox of {store.name}"
        return ""

    def _replay(self, store: str) -> None:
        with self.bus.letters(store) as letters:
            found = letters.read()
            for letter, _ in found:
                self.report.dead_letters[f"{store} {letter.reason}"] += 1
                self.writers.note(
                    f"letter of {store}: {letter.type} {letter.key}: {letter.message}"
                )
            raws = [raw for letter, _ in found for raw in envelopes_in(letter.raw)]
            self.bus.send_to(store, raws)
            letters.settle(delivery for _, delivery in found)

    # -- the end -------------------------------------------------------------------------------

    def _dismiss(self) -> None:
        for name in self.processes("worker"):
            os.kill(self.process(name).pid, signal.SIGTERM)
        for name in self._crew:
            self.process(name).join(40)

    def _kill_crew(self) -> None:
        for member in self._crew.values():
            if member.process is not None:
                member.process.kill()

    def _verify(self, registry: StoreRegistry) -> None:
        """Plant differences on all sides, and see whether ``verify`` finds these and no others."""
        self.report.others += [str(d) for d in compare(registry).differences]
        planted: set[tuple[str, str]] = set()
        for type, model in self.models.items():
            keys = [key for key in sorted(model.present()) if int(key) % 10]
            self.rng.shuffle(keys)
            for side in self.writers.sides.values():
                edited, removed, fresh = keys.pop(), keys.pop(), str(10**6 + self.writers.new())
                name = model.fields[0]
                assert side.edit(type, edited, {name: "planted"}, self.writers.met)
                assert side.delete(type, removed, self.writers.met)
                assert side.insert(type, fresh, self.writers.values(type, model.fields))
                planted |= {(type, edited), (type, removed), (type, fresh)}
        found = compare(registry, keep=10**6).differences
        at = {(one.type, one.key) for one in found}
        self.report.planted, self.report.found = len(planted), len(planted & at)
        self.report.others += [str(d) for d in found if (d.type, d.key) not in planted]


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=1800.0, help="with checkpoints")
    parser.add_argument("--kills", type=int, default=600, help="of workers; also stopped and ended")
    parser.add_argument("--disasters", type=int, help="by default one in five seconds")
    parser.add_argument(
        "--without", nargs="+", default=[], choices=sorted(disaster.DISASTERS), help="not these"
    )
    parser.add_argument("--rule", choices=["both", "record", "field"], default="both")
    parser.add_argument("--keys", type=int, default=150, help="records of each type")
    parser.add_argument("--pace", type=float, default=60.0, help="attempts to write, a second")
    parser.add_argument("--workers", type=int, default=1, help="of each store")
    parser.add_argument("--every", type=float, default=30.0, help="seconds between checkpoints")
    parser.add_argument("--rest", type=float, default=2.5, help="seconds of rest at a checkpoint")
    parser.add_argument("--settle", type=float, default=300.0, help="seconds to settle at most")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--folder", type=Path, help="work here, and leave it")
    options = parser.parse_args(arguments)
    if options.disasters is None:
        options.disasters = int(options.seconds / 5)
    return options


def main(arguments: list[str] | None = None) -> Report:
    """One run; prints its report."""
    options = parse(arguments)
    _context.set_forkserver_preload(["foreign_scenario"])
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(parents=True, exist_ok=True)
        report = Harness(options, folder, stack).run()
    print(json.dumps(report.shown(), ensure_ascii=False))
    return report


if __name__ == "__main__":
    sys.exit(0 if main().sound else 1)
