"""The worker: applies the messages of one store's queue, and runs maintenance in between."""

from __future__ import annotations

import math
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any, Final

import structlog

from eventsync.broker.bus import Bus, Delivery, Subscription
from eventsync.engine.gate import Outcome
from eventsync.engine.rate_limit import RateLimit
from eventsync.engine.store import Store
from eventsync.errors import (
    BusConfigError,
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    is_retryable,
)
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_status import WorkerStatus, resident_bytes
from eventsync.retry import Backoff, retrying
from eventsync.values.garbage import collection_paused
from eventsync.worker.applier import Applier
from eventsync.worker.context import WorkerContext
from eventsync.worker.maintenance import Maintenance
from eventsync.worker.options import DEFAULT_OPTIONS, Options
from eventsync.worker.settlement import Settlement

__all__ = ["Worker"]

# The longest wait for a message, in seconds, before maintenance runs.
_POLL: Final = 0.5
# The same while a long task of maintenance is under way.
_SHORT_POLL: Final = 0.005
# The pause before the next attempt to reach the broker, in seconds.
_BROKER_PAUSE: Final = 1.0
# A message that was delivered so often before is settled alone, because it may crash workers.
_SUSPECT_DELIVERIES: Final = 3
# The number of envelopes in a message is not known before it is decoded. It is estimated by this
# usual size of an envelope.
_ENVELOPE_BYTES: Final = 512
# The pauses while a store fails again and again, although it answers each ping.
_REOPEN_BACKOFF: Final = Backoff(0.05, 30.0)


class Worker:
    """Applies the messages of a store's queue until ``stop`` is called.

    Between messages, the worker runs the tasks of ``Maintenance``. Any number of workers may serve
    one store. ``peers``: the other stores, from which pending records are completed. ``counters``:
    counts messages and outcomes; by default new counters. Only one thread may use a worker, but any
    thread and any signal handler may call ``stop``.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        options: Options = DEFAULT_OPTIONS,
        peers: Iterable[Store] = (),
        counters: Counters | None = None,
        log: Any = None,
    ) -> None:
        self.store = store
        self.bus = bus
        self.options = options
        self.counters = counters or Counters()
        """The counters of this worker; docs/metrics.md lists the metrics."""
        self.before_acknowledge: Callable[[], object] = lambda: None
        """Called after messages are settled and counted, and before they are acknowledged.

        Counts that this function reports are not lost if the process then ends."""
        self._peers = list(peers)
        self._log = log or structlog.get_logger("eventsync.worker").bind(store=store.name)
        self._context = WorkerContext(
            store, bus, options=options, counters=self.counters, log=self._log
        )
        self.progress: WorkerStatus = self._context.status
        """The status of this worker, for health checks and metrics."""
        self.outcomes: Counter[Outcome] = self.progress.outcomes
        """The number of changes by outcome."""
        self._applier = Applier(self._context)
        self._settlement = Settlement(self._context, self._applier)
        self.maintenance = Maintenance(
            self._context, self._applier, self._settlement, peers=self._peers
        )
        """The periodic tasks that run between messages."""
        rate = options.rate or store.rate
        self._rate_limit = RateLimit(rate) if rate else None
        # With a rate limit, take one message at a time, so that bursts are small.
        self._prefetch = 1 if rate else options.prefetch
        self._memory_at_first: int | None = None
        # How often the circuit has opened since the last settled message.
        self._reopened = 0
        # Whether the store, and the broker, have accepted this worker before.
        self._has_opened = False
        self._has_subscribed = False

    @property
    def collisions(self) -> int:
        """The number of changes that had the same version as another, different change.

        The cause is a bug or a forged change.
        """
        return self._settlement.collisions

    def stop(self) -> None:
        """Make ``run`` return after the current batch. Idempotent, does not block."""
        self._context.stopping.set()

    def run(self) -> None:
        """Settle messages and run maintenance until ``stop`` is called. Blocks.

        While the broker or the store is unreachable, the worker waits and tries again. It also
        waits while one of them refuses what it has accepted before, for example because a password
        or a column was changed. Raises ``ConfigError`` if one of them refuses it from the start.
        """
        context = self._context
        self._log.info("worker started", pid=os.getpid(), broker=self.bus.shown_url)
        while not context.stopping.is_set():
            try:
                retrying(
                    self._open,
                    budget=self.options.retry_for,
                    wait=context.wait,
                    give_up=context.stopping.is_set,
                    before_wait=partial(context.log_retry, "store unreachable, retrying"),
                    retryable=_is_outage,
                )
                self._consume()
            except (BusUnavailableError, BusConfigError) as error:
                if isinstance(error, BusConfigError) and not self._has_subscribed:
                    raise
                context.broker_life.interrupted()
                self.progress.error = str(error)
                self._log.warning("broker unreachable, retrying", error=str(error))
                context.wait(_BROKER_PAUSE)
            except (EventSyncError, OSError) as error:
                if not (_is_outage(error) or (self._has_opened and isinstance(error, ConfigError))):
                    raise
                if not context.stopping.is_set():
                    self._await_store(error)
        self._log.info("worker stopped", **{str(k): n for k, n in self.outcomes.items()})

    def _open(self) -> None:
        """Open the store, and check that it answers, which some stores do not need to be opened."""
        self.store.open()
        if not self._has_opened:
            self.store.ping()
            self._has_opened = True

    def drain(self, *, timeout: float = _POLL) -> int:
        """Settle messages until no message arrives for ``timeout`` seconds, then run maintenance.

        Returns the number of settled messages. Raises a retryable error when the retry budget is
        spent; unsettled messages then stay in the queue.
        """
        subscription = self._subscribe()
        settled = 0
        try:
            while deliveries := subscription.fetch(timeout=timeout, limit=self.options.prefetch):
                self._handle(deliveries, subscription)
                settled += len(deliveries)
            self.maintenance.run(at_once=True)
        finally:
            subscription.close()
        return settled

    # -- messages --------------------------------------------------

    def _subscribe(self) -> Subscription:
        # Declare the queues of all peers, so that changes also wait for stores whose workers have
        # never run.
        for peer in self._peers:
            self.bus.declare(peer.name, peer.accessors)
        return self.bus.subscribe(self.store.name, self.store.accessors, prefetch=self._prefetch)

    def _consume(self) -> None:
        """Receive and settle messages, and run maintenance, until the worker shall stop."""
        subscription = self._subscribe()
        self._has_subscribed = True
        try:
            self.maintenance.republish_lost()
            while not self._context.stopping.is_set():
                self.progress.beat("waiting")
                timeout = _SHORT_POLL if self.maintenance.is_under_way else _POLL
                deliveries = subscription.fetch(timeout=timeout, limit=self._prefetch)
                if deliveries:
                    self._take(deliveries, subscription)
                else:
                    self.progress.idle()
                self.maintenance.run(idle=not deliveries)
                if self._is_spent():
                    self._log.info(
                        "worker stopping to be replaced", messages=self.progress.messages
                    )
                    self.stop()
        finally:
            subscription.close()

    def _take(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Settle messages, then pause as long as the rate limit requires."""
        self.progress.in_hand = len(deliveries)
        self.progress.beat("applying")
        before = self.outcomes.total()
        self._handle(deliveries, subscription)
        self.progress.settled(len(deliveries))
        if self._rate_limit is not None:
            self._context.wait(self._rate_limit.take(self.outcomes.total() - before))

    def _is_spent(self) -> bool:
        """Return whether the worker has reached a recycling limit of its options."""
        options, progress = self.options, self.progress
        if options.recycle_messages and progress.messages >= options.recycle_messages:
            return True
        if not options.recycle_growth or progress.messages == 0:
            return False
        # Measured since the first settled message, because modules are imported before.
        memory = resident_bytes()
        if self._memory_at_first is None:
            self._memory_at_first = memory
        return memory - self._memory_at_first >= options.recycle_growth

    def _handle(self, deliveries: Sequence[Delivery], subscription: Subscription) -> None:
        """Settle messages in batches; if the worker shall stop, leave the rest in the queue."""
        for group in self._grouped(deliveries):
            if self._context.stopping.is_set():
                return
            with collection_paused():
                self._settle(group, subscription)

    def _settle(self, group: Sequence[Delivery], subscription: Subscription) -> None:
        truncated = [delivery for delivery in group if not delivery.is_whole]
        whole = [delivery for delivery in group if delivery.is_whole]
        failed = self._settlement.apply(whole)
        self._reopened = 0
        for delivery in truncated:
            self._settlement.refuse(delivery)
        self.counters.add(catalogue.MESSAGES, len(group), self.store.name)
        if not failed:
            self.before_acknowledge()
            subscription.acknowledge(whole)
        else:
            unsettled = {id(item.message.delivery) for item in failed}
            subscription.acknowledge(one for one in whole if id(one) not in unsettled)
            self._settlement.store(failed)
            self.before_acknowledge()
            subscription.acknowledge(one for one in whole if id(one) in unsettled)
        if truncated:
            subscription.refuse(truncated)

    def _grouped(self, deliveries: Sequence[Delivery]) -> Iterator[list[Delivery]]:
        """Yield groups of messages to settle together.

        A message that was delivered several times before is alone in its group, because it may
        crash the worker.
        """
        group: list[Delivery] = []
        size = 0
        for delivery in deliveries:
            if delivery.attempts >= _SUSPECT_DELIVERIES:
                yield [delivery]
                continue
            group.append(delivery)
            size += len(delivery.body)
            if size >= self.options.batch * _ENVELOPE_BYTES:
                yield group
                group, size = [], 0
        if group:
            yield group

    # -- the circuit --------------------------------------------------

    def _await_store(self, cause: EventSyncError | OSError) -> None:
        """Open the circuit and wait until the store answers or the worker shall stop.

        ``cause``: the error of the store.
        """
        context, circuit = self._context, self.progress.circuit
        circuit.open(cause)
        self.progress.error = str(cause)
        refused = isinstance(cause, ConfigError)
        event = "circuit opened: store " + ("refuses the worker" if refused else "unreachable")
        self._log.error(event, error=str(cause))
        self._reopened += 1
        context.wait(_REOPEN_BACKOFF.pause(self._reopened))
        try:
            retrying(
                self._probe,
                budget=math.inf,
                wait=context.wait,
                give_up=context.stopping.is_set,
                before_wait=lambda error, attempt, seconds: circuit.open(error),
                retryable=_is_refused if self._has_opened else _is_outage,
            )
        except (EventSyncError, OSError) as error:
            if context.stopping.is_set() and _is_refused(error):
                return
            raise
        circuit.close()
        # If the store answers but fails again, a single change may be the cause.
        self._applier.suspect_one_change()
        self._log.info("circuit closed: store reachable")

    def _probe(self) -> None:
        self.progress.circuit.probe()
        self.maintenance.accept_losses()
        self._applier.ping()


def _is_outage(error: BaseException) -> bool:
    """Return whether a store that raises ``error`` may work again without any correction."""
    return is_retryable(error) and not isinstance(error, ConfigError)


def _is_refused(error: BaseException) -> bool:
    """Return whether a store that raises ``error`` may work again, perhaps after a correction."""
    return is_retryable(error) or isinstance(error, ConfigError)
