"""The upkeep of one store: what its worker does between messages, each thing in its time.

It owns what is due and when: a restarted broker, held changes, the outbox, pending records,
captures, tombstones, dead letters that are too old. It must not know how messages are fetched, how
changes are applied, nor how one waits for a store that is away.
"""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable, Container, Mapping, Sequence
from typing import Any

from eventsync.broker.bus import Bus, Delivery, QueueBrowser
from eventsync.broker.relay import Broker, Relay
from eventsync.engine.apply import complete
from eventsync.engine.store import Store
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import (
    BusUnavailableError,
    ClockDriftError,
    ConfigError,
    DependencyError,
    EventSyncError,
)
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.worker.options import Options
from eventsync.worker.settlement import Batch, FailedEnvelope, Settlement, about_letter

__all__ = ["Maintenance"]

_LONGEST_HELD_WAIT = 60.0


class Maintenance:
    """Keeps up one store, a little whenever ``run`` is called. For one thread.

    ``publisher``: the broker, for what this store publishes. ``settle``: settles held changes as
    ``settlement.settle`` does, each of which may fail by itself. ``peers``: where pending records
    are completed from, and for which tombstones are kept.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        publisher: Broker,
        settlement: Settlement,
        settle: Callable[[Batch], list[FailedEnvelope]],
        peers: Sequence[Store],
        progress: WorkerStatus,
        options: Options,
        log: Any,
    ) -> None:
        self._store = store
        self._bus = bus
        self._publisher = publisher
        self._settlement = settlement
        self._settle = settle
        self._peers = peers
        self._progress = progress
        self._options = options
        self._log = log
        self._relay = Relay(store, publisher)
        self._due: dict[str, float] = {}
        # The broker's life, and when it was last seen in it.
        self._broker: tuple[str | None, float] | None = None
        self.broker_lost = False
        """Whether the broker has been away since it was last greeted."""
        self.arrived: set[str] = set()
        """The types that something was applied to since what waits for them was last tried."""

    def run(self, *, at_once: bool = False) -> None:
        """Do what is due, or all of it ``at_once``. A store that is busy is left for the next time.

        Raises ``BusUnavailableError`` and ``ConfigError``; other failures are logged.
        """
        tasks: list[tuple[str, float, Callable[[], object]]] = [
            ("broker", 1.0, self.greet_broker),
            ("held", 1.0, self._try_held),
            # At once is now, whoever's turn it is: what is published twice does no harm.
            ("outbox", 1.0, self._flush if at_once else self._relay_once),
            ("pending", 2.0, lambda: complete(self._store, self._peers)),
            ("tombstones", 3600.0, self._collect),
            ("letters", 3600.0, self._drop_letters),
        ]
        if self._store.capture_every:
            tasks.append(("capture", self._store.capture_every, self._capture))
        for number, (name, every, task) in enumerate(tasks):
            now = time.monotonic()
            # Each has its own place in the second: what comes waits for one of them, not for all.
            due = self._due.setdefault(name, now + number / len(tasks))
            if at_once or now >= due:
                self._due[name] = now + every - max(0.0, now - due) % every
                self._progress.beat(name)
                try:
                    task()
                except (BusUnavailableError, ConfigError):
                    raise
                except (EventSyncError, OSError) as error:
                    # Maintenance must not stop the store's work; it has its turn again.
                    self._log.warning("upkeep failed", task=name, error=str(error))

    def greet_broker(self) -> None:
        """Tell a broker again the latest it had confirmed, if it may have forgotten that."""
        life = self._bus.life()
        if self._broker is not None and self._options.republish_window:
            known, seen_at = self._broker
            if life != known or (life is None and self.broker_lost):
                since = seen_at - self._options.republish_window
                count = self._store.republish(self._publisher, since=since)
                self._log.info("broker was restarted: latest changes published again", count=count)
        self._broker, self.broker_lost = (life, time.time()), False

    def _flush(self) -> None:
        self._store.flush(self._publisher)

    def _relay_once(self) -> None:
        # It looks too seldom to keep the turn, which a relay of its own may want.
        with self._relay:
            self._relay.run_once()

    def _try_held(self) -> None:
        """Try again what was held, if its time or what it waits for has come."""
        states = self._bus.states(self._store.name)
        ready = states["held"].ready
        if not ready:
            return
        backlog = states["queue"].oldest
        self._settlement.oldest = math.inf if backlog is None else time.time() - backlog
        moved = self._moved()
        begun = time.monotonic()
        with self._bus.letters(self._store.name, held=True) as letters:
            # Once round: what is held again comes behind the others.
            while ready > 0 and (chunk := letters.read(min(ready, self._options.batch))):
                ready -= len(chunk)
                due = [
                    (letter, delivery)
                    for letter, delivery in chunk
                    if letter.type in moved[letter.reason] or time.time() >= self._due_at(letter)
                ]
                if due:
                    self._try_again(due, letters)
                    self._progress.beat("held")
        # However many they are, most of the time is left for what comes.
        pause = max(1.0, 4.0 * (time.monotonic() - begun))
        self._due["held"] = time.monotonic() + pause

    def _try_again(self, due: Sequence[tuple[DeadLetter, Delivery]], letters: QueueBrowser) -> None:
        still = self._settle(self._settlement.reopen(due))
        # Written anew with what was learnt, so that it outlives this process.
        self._bus.hold(self._store.name, [self._settlement.letter(item) for item in still])
        letters.settle(delivery for _, delivery in due)

    def _moved(self) -> Mapping[str, Container[str]]:
        """By why they are held, the types of which records may wait for nothing more.

        Something has been applied, since this was last asked, to a type that they depend on or
        that depends on them.
        """
        accessors, self.arrived, arrived = self._store.accessors, set(), self.arrived
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
            due = letter.version.millis / 1000 - self._options.limits.drift
        else:
            due = letter.last_time + min(_LONGEST_HELD_WAIT, 2.0 ** min(letter.attempts, 10))
        if self._settlement.may_come(letter.reason, letter.first_time):
            return due
        return min(due, letter.first_time + self._options.hold_for)

    def _drop_letters(self) -> None:
        """Drop the dead letters that are older than they are kept."""
        dead = self._bus.states(self._store.name)["dead"]
        oldest = math.inf if dead.oldest is None else dead.oldest
        if not dead.ready or oldest < self._options.letter_retention:
            return
        before = time.time() - self._options.letter_retention
        with self._bus.letters(self._store.name) as letters:
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

        edits = self._store.capture(whole=False, publisher=self._publisher, unreadable=unreadable)
        for changes in edits:
            self._progress.beat()
            if changes:
                self._log.info("captured edits", count=len(changes))

    def _collect(self) -> None:
        """Forget tombstones that are old enough, if no store lags behind them."""
        ages = [0.0]
        for store in [self._store, *self._peers]:
            try:
                states = self._bus.states(store.name)
            except EventSyncError as error:
                self._log.debug("tombstones are kept", store=store.name, error=str(error))
                return
            for state in states.values():
                if state.ready and state.oldest is None:
                    return
                ages.append(state.oldest or 0.0)
        keep = max(self._options.limits.retention, max(ages) + self._options.limits.drift)
        self._store.collect(time.time() - keep)
