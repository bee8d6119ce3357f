"""How well the foreign writes of a store are captured as they happen, seen from any process."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

from eventsync.engine.change_source import ChangeSource, SourceState
from eventsync.engine.store import Store
from eventsync.index import Index

__all__ = ["CAUGHT_UP_MARK", "Following", "FollowingState", "caught_up_at", "lateness"]

CAUGHT_UP_MARK: Final = "follow/caught-up"
"""The mark in a store's index that says when everything was captured that the source had told, in
seconds since the epoch."""


@dataclass(slots=True, frozen=True)
class FollowingState:
    """How well the foreign writes of a store are captured.

    ``source``: the kind of the change source. ``state``: the source's own state in the store.
    ``caught_up_at``: when everything that it told was captured, in seconds since the epoch;
    ``None`` if no process has captured yet.
    """

    source: str
    state: SourceState
    caught_up_at: float | None

    def to_json(self, now: float) -> dict[str, Any]:
        """Return the state as a dict for ``json.dumps``. Times become ages in seconds."""
        age = None if self.caught_up_at is None else round(max(0.0, now - self.caught_up_at), 3)
        return {
            "source": self.source,
            "installed": self.state.installed,
            "caught_up": age,
            "waiting": self.state.waiting,
            "lag_bytes": self.state.lag_bytes,
            "retained_bytes": self.state.retained_bytes,
            "details": dict(self.state.details),
        }


class Following:
    """Asks how well the foreign writes of one store are captured. Not thread-safe.

    Chooses the change source once, since that may ask the store many questions.
    """

    def __init__(self, store: Store) -> None:
        self._store = store
        self._source: ChangeSource | None = None

    def __call__(self) -> FollowingState | None:
        """Return the state; ``None`` if the store is not declared with a change source."""
        if self._store.captured_by is None:
            return None
        with self._store.errors():
            if self._source is None:
                self._source = self._store.change_source()
            return FollowingState(
                self._source.kind, self._source.state(), caught_up_at(self._store.index)
            )


def caught_up_at(index: Index) -> float | None:
    """Return when everything was captured that the source of a store had told; else ``None``."""
    mark = index.load_mark(CAUGHT_UP_MARK)
    return float(mark) if mark else None


def lateness(
    store: str,
    following: FollowingState,
    stall_after: float,
    *,
    now: Callable[[], float] = time.time,
) -> str | None:
    """Return what shows that foreign writes are not captured as they happen, else ``None``.

    ``store``: the name of the store. ``stall_after``: capture counts as late if for so many seconds
    not everything was captured.
    """
    if not following.state.installed:
        return (
            f"capture by {following.source} is not installed, so foreign writes are not captured "
            "as they happen; run: eventsync capture install "
            f"{store}"
        )
    if following.caught_up_at is None:
        return f"no process has captured foreign writes yet; run: eventsync worker {store}"
    late = now() - following.caught_up_at
    if late <= stall_after:
        return None
    waiting = following.state.waiting
    many = "" if not waiting else f", and {waiting:,} changes wait"
    return (
        f"foreign writes were last captured to the end {late:,.0f} s ago{many}; see "
        f"eventsync capture status {store} and the log of the capture"
    )
