"""The worker: drains one store's queue into the store, and settles every message in one place.

It knows nothing of how messages travel or of how a store keeps its data.
"""

from __future__ import annotations

import hashlib
import logging
import math
import os
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import FrameType
from typing import Any, Final

import structlog

from eventsync import envelope, framing
from eventsync.apply import DEFAULT_LIMITS, Limits, Settled, apply, complete
from eventsync.bus import Bus, Delivery, Subscription
from eventsync.change import Change
from eventsync.deadletter import DeadLetter
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EnvelopeError,
    EventSyncError,
)
from eventsync.gate import Outcome
from eventsync.index import Presence
from eventsync.retry import is_retryable, retrying
from eventsync.store import Store

__all__ = ["Options", "Worker", "run"]

_POLL = 0.5
_SUSPECT_DELIVERIES = 3
_ABORTED = 70  # EX_SOFTWARE: left before its work was settled; the broker gives it to others


@dataclass(slots=True, frozen=True, kw_only=True)
class Options:
    """How a worker goes about its work. Times are in seconds.

    ``prefetch``: messages taken from the broker at a time. ``batch``: changes applied at a time, or
    so. ``retry_for``: how long it tries again before it lets go of a store that is down, and waits
    for it. ``hold_for``: how long a change from the future is tried again. ``max_deliveries``: how
    often a message may be taken by workers that then die. ``limits``: what the store refuses.
    """

    prefetch: int = 64
    batch: int = 5000
    retry_for: float = 30.0
    hold_for: float = 300.0
    max_deliveries: int = 50
    limits: Limits = DEFAULT_LIMITS


DEFAULT_OPTIONS: Final = Options()


@dataclass(slots=True)
class _Item:
    """One envelope in hand, or a message that is none."""

    raw: bytes
    delivery: Delivery
    first_time: float
    attempts: int
    change: Change | None = None
    error: EventSyncError | None = None
    outcome: Outcome = Outcome.REJECTED


class Worker:
    """Applies what comes in a store's queue, until it is told to stop.

    It also does the store's upkeep between messages: tries again what was held, sends what waits
    in the store's outbox, captures edits made behind eventsync's back, completes pending records
    from ``peers``, and forgets tombstones that are old enough. For one thread; ``stop`` may be
    called from anywhere, signal handlers included. Any number of workers may serve one store.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        options: Options = DEFAULT_OPTIONS,
        peers: Iterable[Store] = (),
        log: Any = None,
    ) -> None:
        self.store = store
        self.bus = bus
        self.options = options
        self.outcomes: Counter[Outcome] = Counter()
        """How many changes came to each outcome."""
        self.collisions = 0
        """How many changes carried the version of another one: a bug or a forgery somewhere."""
        self._peers = list(peers)
        self._log = log or structlog.get_logger("eventsync.worker").bind(store=store.name)
        self._stopping = threading.Event()
        self._due: dict[str, float] = {}

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
                    budget=math.inf,
                    wait=self._wait,
                    give_up=self._stopping.is_set,
                    before_wait=self._tell("store is away"),
                )
                self._consume()
            except BusUnavailableError as error:
                self._log.warning("broker is away; trying again", error=str(error))
                self._wait(1.0)
            except EventSyncError as error:
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
        return self.bus.subscribe(
            self.store.name, self.store.accessors, prefetch=self.options.prefetch
        )

    def _consume(self) -> None:
        subscription = self._subscribe()
        try:
            while not self._stopping.is_set():
                deliveries = subscription.fetch(timeout=_POLL, limit=self.options.prefetch)
                self._handle(deliveries, subscription)
                self._upkeep()
        finally:
            subscription.close()

    def _handle(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Settle messages in batches; leave the rest in the broker's hands when told to stop."""
        for group in self._grouped(deliveries):
            if self._stopping.is_set():
                return
            cut = [delivery for delivery in group if not delivery.is_whole]
            whole = [delivery for delivery in group if delivery.is_whole]
            items = [item for delivery in whole for item in self._open(delivery)]
            self._settle(items)
            subscription.acknowledge(whole)
            if cut:
                for delivery in cut:
                    self._log.error("dead letter", reason="too-large", size=delivery.size)
                    self.outcomes[Outcome.REJECTED] += 1
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

    def _open(self, delivery: Delivery) -> list[_Item]:
        """The envelopes in a message; what is not one comes with its error."""
        now = time.time()
        attempts = delivery.attempts + 1
        if attempts > self.options.max_deliveries:
            error = EventSyncError(
                f"taken {delivery.attempts} times by workers that then died",
                hint="look at the record with care before you replay it",
            )
            return [_Item(delivery.body, delivery, now, attempts, error=error)]
        try:
            if delivery.size > self.bus.max_message:
                large = EnvelopeError(
                    f"a message of {delivery.size:,} bytes; {self.bus.max_message:,} is the limit"
                )
                large.reason = "too-large"  # type: ignore[misc]  # one class, several rules
                raise large
            if delivery.content_type != envelope.CONTENT_TYPE:
                raise EnvelopeError(
                    f"a message of content type {delivery.content_type[:80]!r}, "
                    f"not {envelope.CONTENT_TYPE}",
                    hint="something else publishes into this queue",
                )
            raws = framing.split_batch(delivery.body)
        except EnvelopeError as error:
            return [_Item(delivery.body, delivery, now, attempts, error=error)]
        return [self._decoded(_Item(raw, delivery, now, attempts)) for raw in raws]

    def _decoded(self, item: _Item) -> _Item:
        try:
            item.change = envelope.decode(
                item.raw, keys=self.bus.keys, max_bytes=self.bus.max_envelope
            )
        except EnvelopeError as error:
            item.error = error
        return item

    def _settle(self, items: Sequence[_Item]) -> list[_Item]:
        """Apply, and put what cannot be applied where it is safe. The one place that does.

        When it returns, every item is in the store, known not to be needed there, in the dead
        letters, or among the held ones, which are returned if they were held before. Raises
        retryable errors; then nothing is settled, and all of it may come again.
        """
        sound = [item for item in items if item.change is not None and item.error is None]
        for item, settled in zip(sound, self._apply(sound), strict=True):
            item.outcome, item.error = settled.outcome, settled.error
            if settled.collision:
                self.collisions += 1
                self._log.error(
                    "two changes carry one version", **_about(settled.change), id=settled.change.id
                )
        now = time.time()
        for item in items:
            if item.outcome is Outcome.HELD and now - item.first_time > self.options.hold_for:
                item.outcome = Outcome.REJECTED
        rejected = [item for item in items if item.outcome is Outcome.REJECTED]
        held = [item for item in items if item.outcome is Outcome.HELD]
        if rejected:
            self.bus.dead_letter(self.store.name, [self._letter(item) for item in rejected])
        fresh = [item for item in held if not item.delivery.queue.endswith(".held")]
        if fresh:
            self.bus.hold(self.store.name, [self._letter(item) for item in fresh])
        detailed = self._log.is_enabled_for(logging.DEBUG)
        for item in items:
            self._account(item, detailed)
        return held

    def _apply(self, items: Sequence[_Item]) -> list[Settled]:
        changes = [item.change for item in items if item.change is not None]
        if not changes:
            return []

        def attempt() -> list[Settled]:
            if self.store.capture_every:
                self.store.capture_before(changes, self.bus)
            return apply(self.store, changes, clock=self.store.clock, limits=self.options.limits)

        return retrying(
            attempt,
            budget=self.options.retry_for,
            wait=self._wait,
            give_up=self._stopping.is_set,
            before_wait=self._tell("store is busy or away"),
        )

    def _account(self, item: _Item, detailed: bool) -> None:
        self.outcomes[item.outcome] += 1
        if item.outcome is Outcome.REJECTED:
            about = _about(item.change)
            self._log.error("dead letter", **about, reason=_reason(item), error=str(item.error))
        elif item.outcome is Outcome.HELD:
            self._log.warning("held", **_about(item.change), error=str(item.error))
        elif detailed:
            self._log.debug(str(item.outcome), **_about(item.change), attempt=item.attempts)

    def _letter(self, item: _Item) -> DeadLetter:
        change = item.change
        return DeadLetter(
            reason=_reason(item),
            message=str(item.error or ""),
            store=self.store.name,
            queue=item.delivery.queue,
            attempts=item.attempts,
            first_time=item.first_time,
            last_time=time.time(),
            raw=item.raw,
            type=change.type if change else None,
            key=change.key if change else None,
            version=change.version if change else None,
            op=change.op if change else None,
            content_type=item.delivery.content_type,
        )

    # -- upkeep --------------------------------------------------

    def _upkeep(self, *, at_once: bool = False) -> None:
        """Do what is due. A store that is busy is left for the next time."""
        tasks: list[tuple[str, float, Callable[[], object]]] = [
            ("held", 1.0, self._try_held),
            ("outbox", 1.0, lambda: self.store.flush(self.bus)),
            ("pending", 2.0, lambda: complete(self.store, self._peers)),
            ("tombstones", 3600.0, self._collect),
        ]
        if self.store.capture_every:
            tasks.append(("capture", self.store.capture_every, self._capture))
        for name, every, task in tasks:
            now = time.monotonic()
            if at_once or now >= self._due.get(name, 0.0):
                self._due[name] = now + every
                try:
                    task()
                except (BusUnavailableError, ConfigError):
                    raise
                except (EventSyncError, OSError) as error:
                    # Upkeep must not stop the store's work; it has its turn again.
                    self._log.warning("upkeep failed", task=name, error=str(error))

    def _try_held(self) -> None:
        """Try again what was held because its version lay in the future."""
        if not self.bus.states(self.store.name)["held"].ready:
            return
        with self.bus.letters(self.store.name, held=True) as letters:
            items = []
            for letter, delivery in letters.read(self.options.batch):
                item = _Item(letter.raw, delivery, letter.first_time, letter.attempts + 1)
                items.append(self._decoded(item))
            still = {id(item) for item in self._settle(items)}
            letters.settle(item.delivery for item in items if id(item) not in still)

    def _capture(self) -> None:
        def unreadable(error: EventSyncError) -> None:
            self._log.error("a record cannot be read and is passed over", error=str(error))

        for changes in self.store.capture(publisher=self.bus, unreadable=unreadable):
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

    def _await_store(self, cause: EventSyncError) -> None:
        """The circuit is open: consume nothing until the store can be used again."""
        self._log.error("circuit open: the store is away, its work waits", error=str(cause))
        retrying(
            self._ping,
            budget=math.inf,
            wait=self._wait,
            give_up=self._stopping.is_set,
        )
        self._log.info("circuit closed: the store is back")

    def _ping(self) -> None:
        for accessor in self.store.accessors.values():
            accessor.ping()
        for type in self.store.accessors:
            self.store.index.counts(type)[Presence.PENDING]

    def _wait(self, seconds: float) -> None:
        self._stopping.wait(seconds)

    def _tell(self, event: str) -> Callable[[BaseException, int, float], None]:
        def tell(error: BaseException, attempt: int, seconds: float) -> None:
            self._log.warning(event, error=str(error), attempt=attempt, wait=round(seconds, 2))

        return tell


def run(worker: Worker, *, grace: float) -> None:
    """Run a worker until SIGTERM or SIGINT; it then finishes what it has in hand.

    After ``grace`` seconds, or at a second signal, the process ends at once; what was not settled
    is given to other workers. For the main thread.
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
    try:
        worker.run()
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _reason(item: _Item) -> str:
    if item.error is None:
        return "error"
    # A version that stayed in the future too long; a worker that died too often.
    return "crashes" if type(item.error) is EventSyncError else item.error.reason


def _about(change: Change | None) -> dict[str, Any]:
    if change is None:
        return {}
    return {
        "type": change.type,
        # The key may be somebody's address; its digest is enough to find it by.
        "key_digest": hashlib.sha256(change.key.encode()).hexdigest()[:16],
        "op": change.op,
        "version": change.version.hex(),
    }
