"""What a database's catalogue says of a table: unique indexes, comparisons, triggers and rights."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Final

__all__ = ["OWN_TRIGGER", "Catalogue", "Trigger", "UniqueIndex"]

OWN_TRIGGER: Final = re.compile("eventsync_[0-9a-f]{8}_")
"""How the names of the triggers begin by which eventsync captures foreign writes."""

_ASSIGNED: Final = re.compile(
    r"""\bNEW\s*\.\s*(?:"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|(\w+))\s*:?=""", re.IGNORECASE
)
_SET: Final = re.compile(
    r"""(?:\bSET\b|,)\s*(?:"((?:[^"]|"")+)"|`((?:[^`]|``)+)`|(\w+))\s*=(?!=)""", re.IGNORECASE
)


@dataclass(slots=True, frozen=True)
class UniqueIndex:
    """A unique index or primary key of plain columns.

    ``enforced``: no two rows of the table have values in these columns that the columns take for
    equal. This is not so if the index is partial, invalid, or compares by another collation.
    ``arbiter``: an upsert can rely on it. ``prefix``: it compares only the first characters.
    """

    columns: tuple[str, ...]
    enforced: bool = True
    arbiter: bool = True
    prefix: bool = False

    @property
    def deferrable(self) -> bool:
        """Whether the database checks it only at the commit if a transaction asks for that."""
        return self.enforced and not self.arbiter


@dataclass(slots=True, frozen=True)
class Trigger:
    """A trigger or rule of a table: its name, when it runs, and its text as far as it is known."""

    name: str
    when: str
    text: str = ""

    @property
    def foreign(self) -> bool:
        """Whether it is not one of eventsync's own triggers, which alter no row."""
        return OWN_TRIGGER.match(self.name) is None

    def sets(self, columns: Iterable[str]) -> list[str]:
        """Return those of ``columns`` to which the text assigns a value, in their order."""
        patterns = (_ASSIGNED, _SET)
        found = {
            next(name for name in groups if name).replace('""', '"').replace("``", "`").casefold()
            for pattern in patterns
            for groups in pattern.findall(self.text)
        }
        return [column for column in columns if column.casefold() in found]


@dataclass(frozen=True)
class Catalogue:
    """What eventsync has to know of a table beside its columns and constraints. Immutable.

    Two of them are equal as long as nothing of this has changed.

    ``kind``: table or view. ``columns``: each column's name and everything about it, as the
    database states it. ``loose``: columns that take different values for equal, as without case.
    ``triggers``: ``None`` if this user may not see them. ``generated``: columns that the database
    may fill by itself although the statement names them. ``secured``: the database may hide rows
    from this user.
    """

    kind: str
    columns: tuple[tuple[object, ...], ...]
    loose: frozenset[str] = frozenset()
    uniques: tuple[UniqueIndex, ...] = ()
    triggers: tuple[Trigger, ...] | None = ()
    generated: frozenset[str] = frozenset()
    secured: bool = False
    constraints: tuple[object, ...] = field(default=())

    @cached_property
    def alters(self) -> bool:
        """Whether triggers may alter what is written, or keep it from being written."""
        return self.triggers is None or bool(self.triggers)

    def key_indexes(self, keys: Sequence[str]) -> list[UniqueIndex]:
        """Return the indexes that let each combination of these columns occur only once."""
        return [
            index for index in self.uniques if set(index.columns) == set(keys) and index.enforced
        ]
