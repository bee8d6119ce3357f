"""The watchdog: ends a worker process that does not get on, so that another takes its place.

It owns the thread that looks, what counts as stuck, and what is left behind: the stacks of all
threads on standard error. It must not know what a worker does.
"""

from __future__ import annotations

import contextlib
import faulthandler
import os
import sys
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any, Final

import structlog

from eventsync.monitoring.circuit_breaker import CircuitState
from eventsync.monitoring.worker_status import WorkerStatus

__all__ = ["STUCK", "Watchdog"]

STUCK: Final = 71  # EX_OSERR: it hung; what it had in hand is given to others
_INTERVAL: Final = 1.0
_CEILING: Final = 20


class Watchdog:
    """Watches one worker's progress from a thread, once a second.

    The process ends with ``STUCK`` when the worker's thread has shown no progress for
    ``stall_after`` seconds and has been in the very same call all the while. As long as it is seen
    in different calls (a slow store, one request after another) it may go on without progress for
    twenty times that. While the circuit is open, or the worker waits on purpose, nothing happens.
    A call that keeps all of Python from running is ended by the interpreter's own timer.

    ``each``: called every second from the thread, for what has to be done although the worker is
    busy (a state file, a sign of life); an error of it is logged.
    """

    def __init__(
        self,
        progress: WorkerStatus,
        *,
        stall_after: float,
        each: Callable[[], None] = lambda: None,
        interval: float = _INTERVAL,
        exit: Callable[[int], Any] = os._exit,
        log: Any = None,
    ) -> None:
        self._progress = progress
        self._stall_after = stall_after
        self._each = each
        self._interval = min(interval, stall_after / 4)
        self._exit = exit
        self._log = log or structlog.get_logger("eventsync.watchdog").bind(store=progress.store)
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._frame: FrameType | None = None
        self._at = -1
        self._same_since = 0.0
        self._thread = threading.Thread(target=self._run, name="eventsync-watchdog", daemon=True)

    def start(self) -> None:
        """Watch the calling thread from now on."""
        self._watched = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Watch no more. Idempotent, does not block."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        looked = time.monotonic()
        told = ""
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - looked > 5 * self._interval + 1.0:
                # The whole process stood still (SIGSTOP, a paused container).
                self._progress.beat()
                self._frame = None
            looked = now
            with contextlib.suppress(ValueError, OSError):  # without a standard error
                faulthandler.dump_traceback_later(
                    self._stall_after + 10 * self._interval, exit=True, file=_stderr()
                )
            try:
                self._each()
                told = ""
            except OSError as error:
                if str(error) != told:
                    told = str(error)
                    self._log.warning("state cannot be told", error=told)
            if self.is_stuck(now):
                self._end()
                return
        faulthandler.cancel_dump_traceback_later()

    def is_stuck(self, now: float) -> bool:
        """Whether the worker is to be ended at ``now``, on the monotonic clock."""
        frame = sys._current_frames().get(self._watched)
        at = frame.f_lasti if frame is not None else -1
        # The frame is kept, so that no other one can take its place in memory unnoticed.
        if frame is not self._frame or at != self._at:
            self._frame, self._at, self._same_since = frame, at, now
        silence = self._progress.silence
        if self._progress.circuit.state is not CircuitState.CLOSED or silence < self._stall_after:
            return False
        hung = now - self._same_since >= self._stall_after
        return hung or silence >= _CEILING * self._stall_after

    def _end(self) -> None:
        self._log.error(
            "worker is stuck: it ends, with the stacks of its threads",
            silence=round(self._progress.silence, 1),
            doing=self._progress.doing,
            in_hand=self._progress.in_hand,
        )
        with contextlib.suppress(ValueError, OSError):  # without a standard error
            faulthandler.dump_traceback(all_threads=True, file=_stderr())
        self._exit(STUCK)


def _stderr() -> Any:
    return sys.__stderr__ if sys.__stderr__ is not None else sys.stderr
