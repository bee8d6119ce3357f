"""Conversions of foreign values to the scalar classes that fields may have.

Each raises ``ValueError``, ``TypeError``, ``ArithmeticError`` or ``LookupError`` for a value that
it cannot convert without loss. A subclass of the class becomes a plain value of the class.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = [
    "is_text",
    "to_bool",
    "to_bytes",
    "to_date",
    "to_datetime",
    "to_decimal",
    "to_float",
    "to_int",
    "to_str",
    "to_time",
    "to_uuid",
]

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
# Python refuses to read more digits than this from text. A decimal's exponent must not evade that.
_MAX_DIGITS: Final = 4300
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def _text(value: Any) -> str | None:
    """Return text, or UTF-8 bytes as Redis and files give them, as ``str``; else ``None``."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode()
    return None


def _some_text(value: Any) -> str:
    text = _text(value)
    if text is None or "_" in text:
        # Only Python allows underscores in the text of a number.
        raise ValueError
    return text.strip()


def to_int(value: Any) -> int:
    """Convert a number without a fraction, or decimal digits."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | Decimal):
        if isinstance(value, Decimal) and value.is_finite() and value.adjusted() > _MAX_DIGITS:
            raise ValueError
        number = int(value)
        if number != value:
            raise ValueError
        return number
    text = _some_text(value)
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def to_float(value: Any) -> float:
    """Convert a number, or its text; not NaN."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value if isinstance(value, float | int | Decimal) else _some_text(value))
    if number != number:
        raise ValueError
    return number


def to_decimal(value: Any) -> Decimal:
    """Convert a finite number, or its text."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float):
        # Through its text 0.1 stays 0.1; directly it would get all digits of its binary form.
        value = float.__repr__(value)
    number = Decimal(value if isinstance(value, int | Decimal) else _some_text(value))
    if not number.is_finite():
        raise ValueError
    return number


def to_bool(value: Any) -> bool:
    """Convert a boolean, 0, 1, or the text of one of these."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in (0, 1):
            raise ValueError
        return value == 1
    return _BOOLEANS[_some_text(value).lower()]


def to_str(value: Any) -> str:
    """Convert text that has a UTF-8 form, or bytes in UTF-8."""
    text = _text(value)
    if text is None:
        raise TypeError
    if not is_text(text):
        raise ValueError
    return text


def is_text(value: str) -> bool:
    """Return whether ``value`` has a UTF-8 form: a lone surrogate has none."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_bytes(value: Any) -> bytes:
    """Convert bytes of any class."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


def to_date(value: Any) -> dt.date:
    """Convert a date, a datetime at midnight without zone, or the ISO 8601 text of one of these."""
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.date(value.year, value.month, value.day)
    moment = to_datetime(value)
    if moment.tzinfo is not None or moment.time() != dt.time():
        raise ValueError
    return moment.date()


def to_time(value: Any) -> dt.time:
    """Convert a time, or its ISO 8601 text."""
    if not isinstance(value, dt.time):
        value = dt.time.fromisoformat(_some_text(value))
    return dt.time(
        value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
    )


def to_datetime(value: Any) -> dt.datetime:
    """Convert a datetime, a date, or the ISO 8601 text of one of these."""
    if isinstance(value, dt.datetime):
        return dt.datetime(
            value.year,
            value.month,
            value.day,
            value.hour,
            value.minute,
            value.second,
            value.microsecond,
            value.tzinfo,
            fold=value.fold,
        )
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    return dt.datetime.fromisoformat(_some_text(value))


def to_uuid(value: Any) -> UUID:
    """Convert a UUID, its text, or its 16 bytes."""
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, bytes | bytearray | memoryview) and len(bytes(value)) == 16:
        return UUID(bytes=bytes(value))
    return UUID(_some_text(value))
