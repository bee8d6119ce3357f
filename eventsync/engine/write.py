"""The arguments of ``Accessor.write_rows``: writes of single records, and many puts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, overload

from eventsync.changes.change import Change, Row

__all__ = ["Puts", "Write"]


class Write(NamedTuple):
    """The field values to write to the record with the canonical key ``key``.

    ``whole``: if true, ``values`` contain all fields that the store holds, and the store may lack
    the record. If false, ``values`` contain only the changed fields, and the store has the record.
    """

    key: str
    values: Mapping[str, Any]
    whole: bool


class Puts(Sequence[Write]):
    """Writes of whole records, in the order of their keys.

    Each item is a ``Write``. A store that writes tables can use ``rows`` instead, which is faster.
    """

    __slots__ = ("_changes",)

    def __init__(self, changes: Sequence[Change]) -> None:
        self._changes = changes

    @property
    def rows(self) -> list[Row]:
        """One tuple of field values for each record, in the order of ``BodyReader.names``."""
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
