"""Owns the background thread that keeps a consumer's leases alive while the consumer is busy.

It must not know what a round of upkeep does, nor which transport it serves.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable

from eventsync.errors import BusUnavailableError

__all__ = ["LeaseUpkeep"]


class LeaseUpkeep(threading.Thread):
    """Calls ``round_of_upkeep``, a bound method, every ``interval`` seconds until stopped.

    The method's object is held weakly: once it is dropped, the thread ends and the leases run
    out. ``error`` is what the last round raised, None if it went well; the thread ends after an
    error that another round cannot mend. Someone has to look at ``error``.
    """

    def __init__(self, round_of_upkeep: Callable[[], None], interval: float) -> None:
        super().__init__(name="eventsync-lease-upkeep", daemon=True)
        self.error: Exception | None = None
        self._round = weakref.WeakMethod(round_of_upkeep)
        self._interval = interval
        self._stopped = threading.Event()

    def run(self) -> None:
        """Do the rounds; the thread's own."""
        while not self._stopped.wait(self._interval):
            round_of_upkeep = self._round()
            if round_of_upkeep is None:
                return
            try:
                round_of_upkeep()
                self.error = None
            except BusUnavailableError as error:
                self.error = error
            except Exception as error:  # told to the consumer, who is in another thread
                self.error = error
                return
            del round_of_upkeep  # keep nothing alive while waiting

    def stop(self) -> None:
        """Do no further round. Idempotent, thread-safe, does not wait for the thread."""
        self._stopped.set()
