"""The page docs/settings.md: all settings, from the code. ``--write`` writes the page.

The page says what the docstrings of ``eventsync.config.Settings`` say.
"""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import get_args

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs/settings.md"
CONFIG = ROOT / "eventsync/config.py"
HEAD = """# Settings

<!-- Written by tests/project/settings_page.py from eventsync/config.py. -->

Each setting is an environment variable, or a file in the folder that `EVENTSYNC_SECRETS_DIR` names.
The file has the name of the variable in lower case (`eventsync_broker`). The environment takes
precedence. Put secrets into files. Times are in seconds, sizes in bytes.

A variable that begins with `EVENTSYNC_` and is no setting is named by every command, with the
nearest setting.

| variable | default | secret | meaning |
|---|---|---|---|
"""
TAIL = (
    "| `EVENTSYNC_SECRETS_DIR` | | no | The folder with the files of settings. |\n"
    "| `EVENTSYNC_STORE_<NAME>` | | yes | The location of a store, a URL or a folder, where your "
    'module asks for it with `eventsync.location("name")`. Signs that cannot be in the name of a '
    "variable become `_`. |\n"
    "| `EVENTSYNC_WEBHOOK_<NAME>` | | yes | The secrets of the webhooks of a store, separated by "
    "blanks. A sender must know one of them. See [webhooks](capture/webhooks.md). |\n"
)


def texts() -> dict[str, str]:
    """Return the docstring of each setting, as one line."""
    tree = ast.parse(CONFIG.read_text(encoding="utf-8"))
    (settings,) = [n for n in tree.body if isinstance(n, ast.ClassDef) and n.name == "Settings"]
    found = {}
    for field, doc in zip(settings.body, settings.body[1:], strict=False):
        if isinstance(field, ast.AnnAssign) and isinstance(doc, ast.Expr):
            assert isinstance(field.target, ast.Name)
            found[field.target.id] = " ".join(ast.literal_eval(doc.value).split())
    return found


def page() -> str:
    """Return the text of the page."""
    from pydantic import SecretStr

    from eventsync.config import Settings

    rows = []
    said = texts()
    for name, field in Settings.model_fields.items():
        secret = SecretStr in (field.annotation, *get_args(field.annotation))
        default = field.default
        if isinstance(default, SecretStr):
            default = default.get_secret_value()
        if isinstance(default, float):
            default = f"{default:g}" if default < 100_000 else f"{default:.0f}"
        if isinstance(default, bool):
            default = str(default).lower()
        shown = "" if default in (None, "") else f" `{default}`"
        meaning = said[name].replace("``", "`").replace("|", "\\|")
        rows.append(
            f"| `EVENTSYNC_{name.upper()}` |{shown} | {'yes' if secret else 'no'} | {meaning} |\n"
        )
    return f"{HEAD}{''.join(rows)}{TAIL}"


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    if "--write" in sys.argv:
        PAGE.write_text(page(), encoding="utf-8")
    else:
        print(page())
