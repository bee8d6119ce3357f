"""Makes foreign text safe to print: a terminal obeys control characters."""

from __future__ import annotations

import re
from typing import Final

__all__ = ["printable", "printable_json"]

# C0 and C1 controls (U+009B begins a command of a terminal as ESC [ does), and the characters that
# change the direction of the text after them.
_CONTROLS: Final = "\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"
_IN_LINES: Final = re.compile(f"[{_CONTROLS}]")
_IN_LINE: Final = re.compile(f"[{_CONTROLS}\t\n]")


def printable(text: str, *, lines: bool = False) -> str:
    """Return ``text`` with its control characters escaped as Python writes them in ``repr``.

    ``lines``: whether line ends and tabs stay as they are.
    """
    return (_IN_LINES if lines else _IN_LINE).sub(lambda found: ascii(found[0])[1:-1], text)


def printable_json(text: str) -> str:
    """Return a JSON text with the control characters in its strings escaped; an equal JSON text."""
    return _IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
