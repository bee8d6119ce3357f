"""``eventsync publish``: records from files or standard input, into a store or onto the bus.

It owns what becomes of a wrong line. It must not know how changes are made or sent.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, BinaryIO

import typer

from eventsync.cli.command import (
    FOUND_WRONG,
    OK,
    UNAVAILABLE,
    JsonOption,
    command,
    complete_store,
    complete_type,
)
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import Advance, plural, print_json, progress, warn
from eventsync.errors import BusUnavailableError, StoreUnavailableError

if TYPE_CHECKING:
    from eventsync.cli.record_files import Line
    from eventsync.cli.target import Sink

__all__ = ["publish"]

_CHUNK = 500
_TOLD = 100


class InputFormat(StrEnum):
    """How the records are written down."""

    JSONL = "jsonl"
    CSV = "csv"


@command
def publish(
    deployment: Deployment,
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE",
            help="The store to write to; without it, --type.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="The records' type.", autocompletion=complete_type
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", exists=True, dir_okay=False, help="Read this file; may be repeated."
        ),
    ] = None,
    format: Annotated[
        InputFormat | None,
        typer.Option("--format", help="Default: csv for files named *.csv, else jsonl."),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the records whose keys are given.")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", metavar="FILE", dir_okay=False, help="Into this spool, durably."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Publish records from JSON Lines or CSV, read from files or standard input.

    With STORE, they are written to that store and published from there: of a record that is there,
    the given fields; any other is added. A line may leave fields out. With --type and no STORE,
    they go to the bus as they are, each a whole record, for every store that holds the type. With
    --spool they wait in that file until eventsync relay --spool sends them; no broker is needed.

    A line that is wrong is told with its number and why, and the rest goes on; the exit code is
    then 1. Publishing the same lines into a store again changes nothing.

    Examples:
      eventsync publish crm -f customers.csv
      jq -c '.[]' export.json | eventsync publish crm --type Customer
      echo '{"id": 7}' | eventsync publish crm --delete
      eventsync publish --type Customer -f customers.jsonl
      eventsync publish --type Customer -f customers.jsonl --spool changes.db
    """
    from eventsync.cli.target import sink_for

    sink = sink_for(deployment, store, type, delete=delete, spool=spool)
    report = _Report(waiting=spool is not None, spool=spool)
    with ExitStack() as stack:
        for path, stream, size in _inputs(file, stack):
            read_as = format.value if format else None
            with progress(f"Publishing {path}", total=size) as advance:
                _publish_lines(sink, path, stream, read_as, delete, report, advance)
    error = sink.finish()
    if error is not None:
        report.waiting = True
        warn(
            f"written, but not published yet: {error.message}; the changes wait in the outbox and "
            f"are sent by the next edit, or by: eventsync worker {store}"
        )
    report.tell(as_json)
    if error is not None:
        return UNAVAILABLE
    return FOUND_WRONG if report.wrong else OK


def _publish_lines(
    sink: Sink,
    path: str,
    stream: BinaryIO,
    format: str | None,
    delete: bool,
    report: _Report,
    advance: Advance,
) -> None:
    from eventsync.cli.record_files import Format, format_of, read_lines

    chosen = Format(format) if format else format_of(path)
    lines = read_lines(stream, chosen, sink.record_type, partial=sink.partial, key_only=delete)
    for chunk in _chunks(lines):
        wrong = [line for line in chunk if line.record is None]
        try:
            wrong += sink.write([line for line in chunk if line.record is not None])
        except (StoreUnavailableError, BusUnavailableError, OSError):
            warn(
                f"{path}: stopped before line {chunk[0].number}; "
                f"{plural(report.published, 'record')} published; it is safe to begin again"
            )
            raise
        report.add(path, len(chunk), wrong)
        advance(chunk[-1].offset, count=f"{report.published:,} records")


def _chunks(lines: Iterable[Line]) -> Iterator[list[Line]]:
    """Lines in chunks in which no record is twice, since a store edits each once at a time."""
    chunk: list[Line] = []
    keys: set[str] = set()
    for line in lines:
        if len(chunk) == _CHUNK or line.key in keys:
            yield chunk
            chunk, keys = [], set()
        chunk.append(line)
        if line.record is not None:
            keys.add(line.key)
    if chunk:
        yield chunk


def _inputs(
    files: Sequence[Path] | None, stack: ExitStack
) -> Iterator[tuple[str, BinaryIO, int | None]]:
    if not files:
        if sys.stdin.isatty():
            typer.echo("Reading records from the terminal, one a line; end with Ctrl-D.", err=True)
        yield "standard input", sys.stdin.buffer, None
        return
    for path in files:
        yield str(path), stack.enter_context(path.open("rb")), path.stat().st_size


@dataclass(slots=True)
class _Report:
    """How many records went where, and the lines that did not."""

    published: int = 0
    wrong: int = 0
    waiting: bool = False
    spool: Path | None = None
    told: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: str, count: int, wrong: Sequence[Line]) -> None:
        self.published += count - len(wrong)
        for line in sorted(wrong, key=lambda line: line.number):
            self.wrong += 1
            if self.wrong <= _TOLD:
                self.told.append({"file": path, "line": line.number, "error": line.error})
                typer.echo(f"{path}:{line.number}: {line.error}", err=True)

    def tell(self, as_json: bool) -> None:
        if self.wrong > _TOLD:
            warn(f"{self.wrong - _TOLD:,} more wrong lines are not shown")
        if as_json:
            print_json(
                {
                    "published": self.published,
                    "wrong": self.wrong,
                    "waiting": self.waiting,
                    "errors": self.told,
                }
            )
            return
        ending = f", {plural(self.wrong, 'wrong line')} passed over" if self.wrong else ""
        done = "published" if self.spool is None else f"taken into the spool {self.spool}"
        typer.echo(f"{plural(self.published, 'record')} {done}{ending}.")
