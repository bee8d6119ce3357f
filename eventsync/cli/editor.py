"""Values altered by the user: by assignments, or as JSON in an editor.

It must not know what the values are for.
"""

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

__all__ = ["assigned", "edited"]


def assigned(values: Mapping[str, Any], assignments: Iterable[str]) -> dict[str, Any]:
    """``values`` with each ``FIELD=VALUE`` set; a value that is JSON is taken as such."""
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
    """What the user made of ``values`` in ``$VISUAL`` or ``$EDITOR``. Blocks until it is closed.

    Raises ``ConfigError`` when there is no editor, it fails, or what it leaves is no JSON object.
    """
    if not sys.stdin.isatty():
        raise ConfigError("there is no terminal to edit at", hint="set fields with --set")
    command = os.environ.get("VISUAL") or os.environ.get("EDITOR") or "vi"
    # Only its owner may read it: it holds somebody's data.
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
                f"the editor {command!r} cannot be run: {error.strerror}", hint="set EDITOR"
            ) from error
        if code:
            raise ConfigError(f"the editor {command!r} failed with {code}; nothing was changed")
        try:
            new = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"what was edited is not JSON: {error}") from None
    finally:
        path.unlink()
    if not isinstance(new, dict):
        raise ConfigError("what was edited is not a JSON object")
    return new
