"""A background thread that keeps leases or a connection alive while a consumer is busy."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from eventsync.errors import BusUnavailableError

__all__ = ["KeepAliveThread"]


class KeepAliveThread(threading.Thread):
    """Calls the bound method ``keep_alive`` every ``interval`` seconds until stopped.

    The method's object is held weakly: the thread ends when nothing else refers to the object.
    ``error`` is the exception of the last call, or ``None`` if it succeeded; the consumer must look
    at it. After an error other than ``BusUnavailableError`` the thread ends.
    """

    def __init__(self, keep_alive: Callable[[], None], interval: float) -> None:
        super().__init__(name="eventsync-keep-alive", daemon=True)
        self.error: Exception | None = None
        self._keep_alive = weakref.WeakMethod(keep_alive)
        self._interval = interval
        self._stopped = threading.Event()

    def run(self) -> None:
        """Call the method until stopped; only the thread itself calls this."""
        while not self._stopped.wait(self._interval):
            keep_alive = self._keep_alive()
            if keep_alive is None:
                return
            try:
                keep_alive()
                self.error = None
            except BusUnavailableError as error:
                self.error = error
            except Exception as error:  # the consumer, in another thread, raises it
                self.error = error
                return
            del keep_alive  # a reference here would keep the object alive during the wait

    def stop(self) -> None:
        """End the thread after its current call. Idempotent, thread-safe, does not wait."""
        self._stopped.set()
