"""Background work of a worker: a long task, done in slices between messages."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Final

__all__ = ["Background"]

_BUSY_PAUSE: Final = 4.0
"""While messages wait, the pause after each slice, as a multiple of the time that it took.

So a long task takes at most a fifth of the worker's time from the messages."""


class Background:
    """A long task that is done slice by slice, so that messages are settled in between.

    Not thread-safe. ``monotonic``: a function that returns seconds and never goes back.
    """

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._slices: Iterator[object] | None = None
        self._next_at = 0.0

    @property
    def is_under_way(self) -> bool:
        """Whether a task has begun and is not done yet."""
        return self._slices is not None

    def begin(self, slices: Iterator[object]) -> None:
        """Begin a task. Each step of the iterator ``slices`` does one slice of it."""
        self._slices = slices
        self._next_at = 0.0

    def advance(self, *, idle: bool) -> None:
        """Do one slice if it is due. A task whose slice raises is given up.

        ``idle``: whether no message waits. If messages wait, a slice is due only after a pause.
        """
        if self._slices is None or (not idle and self._monotonic() < self._next_at):
            return
        began = self._monotonic()
        try:
            next(self._slices)
        except StopIteration:
            self._slices = None
        except BaseException:
            self._slices = None
            raise
        ended = self._monotonic()
        self._next_at = ended + _BUSY_PAUSE * (ended - began)

    def finish(self) -> None:
        """Do all slices that are left."""
        while self._slices is not None:
            self.advance(idle=True)
