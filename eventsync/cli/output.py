"""The output of commands: tables, JSON, messages and progress bars.

Results go to standard output, everything else to standard error. If the stream is not a terminal,
there are no colours, progress bars or notes, and tables are plain aligned columns.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import typer

from eventsync.values.printable import printable, printable_json

if TYPE_CHECKING:
    from rich.table import Table

__all__ = [
    "ago",
    "draw_table",
    "note",
    "plural",
    "print_json",
    "print_table",
    "progress",
    "say",
    "shown",
    "to_json",
    "warn",
]

_LONGEST_CELL = 60


def print_json(value: Any) -> None:
    """Print one JSON document: indented on a terminal, otherwise on one line."""
    indent = 2 if sys.stdout.isatty() else None
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=to_json)
    lines = map(printable_json, text.split("\n"))
    typer.echo("\n".join(lines))


def to_json(value: Any) -> Any:
    """Convert a value that JSON lacks, in the form that ``eventsync publish`` reads.

    For the parameter ``default`` of ``json.dumps``. Raises ``TypeError`` if there is no such form.
    """
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, bytes):
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"a value of type {type(value).__name__} cannot be written as JSON")


def shown(value: Any) -> str:
    """Return a field value as text for a table cell, at most 60 characters; ``∅`` for ``None``."""
    if value is None:
        return "∅"
    text = (
        value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=to_json)
    )
    if not isinstance(value, str | list | dict | bool):
        text = text.strip('"')
    text = text if text.isprintable() else ascii(text)[1:-1]
    return text if len(text) <= _LONGEST_CELL else f"{text[: _LONGEST_CELL - 1]}…"


def ago(seconds: float | None) -> str:
    """Return a duration in seconds as short text, for example ``5 min``; ``–`` for ``None``."""
    if seconds is None:
        return "–"
    for size, unit in ((86_400.0, "d"), (3600.0, "h"), (60.0, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def plural(count: int, one: str, many: str = "") -> str:
    """Return a count with its noun, for example ``1 record`` or ``2,000 records``.

    ``many``: the plural of ``one``, if it is not ``one`` with an s.
    """
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def echo(text: str, *, err: bool = False) -> None:
    """Print a text as it is, with the control characters of foreign text in it escaped."""
    typer.echo(printable(text, lines=True), err=err)


def say(text: str, *, indent: int = 0, colour: str | None = None, err: bool = False) -> None:
    """Print a text, wrapped to the width of the terminal if the stream is one.

    ``indent``: the number of spaces at the start of each line after the first. ``err``: print on
    standard error instead of standard output.
    """
    text = printable(text, lines=True)
    stream = sys.stderr if err else sys.stdout
    lines = [text]
    if stream.isatty():
        width = shutil.get_terminal_size().columns
        lines = textwrap.wrap(text, width, subsequent_indent=" " * indent, break_on_hyphens=False)
    for line in lines or [""]:
        typer.secho(line, fg=colour, err=err)


def warn(text: str) -> None:
    """Print a warning or an error on standard error."""
    say(f"eventsync: {text}", err=True)


def note(text: str) -> None:
    """Print a remark on standard error, but only if standard error is a terminal."""
    if sys.stderr.isatty():
        say(text, err=True)


def print_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    marked: Callable[[int, int], str | None] = lambda row, column: None,
) -> None:
    """Print a table: with colours and a ruled head on a terminal, else as plain aligned columns.

    ``right``: the indexes of the right-aligned columns. ``marked``: returns the colour of a cell,
    or ``None``, given the indexes of the row and the column.
    """
    if not sys.stdout.isatty():
        lines = [list(map(printable, line)) for line in (columns, *rows)]
        _print_plain(lines[0], lines[1:], frozenset(right))
        return
    from rich.console import Console

    Console(highlight=False).print(draw_table(columns, rows, right=right, marked=marked))


def draw_table(
    columns: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[int] = (),
    marked: Callable[[int, int], str | None] = lambda row, column: None,
) -> Table:
    """Return the ``rich`` table that ``print_table`` prints on a terminal; same parameters."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    flush_right = frozenset(right)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, collapse_padding=True)
    for number, column in enumerate(columns):
        table.add_column(
            printable(column), justify="right" if number in flush_right else "left", overflow="fold"
        )
    for row_number, row in enumerate(rows):
        table.add_row(
            *(
                Text(printable(cell), style=marked(row_number, column) or "")
                for column, cell in enumerate(row)
            )
        )
    return table


def _print_plain(
    columns: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int]
) -> None:
    lines = [list(columns), *rows]
    widths = [max(len(line[n]) for line in lines) for n in range(len(columns))]
    for line in lines:
        cells = [
            cell.rjust(width) if n in right else cell.ljust(width)
            for n, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        typer.echo("  ".join(cells).rstrip())


@contextmanager
def progress(what: str, *, total: float | None = None, unit: str = "") -> Iterator[Advance]:
    """Show a progress bar while the ``with`` block runs, if standard error is a terminal.

    Yields an ``Advance``, with which the block moves the bar. ``what``: the text before the bar.
    ``total``: the value that means finished, or ``None`` if unknown. ``unit``: the text after the
    count.
    """
    if not sys.stderr.isatty():
        yield Advance(None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = [
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %" if total else ""),
        TextColumn("{task.fields[count]}" + unit),
        TimeElapsedColumn(),
    ]
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=total, count="")

        def show(done: float, of: float | None, count: str, description: str | None) -> None:
            changes: dict[str, Any] = {"completed": done, "count": count}
            if of is not None:
                changes["total"] = of
            if description is not None:
                changes["description"] = description
            bar.update(task, **changes)

        yield Advance(show)


class Advance:
    """A function that moves the progress bar of ``progress``. Without a bar, it does nothing."""

    def __init__(self, show: Callable[[float, float | None, str, str | None], None] | None) -> None:
        self._show = show

    def __call__(
        self,
        done: float,
        *,
        total: float | None = None,
        count: str = "",
        description: str | None = None,
    ) -> None:
        """Show that ``done`` of ``total`` is finished.

        ``count``: the text after the bar. ``total``, ``description``: the new total and the new
        text before the bar; ``None`` keeps the present ones.
        """
        if self._show is not None:
            self._show(done, total, count, description)
