"""The text of a record's key: one for each key, whatever its fields, and back to their values.

It knows nothing of records or stores. Components are joined by ``/``; inside one, ``%`` and ``/``
are percent-escaped, so that every text is of one key only.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = ["CODERS", "MAX_LENGTH", "join", "join_all", "split", "split_all"]

MAX_LENGTH: Final = 512
"""How many characters a key may have."""

# Up to this many digits before or after the point, a decimal is written without an exponent.
_POSITIONAL: Final = 40


def _decimal_text(number: Decimal) -> str:
    """Equal decimals have equal texts. Exact, whatever the decimal context says."""
    sign, digits, exponent = number.as_tuple()
    assert isinstance(exponent, int), "fields refuse what is not finite"
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
        # Such times are equal under rules of their own, for which there is no one text.
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
"""By the class of a key field's values: to its text and back. Both may raise ``ValueError``,
``ArithmeticError`` or ``KeyError``."""


def join(components: Sequence[str]) -> str:
    """The key of these components' texts."""
    return "/".join(
        [
            text.replace("%", "%25").replace("/", "%2F") if "%" in text or "/" in text else text
            for text in components
        ]
    )


def join_all(columns: Sequence[Sequence[str]]) -> list[str]:
    """The keys of many records, by the texts of each component of all of them."""
    if len(columns) == 1:
        joined = "".join(columns[0])
        if "%" not in joined and "/" not in joined:
            return list(columns[0])
    return list(map(join, zip(*columns, strict=True)))


def split(key: str) -> list[str]:
    """The components' texts. A key that ``join`` did not make gives components that ``join`` to
    another key.
    """
    parts = key.split("/")
    if "%" in key:
        return [part.replace("%2F", "/").replace("%25", "%") for part in parts]
    return parts


def split_all(keys: Sequence[str]) -> list[Sequence[str]]:
    """By component the texts of many keys, as ``split`` has them of one.

    Raises ``ValueError`` if not all have as many.
    """
    joined = "".join(keys)
    if "%" not in joined and "/" not in joined:
        return [keys]
    return list(zip(*map(split, keys), strict=True))
