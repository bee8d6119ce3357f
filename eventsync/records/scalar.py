"""Conversions of foreign values to the scalar classes that fields may have.

Each function raises ``ValueError``, ``TypeError``, ``ArithmeticError`` or ``LookupError`` if a
value cannot be converted without loss. An instance of a subclass is converted to an instance of the
class itself.
"""

from __future__ import annotations

import datetime as dt
import re
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

__all__ = [
    "is_comparable",
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
# Python refuses to convert longer texts to integers. The same limit applies to decimals here, so
# that a decimal with a large exponent cannot become a huge integer.
_MAX_DIGITS: Final = 4300
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


def _text(value: Any) -> str | None:
    """Return a string, or UTF-8 bytes, as ``str``; ``None`` for any other value.

    Redis and files return texts as bytes.
    """
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode()
    return None


def _some_text(value: Any) -> str:
    text = _text(value)
    if text is None or "_" in text:
        # Python accepts underscores in the text of a number; eventsync does not.
        raise ValueError
    return text.strip()


def to_int(value: Any) -> int:
    """Convert ``value`` to an integer. Accepts numbers without a fraction, and decimal digits."""
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
    """Convert ``value`` to a float. Accepts numbers and their texts, but not NaN."""
    if isinstance(value, bool):
        raise TypeError
    number = float(value if isinstance(value, float | int | Decimal) else _some_text(value))
    if number != number:
        raise ValueError
    return number


def to_decimal(value: Any) -> Decimal:
    """Convert ``value`` to a decimal. Accepts finite numbers and their texts."""
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float):
        # Converted by way of its text, 0.1 stays 0.1. ``Decimal(0.1)`` has 55 digits.
        value = float.__repr__(value)
    number = Decimal(value if isinstance(value, int | Decimal) else _some_text(value))
    if not number.is_finite():
        raise ValueError
    return number


def to_bool(value: Any) -> bool:
    """Convert ``value`` to a boolean. Accepts booleans, 0, 1, and the texts of these."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in (0, 1):
            raise ValueError
        return value == 1
    return _BOOLEANS[_some_text(value).lower()]


def to_str(value: Any) -> str:
    """Convert ``value`` to a string. Accepts strings that UTF-8 can encode, and UTF-8 bytes."""
    text = _text(value)
    if text is None:
        raise TypeError
    if not is_text(text):
        raise ValueError
    return text


def is_text(value: str) -> bool:
    """Return whether UTF-8 can encode ``value``. It cannot encode lone surrogates."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def to_bytes(value: Any) -> bytes:
    """Convert ``value`` to bytes. Accepts ``bytes``, ``bytearray`` and ``memoryview``."""
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


def to_date(value: Any) -> dt.date:
    """Convert ``value`` to a date.

    Accepts dates, datetimes at midnight without a zone, and the ISO 8601 texts of these.
    """
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.date(value.year, value.month, value.day)
    moment = to_datetime(value)
    if moment.tzinfo is not None or moment.time() != dt.time():
        raise ValueError
    return moment.date()


def to_time(value: Any) -> dt.time:
    """Convert ``value`` to a time. Accepts times and their ISO 8601 texts."""
    if not isinstance(value, dt.time):
        value = dt.time.fromisoformat(_some_text(value))
    return dt.time(
        value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
    )


def is_comparable(moment: dt.datetime) -> bool:
    """Return whether Python compares ``moment`` by its instant.

    A time that a change of the clock repeats or skips equals no time of another zone, and in its
    own zone it equals the other time with the same digits (PEP 495).
    """
    zone = moment.tzinfo
    if zone is None or isinstance(zone, dt.timezone):
        return True
    return moment.utcoffset() == moment.replace(fold=1 - moment.fold).utcoffset()


def to_datetime(value: Any) -> dt.datetime:
    """Convert ``value`` to a datetime. Accepts datetimes, dates, and their ISO 8601 texts.

    A datetime for which ``is_comparable`` is false is returned in UTC.
    """
    if isinstance(value, dt.datetime):
        moment = dt.datetime(
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
        return moment if is_comparable(moment) else moment.astimezone(dt.UTC)
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    return dt.datetime.fromisoformat(_some_text(value))


def to_uuid(value: Any) -> UUID:
    """Convert ``value`` to a UUID. Accepts UUIDs, their texts, and their 16 bytes."""
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, bytes | bytearray | memoryview) and len(bytes(value)) == 16:
        return UUID(bytes=bytes(value))
    return UUID(_some_text(value))
