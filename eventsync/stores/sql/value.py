"""Values on their way to a column and back, as far as databases share it.

It knows nothing of tables or statements.
"""

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


def to_text(held: Any) -> Any:
    """Dates, decimals and UUIDs as text; everything else as it is."""
    kind = type(held)
    if kind is dt.datetime:
        if held.tzinfo is not None:
            held = held.astimezone(dt.UTC)
        return held.isoformat(sep=" ")
    if kind is dt.date or kind is dt.time:
        return held.isoformat()
    if kind is Decimal or kind is UUID:
        return str(held)
    return held


def to_json(field: Field, *, always: bool = False) -> Callable[[Any], Any]:
    """What makes JSON text of the lists and dicts of a field; of others as ``to_text``.

    ``always``: of others too. JSON has no dates or decimals: as text they come back only where the
    field says what they are.
    """

    def adapt(held: Any) -> Any:
        if held is None or (not always and type(held) is not list and type(held) is not dict):
            return to_text(held)
        foreign = False

        def text_of(scalar: Any) -> Any:
            nonlocal foreign
            foreign = True
            return scalar.hex() if isinstance(scalar, bytes) else to_text(scalar)

        try:
            text = json.dumps(held, ensure_ascii=False, default=text_of, allow_nan=not always)
        except ValueError as error:
            raise RejectedError(f"{field.record}.{field.name}: JSON has no {error}") from None
        if foreign and not same(field.coerce(json.loads(text)), held):
            raise RejectedError(
                f"{field.record}.{field.name} holds a value that JSON text cannot keep",
                hint="declare what is in it, as in dict[str, Decimal]",
            )
        return text

    return adapt


def from_json(held: Any) -> Any:
    """The value of JSON text."""
    return json.loads(held) if isinstance(held, str) else held


def exact_decimal(scale: int | None, finish: Callable[[Decimal], Any]) -> Callable[[Any], Any]:
    """For a column of that many places: a number with more of them is refused, not rounded."""

    def adapt(held: Any) -> Any:
        if type(held) is float:
            held = Decimal(repr(held))
        if type(held) is not Decimal:
            return int(held) if type(held) is bool else held
        if scale is not None and held.is_finite():
            _, digits, exponent = held.as_tuple()
            over = -int(exponent) - scale
            if over > 0 and any(digits[-over:]):
                raise RejectedError(
                    f"{held} has more than the {scale} decimal places of its column",
                    hint="widen the column, or round it with a conversion in the view",
                )
        return finish(held)

    return adapt


def moment(
    *, column_zoned: bool, field_zoned: bool | None, digits: int, utc: bool
) -> Callable[[Any], Any]:
    """For a column of datetimes or times: with and without a zone are kept apart.

    ``digits``: of a second's fraction that it keeps. ``utc``: the driver wants zoned ones without
    zone, in UTC.
    """

    def adapt(held: Any) -> Any:
        if type(held) is not dt.datetime and type(held) is not dt.time:
            return held
        zoned = held.tzinfo is not None
        if held.microsecond % 10 ** (6 - digits):
            raise RejectedError(
                f"{held.isoformat()} has more digits of a second than the {digits} of its column",
                hint="widen the column, or round it with a conversion in the view",
            )
        if zoned != column_zoned and not (zoned and field_zoned):
            kept = "with" if column_zoned else "without"
            raise RejectedError(
                f"{held.isoformat()}: its column keeps only times {kept} a zone",
                hint=f"declare the field with zoned={column_zoned}, or alter the column",
            )
        if zoned and type(held) is dt.datetime and (utc or not column_zoned):
            return held.astimezone(dt.UTC).replace(tzinfo=None)
        return held

    return adapt


# -- to compare with -------------------------------------------------------------------------------


def number_operand(held: Any) -> Any:
    """A number that every database takes; ``None`` for others."""
    if type(held) is int:
        return held if -(2**63) <= held < 2**63 else None
    return held if math.isfinite(held) else None


def text_operand(held: Any) -> Any:
    """Text that every database takes; ``None`` for others."""
    sound = "\0" not in held and not any("\ud800" <= sign <= "\udfff" for sign in held)
    return held if sound else None


def time_operand(*, zoned: bool, utc: bool) -> Callable[[Any], Any]:
    """What makes a datetime, with or without a zone, one that a column is compared with.

    ``utc``: the column has them without zone, in UTC.
    """

    def adapt(held: Any) -> Any:
        if (held.tzinfo is not None) != zoned:
            return None
        return held.astimezone(dt.UTC).replace(tzinfo=None) if utc and zoned else held

    return adapt
