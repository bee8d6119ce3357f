"""Runs a worker in the main thread until the process gets SIGTERM or SIGINT."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final, Protocol

from eventsync.worker.watchdog import Watchdog

__all__ = ["Service", "run"]

_ABORTED: Final = 70  # EX_SOFTWARE: ended with unsettled messages, which the broker redelivers


class Service(Protocol):
    """A worker, or a process that captures foreign writes."""

    def run(self) -> None:
        """Work until ``stop`` is called. Blocks."""

    def stop(self) -> None:
        """Make ``run`` return soon. May be called from any thread. Does not block."""


def run(worker: Service, *, grace: float, watchdog: Watchdog | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT. The worker then settles its current batch, and ends.

    If the worker has not ended ``grace`` seconds after the signal, or if a second signal arrives,
    the process exits at once; unsettled messages are redelivered to other workers. ``watchdog``:
    runs as long as the worker. Call this function only in the main thread. Blocks.
    """

    def abort() -> None:
        os._exit(_ABORTED)

    signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            abort()
        signalled = True
        # Called in a thread, because the interrupted code may hold a lock that ``stop`` needs.
        threading.Thread(target=worker.stop, daemon=True).start()
        deadline = threading.Timer(grace, abort)
        deadline.daemon = True
        deadline.start()

    before = {
        number: signal.signal(number, on_signal) for number in (signal.SIGTERM, signal.SIGINT)
    }
    if watchdog is not None:
        watchdog.start()
    try:
        worker.run()
    finally:
        if watchdog is not None:
            watchdog.stop()
        for number, handler in before.items():
            signal.signal(number, handler)
