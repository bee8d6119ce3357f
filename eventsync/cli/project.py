"""``eventsync init``: a small commented project to start from.

It owns how the files of the package's starter become a folder. It must not know what is in them.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from eventsync.cli.command import reported
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

__all__ = ["init", "write_files"]

# The starter's Python files are text until they are somebody's: they import what lies beside them.
_TEXT = ".txt"


def init(
    folder: Annotated[
        Path, typer.Argument(metavar="FOLDER", help="Where; default: here.", show_default=False)
    ] = Path(),
) -> None:
    """Write a small commented project to start from.

    A record type, two stores (an SQLite database and a CSV file) with a worker module each, and
    sample data. It runs as it stands, on the embedded broker. Nothing is overwritten.

    Examples:
      eventsync init shop && cd shop && eventsync check
    """
    from importlib.resources import files

    with reported():
        write_files(files("eventsync.cli").joinpath("starter"), folder)
        typer.echo(f"A project is in {folder.resolve()}. Its README.md says how to go on:\n")
        if folder != Path():
            typer.echo(f"  cd {folder}")
        typer.echo("  eventsync check\n  eventsync publish shop -f data/products.csv")
        typer.echo("  eventsync worker sheet --drain\n  eventsync find Product")


def write_files(source: Traversable, folder: Path) -> None:
    """Copy the files of ``source`` into ``folder``, which may be there, but none of the files.

    Raises ``ConfigError`` before anything is written.
    """
    found = dict(_files(source, folder))
    there = [str(path.relative_to(folder)) for path in found if path.exists()]
    if there:
        raise ConfigError(
            f"{folder.resolve()} has {', '.join(there)} already", hint="name another folder"
        )
    for path, content in found.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)


def _files(source: Traversable, folder: Path) -> Iterator[tuple[Path, bytes]]:
    for entry in source.iterdir():
        if entry.is_dir():
            if entry.name != "__pycache__":
                yield from _files(entry, folder / entry.name)
        else:
            yield folder / entry.name.removesuffix(_TEXT), entry.read_bytes()
