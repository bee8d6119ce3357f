"""The rows of a Debezium event, before and after a change."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Row", "complete", "doubtful", "unchanged"]


@dataclass(slots=True)
class Row:
    """A row of an event. ``raw``: its JSON. ``values``: the converted values.

    ``lacking``: the columns with a placeholder. ``completed``: the columns whose value comes from
    the row before the update. ``doubtful``: the columns with a null that may be a placeholder.
    ``unsupported``: what is wrong with the values that no record can hold.
    """

    raw: Mapping[str, Any]
    values: dict[str, Any] = field(default_factory=dict)
    lacking: list[str] = field(default_factory=list)
    completed: set[str] = field(default_factory=set)
    doubtful: list[str] = field(default_factory=list)
    unsupported: dict[str, str] = field(default_factory=dict)


def complete(after: Row, before: Row) -> None:
    """Add the values that ``after`` lacks and ``before`` has, in place.

    A null in ``before`` is no value: PostgreSQL's connector sends it for what it does not know.
    """
    for name in list(after.lacking):
        if before.values.get(name) is not None:
            after.values[name] = before.values[name]
            after.lacking.remove(name)
            after.completed.add(name)


def doubtful(before: Row | None, after: Row, keys: Mapping[str, Any]) -> list[str]:
    """Return the columns whose null may stand for a large value that did not change.

    PostgreSQL's connector sends the row before an update with all values, or with those of the
    replica identity and null for the others. In a whole row, another column is unchanged, too.
    """
    if before is None:
        return after.doubtful
    whole = any(
        value is not None and name not in keys and after.raw.get(name) == value
        for name, value in before.raw.items()
    )
    return [] if whole else [name for name in after.doubtful if before.raw.get(name) is None]


def unchanged(before: Row, after: Row, *, nulls: bool) -> set[str]:
    """Return the columns that an update left as they were.

    ``nulls``: whether null in both rows counts as unchanged. The row before an update in PostgreSQL
    has null for columns outside the replica identity.
    """
    return {
        name
        for name, value in after.raw.items()
        if name in after.lacking
        or name in after.completed
        or (name in before.raw and before.raw[name] == value and (nulls or value is not None))
    }
