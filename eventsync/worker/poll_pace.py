"""The pace at which a worker looks for foreign writes while a change source gives hints."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Final

from eventsync.engine.listening import listening_since
from eventsync.engine.store import Store

__all__ = ["PollPace"]

# A look that is due in less than this share of ``capture_every`` is due now.
_SLACK: Final = 0.5


class PollPace:
    """Decides whether a look for foreign writes is due. Asked once in ``capture_every`` seconds.

    Without hints, a look is due each time. While a process hears hints without a gap, each look
    that finds nothing doubles the pause, up to ``capture_whole_every``. A look that finds a write,
    a gap or a silent process sets the pause back.
    """

    def __init__(self, store: Store, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store = store
        self._monotonic = monotonic
        self._factor = 1
        self._looked_at: float | None = None
        self._since: float | None = None

    @property
    def pause(self) -> float:
        """How many seconds lie between two looks at present."""
        every = self._store.capture_every or 0.0
        return min(every * self._factor, max(every, self._store.capture_whole_every))

    def is_due(self) -> bool:
        """Return whether to look now. Reads the index if the store has a change source."""
        since = None if self._store.captured_by is None else listening_since(self._store.index)
        if since is None or since != self._since:
            self._factor = 1
        self._since = since
        if since is None or self._looked_at is None:
            return True
        slack = _SLACK * (self._store.capture_every or 0.0)
        return self._monotonic() - self._looked_at >= self.pause - slack

    def looked(self, found: int, *, failed: bool = False) -> None:
        """Note that a look has ended. ``found``: how many foreign writes it found."""
        self._looked_at = self._monotonic()
        if found or failed or self._since is None:
            self._factor = 1
        elif self.pause < self._store.capture_whole_every:
            self._factor *= 2
