"""``eventsync demo``: three stores kept in sync while things go wrong, and the numbers to prove it.

It owns the command and how the story is told. It must not know the story.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventsync.cli.command import JsonOption, reported
from eventsync.cli.output import print_json, print_table, say
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from eventsync.cli.demo.result import Result

__all__ = ["demo"]

_DEFAULT = "eventsync-demo"


def demo(
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help=f"A new folder; default: {_DEFAULT}.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """See it work: three stores, three workers, edits on all sides, kills and poison.

    Makes a new folder with an SQLite database, a CSV file and JSON documents, which hold the
    chemical elements, and runs their workers as processes over the embedded broker. Edits them in
    several places at once, kills a worker while it is busy, sends what cannot be applied, then
    compares all stores field by field and counts every change. The folder stays, to play with.

    Takes less than 30 seconds. The exit code is 1 if anything got lost or differs.

    Examples:
      eventsync demo
      eventsync demo /tmp/elements --json
    """
    with reported(debug=debug):
        from eventsync.cli.demo.scenario import play

        where = _new_folder(folder)
        narrator = _Narrator(quiet=as_json)
        result = play(where, narrator)
        if as_json:
            print_json(result.as_json())
        else:
            _tell(result, folder or Path(where.name))
    if result.problems:
        raise typer.Exit(1)


class _Narrator:
    """Tells what happens as it happens; to standard error when that is for a script."""

    def __init__(self, *, quiet: bool) -> None:
        self._err = quiet
        self._chapter = 0
        self._started = time.monotonic()

    def chapter(self, title: str) -> None:
        """A new part of the story."""
        self._chapter += 1
        typer.secho(f"\n{self._chapter}. {title}", bold=True, err=self._err)

    def line(self, text: str, *, colour: str | None = None) -> None:
        """One thing that happened, and when."""
        at = f"{time.monotonic() - self._started:5.1f} s  "
        say(at + text, indent=len(at), colour=colour, err=self._err)


def _new_folder(folder: Path | None) -> Path:
    if folder is None:
        folder, number = Path(_DEFAULT), 1
        while folder.exists():
            number += 1
            folder = Path(f"{_DEFAULT}-{number}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} is there already", hint="name a folder that is not")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _tell(result: Result, folder: Path) -> None:
    columns = ("applied", "superseded", "already there", "dead-lettered", "lost")
    typer.echo()
    print_table(
        ["store", "changes", *columns],
        [
            [
                name,
                f"{result.published:,}",
                *(f"{account.counts[column]:,}" for column in columns),
            ]
            for name, account in result.stores.items()
        ],
        right=range(1, 7),
    )
    typer.echo()
    print_table(
        ["store", "records", "fields", "differing"],
        [
            [name, f"{account.records:,}", f"{account.fields:,}", f"{account.differing:,}"]
            for name, account in result.stores.items()
        ],
        right=range(1, 4),
    )
    typer.echo()
    for text in result.summary():
        say(text)
    for problem in result.problems:
        say(f"WRONG: {problem}", colour="red", err=True)
    typer.echo(f"\nThe stores are yours to play with:\n\n  cd {folder}")
    typer.echo("  eventsync find Element --sort -mass --limit 10")
    typer.echo("  eventsync dlq show lab --all\n")
    typer.echo("README.md there says more.")
