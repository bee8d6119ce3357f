"""The capture service: follows the foreign writes of one store until it is stopped."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Final

import structlog

from eventsync.broker.bus import Bus
from eventsync.engine.follower import Follower
from eventsync.engine.listening import forget_listening, note_listening
from eventsync.engine.store import Store
from eventsync.engine.unreadable import UnreadableRecord
from eventsync.errors import (
    BusUnavailableError,
    ConfigError,
    EventSyncError,
    StoreUnavailableError,
    SuspiciousReadError,
)
from eventsync.index.lease import Lease
from eventsync.monitoring import catalogue
from eventsync.monitoring.counters import Counters
from eventsync.monitoring.following import CAUGHT_UP_MARK
from eventsync.monitoring.problem import ProblemKind
from eventsync.monitoring.worker_status import WorkerStatus
from eventsync.retry import Backoff
from eventsync.worker.capture import log_unreadable
from eventsync.worker.context import WorkerContext
from eventsync.worker.options import DEFAULT_OPTIONS, Options

__all__ = ["CAPTURE_LEASE", "CaptureService"]

CAPTURE_LEASE: Final = "follow/lease"
"""The name of the lease in a store's index that the process has which captures."""

# For so many seconds a step waits for a change.
_WAIT: Final = 0.5
# A process that captures is taken for dead after so many seconds without a sign of it.
_LIFETIME: Final = 5.0
# The pause between two attempts to take the lease.
_STANDBY: Final = 1.0
_BACKOFF: Final = Backoff(0.2, 30.0)
_LOG_INTERVAL: Final = 1.0
_LOG_COPY_INTERVAL: Final = 10.0
# The pause between two notes in the index that everything is captured.
_NOTE_INTERVAL: Final = 5.0


class CaptureService:
    """Captures the foreign writes of a store as they happen, until ``stop`` is called.

    Any number of these may run for a store, in processes of their own. One of them captures; if it
    dies, another one takes over some seconds later. Only one thread may use an object of this
    class, but any thread and any signal handler may call ``stop``.
    """

    def __init__(
        self,
        store: Store,
        bus: Bus,
        *,
        options: Options = DEFAULT_OPTIONS,
        counters: Counters | None = None,
        log: Any = None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self.counters = counters or Counters()
        self._log = log or structlog.get_logger("eventsync.capture").bind(store=store.name)
        self._context = WorkerContext(
            store, bus, options=options, counters=self.counters, log=self._log
        )
        self.progress: WorkerStatus = self._context.status
        """The status of this process, for health checks and metrics."""
        self.progress.role = "capture"
        self._bus = bus
        self._lease = Lease(store.index, CAPTURE_LEASE, lifetime=_LIFETIME, monotonic=monotonic)
        self._monotonic = monotonic
        self._has_opened = False
        # Whether the follower has captured since it was last opened.
        self._has_worked = False
        self._unlogged: dict[str, int] = {}
        self._logged_at = self._copy_logged_at = 0.0
        self._caught_up_at = self._listening_at = -math.inf
        # Since when the source has been open.
        self._open_since = 0.0
        # How many own writes of the follower are counted.
        self._own = 0
        self.follower: Follower | None = None
        """The follower; ``None`` before the store was first reached."""

    def stop(self) -> None:
        """Make ``run`` return after the current step. Idempotent, does not block."""
        self._context.stopping.set()

    def run(self) -> None:
        """Capture until ``stop`` is called. Blocks.

        While the store or the broker is away, waits and tries again; changes then wait in the
        outbox. Raises ``ConfigError`` if the store refuses the capture from the start.
        """
        context, failures = self._context, 0
        self._log.info("capture started", pid=os.getpid())
        while not context.stopping.is_set():
            try:
                self._follow()
                failures = 0
            except (EventSyncError, OSError) as error:
                if isinstance(error, ConfigError) and not self._has_opened:
                    raise
                failures = 1 if self._has_worked else failures + 1
                pause = _BACKOFF.pause(failures)
                self.progress.error = str(error)
                context.log_retry("capture failed, retrying", error, failures, pause)
                context.wait(pause)
        self._log_captured(at_once=True)
        self._log.info("capture stopped")

    def _follow(self) -> None:
        """Take the lease, then capture until the lease is lost or the service shall stop."""
        context, self._has_worked = self._context, False
        self.store.open()
        with suppress(BusUnavailableError):
            self._bus.declare(self.store.name, self.store.accessors)
        follower = self.follower or self.store.follower(
            context.publisher, self, notice=self._tell_unreadable
        )
        self.follower = follower
        while not self._lease.take():
            self._has_opened = True
            self.progress.beat("standing by", pause=_STANDBY)
            if context.stopping.wait(_STANDBY):
                return
        try:
            follower.open()
            self._open_since, self._listening_at = time.time(), -math.inf
            self._has_opened = True
            self._log.info("capturing", source=follower.source.kind)
            while not context.stopping.is_set() and self._lease.keep():
                self.progress.beat("capturing", pause=_WAIT)
                follower.step(_WAIT)
                self._has_worked = True
                self.progress.error = ""
                self._count(follower)
                self._log_captured()
                self._log_copies()
            follower.finish()
        finally:
            follower.close()
            with suppress(StoreUnavailableError, ConfigError, OSError):
                if not follower.source.complete and self._listening_at > -math.inf:
                    forget_listening(self.store.index)
                self._lease.release()

    def _count(self, follower: Follower) -> None:
        """Count what the follower left out, and note now and then that it has caught up."""
        if follower.own > self._own:
            self.counters.add(catalogue.OWN_WRITES, follower.own - self._own, self.store.name)
            self._own = follower.own
        now = self._monotonic()
        if not follower.source.complete and now - self._listening_at >= _NOTE_INTERVAL:
            self._listening_at = now
            note_listening(self.store.index, self._open_since)
        if not follower.behind and now - self._caught_up_at >= _NOTE_INTERVAL:
            self._caught_up_at = now
            self.store.index.save_mark(CAUGHT_UP_MARK, f"{time.time():.3f}")

    # -- what the follower tells -------------------------------------------------------------------

    def captured(self, type: str, count: int, moment: float | None) -> None:
        """Count captured writes. See ``FollowerObserver``."""
        self._unlogged[type] = self._unlogged.get(type, 0) + count
        self.counters.add(catalogue.CAPTURED, count, self.store.name, type)
        if moment is not None:
            late = max(0.0, time.time() - moment)
            self.counters.observe(catalogue.CAPTURE_LAG, late, self.store.name, type)
        self.progress.followed(count, moment)

    def whole(self, type: str, reason: str) -> None:
        """Log that all records of a type are read."""
        self._log.warning("reading all records", type=type, reason=reason)

    def blocked(self, type: str, error: Exception) -> None:
        """Note the problem of a type."""
        is_guard = isinstance(error, SuspiciousReadError)
        kind = ProblemKind.GUARD if is_guard else ProblemKind.CAPTURE
        if self.progress.problems.set(kind, type, str(error)):
            known = isinstance(error, EventSyncError | OSError)
            self._log.error("capture blocked", type=type, error=str(error), exc_info=not known)

    def cleared(self, type: str) -> None:
        """Clear the problems of a type."""
        for kind in (ProblemKind.GUARD, ProblemKind.CAPTURE):
            if self.progress.problems.clear(kind, type):
                self._log.info("capture works again", problem=str(kind), type=type)

    def alive(self) -> None:
        """Keep the lease, and note progress, during a long step."""
        self.progress.beat()
        if self._lease.is_due:
            self._lease.keep()

    def _tell_unreadable(self, record: UnreadableRecord, unreadable: bool) -> None:
        log_unreadable(self._log, self.store.name, record, unreadable)

    # -- the log -----------------------------------------------------------------------------------

    def _log_captured(self, *, at_once: bool = False) -> None:
        now = self._monotonic()
        if self._unlogged and (at_once or now - self._logged_at >= _LOG_INTERVAL):
            for type, count in self._unlogged.items():
                self._log.info("captured foreign writes", type=type, count=count)
            self._unlogged.clear()
            self._logged_at = now

    def _log_copies(self) -> None:
        assert self.follower is not None
        now = self._monotonic()
        if not self.follower.copies or now - self._copy_logged_at < _LOG_COPY_INTERVAL:
            return
        self._copy_logged_at = now
        for type, copy in self.follower.copies.items():
            remaining = copy.remaining
            self._log.info(
                "reading all records",
                type=type,
                done=copy.done,
                total=copy.total,
                remaining=None if remaining is None else round(remaining),
            )
