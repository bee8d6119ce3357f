"""The chaos harness: producers and workers as processes, faults from a seeded schedule.

Run it from the project's root, for example::

    python tests/chaos/chaos.py --events 50000 --kills 300 --seed 7
    python tests/chaos/chaos.py --broker redis-always --restarts 20 --seed 7

Brokers other than the embedded one are servers of its own, which ``--restarts`` kills with SIGKILL
and starts again on what they have on disk. It prints its seed, what it did and what it found, and
exits with 1 if anything was lost or differs.
"""

from __future__ import annotations

import argparse
import contextlib
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
from dataclasses import asdict, dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parent))

import datetime as dt

import chaos_model
import structlog
from chaos_app import Contact, Item, stores
from servers import Server
from servers.rabbitmq import RabbitServer
from servers.redis import RedisServer

from eventsync import envelope, framing
from eventsync.bus import Bus
from eventsync.change import Change
from eventsync.clock import Clock
from eventsync.errors import BusUnavailableError, NotFoundError
from eventsync.index import Presence
from eventsync.worker import Options, Worker, run

_context = multiprocessing.get_context("forkserver")
_TAP = "tap"
_SERVERS: dict[str, Callable[[], Server]] = {
    "redis": lambda: RedisServer(fsync="everysec"),
    "redis-always": lambda: RedisServer(fsync="always"),
    "rabbitmq": RabbitServer,
}


@dataclass
class Report:
    """What a run did and found."""

    seed: int
    broker: str
    published: int = 0
    forgotten: int = 0
    """Published and confirmed, but not to be found in the tap's queue: lost by the broker."""
    restarts: int = 0
    duplicates: int = 0
    poison: int = 0
    kills: int = 0
    stops: int = 0
    dead_letters: dict[str, int] = field(default_factory=dict)
    pending: int = 0
    records: dict[str, int] = field(default_factory=dict)
    differing: list[str] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def sound(self) -> bool:
        """Nothing differs, nothing is pending, and each store refused the poison and no more."""
        expected = {"left": self.poison, "right": self.poison, "docs": self.poison}
        return not self.differing and not self.pending and self.dead_letters == expected


def _bus(folder: Path) -> Bus:
    return Bus((folder / "broker.url").read_text(encoding="utf-8"), lease=5.0)


def _patiently(call: Callable[[], Any]) -> Any:
    """The result of ``call``, once the broker is there for it."""
    while True:
        try:
            return call()
        except BusUnavailableError:
            time.sleep(0.05)


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def work(folder: Path, name: str) -> None:
    """A worker process."""
    _quiet()
    registry = stores(folder)
    options = Options(prefetch=16, retry_for=60.0)
    run(Worker(registry[name], _bus(folder), options=options, peers=registry), grace=20.0)


def produce(folder: Path, seed: int, events: int, keys: int) -> None:
    """A producer process: edits through all stores, many of them on the same few records."""
    rng = random.Random(seed)
    bus = _bus(folder)
    with stores(folder).open(publisher=bus) as registry, (folder / f"{seed}.log").open("wb") as log:
        clock = Clock()
        made = 0
        while made < events:
            if rng.random() < 0.5:
                raws = _publish_items(rng, bus, clock, min(events - made, 50), keys)
                log.writelines(len(raw).to_bytes(4, "big") + raw for raw in raws)
                made += len(raws)
            else:
                made += _edit_contacts(rng, registry, min(events - made, 10), keys)


def _publish_items(
    rng: random.Random, bus: Bus, clock: Clock, count: int, keys: int
) -> list[bytes]:
    """Puts and deletes straight to the bus, as a producer without a store of ours sends them."""
    changes = []
    for _ in range(count):
        key = rng.randrange(keys)
        item = Item(
            id=key,
            name=f"Item {key} é {rng.randrange(1000)}",
            amount=Decimal(rng.randrange(10**6)) / 100,
            day=dt.date(2020, 1, 1) + dt.timedelta(days=rng.randrange(2000)),
        )
        gone = rng.random() < 0.1
        changes.append(
            Change(
                type="Item",
                key=str(key),
                op="delete" if gone else "put",
                version=clock.tick(),
                data=None if gone else item.raw(),
                source="chaos",
            )
        )
    rng.shuffle(changes)
    raws = [bus.encode(change) for change in changes]
    _patiently(lambda: bus.publish("Item", raws))
    return raws


def _edit_contacts(rng: random.Random, registry: Any, count: int, keys: int) -> int:
    """Creations, edits, deletes and filter crossings through a store that holds a part of them."""
    store = rng.choice(list(registry))
    accessor = store.accessors["Contact"]
    for _ in range(count):
        key = rng.randrange(keys)
        held = store.get(Contact, key)
        if held is None:
            # A record that lives elsewhere is edited there; a new one may be created anywhere.
            values: dict[str, Any] = {"id": key, "name": f"Contact {rng.randrange(1000)}"}
            store.update(accessor.make(values), upsert=True)
        elif rng.random() < 0.08:
            with contextlib.suppress(NotFoundError):
                store.remove(held)
        else:
            for name, value in _some_values(rng).items():
                if name in accessor.view.names:
                    held[name] = value
            with contextlib.suppress(NotFoundError):
                store.update(held)
    return count


def _some_values(rng: random.Random) -> dict[str, Any]:
    values = {
        "name": f"Ĉiu {rng.randrange(1000)}",
        "email": rng.choice([None, f"c{rng.randrange(1000)}@example.org"]),
        "balance": Decimal(rng.randrange(10**6)) / 100,
        "active": rng.random() < 0.7,
        "city": rng.choice(["Łódź", "Paris", "東京"]),
    }
    return {name: values[name] for name in rng.sample(list(values), rng.randint(1, 3))}


def poison(bus: Bus, number: int) -> None:
    """A change that no store can take: its amount is no number."""
    bad = Change(
        type="Item",
        key=f"{10**9 + number}",
        op="put",
        version=Clock().tick(),
        data={"id": 10**9 + number, "name": "poison", "amount": "no number"},
        source="chaos",
    )
    _patiently(lambda: bus.publish("Item", [bus.encode(bad)]))


class Harness:
    """One run, in a folder of its own."""

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self.folder = folder
        self.options = options
        self.rng = random.Random(options.seed)
        self.report = Report(seed=options.seed, broker=options.broker)
        self.workers: dict[str, Any] = {}
        self.server: Server | None = None
        url = f"sqlite:///{folder / 'broker.db'}"
        if options.broker != "embedded":
            self.server = _SERVERS[options.broker]().start()
            url = self.server.url
        (folder / "broker.url").write_text(url, encoding="utf-8")
        self.bus = _bus(folder)

    def run(self) -> Report:
        """Produce and break until both are done, let it settle, and compare."""
        begun = time.monotonic()
        (self.folder / "docs").mkdir()
        registry = stores(self.folder).open()
        for store in registry:
            self.bus.declare(store.name, store.accessors)
        self.bus.declare(_TAP, ["Item", "Contact"])
        registry.close()
        share = self.options.events // 2
        producers = [
            self._start(
                produce, self.folder, self.options.seed * 1000 + n, share, self.options.keys
            )
            for n in range(2)
        ]
        for store in registry:
            self._employ(store.name)
        self._break(producers)
        for producer in producers:
            producer.join()
            if producer.exitcode:
                raise RuntimeError(f"a producer failed with {producer.exitcode}")
        self._await_quiet(registry)
        history = self._history()
        self._resend(history)
        self._await_quiet(registry)
        for worker in self.workers.values():
            os.kill(worker.pid, signal.SIGTERM)
        for name, worker in self.workers.items():
            worker.join(30)
            if worker.exitcode:
                raise RuntimeError(f"worker {name} left with {worker.exitcode}")
        self._compare(registry, history)
        registry.close()
        self.bus.close()
        if self.server is not None:
            self.server.__exit__()
        self.report.seconds = round(time.monotonic() - begun, 1)
        return self.report

    def _start(self, target: Callable[..., None], *arguments: Any) -> Any:
        process = _context.Process(target=target, args=arguments, daemon=True)
        process.start()
        return process

    def _employ(self, name: str) -> None:
        self.workers[name] = self._start(work, self.folder, name)

    def _break(self, producers: list[Any]) -> None:
        """Kill, stop and poison while the producers are at it, and until all kills are done."""
        restart_after = self.options.kills / (self.options.restarts + 1)
        while self.report.kills < self.options.kills or any(p.is_alive() for p in producers):
            time.sleep(self.rng.uniform(*self.options.pause))
            if self.report.restarts < self.options.restarts and (
                self.report.kills >= restart_after * (self.report.restarts + 1)
            ):
                self._restart_broker()
            if self.report.kills >= self.options.kills:
                continue
            name = self.rng.choice(list(self.workers))
            process = self.workers[name]
            if not process.is_alive():
                raise RuntimeError(f"worker {name} left by itself with {process.exitcode}")
            if self.rng.random() < 0.05:
                # Longer than its lease, so that others take over what it holds.
                os.kill(process.pid, signal.SIGSTOP)
                time.sleep(0.2)
                os.kill(process.pid, signal.SIGCONT)
                self.report.stops += 1
                continue
            os.kill(process.pid, signal.SIGKILL)
            process.join()
            self.report.kills += 1
            if self.rng.random() < 0.02:
                poison(self.bus, self.report.poison)
                self.report.poison += 1
            self._employ(name)

    def _restart_broker(self) -> None:
        if self.server is None:
            raise SystemExit("the embedded broker is a file: there is nothing to restart")
        self.server.kill()
        time.sleep(self.rng.uniform(0.0, 0.5))
        self.server.start()
        self.report.restarts += 1

    def _await_quiet(self, registry: Any) -> None:
        """Wait until no queue, outbox or pending record is left, or nothing changes any more."""
        deadline = time.monotonic() + self.options.settle
        while time.monotonic() < deadline:
            waiting = Counter()
            for store in registry:
                states = _patiently(partial(self.bus.states, store.name))
                waiting["queue"] += states["queue"].ready + (states["queue"].leased or 0)
                waiting["held"] += states["held"].ready
                waiting["outbox"] += len(store.index.outgoing(1))
                waiting["pending"] += sum(
                    store.index.counts(type)[Presence.PENDING] for type in store.accessors
                )
            if not any(waiting.values()):
                return
            time.sleep(0.1)
        self.report.differing.append(f"not settled in time: {dict(waiting)}")

    def _history(self) -> list[Change]:
        """Every change that any publish put on the bus, as the tap's queue got it, and of those
        that were confirmed to their producer also what is not there."""
        subscription = self.bus.subscribe(_TAP, ["Item", "Contact"], prefetch=1000)
        history: list[Change] = []
        while deliveries := subscription.fetch(timeout=0.2, limit=1000):
            for delivery in deliveries:
                history += [envelope.decode(raw) for raw in framing.split_batch(delivery.body)]
            subscription.acknowledge(deliveries)
        subscription.close()
        found = {change.id for change in history}
        for log in sorted(self.folder.glob("*.log")):
            with log.open("rb") as confirmed:
                while size := confirmed.read(4):
                    change = envelope.decode(confirmed.read(int.from_bytes(size, "big")))
                    if change.id not in found:
                        history.append(change)
                        self.report.forgotten += 1
        self.report.published = len({change.id for change in history})
        return history

    def _resend(self, history: list[Change]) -> None:
        """Some of it again, shuffled: every store must take it for what it is."""
        again = self.rng.sample(history, len(history) // 10)
        self.rng.shuffle(again)
        self.report.duplicates = len(again)
        for name in self.workers:
            good = [c for c in again if not c.key.startswith("1000000")]
            self.bus.send_to(name, [self.bus.encode(change) for change in good])

    def _compare(self, registry: Any, history: list[Change]) -> None:
        sound = [c for c in history if not (c.type == "Item" and int(c.key) >= 10**9)]
        items = chaos_model.winners_per_record(c for c in sound if c.type == "Item")
        contacts = chaos_model.winners_per_field(c for c in sound if c.type == "Contact")
        for values in contacts.values():
            for name, fallback in Contact(id=0).raw().items():
                values.setdefault(name, fallback)
        for key, values in contacts.items():
            values["id"] = int(key)
        for store in registry:
            for expected, record_type in ((items, Item), (contacts, Contact)):
                self._compare_one(store, record_type, expected)
            letters = self.bus.states(store.name)["dead"].ready
            self.report.dead_letters[store.name] = letters
            self.report.pending += sum(
                store.index.counts(type)[Presence.PENDING] for type in store.accessors
            )

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


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options of a run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--broker", choices=["embedded", *_SERVERS], default="embedded")
    parser.add_argument("--restarts", type=int, default=0, help="of the broker, with SIGKILL")
    parser.add_argument("--keys", type=int, default=500, help="records of each type")
    parser.add_argument("--seed", type=int, default=int(time.time()))
    parser.add_argument("--pause", type=float, nargs=2, default=(0.02, 0.4), help="between faults")
    parser.add_argument("--settle", type=float, default=300.0, help="seconds to settle at most")
    parser.add_argument("--folder", type=Path, help="work here, and leave it")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> Report:
    """One run; prints its report."""
    options = parse(arguments)
    _context.set_forkserver_preload(["chaos"])
    with contextlib.ExitStack() as stack:
        folder = options.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folder.mkdir(exist_ok=True)
        report = Harness(folder, options).run()
    shown = asdict(report) | {"differing": len(report.differing), "sound": report.sound}
    print(json.dumps(shown, ensure_ascii=False))
    for line in report.differing[:20]:
        print(line, file=sys.stderr)
    return report


if __name__ == "__main__":
    sys.exit(0 if main().sound else 1)
