"""The worker: drains the queue of one store into it, and keeps up that store in between.

It owns the loop, the patience with a store that is busy or away, and what ends either. It must not
know how messages travel, how a store keeps its data, nor what its upkeep is.
"""

from __future__ import annotations

import gc
import math
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import structlog

from eventsync.broker.bus import Bus, Delivery, Subscription
from eventsync.broker.relay import CountingPublisher
from eventsync.changes.change import Change
from eventsync.engine.apply import Settled, apply
from eventsync.engine.gate import Outcome
from eventsync.engine.store import Store
from eventsync.errors import BusUnavailableError, EventSyncError, is_retryable
from eventsync.index import Presence
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_status import WorkerStatus, resident_bytes
from eventsync.retry import retrying
from eventsync.worker.isolation import apply_apart
from eventsync.worker.maintenance import Maintenance
from eventsync.worker.options import DEFAULT_OPTIONS, Options
from eventsync.worker.rate_limit import RateLimit
from eventsync.worker.settlement import Batch, FailedEnvelope, Settlement

__all__ = ["Worker"]

_POLL = 0.5
_SUSPECT_DELIVERIES = 3


class Worker:
    """Applies what comes in a store's queue, until it is told to stop.

    It also does the store's upkeep between messages: tries again what was held, sends what waits
    in the store's outbox, captures edits made behind eventsync's back, completes pending records
    from ``peers``, and forgets tombstones that are old enough. For one thread; ``stop`` may be
    called from anywhere, signal handlers included. Any number of workers may serve one store.

    ``tally``: what it counts goes there, by default into one of its own.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        options: Options = DEFAULT_OPTIONS,
        peers: Iterable[Store] = (),
        tally: Counters | None = None,
        log: Any = None,
    ) -> None:
        self.store = store
        self.bus = bus
        self.options = options
        self.progress = WorkerStatus(store.name)
        """What it is doing, for health checks and metrics."""
        self.outcomes: Counter[Outcome] = self.progress.outcomes
        """How many changes came to each outcome."""
        self.tally = tally or Counters()
        """What it counted, as docs/metrics.md has it."""
        self.counted: Callable[[], object] = lambda: None
        """Called when messages are settled and counted, before the broker forgets them: what is
        told of them then is not lost with this process."""
        self._publisher = CountingPublisher(bus, self._published)
        self._peers = list(peers)
        self._log = log or structlog.get_logger("eventsync.worker").bind(store=store.name)
        self._stopping = threading.Event()
        self._settlement = Settlement(
            store.name,
            bus,
            self._apply,
            types=store.accessors,
            progress=self.progress,
            tally=self.tally,
            hold_for=options.hold_for,
            max_deliveries=options.max_deliveries,
            log=self._log,
        )
        self._upkeep = Maintenance(
            store,
            bus,
            publisher=self._publisher,
            settlement=self._settlement,
            settle=self._settle_apart,
            peers=self._peers,
            progress=self.progress,
            options=options,
            log=self._log,
        )
        rate = options.rate or store.rate
        self._rate = RateLimit(rate) if rate else None
        # One message at a time, so that a limit holds as closely as messages are small.
        self._prefetch = 1 if rate else options.prefetch
        self._baseline: int | None = None
        self._suspected: float | None = None
        self._reopened = 0

    @property
    def collisions(self) -> int:
        """How many changes carried the version of another one: a bug or a forgery somewhere."""
        return self._settlement.collisions

    def stop(self) -> None:
        """Have ``run`` return once what is in hand is settled. Idempotent, does not block."""
        self._stopping.set()

    def run(self) -> None:
        """Work until ``stop``. Blocks. A broker or store that is away is waited for."""
        self._log.info("worker started", pid=os.getpid(), broker=self.bus.shown_url)
        while not self._stopping.is_set():
            try:
                retrying(
                    self.store.open,
                    budget=self.options.retry_for,
                    wait=self._wait,
                    give_up=self._stopping.is_set,
                    before_wait=self._tell("store is away"),
                )
                self._consume()
            except BusUnavailableError as error:
                self._upkeep.broker_lost = True
                self.progress.error = str(error)
                self._log.warning("broker is away; trying again", error=str(error))
                self._wait(1.0)
            except (EventSyncError, OSError) as error:
                if not is_retryable(error):
                    raise
                if not self._stopping.is_set():
                    self._await_store(error)
        self._log.info("worker stopped", **{str(k): n for k, n in self.outcomes.items()})

    def drain(self, *, timeout: float = _POLL) -> int:
        """Apply what is in the queue until nothing has come for ``timeout`` seconds.

        Returns how many messages were settled. Raises retryable errors when the retry budget is
        spent; nothing is lost then.
        """
        subscription = self._subscribe()
        settled = 0
        try:
            while deliveries := subscription.fetch(timeout=timeout, limit=self.options.prefetch):
                self._handle(deliveries, subscription)
                settled += len(deliveries)
            self._upkeep.run(at_once=True)
        finally:
            subscription.close()
        return settled

    # -- messages --------------------------------------------------

    def _subscribe(self) -> Subscription:
        # What this store publishes has to wait for stores whose workers have never run, too.
        for peer in self._peers:
            self.bus.declare(peer.name, peer.accessors)
        return self.bus.subscribe(self.store.name, self.store.accessors, prefetch=self._prefetch)

    def _consume(self) -> None:
        subscription = self._subscribe()
        try:
            self._upkeep.greet_broker()
            while not self._stopping.is_set():
                self.progress.beat("waiting")
                deliveries = subscription.fetch(timeout=_POLL, limit=self._prefetch)
                if deliveries:
                    self._take(deliveries, subscription)
                else:
                    self.progress.oldest = None
                self._upkeep.run()
                if self._is_spent():
                    self._log.info("worker recycles", messages=self.progress.messages)
                    self.stop()
        finally:
            subscription.close()

    def _take(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Handle what was fetched, at the pace that is allowed."""
        self.progress.in_hand = len(deliveries)
        self.progress.beat("applying")
        before = self.outcomes.total()
        self._handle(deliveries, subscription)
        self.progress.settled(len(deliveries))
        if self._rate is not None:
            self._wait(self._rate.pause(self.outcomes.total() - before))

    def _is_spent(self) -> bool:
        """Whether a new process should take this one's place."""
        options, progress = self.options, self.progress
        if options.recycle_messages and progress.messages >= options.recycle_messages:
            return True
        if not options.recycle_growth or progress.messages == 0:
            return False
        # Growth counts from when it has begun to work: what is imported late is no leak.
        memory = resident_bytes()
        if self._baseline is None:
            self._baseline = memory
        return memory - self._baseline >= options.recycle_growth

    def _handle(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Settle messages in batches; leave the rest in the broker's hands when told to stop."""
        for group in self._grouped(deliveries):
            if self._stopping.is_set():
                return
            with _uncollected():
                self._settle_group(group, subscription)

    def _settle_group(self, group: Sequence[Delivery], subscription: Subscription) -> None:
        cut = [delivery for delivery in group if not delivery.is_whole]
        whole = [delivery for delivery in group if delivery.is_whole]
        self._settlement.settle(self._settlement.open(whole))
        for delivery in cut:
            self._settlement.refused(delivery.size)
        self.tally.add(catalogue.MESSAGES, len(group), self.store.name)
        self.counted()
        subscription.acknowledge(whole)
        if cut:
            subscription.refuse(cut)

    def _grouped(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Messages to be settled together; one that workers have died over goes alone."""
        group: list[Delivery] = []
        size = 0
        for delivery in deliveries:
            if delivery.attempts >= _SUSPECT_DELIVERIES:
                yield [delivery]
                continue
            group.append(delivery)
            # The number of envelopes is not known yet; their size is a good enough measure of it.
            size += len(delivery.body)
            if size >= self.options.batch * 512:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _apply(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply changes, again and again while the store is busy, within the budget for that."""

        def attempt() -> list[Settled]:
            if self.store.capture_every:
                self.store.capture_before(changes, self._publisher)
            if self._suspected is not None:
                works = (self.progress.applied_at or 0.0) > self._suspected
                return apply_apart(apply_all, changes, works=works)
            return apply_all(changes)

        def apply_all(changes: Sequence[Change]) -> list[Settled]:
            return apply(self.store, changes, clock=self.store.clock, limits=self.options.limits)

        tell = self._tell("store is busy or away")

        def retried(error: BaseException, attempt: int, seconds: float) -> None:
            tell(error, attempt, seconds)
            self._count_retried(changes, error)

        tracing = self.bus.tracing
        applying = nullcontext() if tracing is None else tracing.applying(self.store.name, changes)
        with applying as tell_trace:
            settled = retrying(
                attempt,
                # What failed by itself has its budget among the held ones.
                budget=self.options.retry_for if self._suspected is None else 0.0,
                wait=self._wait,
                give_up=self._stopping.is_set,
                before_wait=retried,
            )
            if tell_trace is not None:
                tell_trace(settled)
        self._reopened = 0
        applied, held = Outcome.APPLIED, Outcome.HELD
        self._upkeep.arrived |= {item.change.type for item in settled if item.outcome is applied}
        if self._suspected is not None and all(item.outcome is not held for item in settled):
            self._suspected = None
        return settled

    def _settle_apart(self, hand: Batch) -> list[FailedEnvelope]:
        """Settle what was held: it may fail by itself again, and its store is known to work."""
        # It answers; and others it took when these failed, or they would not be here.
        self._ping()
        before, self._suspected = self._suspected, -math.inf
        try:
            return self._settlement.settle(hand)
        finally:
            self._suspected = before

    # -- waiting --------------------------------------------------

    def _await_store(self, cause: EventSyncError | OSError) -> None:
        """The circuit is open: consume nothing until the store can be used again."""
        circuit = self.progress.circuit
        circuit.open(cause)
        self.progress.error = str(cause)
        self._log.error("circuit open: the store is away, its work waits", error=str(cause))
        # A store that answers but fails again and again is tried ever more seldom.
        self._wait(min(30.0, 0.05 * 2.0 ** min(self._reopened, 10)))
        self._reopened += 1
        retrying(
            self._ping,
            budget=math.inf,
            wait=self._wait,
            give_up=self._stopping.is_set,
            before_wait=lambda error, attempt, seconds: circuit.open(error),
        )
        circuit.close()
        # It answers: if it fails again, it may be for one change only.
        self._suspected = time.time()
        self._log.info("circuit closed: the store is back")

    def _ping(self) -> None:
        self.progress.circuit.probe()
        for accessor in self.store.accessors.values():
            accessor.ping()
        for type in self.store.accessors:
            self.store.index.counts(type)[Presence.PENDING]

    def _published(self, type: str, count: int) -> None:
        self.progress.beat()
        self.tally.add(catalogue.PUBLISHED, count, self.store.name, type)

    def _count_retried(self, changes: Iterable[Change], error: BaseException) -> None:
        reason = error.reason if isinstance(error, EventSyncError) else "unavailable"
        held = self.store.accessors
        types = Counter(c.type if c.type in held else catalogue.OTHER for c in changes)
        for type, count in types.items():
            self.tally.add(catalogue.RETRIED, count, self.store.name, type, reason)

    def _wait(self, seconds: float) -> None:
        self.progress.beat(pause=seconds)
        self._stopping.wait(seconds)
        self.progress.beat()

    def _tell(self, event: str) -> Callable[[BaseException, int, float], None]:
        def tell(error: BaseException, attempt: int, seconds: float) -> None:
            self._log.warning(event, error=str(error), attempt=attempt, wait=round(seconds, 2))

        return tell


@contextmanager
def _uncollected() -> Iterator[None]:
    """Without the cyclic garbage collector, which would cost as much as the work itself.

    A batch is many objects that live until it is settled, and no cycles: the collector would look
    through them again and again, and find nothing.
    """
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if collecting:
            gc.enable()
