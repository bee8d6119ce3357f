"""The writes: what a store is told to write of records.

It knows nothing of how it was decided, nor of how a store does it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

from eventsync.changes.change import Change, Row

__all__ = ["Puts", "Write"]


class Write(NamedTuple):
    """Field values to write to one record.

    ``whole``: ``values`` are all fields the store holds, so the record can be added if it is not
    there; otherwise they are the changed ones of a record that is.
    """

    key: str
    values: Mapping[str, Any]
    whole: bool


class Puts(Sequence[Write]):
    """The writes of whole records, in the order of their keys, whose values are at hand as rows.

    A store that wants columns takes ``rows``; to any other it is but a sequence.
    """

    __slots__ = ("_changes",)

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    @property
    def rows(self) -> list[Row]:
        """Of each record its values, in the order of ``BodyReader.names``."""
        return [change.row for change in self._changes if change.row is not None]

    def __len__(self) -> int:
        return len(self._changes)

    @overload
    def __getitem__(self, at: int) -> Write: ...
    @overload
    def __getitem__(self, at: slice) -> list[Write]: ...
    def __getitem__(self, at: int | slice) -> Write | list[Write]:
        if isinstance(at, slice):
            return [self[number] for number in range(len(self))[at]]
        change = self._changes[at]
        return Write(change.key, change.data or {}, whole=True)
