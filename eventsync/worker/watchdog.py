"""The watchdog: ends a worker process that hangs, so that a new process replaces it."""

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

STUCK: Final = 71  # EX_OSERR: the exit code after a hang; the broker redelivers the messages
_INTERVAL: Final = 1.0
_SLOW_FACTOR: Final = 20


class Watchdog:
    """Checks the status of one worker every second, from its own thread.

    The watchdog ends the process with exit code ``STUCK`` if the worker has made no progress for
    ``stall_after`` seconds and its thread was in the same call during all this time. If the thread
    is seen in different calls, for example in several requests to a slow store, the limit is twenty
    times as long. The process is not ended while the circuit is open or the worker pauses on
    purpose. Before the end, the stacks of all threads are written to standard error. If a call
    blocks the whole interpreter, the timer of ``faulthandler`` ends the process.

    ``each``: called every second from the watchdog's thread, even while the worker is busy, for
    example to write a state file. If it raises, the error is logged.
    """

    def __init__(
        self,
        status: WorkerStatus,
        *,
        stall_after: float,
        each: Callable[[], None] = lambda: None,
        interval: float = _INTERVAL,
        exit: Callable[[int], Any] = os._exit,
        log: Any = None,
    ) -> None:
        self._status = status
        self._stall_after = stall_after
        self._each = each
        self._interval = min(interval, stall_after / 4)
        self._exit = exit
        self._log = log or structlog.get_logger("eventsync.watchdog").bind(store=status.store)
        self._watched = threading.get_ident()
        self._stopped = threading.Event()
        self._frame: FrameType | None = None
        self._at = -1
        self._same_since = 0.0
        self._logged: dict[str, str] = {}  # by what has failed, the last error that was logged
        self._thread = threading.Thread(target=self._run, name="eventsync-watchdog", daemon=True)

    def start(self) -> None:
        """Start to watch the calling thread, which must be the worker's thread."""
        self._watched = threading.get_ident()
        self._thread.start()

    def stop(self) -> None:
        """Stop watching the worker. Idempotent, does not block."""
        self._stopped.set()
        faulthandler.cancel_dump_traceback_later()

    def _run(self) -> None:
        checked_at = time.monotonic()
        while not self._stopped.wait(self._interval):
            now = time.monotonic()
            if now - checked_at > 5 * self._interval + 1.0:
                # The whole process was suspended (SIGSTOP, a paused container).
                self._status.beat()
                self._frame = None
            checked_at = now
            self._try("timer of the watchdog not set", self._set_timer)
            self._try("worker status not reported", self._each)
            if self.is_stuck(now):
                self._end()
                return
        faulthandler.cancel_dump_traceback_later()

    def _set_timer(self) -> None:
        """Set the timer that ends the process if a call blocks the whole interpreter.

        Raises ``RuntimeError`` if the system has no thread for it.
        """
        with contextlib.suppress(ValueError, OSError):  # without a standard error
            faulthandler.dump_traceback_later(
                self._stall_after + 10 * self._interval, exit=True, file=_stderr()
            )

    def _try(self, what: str, call: Callable[[], None]) -> None:
        """Call ``call``, and log an error once: nothing that fails here ends the watchdog."""
        try:
            call()
        except Exception as error:
            text = f"{type(error).__name__}: {error}"
            if self._logged.get(what) != text:
                self._logged[what] = text
                self._log.warning(what, error=text)
        else:
            self._logged.pop(what, None)

    def is_stuck(self, now: float) -> bool:
        """Return whether the worker hangs. ``now``: the time on the monotonic clock."""
        frame = sys._current_frames().get(self._watched)
        at = frame.f_lasti if frame is not None else -1
        # A reference keeps the frame alive. Otherwise a new frame could get the same identity.
        if frame is not self._frame or at != self._at:
            self._frame, self._at, self._same_since = frame, at, now
        silence = self._status.silence
        if self._status.circuit.state is not CircuitState.CLOSED or silence < self._stall_after:
            return False
        hung = now - self._same_since >= self._stall_after
        return hung or silence >= _SLOW_FACTOR * self._stall_after

    def _end(self) -> None:
        self._log.error(
            "worker stuck: ending the process",
            silence=round(self._status.silence, 1),
            doing=self._status.doing,
            in_hand=self._status.in_hand,
        )
        with contextlib.suppress(ValueError, OSError):  # without a standard error
            faulthandler.dump_traceback(all_threads=True, file=_stderr())
        self._exit(STUCK)


def _stderr() -> Any:
    return sys.__stderr__ if sys.__stderr__ is not None else sys.stderr
