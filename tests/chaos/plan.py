"""The plan of a run, as each of its processes reads it, and what those processes do.

It knows nothing of faults.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import random
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import structlog
from journal import Journal
from kombu.transport import TRANSPORT_ALIASES
from kombu.transport import redis as stock

from eventsync.broker.bus import Bus
from eventsync.broker.relay import serve
from eventsync.broker.spool import Spool
from eventsync.changes.change import Change
from eventsync.changes.clock import Clock
from eventsync.envelope import batch, codec
from eventsync.errors import BusUnavailableError, StoreUnavailableError
from eventsync.worker.options import Options
from eventsync.worker.signals import run
from eventsync.worker.worker import Worker

__all__ = ["Plan", "patiently", "produce", "relay", "work"]

# Kombu's own Redis transport under a name of its own, to be compared with ours.
TRANSPORT_ALIASES["stock"] = "kombu.transport.redis:Transport"
stock.Channel.visibility_timeout = 5  # a fair chance: what a dead worker held is given back soon


@dataclass
class Plan:
    """What the processes of a run have to know. Times are in seconds."""

    scenario: str
    broker: str
    """The URL through which processes reach it."""
    events: int
    """Made by each producer."""
    keys: int
    pace: float
    """Events a second of each producer at most; 0 for no limit."""
    through: str = "bus"
    lease: float = 5.0
    stores: dict[str, str] = field(default_factory=dict)

    def save(self, folder: Path) -> None:
        (folder / "plan.json").write_text(json.dumps(asdict(self)), encoding="utf-8")

    @classmethod
    def load(cls, folder: Path) -> Self:
        return cls(**json.loads((folder / "plan.json").read_text(encoding="utf-8")))

    def bus(self) -> Bus:
        return Bus(self.broker, lease=self.lease)

    def module(self) -> Any:
        """The scenario's module."""
        return importlib.import_module(self.scenario)

    def registry(self, folder: Path) -> Any:
        """The stores, not opened."""
        return self.module().stores(folder, self.stores)

    def waiting_in_spool(self, folder: Path) -> int:
        """How many envelopes the relay has still to publish."""
        if self.through != "spool":
            return 0
        with _spool(folder) as spool:
            return spool.state().waiting


def patiently(call: Callable[[], Any]) -> Any:
    """The result of ``call``, once the broker or the store is there for it."""
    while True:
        try:
            return call()
        except (BusUnavailableError, StoreUnavailableError):
            time.sleep(0.05)


def _quiet() -> None:
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(50))


def work(folder: Path, name: str) -> None:
    """A worker process of the store ``name``."""
    _quiet()
    plan = Plan.load(folder)
    registry = plan.registry(folder)
    options = Options(prefetch=16, retry_for=60.0)
    run(Worker(registry[name], plan.bus(), options=options, peers=registry), grace=20.0)


def relay(folder: Path) -> None:
    """A process that publishes what waits in the producers' spool."""
    _quiet()
    plan = Plan.load(folder)
    # Connected at first use: the broker may be away just now.
    with _spool(folder) as spool, closing(plan.bus()) as bus, spool.relay(bus) as outlet:
        serve(outlet, threading.Event())


def _spool(folder: Path) -> Spool:
    return Spool(folder / "spool.db")


class _Skewed:
    """The time by a clock that is set wrong now and then, in seconds since the epoch."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / "skew"
        self._skew, self._read_at = 0.0, 0.0

    def __call__(self) -> float:
        now = time.monotonic()
        if now - self._read_at > 0.05:
            self._read_at = now
            with contextlib.suppress(FileNotFoundError, ValueError):
                self._skew = float(self._path.read_text())
        return time.time() + self._skew


def produce(folder: Path, number: int, seed: int) -> None:
    """A producer process. Started again after it was killed it goes on where it was."""
    plan = Plan.load(folder)
    scenario = plan.module()
    journal = Journal(folder / f"producer-{number}")
    rng = random.Random(f"{seed} {number} {journal.made}")
    clock = Clock(now=_Skewed(folder))
    with contextlib.ExitStack() as stack:
        bus = stack.enter_context(closing(plan.bus()))
        publisher = stack.enter_context(_spool(folder)) if plan.through == "spool" else bus
        for body in journal.unconfirmed:
            raws = batch.split_batch(body)
            type = codec.decode(raws[0]).type
            patiently(lambda type=type, raws=raws: publisher.publish(type, raws))
        journal.confirm(journal.made + sum(map(_count, journal.unconfirmed)))
        registry = plan.registry(folder)
        if scenario.EDITS_STORES:
            stack.enter_context(registry.open(publisher=bus))

        def send(type: str, changes: Sequence[Change]) -> None:
            raws = [bus.encode(change) for change in changes]
            journal.mean(raws)
            patiently(lambda: publisher.publish(type, raws))

        begun, before = time.monotonic(), journal.made
        while journal.made < plan.events:
            made = scenario.produce(
                rng, registry, clock, send, count=plan.events - journal.made, keys=plan.keys
            )
            journal.confirm(journal.made + made)
            if plan.pace:
                ahead = (journal.made - before) / plan.pace - (time.monotonic() - begun)
                time.sleep(max(0.0, ahead))


def _count(body: bytes) -> int:
    return len(batch.split_batch(body))
