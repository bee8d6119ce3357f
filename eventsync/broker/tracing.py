"""Tracing: follows changes from where they are published to where they are applied."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled

__all__ = ["Tracing"]


class Tracing(Protocol):
    """A recorder of traces. Thread-safe. Its failures must not affect the traced work."""

    def published(self, change: Change) -> Change:
        """Record that a change is published; return it with its trace context in ``ext``."""

    def applying(
        self, store: str, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[Sequence[Settled]], None]]:
        """Record the applying of a batch in the block.

        The block's value is a function to call with the outcomes of the changes.
        """
