"""Edits of field values by the user: with ``FIELD=VALUE`` assignments, or in a text editor."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import typer

from eventsync.cli.output import to_json
from eventsync.errors import ConfigError

__all__ = ["edited", "with_assignments"]


def with_assignments(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """Return a copy of ``values`` in which each assignment ``FIELD=VALUE`` is made.

    A VALUE that is JSON is read as JSON; any other is text. Raises ``typer.BadParameter`` if an
    assignment has another form.
    """
    new = dict(values)
    for assignment in assignments:
        name, equals, text = assignment.partition("=")
        if not equals or not name:
            raise typer.BadParameter(f"{assignment!r} is not FIELD=VALUE", param_hint="--set")
        try:
            new[name] = json.loads(text)
        except ValueError:
            new[name] = text
    return new


def edited(values: Mapping[str, Any]) -> dict[str, Any]:
    """Open ``values`` as JSON in ``$VISUAL`` or ``$EDITOR``, and return the edited values.

    Blocks until the editor is closed. Raises ``ConfigError`` if there is no terminal, the editor
    fails, or its result is not a JSON object.
    """
    if not sys.stdin.isatty():
        raise ConfigError(
            "the editor cannot be opened, because standard input is not a terminal",
            hint="use --set instead",
        )
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # mkstemp makes a file that only its owner can read. The file holds record data.
    handle, name = tempfile.mkstemp(prefix="eventsync-", suffix=".json")
    path = Path(name)
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            json.dump(dict(values), file, ensure_ascii=False, indent=2, default=to_json)
            file.write("\n")
        try:
            code = subprocess.run([*shlex.split(command), name], check=False).returncode
        except OSError as error:
            raise ConfigError(
                f"the editor {command!r} cannot be started: {error.strerror}",
                hint="set EDITOR to the command of an editor, or use --set",
            ) from error
        if code:
            raise ConfigError(
                f"the editor {command!r} ended with exit code {code}; nothing was changed"
            )
        try:
            new = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(
                f"the edited text is not JSON: {error}; nothing was changed"
            ) from None
    finally:
        path.unlink()
    if not isinstance(new, dict):
        raise ConfigError("the edited text is not a JSON object; nothing was changed")
    return new
