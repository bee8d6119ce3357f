"""The refill of a worker: reports that its store was emptied, and fills it again if told to."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence

from eventsync.engine.isolation import item_error
from eventsync.engine.refill import Refill, how_to_fill
from eventsync.engine.store import Store
from eventsync.errors import BusError, BusUnavailableError, EventSyncError
from eventsync.monitoring.problem import ProblemKind
from eventsync.worker.background import Background
from eventsync.worker.context import WorkerContext

__all__ = ["RefillTask"]


class RefillTask:
    """Watches one store for the loss of its records. Not thread-safe.

    A store with ``refill`` is filled again from ``peers``, the other stores, in slices between
    messages. Of any other store the loss is only reported, with the command that fills it.
    """

    def __init__(
        self,
        context: WorkerContext,
        peers: Sequence[Store],
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._store = context.store
        self._bus = context.bus
        self._peers = [peer for peer in peers if peer is not context.store]
        self._problems = context.status.problems
        self._status = context.status
        self._log = context.log
        self._refills = {
            type: Refill(context.store, type, peers, limits=context.options.limits)
            for type in context.store.accessors
        }
        self.background = Background(monotonic=monotonic)
        """The refill that is under way, if any."""

    def check(self) -> None:
        """Look for losses. Begin to fill what the store lost, if it is declared so."""
        if self.background.is_under_way:
            return
        due = [type for type, refill in self._refills.items() if self._is_due(type, refill)]
        if due:
            self.background.begin(self._fill(due))

    def _is_due(self, type: str, refill: Refill) -> bool:
        """Report a loss of one type. Return whether the type is to be filled."""
        try:
            loss = refill.notice()
        except EventSyncError as error:
            if error.retryable or isinstance(error, BusUnavailableError):
                raise
            self._report(type, str(error))  # for example a table that was dropped
            return False
        store = self._store
        told = f"{loss}; {how_to_fill(store, type)}"
        if store.refill:
            if loss is not None:
                self._report(type, told)
            since = refill.behind_since
            again = since is not None and not self._are_behind(since)
            return loss is not None or refill.is_due or again
        if loss is None or (store.capture_every and refill.is_for_the_guard()):
            self._clear(type)
        else:
            self._report(type, told)
        return False

    def accept_losses(self) -> None:
        """Let a store with ``refill`` that was emptied take records again. Otherwise do nothing.

        Call this before a store that refuses to be used in this state is asked whether it can be.
        """
        if self._store.refill:
            for type, refill in self._refills.items():
                if self._store.accessors[type].loss() is not None:
                    refill.accept_loss()
            self._store.open()

    def _fill(self, types: Sequence[str]) -> Iterator[None]:
        for type in types:
            refill, copied, began = self._refills[type], 0, time.time()
            refill.rejected.clear()
            try:
                refill.accept_loss()
                self._log.info("filling the store from other stores", type=type)
                for count in refill.slices():
                    copied += count
                    self._status.beat()
                    yield
            except BusUnavailableError:
                raise
            except Exception as error:
                shown = str(item_error(error))
                known = isinstance(error, EventSyncError | OSError)
                if self._problems.set(ProblemKind.LOSS, type, shown):
                    self._log.error("refill failed", type=type, error=shown, exc_info=not known)
                continue
            self._log.info(
                "store filled from other stores",
                type=type,
                records=copied,
                refused=len(refill.rejected),
            )
            for settled in refill.rejected[:10]:
                self._log.warning("record refused during the refill", error=str(settled.error))
            self._clear(type)
            if self._are_behind(began):
                refill.note_behind(began)

    def _are_behind(self, since: float) -> bool:
        """Return whether queues of other stores may have messages from before ``since``."""
        now = time.time()
        for peer in self._peers:
            try:
                states = self._bus.states(peer.name)
            except BusUnavailableError:
                raise
            except BusError:
                continue  # the queues are not declared, so no message waits there
            for state in (states["queue"], states["held"]):
                if not state.unsettled:
                    continue
                if state.oldest is None or now - state.oldest < since:
                    return True
        return False

    def _report(self, type: str, text: str) -> None:
        if self._problems.set(ProblemKind.LOSS, type, text):
            self._log.error("store has lost its records", type=type, error=text)

    def _clear(self, type: str) -> None:
        if self._problems.clear(ProblemKind.LOSS, type):
            self._log.info("store is filled again", type=type)
