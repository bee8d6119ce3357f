"""``eventsync publish``: publishes records from files or standard input."""

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
from eventsync.cli.output import Advance, echo, plural, print_json, progress, warn
from eventsync.errors import BusUnavailableError, StoreUnavailableError

if TYPE_CHECKING:
    from eventsync.cli.record_files import RecordLine
    from eventsync.cli.target import Target

__all__ = ["publish"]

_CHUNK = 500
_MAX_ERRORS = 100


class InputFormat(StrEnum):
    """The choices of ``--format``: a copy of ``record_files.Format``, which is slow to import."""

    JSONL = "jsonl"
    CSV = "csv"


@command
def publish(
    deployment: Deployment,
    store: Annotated[
        str | None,
        typer.Argument(
            metavar="STORE",
            help="The store to write to. Without it, --type is required.",
            autocompletion=complete_store,
            show_default=False,
        ),
    ] = None,
    type: Annotated[
        str | None,
        typer.Option(
            "--type", metavar="TYPE", help="The record type.", autocompletion=complete_type
        ),
    ] = None,
    file: Annotated[
        list[Path] | None,
        typer.Option(
            "--file", "-f", exists=True, dir_okay=False, help="Read this file. Can be repeated."
        ),
    ] = None,
    format: Annotated[
        InputFormat | None,
        typer.Option("--format", help="The format. Default: csv for *.csv, else jsonl."),
    ] = None,
    delete: Annotated[
        bool, typer.Option("--delete", help="Delete the records with these keys.")
    ] = False,
    spool: Annotated[
        Path | None,
        typer.Option("--spool", metavar="FILE", dir_okay=False, help="Write to this spool file."),
    ] = None,
    as_json: JsonOption = False,
) -> int:
    """Publish records in JSON Lines or CSV, from files or standard input.

    With STORE, the records are written to that store, which publishes the changes. A line may leave
    out fields; an existing record keeps its values of these fields. A record that does not exist is
    added. With --type and no STORE, whole records are published to every store that holds the type.
    With --spool, whole records are written to the spool file, for which no broker is needed;
    eventsync relay --spool publishes them.

    A wrong line is reported with its number and the reason. The other lines are still published,
    and the exit code is 1. It is safe to publish the same file again.

    Examples:
      eventsync publish crm -f customers.csv
      jq -c '.[]' export.json | eventsync publish crm --type Customer
      echo '{"id": 7}' | eventsync publish crm --delete
      eventsync publish --type Customer -f customers.jsonl
      eventsync publish --type Customer -f customers.jsonl --spool changes.db
    """
    from eventsync.cli.target import target_for

    target = target_for(deployment, store, type, delete=delete, spool=spool)
    report = _Report(waiting=spool is not None, spool=spool)
    with ExitStack() as stack:
        for path, stream, size in _inputs(file, stack):
            read_as = format.value if format else None
            with progress(f"Publishing {path}", total=size) as advance:
                _publish_lines(target, path, stream, read_as, delete, report, advance)
    error = target.finish()
    if error is not None:
        report.waiting = True
        warn(
            f"the records are written to {store}, but their changes wait in the outbox; the worker "
            f"of {store}, eventsync relay {store} or the next edit publishes them ({error.message})"
        )
    report.print(as_json)
    if error is not None:
        return UNAVAILABLE
    return FOUND_WRONG if report.wrong else OK


def _publish_lines(
    target: Target,
    path: str,
    stream: BinaryIO,
    format: str | None,
    delete: bool,
    report: _Report,
    advance: Advance,
) -> None:
    from eventsync.cli.record_files import Format, format_of, read_lines

    chosen = Format(format) if format else format_of(path)
    lines = read_lines(stream, chosen, target.record_type, partial=target.partial, key_only=delete)
    for chunk in _chunks(lines):
        wrong = [line for line in chunk if line.record is None]
        try:
            wrong += target.write([line for line in chunk if line.record is not None])
        except (StoreUnavailableError, BusUnavailableError, OSError):
            warn(
                f"{path}: stopped at line {chunk[0].number}; {plural(report.published, 'record')} "
                "published; it is safe to run the command again"
            )
            raise
        report.add(path, len(chunk), wrong)
        advance(chunk[-1].offset, count=f"{report.published:,} records")


def _chunks(lines: Iterable[RecordLine]) -> Iterator[list[RecordLine]]:
    """Yield the lines in chunks in which no key occurs twice.

    One call of ``Target.write`` can edit each record only once.
    """
    chunk: list[RecordLine] = []
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
            typer.echo(
                "Reading records from the terminal, one per line. End with Ctrl-D.", err=True
            )
        yield "standard input", sys.stdin.buffer, None
        return
    for path in files:
        yield str(path), stack.enter_context(path.open("rb")), path.stat().st_size


@dataclass(slots=True)
class _Report:
    """The report of the command: how many records were published, and the errors of wrong lines.

    ``wrong``: the number of wrong lines; ``errors`` describes the first of them. ``waiting``:
    whether changes wait in an outbox or a spool. ``spool``: the spool file, if one was written.
    """

    published: int = 0
    wrong: int = 0
    waiting: bool = False
    spool: Path | None = None
    errors: list[dict[str, Any]] = field(default_factory=list)

    def add(self, path: str, count: int, wrong: Sequence[RecordLine]) -> None:
        self.published += count - len(wrong)
        for line in sorted(wrong, key=lambda line: line.number):
            self.wrong += 1
            if self.wrong <= _MAX_ERRORS:
                self.errors.append({"file": path, "line": line.number, "error": line.error})
                echo(f"{path}:{line.number}: {line.error}", err=True)

    def print(self, as_json: bool) -> None:
        if self.wrong > _MAX_ERRORS:
            warn(f"{self.wrong - _MAX_ERRORS:,} more wrong lines are not shown")
        if as_json:
            print_json(
                {
                    "published": self.published,
                    "wrong": self.wrong,
                    "waiting": self.waiting,
                    "errors": self.errors,
                }
            )
            return
        ending = f", {plural(self.wrong, 'wrong line')} skipped" if self.wrong else ""
        done = "published" if self.spool is None else f"written to the spool {self.spool}"
        typer.echo(f"{plural(self.published, 'record')} {done}{ending}.")
