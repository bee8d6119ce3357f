"""The maintenance of one store: the periodic tasks that its worker runs between deliveries."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Final

from eventsync.broker.bus import Delivery, QueueBrowser
from eventsync.broker.relay import Relay
from eventsync.engine.completion import complete
from eventsync.engine.store import Store
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import (
    BusUnavailableError,
    ClockDriftError,
    ConfigError,
    DependencyError,
    EventSyncError,
    RecordError,
    UniqueError,
)
from eventsync.monitoring.worker_status import PROGRESS_MARK
from eventsync.retry import Backoff
from eventsync.worker.applier import Applier
from eventsync.worker.capture import CaptureTask
from eventsync.worker.context import WorkerContext
from eventsync.worker.outcome_reporter import describe_letter
from eventsync.worker.refill import RefillTask
from eventsync.worker.settlement import Settlement, dependency_may_arrive

__all__ = ["Maintenance"]

_HELD_BACKOFF: Final = Backoff(2.0, 60.0)
# A capture that failed is repeated after so many seconds, even if `capture_every` is longer.
_REPEAT_FAILED_CAPTURE: Final = 30.0


class Maintenance:
    """Runs the periodic tasks of one store's worker. Not thread-safe.

    The tasks: republish changes after a restart of the broker, retry held changes, publish the
    outbox, complete pending records, capture foreign writes, fill an emptied store, note the
    progress, and remove old tombstones and old dead letters. ``peers``: the other stores, from
    which pending records are completed and an emptied store is filled. A tombstone is kept while
    messages as old as the tombstone wait in a queue of any of these stores.
    """

    def __init__(
        self,
        context: WorkerContext,
        applier: Applier,
        settlement: Settlement,
        *,
        peers: Sequence[Store] = (),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = context.store
        self._bus = context.bus
        self._publisher = context.publisher
        self._broker_life = context.broker_life
        self._status = context.status
        self._options = context.options
        self._log = context.log
        self._applier = applier
        self._settlement = settlement
        self._peers = peers
        self._monotonic = monotonic
        self._relay = Relay(context.store, context.publisher)
        self._capture = CaptureTask(context, monotonic=monotonic)
        self._refill = RefillTask(context, peers, monotonic=monotonic)
        self._long_tasks = {"refill": self._refill.background, "capture": self._capture.background}
        # When each task is due next, by its name, on the monotonic clock.
        self._due: dict[str, float] = {}

    @property
    def is_under_way(self) -> bool:
        """Whether a long task is under way, of which each call of ``run`` does a slice."""
        return any(task.is_under_way for task in self._long_tasks.values())

    def accept_losses(self) -> None:
        """Let a store that was emptied take records again, if it is declared with ``refill``."""
        self._refill.accept_losses()

    def run(self, *, idle: bool = True, at_once: bool = False) -> None:
        """Run the tasks that are due; with ``at_once``, run all tasks to their end.

        ``idle``: whether no message waits. If messages wait, long tasks pause between two slices.
        If a task fails, the error is logged and the other tasks run. Raises only
        ``BusUnavailableError``, if the broker cannot be reached, and ``ConfigError``, if the broker
        or this store refuses what the task asks; if a peer does, the error is logged.
        """
        tasks: list[tuple[str, float, Callable[[], object]]] = [
            ("broker", 1.0, self.republish_lost),
            ("held", 1.0, self._retry_held),
            # With `at_once`, publish without the lease: publishing twice does no harm.
            ("outbox", 1.0, self._flush_outbox if at_once else self._relay_outbox),
            ("pending", 2.0, self._complete_pending),
            ("tombstones", 3600.0, self._collect_tombstones),
            ("letters", 3600.0, self._drop_old_dead_letters),
            ("progress", 10.0, self._save_progress),
            ("refill", 10.0, self._refill.check),
        ]
        if self._store.capture_every:
            tasks.append(("capture", self._store.capture_every, self._capture.begin))
        for number, (name, every, task) in enumerate(tasks):
            now = self._monotonic()
            # Spread the tasks over a second, so that an arriving message waits for one task only.
            due = self._due.setdefault(name, now + number / len(tasks))
            if at_once or now >= due:
                self._due[name] = now + every - max(0.0, now - due) % every
                self._status.beat(name)
                self._run_task(name, task)
        for name, long_task in self._long_tasks.items():
            if long_task.is_under_way:
                self._status.beat(name)
                advance = partial(long_task.advance, idle=idle)
                self._run_task(name, long_task.finish if at_once else advance)
        if self._capture.has_failed:
            due = self._monotonic() + _REPEAT_FAILED_CAPTURE
            self._due["capture"] = min(self._due["capture"], due)

    def _save_progress(self) -> None:
        """Note in the index when the queue was last worked on, for ``eventsync status``."""
        if self._status.progress_at is not None:
            self._store.index.save_mark(PROGRESS_MARK, f"{self._status.progress_at:.0f}")

    def _run_task(self, name: str, task: Callable[[], object]) -> None:
        try:
            task()
        except (EventSyncError, OSError) as error:
            own = getattr(error, "store", "") in ("", self._store.name)
            if isinstance(error, BusUnavailableError) or (isinstance(error, ConfigError) and own):
                raise
            self._log.warning("maintenance task failed", task=name, error=str(error))
        except Exception as error:
            shown = f"unexpected {type(error).__name__}: {error}"
            self._log.error("maintenance task failed", task=name, error=shown, exc_info=True)

    def republish_lost(self) -> None:
        """Publish recent changes again if the broker was restarted and may have lost them.

        These are the changes that the store published from ``Options.republish_window`` seconds
        before the broker was last seen.
        """
        life, window = self._broker_life, self._options.republish_window
        if life.may_have_forgotten() and life.seen_at is not None and window:
            count = self._store.republish(
                self._publisher, since=life.seen_at - window, unreadable=self._log_unpublished
            )
            self._log.info("broker restarted, recent changes published again", count=count)
        life.confirm()

    def _log_unpublished(self, error: RecordError) -> None:
        self._log.error("record unreadable, not published again", error=str(error))

    def _flush_outbox(self) -> None:
        self._store.flush(self._publisher)

    def _relay_outbox(self) -> None:
        # Release the lease each time, so that a relay, which checks more often, can take it.
        with self._relay:
            self._relay.run_once()

    def _complete_pending(self) -> None:
        complete(self._store, self._peers)

    def _retry_held(self) -> None:
        """Retry the held changes that are due or whose missing record may have arrived."""
        states = self._bus.states(self._store.name)
        ready = states["held"].ready
        if not ready:
            return
        age = states["queue"].oldest
        queue_oldest = math.inf if age is None else time.time() - age
        freed = self._freed_types()
        began = self._monotonic()
        with self._bus.letters(self._store.name, held=True) as letters:
            # Read each letter once: changes that are held again are put at the end of the queue.
            while ready > 0 and (chunk := letters.read(min(ready, self._options.batch))):
                ready -= len(chunk)
                due = [
                    (letter, delivery)
                    for letter, delivery in chunk
                    if letter.type in freed[letter.reason]
                    or time.time() >= self._due_at(letter, queue_oldest)
                ]
                if due:
                    self._settlement.settle_held(due, queue_oldest=queue_oldest)
                    letters.settle(delivery for _, delivery in due)
                    self._status.beat("held")
        # Even with many held changes, most of the time remains for new messages.
        pause = max(1.0, 4.0 * (self._monotonic() - began))
        self._due["held"] = self._monotonic() + pause

    def _freed_types(self) -> Mapping[str, Container[str]]:
        """Return the record types whose held changes are retried at once, by reason for holding.

        A change that waits for a unique value is retried if changes of its type were applied or
        newly held since the last call; one that waits for another dependency, if that is so of its
        type or of one that its type depends on, or the reverse. Newly held changes count, because
        records that exchange a value or refer to each other can only be applied together.
        """
        accessors, touched = self._store.accessors, self._applier.take_touched_types()
        related = {
            one
            for name, accessor in accessors.items()
            for other in touched
            for one in (name, other)
            if accessor.depends_on(accessors[other]) or accessors[other].depends_on(accessor)
        }
        freed = {DependencyError.reason: related, UniqueError.reason: touched}
        return defaultdict(tuple, freed)

    def _due_at(self, letter: DeadLetter, queue_oldest: float) -> float:
        """Return when a held change is due for its next attempt, in seconds since the epoch.

        ``queue_oldest``: when the oldest message in the store's queue was published. A letter with
        a time in the future, which a hostile or wrong clock wrote, is due at once.
        """
        if max(letter.first_time, letter.last_time) > time.time() + self._options.limits.drift:
            return 0.0
        if letter.reason == ClockDriftError.reason and letter.version is not None:
            due = letter.version.millis / 1000 - self._options.limits.drift
        else:
            due = letter.last_time + _HELD_BACKOFF.pause(letter.attempts)
        if dependency_may_arrive(letter.reason, letter.first_time, queue_oldest):
            return due
        return min(due, letter.first_time + self._options.hold_for)

    def _drop_old_dead_letters(self) -> None:
        dead = self._bus.states(self._store.name)["dead"]
        oldest = math.inf if dead.oldest is None else dead.oldest
        if not dead.ready or oldest < self._options.letter_retention:
            return
        before = time.time() - self._options.letter_retention
        with self._bus.letters(self._store.name) as letters:
            while chunk := letters.read(500):
                old = [(one, delivery) for one, delivery in chunk if one.last_time < before]
                letters.settle(delivery for _, delivery in old)
                self._date_again(letters, chunk)
                for letter, _ in old:
                    self._log.warning("old dead letter dropped", **describe_letter(letter))
                if len(old) < len(chunk):
                    return

    def _date_again(
        self, letters: QueueBrowser, chunk: Sequence[tuple[DeadLetter, Delivery]]
    ) -> None:
        """Replace dead letters that are dated in the future, which would never grow old."""
        now = time.time()
        latest = now + self._options.limits.drift
        wrong = [(one, delivery) for one, delivery in chunk if one.last_time > latest]
        if wrong:
            dated = [
                replace(one, first_time=min(one.first_time, now), last_time=now) for one, _ in wrong
            ]
            self._bus.dead_letter(self._store.name, dated)
            letters.settle(delivery for _, delivery in wrong)

    def _collect_tombstones(self) -> None:
        """Remove old tombstones, but keep those that a waiting message may still need.

        A message may need a tombstone if it is as old as the tombstone. If the age of the waiting
        messages is unknown, all tombstones are kept.
        """
        ages = [0.0]
        for store in [self._store, *self._peers]:
            try:
                states = self._bus.states(store.name)
            except EventSyncError as error:
                self._log.debug(
                    "tombstones kept, queues unreadable", store=store.name, error=str(error)
                )
                return
            for state in states.values():
                if state.ready and state.oldest is None:
                    return
                ages.append(state.oldest or 0.0)
        keep = max(self._options.limits.retention, max(ages) + self._options.limits.drift)
        self._store.collect(time.time() - keep)
