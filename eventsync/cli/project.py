"""``eventsync init``: writes a small commented project to start from."""

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

# The Python files of a template have the additional ending .txt, because they cannot be imported as
# modules of this package.
_TEXT = ".txt"


def init(
    folder: Annotated[
        Path,
        typer.Argument(
            metavar="FOLDER", help="The folder. Default: the current one.", show_default=False
        ),
    ] = Path(),
) -> None:
    """Write a small commented project to start from.

    The project contains a record type, two stores (an SQLite database and a CSV file), each with a
    module in workers/, and sample data. You can run the project as it is, on the embedded broker.
    Existing files are never overwritten.

    Examples:
      eventsync init shop && cd shop && eventsync check
    """
    from importlib.resources import files

    with reported():
        write_files(files("eventsync.cli").joinpath("starter"), folder)
        typer.echo(f"Project written to {folder.resolve()}. Next steps (see its README.md):\n")
        if folder != Path():
            typer.echo(f"  cd {folder}")
        typer.echo("  eventsync check\n  eventsync publish shop -f data/products.csv")
        typer.echo("  eventsync worker sheet --drain\n  eventsync find Product")


def write_files(source: Traversable, folder: Path) -> None:
    """Copy the files of ``source`` into ``folder``, which is created if it does not exist.

    Raises ``ConfigError`` if one of the files exists already; then nothing is written.
    """
    found = dict(_files(source, folder))
    there = [str(path.relative_to(folder)) for path in found if path.exists()]
    if there:
        raise ConfigError(
            f"{folder.resolve()} already contains {', '.join(there)}",
            hint="name a folder without these files",
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
