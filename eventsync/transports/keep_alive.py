"""A background thread that keeps leases or a connection alive while a consumer is busy."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from eventsync.errors import BusUnavailableError

__all__ = ["KeepAliveThread"]


class KeepAliveThread(threading.Thread):
    """Calls the bound method ``keep_alive`` every ``interval`` seconds until ``stop`` is called.

    The thread refers to the method's object only weakly, and ends when the object is collected.
    ``error`` is the exception of the last call, or ``None`` if that call succeeded; the owner of
    the thread must check it. After an error other than ``BusUnavailableError`` the thread ends.
    """

    def __init__(self, keep_alive: Callable[[], None], interval: float) -> None:
        super().__init__(name="eventsync-keep-alive", daemon=True)
        self.error: Exception | None = None
        self._keep_alive = weakref.WeakMethod(keep_alive)
        self._interval = interval
        self._stopped = threading.Event()

    def run(self) -> None:
        """Call the method repeatedly until ``stop``. Do not call this: ``start`` runs it."""
        while not self._stopped.wait(self._interval):
            keep_alive = self._keep_alive()
            if keep_alive is None:
                return
            try:
                keep_alive()
                self.error = None
            except BusUnavailableError as error:
                self.error = error
            except Exception as error:  # the owner, in another thread, raises the error
                self.error = error
                return
            del keep_alive  # a reference here would keep the object alive during the wait

    def stop(self) -> None:
        """Make the thread end after its current call, without waiting. Idempotent, thread-safe."""
        self._stopped.set()
