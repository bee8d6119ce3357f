"""The canonical text of a key, made from the values of the key fields, and back.

The texts of the fields are joined by ``/``. In each of them ``%`` and ``/`` are percent-escaped, so
that different keys have different texts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = ["CODERS", "MAX_LENGTH", "join", "join_all", "split", "split_all"]

MAX_LENGTH: Final = 512
"""The most characters that a key may have."""

# Up to this many digits before or after the point, a decimal is written without an exponent.
_POSITIONAL: Final = 40


def _decimal_text(number: Decimal) -> str:
    """Return the text of a decimal, equal for equal decimals and exact in any decimal context."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "fields refuse NaN and infinity"
    kept = len(digits)
    while kept and digits[kept - 1] == 0:
        kept -= 1
    if not kept:
        return "0"
    lowest = exponent + len(digits) - kept
    shortest = Decimal((sign, digits[:kept], lowest))
    if lowest >= -_POSITIONAL and shortest.adjusted() < _POSITIONAL:
        return format(shortest, "f")
    return str(shortest)


def _datetime_text(moment: dt.datetime) -> str:
    if moment.utcoffset() is None:
        return moment.isoformat()
    # Equal instants have equal texts.
    return moment.astimezone(dt.UTC).isoformat()


def _time_text(time: dt.time) -> str:
    if time.tzinfo is not None:
        # Times in different zones can be equal, and no one text stands for all of them.
        raise ValueError("a time with a zone cannot be a key")
    return time.isoformat()


def _boolean(text: str) -> bool:
    return {"true": True, "false": False}[text]


CODERS: Final[Mapping[type[Any], tuple[Callable[[Any], str], Callable[[str], Any]]]] = {
    bool: (lambda flag: "true" if flag else "false", _boolean),
    int: (str, int),
    Decimal: (_decimal_text, Decimal),
    str: (str, str),
    bytes: (bytes.hex, bytes.fromhex),
    dt.date: (dt.date.isoformat, dt.date.fromisoformat),
    dt.time: (_time_text, dt.time.fromisoformat),
    dt.datetime: (_datetime_text, dt.datetime.fromisoformat),
    UUID: (str, UUID),
}
"""For each class of a key field's values: the functions to its text and back.

Both may raise ``ValueError``, ``ArithmeticError`` or ``KeyError``.
"""


def join(components: Sequence[str]) -> str:
    """Return the key with these components."""
    return "/".join(
        [
            text.replace("%", "%25").replace("/", "%2F") if "%" in text or "/" in text else text
            for text in components
        ]
    )


def join_all(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the keys of many records. ``columns``: the texts of each component, of all records."""
    if len(columns) == 1:
        joined = "".join(columns[0])
        if "%" not in joined and "/" not in joined:
            return list(columns[0])
    return list(map(join, zip(*columns, strict=True)))


def split(key: str) -> list[str]:
    """Return the components of a key.

    ``join`` returns the same key for them, unless ``key`` was not made by ``join``.
    """
    parts = key.split("/")
    if "%" in key:
        return [part.replace("%2F", "/").replace("%25", "%") for part in parts]
    return parts


def split_all(keys: Sequence[str]) -> list[Sequence[str]]:
    """Return the texts of each component of many keys, column by column.

    Raises ``ValueError`` if the keys do not have the same number of components.
    """
    joined = "".join(keys)
    if "%" not in joined and "/" not in joined:
        return [keys]
    return list(zip(*map(split, keys), strict=True))
