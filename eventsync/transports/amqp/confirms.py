"""What of the published a broker has not confirmed yet.

It must not know what was published, nor how confirms arrive.
"""

from __future__ import annotations

from itertools import takewhile

__all__ = ["Confirms"]


class Confirms:
    """Counts publishes and their confirms, in whatever order these come. For one thread.

    ``refused``: how many the broker has not taken, exactly.
    """

    def __init__(self) -> None:
        self.refused = 0
        self._published = 0
        self._waiting: dict[int, None] = {}

    def __len__(self) -> int:
        return len(self._waiting)

    def published(self) -> None:
        """One more is on its way; the broker numbers them from 1."""
        self._published += 1
        self._waiting[self._published] = None

    def confirm(self, tag: int, multiple: bool) -> None:
        """The broker has it safe; with ``multiple``, all before it too."""
        self._settle(tag, multiple)

    def refuse(self, tag: int, multiple: bool) -> None:
        """The broker has not taken it; with ``multiple``, nor any before it that was waiting."""
        self.refused += self._settle(tag, multiple)

    def _settle(self, tag: int, multiple: bool) -> int:
        tags = list(takewhile(lambda other: other <= tag, self._waiting)) if multiple else [tag]
        return sum(self._waiting.pop(one, self) is None for one in tags)
