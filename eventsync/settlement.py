"""The settlement of messages: what becomes of each, decided in one place.

It owns how a message is opened, and where each change in it goes: into the store, to the held ones,
to the dead letters. It knows nothing of loops, of waiting, or of how a store applies changes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from eventsync import envelope, framing, lag, metric
from eventsync.apply import Settled
from eventsync.bus import Bus, Delivery
from eventsync.change import Change
from eventsync.deadletter import DeadLetter
from eventsync.errors import DependencyError, EnvelopeError, EventSyncError
from eventsync.gate import Outcome
from eventsync.tally import Tally

__all__ = ["Item", "Settlement", "about_letter"]

_ASIDE: Final = (Outcome.REJECTED, Outcome.HELD)


@dataclass(slots=True)
class Item:
    """One envelope in hand, or a message that is none."""

    raw: bytes
    delivery: Delivery
    first_time: float
    attempts: int
    change: Change | None = None
    error: EventSyncError | None = None
    outcome: Outcome = Outcome.REJECTED


class Settlement:
    """Settles messages for one store. For one thread.

    ``apply``: applies changes, and says what became of each; its retryable errors pass through.
    ``outcomes`` and ``tally`` are counted up, by batches. ``types``: the record types that the
    store holds. ``hold_for``: how long, in seconds, a held change is tried again.
    ``max_deliveries``: how often a message may be taken by workers that then die.
    """

    def __init__(
        self,
        store: str,
        bus: Bus,
        apply: Callable[[Sequence[Change]], list[Settled]],
        *,
        types: Collection[str],
        outcomes: Counter[Outcome],
        tally: Tally,
        hold_for: float,
        max_deliveries: int,
        log: Any,
    ) -> None:
        self._store = store
        self._bus = bus
        self._apply = apply
        self._types = types
        self._outcomes = outcomes
        self._tally = tally
        self._hold_for = hold_for
        self._max_deliveries = max_deliveries
        self._log = log
        self.collisions = 0
        """How many changes carried the version of another one."""
        self.oldest = math.inf
        """When the oldest message in the queue was published, in seconds since the epoch."""

    def open(self, delivery: Delivery) -> list[Item]:
        """The envelopes in a message; what is not one comes with its error."""
        now = time.time()
        attempts = delivery.attempts + 1
        if attempts > self._max_deliveries:
            error = EventSyncError(
                f"taken {delivery.attempts} times by workers that then died",
                hint="look at the record with care before you replay it",
            )
            return [Item(delivery.body, delivery, now, attempts, error=error)]
        try:
            if delivery.size > self._bus.max_message:
                large = EnvelopeError(
                    f"a message of {delivery.size:,} bytes; {self._bus.max_message:,} is the limit"
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
            return [Item(delivery.body, delivery, now, attempts, error=error)]
        items = [Item(raw, delivery, now, attempts) for raw in raws]
        self._decode(items)
        return items

    def reopen(self, letter: DeadLetter, delivery: Delivery) -> Item:
        """A held change that is to be tried again."""
        item = Item(letter.raw, delivery, letter.first_time, letter.attempts + 1)
        self._decode([item])
        return item

    def settle(self, items: Sequence[Item]) -> list[Item]:
        """Apply, and put what cannot be applied where it is safe. The one place that does.

        When it returns, every item is in the store, known not to be needed there, in the dead
        letters, or among the held ones, which are returned if they were held before. Raises
        retryable errors; then nothing is settled, and all of it may come again.
        """
        started = time.monotonic()
        sound = [item for item in items if item.change is not None and item.error is None]
        changes = [item.change for item in sound if item.change is not None]
        applied = self._apply(changes) if changes else []
        for item, settled in zip(sound, applied, strict=True):
            item.outcome, item.error = settled.outcome, settled.error
            if settled.collision:
                self.collisions += 1
                self._tally.add(metric.COLLISIONS, 1, self._store, self._type_of(item))
                self._log.error(
                    "two changes carry one version", **_about(settled.change), id=settled.change.id
                )
        aside = [item for item in items if item.outcome in _ASIDE]
        now = time.time()
        for item in aside:
            if item.outcome is Outcome.HELD and self._is_over(item, now):
                item.outcome = Outcome.REJECTED
        rejected = [item for item in aside if item.outcome is Outcome.REJECTED]
        held = [item for item in aside if item.outcome is Outcome.HELD]
        if rejected:
            self._bus.dead_letter(self._store, [self.letter(item) for item in rejected])
        fresh = [item for item in held if not item.delivery.queue.endswith(".held")]
        if fresh:
            self._bus.hold(self._store, [self.letter(item) for item in fresh])
        for item in items if self._log.is_enabled_for(logging.DEBUG) else aside:
            self._tell(item)
        self._count(items)
        if changes:
            self._tally.observe(metric.BATCH, len(changes), self._store)
            self._tally.observe(metric.BATCH_DURATION, time.monotonic() - started, self._store)
        return held

    def refused(self, size: int) -> None:
        """A message of ``size`` bytes was too large to be opened, and goes to the dead letters."""
        self._log.error("dead letter", reason="too-large", size=size)
        self._outcomes[Outcome.REJECTED] += 1
        self._tally.add(metric.CHANGES, 1, self._store, metric.OTHER, str(Outcome.REJECTED))
        self._tally.add(metric.DEAD_LETTERS, 1, self._store, metric.OTHER, "too-large")

    def _is_over(self, item: Item, now: float) -> bool:
        """Whether a held change has been tried for as long as it may."""
        waits = self.may_come(_reason(item), item.first_time)
        return not waits and now - item.first_time > self._hold_for

    def may_come(self, reason: str, first_time: float) -> bool:
        """Whether what a held change waits for may still be in the queue, behind a backlog."""
        return reason == DependencyError.reason and self.oldest < first_time

    def letter(self, item: Item) -> DeadLetter:
        """What is kept of a change that is put aside."""
        change = item.change
        return DeadLetter(
            reason=_reason(item),
            message=str(item.error or ""),
            store=self._store,
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

    def _decode(self, items: Sequence[Item]) -> None:
        read = envelope.decode_all(
            [item.raw for item in items], keys=self._bus.keys, max_bytes=self._bus.max_envelope
        )
        for item, found in zip(items, read, strict=True):
            if isinstance(found, Change):
                item.change = found
            else:
                item.error = found

    def _count(self, items: Sequence[Item]) -> None:
        """Count a batch: what can be summed up first is, since this is done for every change."""
        by_type: dict[str, list[Item]] = {}
        for item in items:
            by_type.setdefault(self._type_of(item), []).append(item)
        won, lost = Outcome.APPLIED, Outcome.REJECTED  # looked up once: see ``gate``
        for type, of_type in by_type.items():
            # By name: a member's own hash is a call into Python for each.
            counts = Counter([item.outcome._name_ for item in of_type])
            for name, count in counts.items():
                outcome = Outcome[name]
                self._outcomes[outcome] += count
                self._tally.add(metric.CHANGES, count, self._store, type, str(outcome))
            applied = [i.change for i in of_type if i.outcome is won and i.change]
            if applied:
                ages = lag.spread(applied, metric.LAG.bounds)
                self._tally.spread(metric.LAG, ages, self._store, type)
            rejected = Counter(_reason(i) for i in of_type if i.outcome is lost)
            for reason, count in rejected.items():
                self._tally.add(metric.DEAD_LETTERS, count, self._store, type, reason)

    def _type_of(self, item: Item) -> str:
        """The label of its record type, none that came from outside."""
        type = item.change.type if item.change is not None else metric.OTHER
        return type if type in self._types else metric.OTHER

    def _tell(self, item: Item) -> None:
        if item.outcome is Outcome.REJECTED:
            self._log.error(
                "dead letter", **_about(item.change), reason=_reason(item), error=str(item.error)
            )
        elif item.outcome is Outcome.HELD:
            told = _about(item.change) | {"attempt": item.attempts}
            self._log.warning("held", **told, error=str(item.error))
        else:
            self._log.debug(str(item.outcome), **_about(item.change), attempt=item.attempts)


def _reason(item: Item) -> str:
    if item.error is None:
        return "error"
    # A version that stayed in the future too long; a worker that died too often.
    return "crashes" if type(item.error) is EventSyncError else item.error.reason


def _about(change: Change | None) -> dict[str, Any]:
    """What a log line says of a change: enough to find it by, and nothing that it carries."""
    if change is None:
        return {}
    return {
        "type": change.type,
        # The key may be somebody's address; its digest is enough to find it by.
        "key_digest": hashlib.sha256(change.key.encode()).hexdigest()[:16],
        "op": change.op,
        "version": change.version.hex(),
    }


def about_letter(letter: DeadLetter) -> dict[str, Any]:
    """As ``about``, of what has been put aside."""
    digest = hashlib.sha256((letter.key or "").encode()).hexdigest()[:16]
    return {
        "reason": letter.reason,
        "type": letter.type,
        "key_digest": digest if letter.key else None,
        "version": letter.version.hex() if letter.version else None,
        "attempts": letter.attempts,
    }
