"""The outcome reporter: logs and counts the outcomes of changes."""

from __future__ import annotations

import hashlib
import logging
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled
from eventsync.engine.gate import Outcome
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.errors import EventSyncError
from eventsync.monitoring import catalogue, lag
from eventsync.worker.context import WorkerContext

__all__ = ["OutcomeReporter", "describe_letter"]


class OutcomeReporter:
    """Writes the outcome of each change to the log, the counters and the status of one worker."""

    def __init__(self, context: WorkerContext) -> None:
        self._store = context.store.name
        self._types = context.store.accessors
        self._status = context.status
        self._counters = context.counters
        self._log = context.log
        self.collisions = 0
        """The number of changes that had the same version as another, different change."""

    @property
    def logs_every_change(self) -> bool:
        """Whether the log level is debug, so that each change is logged."""
        return bool(self._log.is_enabled_for(logging.DEBUG))

    def log_outcome(self, settled: Settled, attempts: int) -> None:
        """Log, at debug level, the outcome of a change that is neither held nor a dead letter."""
        self._log.debug(str(settled.outcome), **_describe(settled.change), attempt=attempts)

    def log_dead_letter(self, change: Change | None, error: EventSyncError | None) -> None:
        """Log that a change became a dead letter.

        ``change``: ``None`` if the envelope could not be decoded.
        """
        self._log.error(
            "dead letter", **_describe(change), reason=reason_of(error), error=str(error)
        )

    def log_held(self, change: Change | None, error: EventSyncError | None, attempts: int) -> None:
        """Log that a change is held. ``attempts``: how often it was tried."""
        self._log.warning("change held", **_describe(change), attempt=attempts, error=str(error))

    def count_collisions(self, settled: Iterable[Settled]) -> None:
        """Count and log the changes that have the same version as another, different change."""
        for item in settled:
            if item.collision:
                change = item.change
                self.collisions += 1
                label = self._label(change.type)
                self._counters.add(catalogue.COLLISIONS, 1, self._store, label)
                self._log.error("two changes have one version", **_describe(change), id=change.id)

    def count_dead_letter(self, change: Change | None, reason: str) -> None:
        """Count a change that became a dead letter.

        ``change``: ``None`` if the envelope could not be decoded.
        """
        label = catalogue.OTHER if change is None else self._label(change.type)
        if change is None:
            self._count(label, Outcome.REJECTED, 1)
        self._counters.add(catalogue.DEAD_LETTERS, 1, self._store, label, reason)

    def count_batch(
        self, settled: Sequence[Settled], times: Sequence[bytes], *, seconds: float
    ) -> None:
        """Count the changes of a batch by outcome, and record how old the applied changes are.

        ``times``: when each change was made, in the form of ``lag.times``. ``seconds``: how long
        the batch took.
        """
        if not settled:
            return
        names: defaultdict[str, list[str]] = defaultdict(list)
        made: defaultdict[str, list[bytes]] = defaultdict(list)
        applied = Outcome.APPLIED
        for item, moment in zip(settled, times, strict=True):
            type, outcome = item.change.type, item.outcome
            # Use the name as a key, because hashing an enum member is slow.
            names[type].append(outcome._name_)
            if outcome is applied:
                made[type].append(moment)
        for type, of_type in names.items():
            for name, count in Counter(of_type).items():
                self._count(self._label(type), Outcome[name], count)
        for type, moments in made.items():
            ages = lag.spread(moments, catalogue.LAG.bounds)
            self._counters.spread(catalogue.LAG, ages, self._store, self._label(type))
        self._counters.observe(catalogue.BATCH, len(settled), self._store)
        self._counters.observe(catalogue.BATCH_DURATION, seconds, self._store)

    def report_oversized(self, size: int) -> None:
        """Log and count a message that became a dead letter because it was too large to be read.

        ``size``: the size of the message, in bytes.
        """
        self._log.error("dead letter", reason="too-large", size=size)
        self.count_dead_letter(None, "too-large")

    def _count(self, label: str, outcome: Outcome, count: int) -> None:
        self._status.outcomes[outcome] += count
        self._counters.add(catalogue.CHANGES, count, self._store, label, str(outcome))

    def _label(self, type: str) -> str:
        """Return the metric label of a record type: ``type``, or ``OTHER`` for an unknown type."""
        return type if type in self._types else catalogue.OTHER


def reason_of(error: EventSyncError | None) -> str:
    """Return the reason of a dead letter or held change: ``error.reason``, or "error"."""
    return "error" if error is None else error.reason


def describe_letter(letter: DeadLetter) -> dict[str, Any]:
    """Return the log fields that identify a dead letter, without any of its field values."""
    return {
        "reason": letter.reason,
        "type": letter.type,
        "key_digest": _digest(letter.key) if letter.key else None,
        "version": letter.version.hex() if letter.version else None,
        "attempts": letter.attempts,
    }


def _describe(change: Change | None) -> dict[str, Any]:
    """Return the log fields that identify a change, without its key and field values."""
    if change is None:
        return {}
    return {
        "type": change.type,
        "key_digest": _digest(change.key),
        "op": change.op,
        "version": change.version.hex(),
    }


def _digest(key: str) -> str:
    """Return a digest of a key, because a key may be personal data, such as an email address."""
    return hashlib.sha256(key.encode()).hexdigest()[:16]
