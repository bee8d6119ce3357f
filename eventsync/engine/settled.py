"""The result of applying one change to one store."""

from __future__ import annotations

from dataclasses import dataclass

from eventsync.changes.change import Change
from eventsync.engine.gate import Outcome
from eventsync.errors import EventSyncError

__all__ = ["Settled"]


@dataclass(slots=True)
class Settled:
    """The result of applying one change.

    ``error``: why the change was rejected or held, else ``None``. ``collision``: whether a
    different change has the same version.
    """

    change: Change
    outcome: Outcome = Outcome.HELD
    error: EventSyncError | None = None
    collision: bool = False
    loaded: Change | None = None
    """The change with values of the record type's types; ``None`` if they were not read."""
