"""Conversions of values to columns and back that several databases share."""

from __future__ import annotations

import datetime as dt
import json
import math
from collections.abc import Callable
from decimal import Decimal
from typing import Any
from uuid import UUID

from eventsync.errors import RejectedError
from eventsync.records.field import Field
from eventsync.records.record_type import same

__all__ = [
    "exact_decimal",
    "from_json",
    "moment",
    "number_operand",
    "text_operand",
    "time_operand",
    "to_json",
    "to_text",
]


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


def to_json(field: Field, *, always: bool = False) -> Callable[[Any], Any]:
    """Return a function that writes lists and dicts as JSON text, other values as ``to_text``.

    ``always``: write other values as JSON too. JSON has no dates or decimals. They become text,
    which reads back only where the field says their type.
    """

    def adapt(value: Any) -> Any:
        if value is None or (not always and type(value) is not list and type(value) is not dict):
            return to_text(value)
        foreign = False

        def text_of(scalar: Any) -> Any:
            nonlocal foreign
            foreign = True
            return scalar.hex() if isinstance(scalar, bytes) else to_text(scalar)

        try:
            text = json.dumps(value, ensure_ascii=False, default=text_of, allow_nan=not always)
        except ValueError as error:
            raise RejectedError(
                f"{field.record}.{field.name} cannot be written as JSON: {error}"
            ) from None
        if foreign and not same(field.coerce(json.loads(text)), value):
            raise RejectedError(
                f"{field.record}.{field.name} holds a value that JSON text cannot keep",
                hint="declare the type of its elements: dict[str, Decimal]",
            )
        return text

    return adapt


def from_json(value: Any) -> Any:
    """Return the value of JSON text; anything but text unchanged."""
    return json.loads(value) if isinstance(value, str) else value


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
