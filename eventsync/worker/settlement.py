"""The settlement of messages: applies changes; stores held changes and dead letters."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from eventsync.broker.bus import Delivery
from eventsync.changes.change import Change
from eventsync.engine.apply import Settled
from eventsync.engine.gate import Outcome
from eventsync.envelope import batch
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import DependencyError, EnvelopeError, EventSyncError, UniqueError
from eventsync.monitoring import lag
from eventsync.worker.applier import Applier
from eventsync.worker.context import WorkerContext
from eventsync.worker.message import Message, MessageReader
from eventsync.worker.outcome_reporter import OutcomeReporter, reason_of

__all__ = ["FailedEnvelope", "Settlement", "dependency_may_arrive"]

# How many envelopes of one message that cannot be decoded become dead letters of their own.
_LETTERS_OF_MESSAGE: Final = 10
_ON_OTHERS: Final = frozenset({DependencyError.reason, UniqueError.reason})
_FAILED: Final = frozenset({Outcome.REJECTED, Outcome.HELD})


@dataclass(slots=True)
class FailedEnvelope:
    """An envelope, or an unparseable message, that could not be applied.

    ``outcome``: ``HELD`` if the change will be retried later, ``REJECTED`` if the envelope becomes
    a dead letter. ``change``: ``None`` if the envelope could not be decoded.
    """

    raw: bytes
    message: Message
    change: Change | None
    outcome: Outcome
    error: EventSyncError | None


class Settlement:
    """Settles messages and held changes for one store. Not thread-safe.

    ``apply`` applies or supersedes the changes in messages and returns those that failed. The
    caller may acknowledge the messages without a failure at once: so a broker that is too full to
    store a dead letter becomes emptier. ``store`` then stores the failures as held changes or dead
    letters; after that the caller may acknowledge their messages, too. If a method raises a
    retryable error, the caller must not acknowledge, and may call ``apply`` again.
    """

    def __init__(self, context: WorkerContext, applier: Applier) -> None:
        self._bus = context.bus
        self._store = context.store.name
        self._status = context.status
        self._hold_for = context.options.hold_for
        self._reader = MessageReader(context.bus, max_deliveries=context.options.max_deliveries)
        self._applier = applier
        self._reporter = OutcomeReporter(context)

    @property
    def collisions(self) -> int:
        """The number of changes that had the same version as another, different change."""
        return self._reporter.collisions

    def apply(self, deliveries: Iterable[Delivery]) -> list[FailedEnvelope]:
        """Apply messages that were received from the store's queue. Return what failed."""
        return self._apply(self._reader.read(deliveries), retried=False)

    def settle_held(
        self, letters: Iterable[tuple[DeadLetter, Delivery]], *, queue_oldest: float
    ) -> None:
        """Retry held changes. A change that fails again is held again or becomes a dead letter.

        When this method returns, the caller may acknowledge all deliveries. ``letters``: the held
        changes, with their deliveries. ``queue_oldest``: when the oldest message of the store's
        queue was published, in seconds since the epoch.
        """
        messages = self._reader.read_held(letters)
        self.store(self._apply(messages, retried=True, queue_oldest=queue_oldest))

    def refuse(self, delivery: Delivery) -> None:
        """Log and count a message that is too large to be read.

        The caller then refuses the delivery, so that the broker makes it a dead letter.
        """
        self._reporter.report_oversized(delivery.size)

    def store(self, failed: Sequence[FailedEnvelope]) -> None:
        """Store failures as held changes or dead letters, and log and count them. Blocks.

        Raises ``BusUnavailableError`` if the broker cannot store them; some may be stored then.
        """
        self._store_failed(failed)
        reporter = self._reporter
        for item in failed:
            if item.outcome is Outcome.REJECTED:
                reporter.log_dead_letter(item.change, item.error)
                reporter.count_dead_letter(item.change, reason_of(item.error))
            else:
                reporter.log_held(item.change, item.error, item.message.attempts)

    def _apply(
        self, messages: Sequence[Message], *, retried: bool, queue_oldest: float = math.inf
    ) -> list[FailedEnvelope]:
        started = time.monotonic()
        changes = [c for m in messages for c in m.contents if isinstance(c, Change)]
        times = lag.times(changes)
        self._status.oldest = lag.oldest(times)
        settled: list[Settled] = []
        if changes:
            apply = self._applier.apply_held if retried else self._applier.apply
            settled = apply(changes)
        failed = self._failed(messages, settled, queue_oldest)
        self._report(messages, settled)
        self._reporter.count_batch(settled, times, seconds=time.monotonic() - started)
        return failed

    def _failed(
        self, messages: Sequence[Message], settled: Sequence[Settled], queue_oldest: float
    ) -> list[FailedEnvelope]:
        """Return the envelopes that are to be stored as held changes or dead letters.

        Changes the outcome of a change that has been held for too long to ``REJECTED``, also in
        ``settled``.
        """
        total = sum(len(message.envelopes) for message in messages)
        if len(settled) == total and _FAILED.isdisjoint({item.outcome for item in settled}):
            return []
        failed, now = [], time.time()
        for message, raw, result in _results(messages, settled):
            if isinstance(result, EventSyncError):
                failed.append(FailedEnvelope(raw, message, None, Outcome.REJECTED, result))
            elif result.outcome in _FAILED:
                item = FailedEnvelope(raw, message, result.change, result.outcome, result.error)
                if item.outcome is Outcome.HELD and self._is_over(item, now, queue_oldest):
                    item.outcome = result.outcome = Outcome.REJECTED
                failed.append(item)
        return _joined(failed)

    def _is_over(self, item: FailedEnvelope, now: float, queue_oldest: float) -> bool:
        """Return whether a held change has been retried for too long and becomes a dead letter."""
        first_time = item.message.first_time
        if dependency_may_arrive(reason_of(item.error), first_time, queue_oldest):
            return False
        return now - first_time > self._hold_for

    def _store_failed(self, failed: Sequence[FailedEnvelope]) -> None:
        """Send dead letters to the dead-letter queue, and held changes to the held queue."""
        dead = [self._letter(item) for item in failed if item.outcome is Outcome.REJECTED]
        held = [self._letter(item) for item in failed if item.outcome is Outcome.HELD]
        if dead:
            self._bus.dead_letter(self._store, dead)
        if held:
            self._bus.hold(self._store, held)

    def _letter(self, item: FailedEnvelope) -> DeadLetter:
        change, message = item.change, item.message
        return DeadLetter(
            reason=reason_of(item.error),
            message=str(item.error or ""),
            store=self._store,
            queue=message.delivery.queue,
            attempts=message.attempts,
            first_time=message.first_time,
            last_time=time.time(),
            raw=item.raw,
            type=change.type if change else None,
            key=change.key if change else None,
            version=change.version if change else None,
            op=change.op if change else None,
            content_type=message.delivery.content_type,
        )

    def _report(self, messages: Sequence[Message], settled: Sequence[Settled]) -> None:
        reporter = self._reporter
        reporter.count_collisions(settled)
        if reporter.logs_every_change:
            for message, _, result in _results(messages, settled):
                if isinstance(result, Settled) and result.outcome not in _FAILED:
                    reporter.log_outcome(result, message.attempts)


def _joined(failed: Sequence[FailedEnvelope]) -> list[FailedEnvelope]:
    """Put the envelopes of one message that cannot be decoded together, beyond the first ten.

    A dead letter takes more space than such an envelope. Without this, a message of 65,535 empty
    envelopes would become dead letters of 170 times its size, and could fill the broker.
    """
    counts = Counter(id(item.message) for item in failed if item.change is None)
    crowded = {number for number, count in counts.items() if count > _LETTERS_OF_MESSAGE}
    if not crowded:
        return list(failed)
    joined: list[FailedEnvelope] = []
    rest: dict[int, list[FailedEnvelope]] = {number: [] for number in crowded}
    taken: Counter[int] = Counter()
    for item in failed:
        number = id(item.message)
        if item.change is not None or number not in crowded:
            joined.append(item)
        elif taken[number] < _LETTERS_OF_MESSAGE:
            taken[number] += 1
            joined.append(item)
        else:
            rest[number].append(item)
    for items in rest.values():
        first = items[0]
        error = EnvelopeError(
            f"{len(items)} envelopes of one message cannot be read; the first: {first.error}",
            reason=reason_of(first.error),
        )
        raw = batch.join_batch([item.raw for item in items])
        joined.append(FailedEnvelope(raw, first.message, None, Outcome.REJECTED, error))
    return joined


def dependency_may_arrive(reason: str, first_time: float, queue_oldest: float) -> bool:
    """Return whether the record that a held change depends on may still arrive from the queue.

    This is possible if the change is held because of another record (``reason``) and the queue has
    messages that are older than the first attempt. ``first_time``: the time of the first attempt.
    ``queue_oldest``: the time of the oldest message. Both in seconds since the epoch.
    """
    return reason in _ON_OTHERS and queue_oldest < first_time


def _results(
    messages: Sequence[Message], settled: Iterable[Settled]
) -> Iterator[tuple[Message, bytes, Settled | EventSyncError]]:
    """Yield (message, envelope, result) for each envelope.

    The result is the outcome of the change, or the error if the envelope could not be decoded.
    """
    outcomes = iter(settled)
    for message in messages:
        for raw, content in zip(message.envelopes, message.contents, strict=True):
            yield message, raw, next(outcomes) if isinstance(content, Change) else content
