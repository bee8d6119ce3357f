"""The capture of a worker: finds the foreign writes in its store, in slices between messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from eventsync.engine.isolation import item_error
from eventsync.engine.unreadable import UnreadableRecord
from eventsync.errors import BusUnavailableError, EventSyncError, SuspiciousReadError
from eventsync.monitoring import catalogue
from eventsync.monitoring.problem import ProblemKind
from eventsync.worker.background import Background
from eventsync.worker.context import WorkerContext
from eventsync.worker.poll_pace import PollPace

__all__ = ["CaptureTask", "log_unreadable"]


class CaptureTask:
    """Captures the foreign writes in one store. Not thread-safe.

    A pass reads all record types one after the other. If the capture of one type fails, or its
    delete guard trips, that is a problem of this type, and the pass goes on with the next type.
    """

    def __init__(
        self, context: WorkerContext, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._store = context.store
        self._publisher = context.publisher
        self._status = context.status
        self._counters = context.counters
        self._log = context.log
        self._monotonic = monotonic
        self._began = 0.0
        self._pace = PollPace(context.store, monotonic=monotonic)
        self._found = 0
        self.has_failed = False
        """Whether the last pass could not capture a type."""
        self.background = Background(monotonic=monotonic)
        """The pass that is under way, if any."""

    def begin(self) -> None:
        """Begin a pass. If the last pass is still under way, report an overrun instead.

        Does nothing while hints make the look unnecessary: see ``PollPace``.
        """
        took, every = self._monotonic() - self._began, self._store.capture_every or 0.0
        if self.background.is_under_way:
            if took >= every:
                self._overrun(took, every)
        elif self._pace.is_due():
            self._began = self._monotonic()
            self.has_failed = False
            self._found = 0
            self.background.begin(self._pass())

    def _pass(self) -> Iterator[None]:
        for type in self._store.accessors:
            try:
                yield from self._slices(type)
            except BusUnavailableError:
                raise
            except SuspiciousReadError as error:
                self._blocked(ProblemKind.GUARD, type, error)
                # All records that are there were compared.
                self._cleared(ProblemKind.CAPTURE, type)
            except Exception as error:
                self.has_failed = True
                self._blocked(ProblemKind.CAPTURE, type, error)
            else:
                self._cleared(ProblemKind.CAPTURE, type)
                if not self._store.replicas[type].lacking:
                    self._cleared(ProblemKind.GUARD, type)
        self._pace.looked(self._found, failed=self.has_failed)
        took, every = self._monotonic() - self._began, self._store.capture_every
        self._status.captured(took)
        # Well within the period, so that the problem does not come and go.
        if every is not None and took <= every / 2:
            self._cleared(ProblemKind.OVERRUN, "")

    def _slices(self, type: str) -> Iterator[None]:
        captured = self._store.capture(
            self._store.accessors[type].record_class,
            whole=False,
            publisher=self._publisher,
            # Each unreadable record is logged once, by the notice.
            unreadable=lambda error: None,
            notice=partial(log_unreadable, self._log, self._store.name),
        )
        for changes in captured:
            self._status.beat()
            self._found += len(changes)
            if changes:
                self._log.info("captured foreign writes", type=type, count=len(changes))
            yield

    def _overrun(self, took: float, every: float) -> None:
        self._counters.add(catalogue.OVERRUNS, 1, self._store.name)
        text = (
            f"store {self._store.name!r}: a capture takes longer than capture_every={every:g}; "
            f"the present one began {took:.1f} s ago. Foreign writes are captured that much later "
            "(set a longer capture_every)"
        )
        if self._status.problems.set(ProblemKind.OVERRUN, "", text):
            self._log.warning(
                "capture takes longer than its period", every=every, took=round(took, 1)
            )

    def _blocked(self, kind: ProblemKind, type: str, error: Exception) -> None:
        shown = str(item_error(error))
        if self._status.problems.set(kind, type, shown):
            known = isinstance(error, EventSyncError | OSError)
            self._log.error("capture blocked", type=type, error=shown, exc_info=not known)

    def _cleared(self, kind: ProblemKind, type: str) -> None:
        if self._status.problems.clear(kind, type):
            self._log.info("capture works again", problem=str(kind), type=type)


def log_unreadable(log: Any, store: str, record: UnreadableRecord, unreadable: bool) -> None:
    """Log that a record turned unreadable, or that it no longer is. See ``Notice``."""
    about = {"type": record.type, "key" if record.keyed else "place": record.name}
    if unreadable:
        log.error(
            "record unreadable, not captured",
            **about,
            reason=record.reason,
            error=record.error,
            hint=record.hint or f"eventsync unreadable {store} lists such records",
        )
    else:
        log.info("record no longer unreadable", **about)
