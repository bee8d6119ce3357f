"""``eventsync demo``: keeps three stores in sync in spite of failures, and counts every change."""

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
            metavar="FOLDER", help=f"A new folder. Default: {_DEFAULT}.", show_default=False
        ),
    ] = None,
    as_json: JsonOption = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    """Watch three stores in sync: with edits on all sides, a killed worker and bad changes.

    Creates a new folder with three stores of the chemical elements: an SQLite database, a CSV file
    and JSON documents. Runs a worker process for each store, with the embedded broker. Edits the
    elements in several stores at once, kills a worker while it is busy, and sends changes that
    cannot be applied. Then compares all stores field by field and counts every change. The folder
    stays, so that you can try more commands in it.

    Takes less than 30 seconds. The exit code is 1 if a change is lost or a store differs.

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
            _print(result, folder or Path(where.name))
    if result.problems:
        raise typer.Exit(1)


class _Narrator:
    """Prints the steps of the demo as they happen.

    ``quiet``: print on standard error, so that standard output has nothing but the result.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._err = quiet
        self._chapter = 0
        self._started = time.monotonic()

    def chapter(self, title: str) -> None:
        """Print the title of the next part."""
        self._chapter += 1
        typer.secho(f"\n{self._chapter}. {title}", bold=True, err=self._err)

    def line(self, text: str, *, colour: str | None = None) -> None:
        """Print one step, after the seconds since the start of the demo."""
        at = f"{time.monotonic() - self._started:5.1f} s  "
        say(at + text, indent=len(at), colour=colour, err=self._err)


def _new_folder(folder: Path | None) -> Path:
    if folder is None:
        folder, number = Path(_DEFAULT), 1
        while folder.exists():
            number += 1
            folder = Path(f"{_DEFAULT}-{number}")
    elif folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not an empty folder", hint="name a new folder")
    folder.mkdir(parents=True, exist_ok=True)
    return folder.resolve()


def _print(result: Result, folder: Path) -> None:
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
    typer.echo(f"\nTry more in the folder of the demo:\n\n  cd {folder}")
    typer.echo("  eventsync find Element --sort -mass --limit 10")
    typer.echo("  eventsync dlq show lab --all\n")
    typer.echo("Its README.md lists more to try.")
