"""The applier: applies changes to one store, retries, and isolates the change that fails."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled, apply
from eventsync.engine.gate import Outcome
from eventsync.engine.isolation import Done, Failed, concerns_all, isolate, item_error
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
    is_retryable,
)
from eventsync.index import Presence
from eventsync.monitoring import catalogue
from eventsync.retry import retrying
from eventsync.worker.context import WorkerContext

__all__ = ["Applier"]

# So many changes that fail one after the other are more likely the store's failure than their own.
_TOO_MANY_FAILURES: Final = 50
# Outcomes that only a store that works can give.
_REACHED: Final = frozenset(Outcome) - {Outcome.HELD, Outcome.REJECTED}


class Applier:
    """Applies changes to one store. For one thread.

    It captures foreign writes of the same records first where the store is captured, and reports to
    metrics and traces. A change that raises anything by itself is rejected; the others are applied.

    While the store is unreachable all changes are retried together. A store that answers and still
    fails may fail for one change only. After ``suspect_one_change`` the changes are therefore
    isolated: one that fails retryably by itself is held, provided that the store works otherwise.
    """

    def __init__(self, context: WorkerContext) -> None:
        self._context = context
        self._store = context.store
        self._suspects_one = False
        # Whether the store has taken a change since it was suspected to fail for one change only.
        self._took_one = False
        self._applied_types: set[str] = set()

    def apply(self, changes: Sequence[Change]) -> list[Settled]:
        """Return the outcome of each change, in their order. Idempotent, blocks on the store.

        Raises retryable errors when the retry budget is spent. Nothing is decided then, and all of
        the changes are to be applied again.
        """
        if not self._suspects_one:
            return self._traced(changes, self._apply_retrying)
        settled = self._traced(changes, self._apply_apart)
        self._suspects_one = any(item.outcome is Outcome.HELD for item in settled)
        return settled

    def apply_held(self, changes: Sequence[Change]) -> list[Settled]:
        """Do the same as ``apply`` with held changes, each of which may fail again by itself.

        They are not retried at once, because they stay held. Raises retryable errors, also when the
        store does not answer at all.
        """
        self.ping()
        # The store answers, and it has taken other changes while these were held.
        return self._traced(changes, partial(self._apply_apart, store_works=True))

    def suspect_one_change(self) -> None:
        """Isolate changes from now on, until a batch is applied of which none is held.

        Call this when the store answers after it has failed for longer than the retry budget.
        """
        self._suspects_one = True
        self._took_one = False

    def ping(self) -> None:
        """Raise a retryable error unless the store and its index can be used."""
        for accessor in self._store.accessors.values():
            accessor.ping()
        for type in self._store.accessors:
            self._store.index.counts(type)[Presence.PENDING]

    def take_applied_types(self) -> set[str]:
        """Return the record types of which changes were applied since the last call."""
        taken, self._applied_types = self._applied_types, set()
        return taken

    def _apply_retrying(self, changes: Sequence[Change]) -> list[Settled]:
        """Apply changes, all of them again while the store is unreachable."""
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
        """Apply changes; hold each that fails retryably by itself while the store works.

        Unless ``store_works`` says so, the store is known to work once it has taken any change. As
        long as it has not, the error of the first failing change is raised.
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
        if store.capture_every:
            store.capture_before(changes, context.publisher)
        return apply(store, changes, clock=store.clock, limits=context.options.limits)

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
        self._applied_types |= {item.change.type for item in settled if item.outcome is applied}
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
    """Return whether an error is the broker's or the configuration's, not a change's."""
    return isinstance(error, BusUnavailableError | ConfigError)


def _as_unavailable(error: Exception) -> EventSyncError:
    """Return a retryable error as one of eventsync's."""
    if isinstance(error, EventSyncError):
        return error
    unavailable = StoreUnavailableError(str(error) or type(error).__name__)
    unavailable.__cause__ = error
    return unavailable
