"""Rows of figures as a table, for people at a terminal and for the documentation.

It knows nothing of what was measured.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

__all__ = ["Column", "Tell", "markdown", "text"]

Tell = Callable[[dict[str, Any]], object]
"""What is told each row of a measurement once it is known."""


class Column(NamedTuple):
    """A column: the key of its values, its title, and how many digits follow the point."""

    key: str
    title: str
    digits: int = 0

    def shown(self, row: Mapping[str, Any]) -> str:
        """The text of a row's value; a dash for none."""
        held = row.get(self.key)
        if held is None:
            return "-"
        if isinstance(held, bool) or not isinstance(held, int | float):
            return str(held)
        return f"{held:,.{self.digits}f}"


def text(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table as lines of aligned columns."""
    lines = [[column.title for column in columns]]
    lines += [[column.shown(row) for column in columns] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    numeric = [_is_numeric(column, rows) for column in columns]
    shown = [
        "  ".join(
            part.rjust(width) if right else part.ljust(width)
            for part, width, right in zip(line, widths, numeric, strict=True)
        ).rstrip()
        for line in lines
    ]
    return "\n".join(shown)


def markdown(columns: Sequence[Column], rows: Sequence[Mapping[str, Any]]) -> str:
    """The table in Markdown."""
    rules = ["---:" if _is_numeric(column, rows) else "---" for column in columns]
    lines = [[column.title for column in columns], rules]
    lines += [[column.shown(row) for column in columns] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _is_numeric(column: Column, rows: Sequence[Mapping[str, Any]]) -> bool:
    held = [row.get(column.key) for row in rows]
    return all(one is None or isinstance(one, int | float) for one in held)
