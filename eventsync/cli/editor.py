"""The user's editor, opened on values as JSON.

It must not know what the values are for.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from eventsync.cli.output import to_json
from eventsync.errors import ConfigError

__all__ = ["edited_json"]


def edited_json(values: Mapping[str, Any]) -> dict[str, Any]:
    """What the user made of ``values`` in ``$VISUAL`` or ``$EDITOR``. Blocks until it is closed.

    Raises ``ConfigError`` when there is no editor, it fails, or what it leaves is no JSON object.
    """
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
            edited = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ConfigError(f"what was edited is not JSON: {error}") from None
    finally:
        path.unlink()
    if not isinstance(edited, dict):
        raise ConfigError("what was edited is not a JSON object")
    return edited
