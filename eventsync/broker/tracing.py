"""Tracing: what follows a change from where it is published to where it is applied.

It owns the two places at which a trace is told. It must not know which system keeps traces.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from typing import Protocol

from eventsync.changes.change import Change
from eventsync.engine.apply import Settled

__all__ = ["Tracing"]


class Tracing(Protocol):
    """Follows changes. Thread-safe; what fails in it must not concern those who are traced."""

    def published(self, change: Change) -> Change:
        """A change is being published: the same change, with what its trace needs in ``ext``."""

    def applying(
        self, store: str, changes: Sequence[Change]
    ) -> AbstractContextManager[Callable[[Sequence[Settled]], None]]:
        """A batch is applied within the block; what that gives is told what became of each."""
