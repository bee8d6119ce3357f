"""The applier: applies changes to one store, retries them, and isolates failing changes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled, apply
from eventsync.engine.gate import Outcome
from eventsync.engine.isolation import Done, Failed, concerns_all, isolate, item_error
from eventsync.engine.unreadable import UnreadableKeys
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
    is_retryable,
)
from eventsync.monitoring import catalogue
from eventsync.retry import retrying
from eventsync.worker.context import WorkerContext

__all__ = ["Applier"]

# If so many changes fail and none is applied, the cause is taken to be the store, not the changes.
_TOO_MANY_FAILURES: Final = 50
# The outcomes that show that the store works.
_REACHED: Final = frozenset(Outcome) - {Outcome.HELD, Outcome.REJECTED}


class Applier:
    """Applies changes to one store, counts retries and records traces. Not thread-safe.

    If the store is captured, foreign writes to the same records are captured first. If one change
    raises an error that is not retryable, this change is rejected and the others are applied.

    If an error is retryable, all changes are retried together. However, a store that answers may
    fail because of a single change. Therefore, after ``suspect_one_change``, the failing changes
    are found one by one: a change with a retryable error is held if the store takes other changes.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._store = context.store
        self._suspects_one = False
        # Whether the store has taken a change since `suspect_one_change`.
        self._took_one = False
        self._touched_types: set[str] = set()

    def apply(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply changes and return the outcome of each change, in the same order.

        Idempotent, blocks. Raises the last retryable error when the retry budget is spent. No
        outcome is decided then; the caller must apply all changes again.
        """
        if self._suspects_one:
            settled = self._traced(changes, self._apply_apart)
            self._suspects_one = any(item.outcome is Outcome.HELD for item in settled)
        else:
            settled = self._traced(changes, self._apply_retrying)
        held = Outcome.HELD
        self._touched_types |= {item.change.type for item in settled if item.outcome is held}
        return settled

    def apply_held(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply held changes and return the outcome of each change, in the same order.

        A change that fails again with a retryable error has the outcome ``HELD``; there is no
        immediate retry. Raises a retryable error if the store does not answer.
        """
        self.ping()
        # The store answers, and it has taken other changes while these changes were held.
        return self._traced(changes, partial(self._apply_apart, store_works=True))

    def suspect_one_change(self) -> None:
        """Look for a single failing change in the next batches, until a batch has no held change.

        Call this when a store has failed for longer than the retry budget and then answers again.
        """
        self._suspects_one = True
        self._took_one = False

    def ping(self) -> None:
        """Check that the store and its index answer; raise a retryable error if they do not."""
        self._store.ping()

    def take_touched_types(self) -> set[str]:
        """Return the types whose changes were applied, or newly held, since the last call."""
        taken, self._touched_types = self._touched_types, set()
        return taken & self._store.accessors.keys()

    def _apply_retrying(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply changes; after a retryable error, apply all again within the retry budget."""
        context = self._context

        def attempt() -> list[Settled]:
            settled: list[Settled] = []
            for part in isolate(changes, self._apply_once, shared=concerns_all):
                settled += part.result if isinstance(part, Done) else [_rejected(part)]
            return settled

        def before_wait(error: BaseException, attempt: int, pause: float) -> None:
            context.log_retry("store unreachable, retrying", error, attempt, pause)
            self._count_retried(changes, error)

        return retrying(
            attempt,
            budget=context.options.retry_for,
            wait=context.wait,
            give_up=context.stopping.is_set,
            before_wait=before_wait,
        )

    def _apply_apart(
        self, changes: Sequence[Change], *, store_works: bool = False
    ) -> list[Settled]:
        """Apply changes; a change that alone raises a retryable error gets the outcome ``HELD``.

        ``store_works``: whether the store is known to work. Otherwise, if it takes no change, the
        error of the first failing change is raised.
        """
        settled: list[Settled] = []
        failures: list[Exception] = []
        took_one = False
        for part in isolate(changes, self._apply_once, shared=_concerns_all_but_store):
            if isinstance(part, Done):
                settled += part.result
                took_one = took_one or any(s.outcome in _REACHED for s in part.result)
            elif is_retryable(part.error):
                failures.append(part.error)
                settled.append(Settled(part.item, Outcome.HELD, _as_unavailable(part.error)))
                if len(failures) == _TOO_MANY_FAILURES and not took_one:
                    raise part.error
            else:
                settled.append(_rejected(part))
        self._took_one = self._took_one or took_one
        if failures and not (store_works or self._took_one):
            raise failures[0]
        return settled

    def _apply_once(self, changes: Sequence[Change]) -> list[Settled]:
        store, context = self._store, self._context
        unreadable: UnreadableKeys = {}
        if store.capture_every:
            unreadable = store.capture_before(changes, context.publisher)
        limits = context.options.limits
        return apply(store, changes, clock=store.clock, limits=limits, unreadable=unreadable)

    def _traced(
        self,
        changes: Sequence[Change],
        apply_all: Callable[[Sequence[Change]], list[Settled]],
    ) -> list[Settled]:
        tracing = self._context.bus.tracing
        if tracing is None:
            settled = apply_all(changes)
        else:
            with tracing.applying(self._store.name, changes) as report_outcomes:
                settled = apply_all(changes)
                report_outcomes(settled)
        applied = Outcome.APPLIED
        self._touched_types |= {item.change.type for item in settled if item.outcome is applied}
        return settled

    def _count_retried(self, changes: Sequence[Change], error: BaseException) -> None:
        reason = error.reason if isinstance(error, EventSyncError) else "unavailable"
        known = self._store.accessors
        types = Counter(c.type if c.type in known else catalogue.OTHER for c in changes)
        for type, count in types.items():
            self._context.counters.add(catalogue.RETRIED, count, self._store.name, type, reason)


def _rejected(failed: Failed[Change]) -> Settled:
    return Settled(failed.item, Outcome.REJECTED, item_error(failed.error))


def _concerns_all_but_store(error: Exception) -> bool:
    """Return whether an error comes from the broker or the configuration, not from a change."""
    return isinstance(error, BusUnavailableError | ConfigError)


def _as_unavailable(error: Exception) -> EventSyncError:
    """Return a retryable error as an ``EventSyncError``."""
    if isinstance(error, EventSyncError):
        return error
    unavailable = StoreUnavailableError(str(error) or type(error).__name__)
    unavailable.__cause__ = error
    return unavailable
