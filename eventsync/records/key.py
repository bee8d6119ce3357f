"""The canonical text of a key: made from the values of the key fields, and split into them again.

The texts of the key fields are joined by ``/``. In the text of each field, ``%`` and ``/`` are
percent-escaped. Therefore different keys have different texts.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = ["CODERS", "MAX_LENGTH", "join", "join_all", "split", "split_all"]

MAX_LENGTH: Final = 512
"""The limit on the characters of a key."""

# A decimal with at most this many digits before or after the point is written without an exponent.
_POSITIONAL: Final = 40


def _decimal_text(number: Decimal) -> str:
    """Return the exact text of a decimal. Equal decimals, such as 1.0 and 1.00, have equal texts.

    The result does not depend on the decimal context of the thread.
    """
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
    # The conversion to UTC gives equal instants equal texts.
    return moment.astimezone(dt.UTC).isoformat()


def _time_text(time: dt.time) -> str:
    if time.tzinfo is not None:
        # Equal times in different zones would need the same text, but there is no common form.
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
"""Class of a key field's values -> the function to the text, and the function from the text.

These functions raise ``ValueError``, ``ArithmeticError`` or ``KeyError`` if they cannot convert.
"""


def join(components: Sequence[str]) -> str:
    """Return the canonical key. ``components``: the text of each key field, not escaped."""
    return "/".join(
        [
            text.replace("%", "%25").replace("/", "%2F") if "%" in text or "/" in text else text
            for text in components
        ]
    )


def join_all(columns: Sequence[Sequence[str]]) -> list[str]:
    """Return the canonical keys of many records.

    ``columns``: for each key field, its texts in all records, not escaped.
    """
    if len(columns) == 1:
        joined = "".join(columns[0])
        if "%" not in joined and "/" not in joined:
            return list(columns[0])
    return list(map(join, zip(*columns, strict=True)))


def split(key: str) -> list[str]:
    """Return the texts of the key fields in a canonical key, not escaped.

    The inverse of ``join``. Does not check whether ``key`` was made by ``join``.
    """
    parts = key.split("/")
    if "%" in key:
        return [part.replace("%2F", "/").replace("%25", "%") for part in parts]
    return parts


def split_all(keys: Sequence[str]) -> list[Sequence[str]]:
    """Return, for each key field, its texts in many canonical keys. The inverse of ``join_all``.

    Raises ``ValueError`` if the keys do not all have the same number of fields.
    """
    joined = "".join(keys)
    if "%" not in joined and "/" not in joined:
        return [keys]
    return list(zip(*map(split, keys), strict=True))
