"""The worker: drains the queue of one store into it, and does the upkeep of that store.

It knows nothing of how messages travel or of how a store keeps its data.
"""

from __future__ import annotations

import gc
import math
import os
import signal
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import structlog

from eventsync import lag, metric
from eventsync.apply import DEFAULT_LIMITS, Limits, Settled, apply, complete
from eventsync.bus import Bus, Delivery, Letters, Subscription
from eventsync.change import Change
from eventsync.deadletter import DeadLetter
from eventsync.errors import (
    BusUnavailableError,
    ClockDriftError,
    ConfigError,
    DependencyError,
    EventSyncError,
)
from eventsync.gate import Outcome
from eventsync.index import Presence
from eventsync.isolation import apply_apart
from eventsync.progress import Progress, resident_bytes
from eventsync.rate import RateLimit
from eventsync.relay import Relay, Told
from eventsync.retry import is_retryable, retrying
from eventsync.settlement import Item, Settlement, about_letter
from eventsync.store import Store
from eventsync.tally import Tally
from eventsync.watchdog import Watchdog

__all__ = ["Options", "Worker", "run"]

_POLL = 0.5
_SUSPECT_DELIVERIES = 3
_LONGEST_HELD_WAIT = 60.0
_ABORTED = 70  # EX_SOFTWARE: left before its work was settled; the broker gives it to others


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """How a worker goes about its work. Times are in seconds.

    ``prefetch``: messages taken from the broker at a time. ``batch``: changes applied at a time, or
    so. ``retry_for``: how long it tries again before it lets go of a store that is down, and waits
    for it. ``hold_for``: how long a change from the future is tried again. ``max_deliveries``: how
    often a message may be taken by workers that then die. ``limits``: what the store refuses.
    ``rate``: changes a second at most, ``None`` for no limit. ``recycle_messages`` and
    ``recycle_growth``: after how many messages, or bytes of growth, the worker stops so that a new
    process takes its place; 0 for never. ``letter_retention``: how long dead letters are kept.
    ``republish_window``: when the broker comes back, what this store holds of changes made since so
    long before it was lost is published again; 0 for nothing.
    """

    prefetch: int = 64
    batch: int = 5000
    retry_for: float = 30.0
    hold_for: float = 300.0
    max_deliveries: int = 50
    limits: Limits = DEFAULT_LIMITS
    rate: float | None = None
    recycle_messages: int = 0
    recycle_growth: int = 0
    letter_retention: float = 7 * 86_400.0
    republish_window: float = 10.0


DEFAULT_OPTIONS: Final = Options()


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
        tally: Tally | None = None,
        log: Any = None,
    ) -> None:
        self.store = store
        self.bus = bus
        self.options = options
        self.progress = Progress(store.name)
        """What it is doing, for health checks and metrics."""
        self.outcomes: Counter[Outcome] = self.progress.outcomes
        """How many changes came to each outcome."""
        self.tally = tally or Tally()
        """What it counted, as docs/metrics.md has it."""
        self.counted: Callable[[], object] = lambda: None
        """Called when messages are settled and counted, before the broker forgets them: what is
        told of them then is not lost with this process."""
        self._publisher = Told(bus, self._published)
        self._peers = list(peers)
        self._log = log or structlog.get_logger("eventsync.worker").bind(store=store.name)
        self._stopping = threading.Event()
        self._due: dict[str, float] = {}
        self._arrived: set[str] = set()
        self._settlement = Settlement(
            store.name,
            bus,
            self._apply,
            types=store.accessors,
            outcomes=self.outcomes,
            tally=self.tally,
            hold_for=options.hold_for,
            max_deliveries=options.max_deliveries,
            log=self._log,
        )
        rate = options.rate or store.rate
        self._rate = RateLimit(rate) if rate else None
        self._relay = Relay(store, self._publisher)
        # One message at a time, so that a limit holds as closely as messages are small.
        self._prefetch = 1 if rate else options.prefetch
        self._baseline: int | None = None
        # The broker's life, and when it was last seen in it.
        self._broker: tuple[str | None, float] | None = None
        self._broker_lost = False
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
                self._broker_lost = True
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
            self._upkeep(at_once=True)
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
            self._greet_broker()
            while not self._stopping.is_set():
                self.progress.beat("waiting")
                deliveries = subscription.fetch(timeout=_POLL, limit=self._prefetch)
                if deliveries:
                    self._take(deliveries, subscription)
                else:
                    self.progress.oldest = None
                self._upkeep()
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

    def _greet_broker(self) -> None:
        """Tell a broker again the latest it had confirmed, if it may have forgotten that."""
        life = self.bus.life()
        if self._broker is not None and self.options.republish_window:
            known, seen_at = self._broker
            if life != known or (life is None and self._broker_lost):
                since = seen_at - self.options.republish_window
                count = self.store.republish(self._publisher, since=since)
                self._log.info("broker was restarted: latest changes published again", count=count)
        self._broker, self._broker_lost = (life, time.time()), False

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
        items = [item for delivery in whole for item in self._settlement.open(delivery)]
        self._settlement.settle(items)
        for delivery in cut:
            self._settlement.refused(delivery.size)
        self.tally.add(metric.MESSAGES, len(group), self.store.name)
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
            if size >= self.options.batch * 256:
                yield group
                group, size = [], 0
        if group:
            yield group

    def _apply(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply changes, again and again while the store is busy, within the budget for that."""
        self.progress.oldest = lag.oldest(changes)

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
        self._arrived |= {item.change.type for item in settled if item.outcome is applied}
        if self._suspected is not None and all(item.outcome is not held for item in settled):
            self._suspected = None
        return settled

    # -- upkeep --------------------------------------------------

    def _upkeep(self, *, at_once: bool = False) -> None:
        """Do what is due. A store that is busy is left for the next time."""
        tasks: list[tuple[str, float, Callable[[], object]]] = [
            ("broker", 1.0, self._greet_broker),
            ("held", 1.0, self._try_held),
            # At once is now, whoever's turn it is: what is published twice does no harm.
            ("outbox", 1.0, self._flush if at_once else self._relay.run_once),
            ("pending", 2.0, lambda: complete(self.store, self._peers)),
            ("tombstones", 3600.0, self._collect),
            ("letters", 3600.0, self._drop_letters),
        ]
        if self.store.capture_every:
            tasks.append(("capture", self.store.capture_every, self._capture))
        for name, every, task in tasks:
            now = time.monotonic()
            if at_once or now >= self._due.get(name, 0.0):
                self._due[name] = now + every
                self.progress.beat(name)
                try:
                    task()
                except (BusUnavailableError, ConfigError):
                    raise
                except (EventSyncError, OSError) as error:
                    # Upkeep must not stop the store's work; it has its turn again.
                    self._log.warning("upkeep failed", task=name, error=str(error))

    def _flush(self) -> None:
        self.store.flush(self._publisher)

    def _try_held(self) -> None:
        """Try again what was held, if its time or what it waits for has come."""
        states = self.bus.states(self.store.name)
        ready = states["held"].ready
        if not ready:
            return
        backlog = states["queue"].oldest
        self._settlement.oldest = math.inf if backlog is None else time.time() - backlog
        moved = self._moved()
        begun = time.monotonic()
        with self.bus.letters(self.store.name, held=True) as letters:
            # Once round: what is held again comes behind the others.
            while ready > 0 and (chunk := letters.read(min(ready, self.options.batch))):
                ready -= len(chunk)
                items = [
                    self._settlement.reopen(letter, delivery)
                    for letter, delivery in chunk
                    if letter.type in moved[letter.reason] or time.time() >= self._due_at(letter)
                ]
                if items:
                    self._try_again(items, letters)
                    self.progress.beat("held")
        # However many they are, most of the time is left for what comes.
        pause = max(1.0, 4.0 * (time.monotonic() - begun))
        self._due["held"] = time.monotonic() + pause

    def _try_again(self, items: Sequence[Item], letters: Letters) -> None:
        # It answers; and others it took when these failed, or they would not be here.
        self._ping()
        before, self._suspected = self._suspected, -math.inf
        try:
            still = self._settlement.settle(items)
        finally:
            self._suspected = before
        # Written anew with what was learnt, so that it outlives this process.
        self.bus.hold(self.store.name, [self._settlement.letter(item) for item in still])
        letters.settle(item.delivery for item in items)

    def _moved(self) -> Mapping[str, Container[str]]:
        """By why they are held, the types of which records may wait for nothing more.

        Something has been applied, since this was last asked, to a type that they depend on or
        that depends on them.
        """
        accessors, self._arrived, arrived = self.store.accessors, set(), self._arrived
        moved = {
            name
            for name, accessor in accessors.items()
            for other in arrived
            if accessor.depends_on(accessors[other]) or accessors[other].depends_on(accessor)
        }
        return defaultdict(tuple, {DependencyError.reason: moved})

    def _due_at(self, letter: DeadLetter) -> float:
        """When a held change is worth another try in any case, in seconds since the epoch."""
        if letter.reason == ClockDriftError.reason and letter.version is not None:
            due = letter.version.millis / 1000 - self.options.limits.drift
        else:
            due = letter.last_time + min(_LONGEST_HELD_WAIT, 2.0 ** min(letter.attempts, 10))
        if self._settlement.may_come(letter.reason, letter.first_time):
            return due
        return min(due, letter.first_time + self.options.hold_for)

    def _drop_letters(self) -> None:
        """Drop the dead letters that are older than they are kept."""
        dead = self.bus.states(self.store.name)["dead"]
        oldest = math.inf if dead.oldest is None else dead.oldest
        if not dead.ready or oldest < self.options.letter_retention:
            return
        before = time.time() - self.options.letter_retention
        with self.bus.letters(self.store.name) as letters:
            while chunk := letters.read(500):
                old = [(one, delivery) for one, delivery in chunk if one.last_time < before]
                letters.settle(delivery for _, delivery in old)
                for letter, _ in old:
                    self._log.warning("dead letter dropped: too old", **about_letter(letter))
                if len(old) < len(chunk):
                    return

    def _capture(self) -> None:
        def unreadable(error: EventSyncError) -> None:
            self._log.error("a record cannot be read and is passed over", error=str(error))

        edits = self.store.capture(whole=False, publisher=self._publisher, unreadable=unreadable)
        for changes in edits:
            self.progress.beat()
            if changes:
                self._log.info("captured edits", count=len(changes))

    def _collect(self) -> None:
        """Forget tombstones that are old enough, if no store lags behind them."""
        ages = [0.0]
        for store in [self.store, *self._peers]:
            try:
                states = self.bus.states(store.name)
            except EventSyncError as error:
                self._log.debug("tombstones are kept", store=store.name, error=str(error))
                return
            for state in states.values():
                if state.ready and state.oldest is None:
                    return
                ages.append(state.oldest or 0.0)
        keep = max(self.options.limits.retention, max(ages) + self.options.limits.drift)
        self.store.collect(time.time() - keep)

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
        self.tally.add(metric.PUBLISHED, count, self.store.name, type)

    def _count_retried(self, changes: Iterable[Change], error: BaseException) -> None:
        reason = error.reason if isinstance(error, EventSyncError) else "unavailable"
        held = self.store.accessors
        types = Counter(c.type if c.type in held else metric.OTHER for c in changes)
        for type, count in types.items():
            self.tally.add(metric.RETRIED, count, self.store.name, type, reason)

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


def run(worker: Worker, *, grace: float, watchdog: Watchdog | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT; it then finishes what it has in hand.

    After ``grace`` seconds, or at a second signal, the process ends at once; what was not settled
    is given to other workers. ``watchdog`` watches it meanwhile. For the main thread.
    """

    def abort() -> None:
        os._exit(_ABORTED)

    signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            abort()
        signalled = True
        # In a thread, for this one may hold the very lock that waking the worker needs.
        threading.Thread(target=worker.stop, daemon=True).start()
        deadline = threading.Timer(grace, abort)
        deadline.daemon = True
        deadline.start()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    if watchdog is not None:
        watchdog.start()
    try:
        worker.run()
    finally:
        if watchdog is not None:
            watchdog.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
