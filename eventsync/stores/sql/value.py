"""Conversions of values to columns and back that several databases share."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import FieldError, RejectedError
from eventsync.records.field import Field
from eventsync.records.record_type import same

__all__ = [
    "exact_decimal",
    "from_json",
    "moment",
    "null_as_json",
    "number_operand",
    "text_operand",
    "time_operand",
    "to_json",
    "to_text",
]


_FLOAT_DIGITS: Final = 16
"""How many characters a number without exponent may have so that a float has the same digits."""


def to_text(value: Any) -> Any:
    """Return dates, decimals and UUIDs as text, everything else unchanged."""
    kind = type(value)
    if kind is dt.datetime:
        if value.tzinfo is not None:
            value = value.astimezone(dt.UTC)
        return value.isoformat(sep=" ")
    if kind is dt.date or kind is dt.time:
        return value.isoformat()
    if kind is Decimal or kind is UUID:
        return str(value)
    return value


def to_json(
    field: Field,
    *,
    always: bool = False,
    numbers: bool = True,
    unchanged: frozenset[type[Any]] = frozenset(),
) -> Callable[[Any], Any]:
    """Return a function that writes values as JSON text.

    JSON has no dates. They become text, which reads back only where the field says their type. A
    decimal that no float equals becomes a number where the column keeps its ``numbers`` exactly.
    ``always``: for a column of the database's JSON type. Otherwise the column holds text, and text
    that ``from_json`` would not take for JSON is written as it is. ``unchanged``: types that the
    column takes as they are.
    """

    def adapt(value: Any) -> Any:
        kind = type(value)
        if value is None or kind in unchanged:
            return value
        if not always and kind is str and _is_no_json(value):
            return value
        foreign = False

        def text_of(scalar: Any) -> Any:
            nonlocal foreign
            foreign = True
            return scalar.hex() if isinstance(scalar, bytes) else to_text(scalar)

        try:
            text = json.dumps(value, ensure_ascii=False, default=text_of, allow_nan=not always)
            if foreign and numbers:
                text = _with_numbers(value)
            exact = not foreign or same(field.coerce(_DECODER.decode(text)), _in_utc(value))
        except (ValueError, FieldError) as error:
            raise RejectedError(
                f"{field.record}.{field.name} cannot be written as JSON: {error}"
            ) from None
        if not exact:
            raise RejectedError(
                f"{field.record}.{field.name} holds a value that JSON text cannot keep",
                hint="declare the type of its elements: dict[str, Decimal]",
            )
        return text

    return adapt


def from_json(field: Field | None, *, always: bool = False) -> Callable[[Any], Any]:
    """Return a function that reads JSON text; it returns anything but text unchanged.

    A number with a point that no float equals is a decimal. ``always``: as in ``to_json``;
    otherwise a field of any type takes text that is not JSON as it is. The function raises
    ``FieldError`` for other text that is not JSON.
    """
    lenient = field is not None and not always and field.type is object

    def read(value: Any) -> Any:
        if not isinstance(value, str):
            return value
        try:
            return _DECODER.decode(value)
        except (ValueError, ArithmeticError, RecursionError):
            if lenient:
                return value
        # Outside the handler: a chained error would show a secret value.
        if field is None:
            raise RejectedError("a JSON column holds text that is not JSON, or too deep or large")
        raise field.error(value, "JSON text that can be read")

    return read


def null_as_json(write: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Return ``write`` for a JSON column that is NOT NULL: ``None`` becomes JSON's ``null``."""
    return lambda value: "null" if value is None else write(value)


def _is_no_json(text: str) -> bool:
    try:
        _DECODER.decode(text)
    except (ValueError, ArithmeticError, RecursionError):
        return True
    return False


def _number(text: str) -> float | Decimal:
    if len(text) <= _FLOAT_DIGITS and "e" not in text and "E" not in text:
        return float(text)  # so few digits are the same in a float
    exact = Decimal(text)
    return float(text) if _is_float(exact) else exact


def _is_float(number: Decimal) -> bool:
    """Return whether a float has the same shortest text."""
    return Decimal(repr(float(number))) == number


_DECODER: Final = json.JSONDecoder(parse_float=_number)


def _with_numbers(value: Any) -> str:
    """Return JSON text in which a decimal that no float equals is a number."""
    kind = type(value)
    if kind is dict:
        members = (
            f"{json.dumps(k, ensure_ascii=False)}: {_with_numbers(v)}" for k, v in value.items()
        )
        return f"{{{', '.join(members)}}}"
    if kind is list:
        return f"[{', '.join(map(_with_numbers, value))}]"
    if kind is Decimal and not _is_float(value):
        return str(value)
    return json.dumps(value.hex() if kind is bytes else to_text(value), ensure_ascii=False)


def _in_utc(value: Any) -> Any:
    """Return a value with its zoned datetimes in UTC.

    A time that a change of the clock repeats equals no time of another zone (PEP 495).
    """
    kind = type(value)
    if kind is dict:
        return {name: _in_utc(each) for name, each in value.items()}
    if kind is list:
        return list(map(_in_utc, value))
    if kind is dt.datetime and value.tzinfo is not None:
        return value.astimezone(dt.UTC)
    return value


def exact_decimal(scale: int | None, finish: Callable[[Decimal], Any]) -> Callable[[Any], Any]:
    """Return a function that rejects numbers with more decimal places, instead of rounding them.

    ``scale``: the decimal places of the column; ``None`` without a limit.
    """

    def adapt(value: Any) -> Any:
        if type(value) is float:
            value = Decimal(repr(value))
        if type(value) is not Decimal:
            return int(value) if type(value) is bool else value
        if scale is not None and value.is_finite():
            _, digits, exponent = value.as_tuple()
            over = -int(exponent) - scale
            if over > 0 and any(digits[-over:]):
                raise RejectedError(
                    f"{value} has more than the {scale} decimal places of its column",
                    hint="widen the column, or round it with a conversion in the view",
                )
        return finish(value)

    return adapt


def moment(
    *, column_zoned: bool, field_zoned: bool | None, digits: int, utc: bool
) -> Callable[[Any], Any]:
    """Return a function for datetimes or times that never confuses values with and without a zone.

    ``digits``: how many digits of a second's fraction the column keeps. ``utc``: the driver takes
    zoned values in UTC, without their zone.
    """

    def adapt(value: Any) -> Any:
        if type(value) is not dt.datetime and type(value) is not dt.time:
            return value
        zoned = value.tzinfo is not None
        if value.microsecond % 10 ** (6 - digits):
            raise RejectedError(
                f"{value.isoformat()} has more digits of a second than the column keeps ({digits})",
                hint="widen the column, or round it with a conversion in the view",
            )
        if zoned != column_zoned and not (zoned and field_zoned):
            kept = "with" if column_zoned else "without"
            raise RejectedError(
                f"{value.isoformat()}: the column keeps only times {kept} a zone",
                hint=f"declare the field with zoned={column_zoned}, or alter the column",
            )
        if zoned and type(value) is dt.datetime and (utc or not column_zoned):
            return value.astimezone(dt.UTC).replace(tzinfo=None)
        return value

    return adapt


# -- operands of comparisons -----------------------------------------------------------------------


def number_operand(value: Any) -> Any:
    """Return a number that every database takes; ``None`` for other numbers."""
    if type(value) is int:
        return value if -(2**63) <= value < 2**63 else None
    return value if math.isfinite(value) else None


def text_operand(value: Any) -> Any:
    """Return text that every database takes; ``None`` for other text."""
    sound = "\0" not in value and not any("\ud800" <= sign <= "\udfff" for sign in value)
    return value if sound else None


def time_operand(*, zoned: bool, utc: bool) -> Callable[[Any], Any]:
    """Return a function that prepares a datetime for a comparison, or returns ``None``.

    ``zoned``: whether the column's values have a zone. ``utc``: the column keeps them in UTC,
    without their zone.
    """

    def adapt(value: Any) -> Any:
        if (value.tzinfo is not None) != zoned:
            return None
        return value.astimezone(dt.UTC).replace(tzinfo=None) if utc and zoned else value

    return adapt
