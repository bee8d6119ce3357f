"""The process of one worker: it works until a signal, and ends in time.

It owns the signals and how the process ends. It must not know what the worker does.
"""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final

from eventsync.worker.watchdog import Watchdog
from eventsync.worker.worker import Worker

__all__ = ["run"]

_ABORTED: Final = 70  # EX_SOFTWARE: left before its work was settled; the broker gives it to others


def run(worker: Worker, *, grace: float, watchdog: Watchdog | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT; it then finishes what it has in hand.

    After ``grace`` seconds, or at a second signal, the process ends at once; what was not settled
    is given to other workers. ``watchdog`` watches it meanwhile. For the main thread.
    """

    def abort() -> None:
        os._exit(_ABORTED)

    signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            abort()
        signalled = True
        # In a thread, for this one may hold the very lock that waking the worker needs.
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
