"""The settlement of messages: what becomes of each, decided in one place.

It owns how a message is opened, and where each change in it goes: into the store, to the held ones,
to the dead letters. It knows nothing of loops, of waiting, or of how a store applies changes.
"""

from __future__ import annotations

import hashlib
import logging
import math
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from eventsync.broker.bus import Bus, Delivery
from eventsync.changes.change import Change
from eventsync.engine.apply import Settled
from eventsync.engine.gate import Outcome
from eventsync.envelope import batch, codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import DependencyError, EnvelopeError, EventSyncError
from eventsync.monitoring import catalogue, lag
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["Batch", "FailedEnvelope", "Settlement", "about_letter"]

_ASIDE: Final = frozenset({Outcome.REJECTED, Outcome.HELD})


class Origin(NamedTuple):
    """Where an envelope came from: its message, when it was first tried, and how often by now."""

    delivery: Delivery
    first_time: float
    attempts: int


@dataclass(slots=True)
class FailedEnvelope:
    """One envelope, or a message that is none, with which something is the matter."""

    raw: bytes
    origin: Origin
    change: Change | None
    outcome: Outcome
    error: EventSyncError | None


class Batch:
    """The envelopes in hand: of each its bytes, its origin, and the change or error it came to.

    In lists of one length, since there are thousands, and most of them are but changes to apply.
    """

    __slots__ = ("found", "origins", "raws")

    def __init__(self) -> None:
        self.raws: list[bytes] = []
        self.origins: list[Origin] = []
        self.found: list[Change | EventSyncError] = []

    def __len__(self) -> int:
        return len(self.raws)

    def add(
        self, raws: Sequence[bytes], found: Sequence[Change | EventSyncError], origin: Origin
    ) -> None:
        """Take up envelopes of one origin."""
        self.raws += raws
        self.found += found
        self.origins += [origin] * len(raws)


class Settlement:
    """Settles messages for one store. For one thread.

    ``apply``: applies changes, and says what became of each; its retryable errors pass through.
    ``progress`` and ``tally`` are told, by batches. ``types``: the record types that the
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
        progress: WorkerStatus,
        tally: Counters,
        hold_for: float,
        max_deliveries: int,
        log: Any,
    ) -> None:
        self._store = store
        self._bus = bus
        self._apply = apply
        self._types = types
        self._progress = progress
        self._tally = tally
        self._hold_for = hold_for
        self._max_deliveries = max_deliveries
        self._log = log
        self.collisions = 0
        """How many changes carried the version of another one."""
        self.oldest = math.inf
        """When the oldest message in the queue was published, in seconds since the epoch."""

    def open(self, deliveries: Iterable[Delivery]) -> Batch:
        """The envelopes in messages; what is not one comes with its error."""
        hand, now = Batch(), time.time()
        for delivery in deliveries:
            origin = Origin(delivery, now, delivery.attempts + 1)
            try:
                raws = self._split(delivery)
            except EventSyncError as error:
                hand.add([delivery.body], [error], origin)
            else:
                hand.add(raws, self._decode(raws), origin)
        return hand

    def reopen(self, letters: Iterable[tuple[DeadLetter, Delivery]]) -> Batch:
        """Held changes that are to be tried again."""
        hand = Batch()
        for letter, delivery in letters:
            origin = Origin(delivery, letter.first_time, letter.attempts + 1)
            hand.add([letter.raw], self._decode([letter.raw]), origin)
        return hand

    def _split(self, delivery: Delivery) -> list[bytes]:
        """The envelopes in a message. Raises ``EventSyncError`` for what is none."""
        if delivery.attempts >= self._max_deliveries:
            raise EventSyncError(
                f"taken {delivery.attempts} times by workers that then died",
                hint="look at the record with care before you replay it",
            )
        if delivery.size > self._bus.max_message:
            raise EnvelopeError(
                f"a message of {delivery.size:,} bytes; {self._bus.max_message:,} is the limit",
                reason="too-large",
            )
        if delivery.content_type != codec.CONTENT_TYPE:
            raise EnvelopeError(
                f"a message of content type {delivery.content_type[:80]!r}, "
                f"not {codec.CONTENT_TYPE}",
                hint="something else publishes into this queue",
            )
        return batch.split_batch(delivery.body)

    def _decode(self, raws: Sequence[bytes]) -> list[Change | EnvelopeError]:
        return codec.decode_all(raws, keys=self._bus.keys, max_bytes=self._bus.max_envelope)

    def settle(self, hand: Batch) -> list[FailedEnvelope]:
        """Apply, and put what cannot be applied where it is safe. The one place that does.

        When it returns, every envelope is in the store, known not to be needed there, in the dead
        letters, or among the held ones, which are returned. Raises retryable errors; then nothing
        is settled, and all of it may come again.
        """
        started = time.monotonic()
        changes = [found for found in hand.found if isinstance(found, Change)]
        times = lag.times(changes)
        self._progress.oldest = lag.oldest(times)
        applied = self._apply(changes) if changes else []
        aside = self._aside(hand, applied)
        rejected = [item for item in aside if item.outcome is Outcome.REJECTED]
        held = [item for item in aside if item.outcome is Outcome.HELD]
        if rejected:
            self._bus.dead_letter(self._store, [self.letter(item) for item in rejected])
        fresh = [item for item in held if not item.origin.delivery.queue.endswith(".held")]
        if fresh:
            self._bus.hold(self._store, [self.letter(item) for item in fresh])
        for item in aside:
            self._tell(item)
        for settled in applied:
            if settled.collision:
                self._tell_collision(settled.change)
        if self._log.is_enabled_for(logging.DEBUG):
            for _, origin, _, one in _paired(hand, applied):
                if one is not None and one.outcome not in _ASIDE:
                    about = _about(one.change) | {"attempt": origin.attempts}
                    self._log.debug(str(one.outcome), **about)
        self._count(applied, times, aside)
        if changes:
            self._tally.observe(catalogue.BATCH, len(changes), self._store)
            self._tally.observe(catalogue.BATCH_DURATION, time.monotonic() - started, self._store)
        return held

    def _aside(self, hand: Batch, applied: Sequence[Settled]) -> list[FailedEnvelope]:
        """What was not applied and is to be kept, with what is to become of it."""
        if len(applied) == len(hand) and _ASIDE.isdisjoint({s.outcome for s in applied}):
            return []
        aside, now = [], time.time()
        for raw, origin, found, settled in _paired(hand, applied):
            if settled is None or not isinstance(found, Change):
                assert isinstance(found, EventSyncError)
                aside.append(FailedEnvelope(raw, origin, None, Outcome.REJECTED, found))
            elif settled.outcome in _ASIDE:
                item = FailedEnvelope(raw, origin, found, settled.outcome, settled.error)
                if item.outcome is Outcome.HELD and self._is_over(item, now):
                    item.outcome = settled.outcome = Outcome.REJECTED
                aside.append(item)
        return aside

    def refused(self, size: int) -> None:
        """A message of ``size`` bytes was too large to be opened, and goes to the dead letters."""
        self._log.error("dead letter", reason="too-large", size=size)
        self._progress.outcomes[Outcome.REJECTED] += 1
        self._tally.add(catalogue.CHANGES, 1, self._store, catalogue.OTHER, str(Outcome.REJECTED))
        self._tally.add(catalogue.DEAD_LETTERS, 1, self._store, catalogue.OTHER, "too-large")

    def _is_over(self, item: FailedEnvelope, now: float) -> bool:
        """Whether a held change has been tried for as long as it may."""
        first = item.origin.first_time
        return not self.may_come(_reason(item), first) and now - first > self._hold_for

    def may_come(self, reason: str, first_time: float) -> bool:
        """Whether what a held change waits for may still be in the queue, behind a backlog."""
        return reason == DependencyError.reason and self.oldest < first_time

    def letter(self, item: FailedEnvelope) -> DeadLetter:
        """What is kept of a change that is put aside."""
        change = item.change
        return DeadLetter(
            reason=_reason(item),
            message=str(item.error or ""),
            store=self._store,
            queue=item.origin.delivery.queue,
            attempts=item.origin.attempts,
            first_time=item.origin.first_time,
            last_time=time.time(),
            raw=item.raw,
            type=change.type if change else None,
            key=change.key if change else None,
            version=change.version if change else None,
            op=change.op if change else None,
            content_type=item.origin.delivery.content_type,
        )

    def _count(
        self, applied: Sequence[Settled], times: Sequence[bytes], aside: Sequence[FailedEnvelope]
    ) -> None:
        """Count a batch: what can be summed up first is, since this is done for every change."""
        names: defaultdict[str, list[str]] = defaultdict(list)
        made: defaultdict[str, list[bytes]] = defaultdict(list)
        won = Outcome.APPLIED
        for settled, moment in zip(applied, times, strict=True):
            type, outcome = settled.change.type, settled.outcome
            # By name: a member's own hash is a call into Python for each.
            names[type].append(outcome._name_)
            if outcome is won:
                made[type].append(moment)
        counts: Counter[tuple[str, Outcome]] = Counter()
        for type, of_type in names.items():
            for name, count in Counter(of_type).items():
                counts[self._label(type), Outcome[name]] += count
        for type, moments in made.items():
            ages = lag.spread(moments, catalogue.LAG.bounds)
            self._tally.spread(catalogue.LAG, ages, self._store, self._label(type))
        for item in aside:
            type = catalogue.OTHER if item.change is None else self._label(item.change.type)
            if item.change is None:
                counts[type, Outcome.REJECTED] += 1
            if item.outcome is Outcome.REJECTED:
                self._tally.add(catalogue.DEAD_LETTERS, 1, self._store, type, _reason(item))
        for (type, outcome), count in counts.items():
            self._progress.outcomes[outcome] += count
            self._tally.add(catalogue.CHANGES, count, self._store, type, str(outcome))

    def _label(self, type: str) -> str:
        """The label of a record type, none that came from outside."""
        return type if type in self._types else catalogue.OTHER

    def _tell_collision(self, change: Change) -> None:
        self.collisions += 1
        self._tally.add(catalogue.COLLISIONS, 1, self._store, self._label(change.type))
        self._log.error("two changes carry one version", **_about(change), id=change.id)

    def _tell(self, item: FailedEnvelope) -> None:
        if item.outcome is Outcome.REJECTED:
            self._log.error(
                "dead letter", **_about(item.change), reason=_reason(item), error=str(item.error)
            )
        else:
            told = _about(item.change) | {"attempt": item.origin.attempts}
            self._log.warning("held", **told, error=str(item.error))


def _paired(
    hand: Batch, applied: Iterable[Settled]
) -> Iterator[tuple[bytes, Origin, Change | EventSyncError, Settled | None]]:
    """Each envelope, with what became of its change if it holds one."""
    outcomes = iter(applied)
    for raw, origin, found in zip(hand.raws, hand.origins, hand.found, strict=True):
        yield raw, origin, found, next(outcomes) if isinstance(found, Change) else None


def _reason(item: FailedEnvelope) -> str:
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
