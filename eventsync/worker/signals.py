"""Signals: runs a worker as the work of its process, until the process gets a signal."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Final

from eventsync.worker.watchdog import Watchdog
from eventsync.worker.worker import Worker

__all__ = ["run"]

_ABORTED: Final = 70  # EX_SOFTWARE: ended with messages in hand; the broker redelivers them


def run(worker: Worker, *, grace: float, watchdog: Watchdog | None = None) -> None:
    """Run a worker until SIGTERM or SIGINT; it then settles the batch in hand and returns.

    After ``grace`` more seconds, or at a second signal, the process ends at once; messages that
    were not settled are redelivered to other workers. ``watchdog`` runs as long as the worker. Must
    be called from the main thread.
    """

    def abort() -> None:
        os._exit(_ABORTED)

    signalled = False

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal signalled
        if signalled:
            abort()
        signalled = True
        # In a thread: the interrupted code may hold the lock that ``stop`` needs.
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
