"""A finding: what a check of a store, before it is opened, says about it."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

__all__ = ["Finding", "Level"]


class Level(StrEnum):
    """The level of a finding. The values appear in the JSON output, the names in tables."""

    OK = "ok"
    NOTE = "note"
    RISK = "risk"
    UNREACHABLE = "away"
    WRONG = "wrong"


@dataclass(slots=True, frozen=True)
class Finding:
    """The result of one check.

    ``about``: what was checked. ``statements``: what an administrator of the store has to run.
    ``absent``: opening the store would create something that is not there yet.
    """

    level: Level
    about: str
    text: str
    statements: tuple[str, ...] = ()
    absent: bool = False
