"""The interface of tracing: records when changes are published and applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled

__all__ = ["Tracing"]


class Tracing(Protocol):
    """Records traces of changes. Thread-safe. Implementations must not raise."""

    def published(self, change: Change) -> Change:
        """Record that a change is published; return a copy with its trace context in ``ext``.

        May return the change itself if it is not traced.
        """

    def applying(
        self, store: str, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[Sequence[Settled]], None]]:
        """Record that the store applies a batch of changes during the block.

        Yields a function; call this function with the outcomes of the changes.
        """
