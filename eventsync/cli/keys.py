"""``eventsync keys``: makes, lists, rotates and revokes the signing keys in a file."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from eventsync.cli.command import EXIT_CODES, JsonOption, command, help_of, split_names
from eventsync.cli.deployment import Deployment
from eventsync.cli.output import print_json, print_table
from eventsync.errors import ConfigError

if TYPE_CHECKING:
    from eventsync.envelope.signing import Keyring

__all__ = ["keys"]

_KEY_BYTES: Final = 32

_FileOption = Annotated[
    Path | None,
    typer.Option(
        "--file",
        metavar="FILE",
        help="The file with the keys. Default: eventsync_keys in EVENTSYNC_SECRETS_DIR.",
    ),
]
_IdArgument = Annotated[str, typer.Argument(metavar="ID", help="The id of the key.")]


def keys() -> typer.Typer:
    """Return the Typer application with the commands ``eventsync keys ...``."""
    app = typer.Typer(no_args_is_help=True, help=help_of(_keys))
    for name, function in (
        ("list", list_keys),
        ("new", new),
        ("rotate", rotate),
        ("revoke", revoke),
    ):
        app.command(name, help=help_of(function), epilog=EXIT_CODES)(function)
    return app


def _keys() -> None:
    """Make, list, rotate or revoke the keys that sign changes.

    Each program signs with the first key of its file and accepts changes that are signed with any
    key of the file. Running programs read the file again within seconds. No command prints a key.

    To replace a key without stopping: make the new key and copy the file to all machines; rotate to
    the new key everywhere; when no queue or dead letter has changes of the old key any more, revoke
    the old key everywhere.

    Examples:
      eventsync keys new 2027
      eventsync keys new shop --type Order --op put,patch     a key for one producer
      eventsync keys rotate 2027
      eventsync keys revoke 2026
    """


@dataclass(slots=True, frozen=True)
class LimitOptions:
    """The options that limit what may be signed with a key."""

    type: Annotated[
        list[str] | None,
        typer.Option("--type", metavar="TYPE", help="Only changes of this record type."),
    ] = None
    op: Annotated[
        list[str] | None,
        typer.Option("--op", metavar="OP", help="Only this operation: put, patch or delete."),
    ] = None
    field: Annotated[
        list[str] | None,
        typer.Option(
            "--field",
            metavar="TYPE.FIELD",
            help="Only this field of the type. List the key fields, too.",
        ),
    ] = None
    source: Annotated[
        list[str] | None,
        typer.Option("--source", metavar="NAME", help="Only changes with this source."),
    ] = None

    def words(self) -> list[str]:
        """Return the limits as ``KeyScope.parse`` reads them."""
        given = {
            "types": self.type,
            "ops": self.op,
            "fields": self.field,
            "sources": self.source,
        }
        return [
            f"{name}={','.join(names)}"
            for name, listed in given.items()
            if (names := split_names(listed)) is not None
        ]


@command
def list_keys(
    deployment: Deployment, file: _FileOption = None, as_json: JsonOption = False
) -> None:
    """List the ids and the limits of the keys, the one that signs first. No key is printed.

    Examples:
      eventsync keys list
      eventsync keys list --json
    """
    from eventsync.envelope.signing import Keyring

    if file is not None or deployment.settings.key_file is not None:
        keyring: Keyring | None = Keyring.parse(_text(_path(deployment, file)))
    else:
        keyring = deployment.bus.keys
    found = [] if keyring is None else [keyring.signing]
    if keyring is not None:
        found += [kid for kid in keyring.keys if kid != keyring.signing]
    rows = [
        {
            "id": kid,
            "signs": kid == found[0],
            "limits": "" if keyring is None else str(keyring.scopes.get(kid, "")),
        }
        for kid in found
    ]
    if as_json:
        print_json(rows)
    elif not rows:
        typer.echo("There are no signing keys, so changes are not signed.")
    else:
        print_table(
            ["id", "signs", "limits"],
            [
                [str(row["id"]), "yes" if row["signs"] else "–", str(row["limits"]) or "none"]
                for row in rows
            ],
        )


@command
def new(
    deployment: Deployment,
    id: _IdArgument,
    limits: LimitOptions,
    file: _FileOption = None,
) -> None:
    """Make a key, optionally with limits, and add it to the file. It does not sign yet.

    The first key of a new file signs. Options can be repeated, or hold several names separated by
    commas. A change that exceeds a limit of its key is refused: by the program that signs it, and
    as a dead letter by each worker.

    Examples:
      eventsync keys new 2027
      eventsync keys new shop --type Order --op put,patch --source shop
      eventsync keys new hr --type Person --field Person.id,Person.phone
    """
    import base64
    import secrets

    path = _path(deployment, file)
    lines = _lines(_text(path)) if path.exists() else []
    key = base64.b64encode(secrets.token_bytes(_KEY_BYTES)).decode()
    lines.append(" ".join([f"{id}:{key}", *limits.words()]))
    keyring = _write(path, lines)
    if keyring.signing == id:
        typer.echo(f"Key {id} added to {path}. Changes are signed with it.")
    else:
        typer.echo(
            f"Key {id} added to {path}. It verifies signatures; when all machines have it, sign "
            f"with it: eventsync keys rotate {id}"
        )


@command
def rotate(deployment: Deployment, id: _IdArgument, file: _FileOption = None) -> None:
    """Sign with the key ID from now on. The other keys still verify signatures.

    First copy the file with the new key to all machines: a machine without it refuses the changes
    that are signed with it, and they become dead letters.

    Examples:
      eventsync keys rotate 2027
    """
    path = _path(deployment, file)
    lines = _lines(_text(path))
    at = _position(lines, id, path)
    line = lines.pop(at)
    lines.insert(next(n for n, one in enumerate([*lines, line]) if _is_key(one)), line)
    _write(path, lines)
    typer.echo(f"Changes are signed with key {id}.")


@command
def revoke(deployment: Deployment, id: _IdArgument, file: _FileOption = None) -> None:
    """Remove the key ID from the file. What is signed with it is refused from now on.

    Changes in queues that are signed with it become dead letters. The key that signs cannot be
    revoked; rotate to another key first.

    Examples:
      eventsync keys revoke 2026
    """
    from eventsync.envelope.signing import Keyring

    path = _path(deployment, file)
    text = _text(path)
    lines = _lines(text)
    at = _position(lines, id, path)
    if Keyring.parse(text).signing == id:
        raise ConfigError(
            f"key {id!r} signs, so it cannot be revoked",
            hint="make another key with eventsync keys new, and sign with it: eventsync keys "
            "rotate",
        )
    del lines[at]
    _write(path, lines)
    typer.echo(f"Key {id} removed from {path}. Remove it on the other machines, too.")


def _path(deployment: Deployment, given: Path | None) -> Path:
    """Return the path of the file with the keys. Raises ``ConfigError`` if there is none."""
    from eventsync.config import key_path

    if given is not None:
        return given
    path = key_path()
    if path is None:
        raise ConfigError(
            "the signing keys are not in a file of their own",
            hint="name the file with --file, or put the keys into the file eventsync_keys of a "
            "folder, set EVENTSYNC_SECRETS_DIR to the folder and unset EVENTSYNC_KEYS",
        )
    return path


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise ConfigError(
            f"the file {path} with the signing keys cannot be read: {why}",
            hint="make the first key with eventsync keys new ID",
        ) from error


def _lines(text: str) -> list[str]:
    """Return the text of a keyring with one key a line. Keeps comments."""
    from eventsync.envelope.signing import Keyring

    lines = text.splitlines()
    keyring = Keyring.parse(text)
    several_in_a_line = sum(map(_is_key, lines)) != len(keyring.keys)
    return keyring.describe().splitlines() if several_in_a_line else lines


def _is_key(line: str) -> bool:
    return bool(line.strip()) and not line.strip().startswith("#")


def _position(lines: list[str], id: str, path: Path) -> int:
    for number, line in enumerate(lines):
        if _is_key(line) and line.strip().partition(":")[0] == id:
            return number
    raise ConfigError(
        f"there is no key {id!r} in {path}", hint="list the keys with eventsync keys list"
    )


def _write(path: Path, lines: list[str]) -> Keyring:
    """Replace the file in one step, readable only for its owner. Return the keys in it.

    Raises ``ConfigError``, without writing, if the keys are not valid together.
    """
    from eventsync.envelope.signing import Keyring

    text = "\n".join(lines) + "\n"
    keyring = Keyring.parse(text)
    path = Path(os.path.realpath(path))
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o600
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with open(descriptor, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fchmod(file.fileno(), mode)
            os.fsync(file.fileno())
        os.replace(partial, path)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise
    return keyring
