"""Where a field of a record is in the objects of a tracker: a line of a table instead of code.

It owns the description of one field. It knows no tracker, and sends nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["Slot", "day", "text"]


def _same(held: Any) -> Any:
    return held


@dataclass(frozen=True, kw_only=True, slots=True)
class Slot:
    """One field, in what a tracker answers and in what it is sent.

    ``at``: where it is read, a path of names with points between. ``to``: where it is written, if
    that is elsewhere; empty for a field that is only read. ``read`` and ``write`` translate its
    JSON value, which may be ``None``; ``words`` does so for one of a few, from the record's to the
    tracker's, and others are rejected. ``of``: the type of the records that it refers to.

    ``new``: what a new object has there, whatever its creation asks for; another value is written
    after it. ``fixed``: why it cannot be changed. ``kept``: why it cannot be taken away.
    ``marked``: it is a text, which ends with the marker that the record is found by.
    """

    at: str
    to: str | None = None
    read: Callable[[Any], Any] = _same
    write: Callable[[Any], Any] = _same
    words: Mapping[str, Any] | None = None
    of: str = ""
    new: Any = None
    fixed: str = ""
    kept: str = ""
    marked: bool = False

    @property
    def target(self) -> str:
        """The path in a body, empty if it is in none."""
        return self.at if self.to is None else self.to


def text(held: Any) -> str:
    """A text, of which a tracker may say that there is none."""
    return "" if held is None else str(held)


def day(held: Any) -> str | None:
    """The day of a time or a date."""
    return str(held)[:10] if held else None
