"""Problems: conditions of a store that last, stop no worker, and need somebody."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Any

__all__ = ["Problem", "ProblemKind", "Problems"]


class ProblemKind(StrEnum):
    """The kinds of problems. The values appear in JSON and as labels of metrics."""

    CAPTURE = "capture"
    """The capture of a record type fails, so its foreign writes do not reach other stores."""
    FOLLOW = "follow"
    """Foreign writes are not captured as they happen, although the store is declared so."""
    GUARD = "guard"
    """So many known records are missing that none is captured as deleted."""
    LOSS = "loss"
    """The store has lost the records of a type as a whole and is not filled again yet."""
    OVERRUN = "overrun"
    """A capture takes longer than the time between two captures. Nothing stands still."""


@dataclass(slots=True, frozen=True)
class Problem:
    """One problem. ``type``: the record type, empty for all. ``text``: what is wrong."""

    kind: ProblemKind
    type: str
    text: str


class Problems:
    """The present problems of one store, as one worker sees them.

    One thread changes them; any thread may read them.
    """

    def __init__(self) -> None:
        self._present: dict[tuple[ProblemKind, str], str] = {}

    def set(self, kind: ProblemKind, type: str, text: str) -> bool:
        """Note a problem. Return whether it is new; another text alone does not make it new."""
        is_new = (kind, type) not in self._present
        self._present = {**self._present, (kind, type): text}
        return is_new

    def clear(self, kind: ProblemKind, type: str) -> bool:
        """Note that there is no such problem. Return whether there was one."""
        was_there = (kind, type) in self._present
        if was_there:
            self._present = {at: text for at, text in self._present.items() if at != (kind, type)}
        return was_there

    def present(self) -> list[Problem]:
        """Return the present problems."""
        return [Problem(kind, type, text) for (kind, type), text in self._present.items()]

    def to_json(self) -> list[dict[str, Any]]:
        """Return the present problems as a list for ``json.dumps``."""
        return [
            {"kind": str(one.kind), "type": one.type, "text": one.text} for one in self.present()
        ]
