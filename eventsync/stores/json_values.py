"""Values of records as members of JSON objects, and back.

Strings, booleans, ``null``, numbers, lists and objects are written as they are. An integer beyond
2^53, which other readers would round, is written as a string. A decimal, date, time, datetime or
UUID is written as text (ISO 8601), bytes as base64. The field reads them back into its type.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import FieldError, RecordError, RejectedError
from eventsync.records.field import Field
from eventsync.records.record_type import same
from eventsync.records.view import BoundView

__all__ = [
    "DECODER",
    "Members",
    "check_exact",
    "dump",
    "fields_by_name",
    "from_base64",
    "parse",
    "to_json",
    "to_text",
    "with_floats",
    "written",
]

_EXACT: Final = 2**53 - 1
_NATIVE: Final = frozenset({str, bool, type(None)})


def dump(value: Any, *, indent: int | None = None) -> str:
    """Return a JSON value as text, without a line end. Raises ``RejectedError``."""
    try:
        # Numbers of members outside the view were read as decimals.
        return json.dumps(value, ensure_ascii=False, indent=indent, allow_nan=False, default=float)
    except (ValueError, TypeError, RecursionError) as error:
        raise RejectedError(f"the record cannot be written as JSON: {error}") from error


def parse(text: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; a number with a point is a decimal.

    Raises ``RecordError``.
    """
    try:
        document = DECODER.decode(text.strip(" \t\r\n"))
    except json.JSONDecodeError as error:
        raise RecordError(
            f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
        ) from error
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error
    if not isinstance(document, dict):
        raise RecordError(f"a JSON {type(document).__name__} is not a record; it must be an object")
    return document


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=Decimal, parse_constant=_refuse_constant
)


class Members:
    """Converts between the values of a view and members of JSON. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        self._names = tuple(view.names.values())
        self._fields = fields_by_name(view)
        self._coded = {name for name, field in self._fields.items() if field.type is bytes}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members for the values of ``View.to_store``. Raises ``RejectedError``."""
        return {name: self._encode(name, value) for name, value in stored.items()}

    def decode(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that ``View.to_record`` takes. Raises ``FieldError``."""
        return {name: self._decode(name, members[name]) for name in self._names if name in members}

    def _encode(self, name: str, value: Any) -> Any:
        if type(value) in _NATIVE:
            return value
        if type(value) is int and abs(value) > _EXACT:
            return written(str, value, name)
        member = written(to_json, value, name)
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            check_exact(field, value, member)
        return member

    def _decode(self, name: str, value: Any) -> Any:
        if type(value) in _NATIVE and name not in self._coded:
            return value
        field = self._fields.get(name)
        if field is not None and field.type is bytes and isinstance(value, str):
            return from_base64(field, value)
        if field is not None and field.type is Decimal:
            return value
        return with_floats(value)


def fields_by_name(view: BoundView) -> dict[str, Field]:
    """Return the fields whose values the store holds unconverted, by the store's names."""
    fields = view.record_type.fields
    return {stored: fields[n] for n, stored in view.names.items() if n not in view.convert}


def written(write: Callable[[Any], Any], value: Any, name: str) -> Any:
    """Return ``write(value)``. Raise ``RejectedError`` that names the member if it fails."""
    try:
        return write(value)
    except (ValueError, TypeError) as error:
        raise RejectedError(f"{name}: {error}") from error


def to_json(value: Any) -> Any:
    """Return a value as JSON, with text for types that JSON lacks. Raises ``TypeError``."""
    kind = type(value)
    if kind in _NATIVE or kind is int:
        return value
    if kind is float:
        return value if math.isfinite(value) else to_text(value)
    if kind is list:
        return [to_json(item) for item in value]
    if kind is dict:
        return {name: to_json(item) for name, item in value.items()}
    return to_text(value)


def to_text(value: Any) -> str:
    """Return a single value as text. Raises ``TypeError`` for any other type."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
    if kind is int or kind is Decimal or kind is UUID:
        return str(value)
    if kind is dt.date or kind is dt.time or kind is dt.datetime:
        return str(value.isoformat())
    if kind is bytes:
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"a value of type {kind.__qualname__} cannot be written as text")


def from_base64(field: Field, text: str) -> bytes:
    """Return the bytes of a base64 text. Raises ``FieldError``."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise field.error(text, "bytes in base64") from None


def with_floats(value: Any) -> Any:
    """Return a JSON value with floats in place of its decimals (numbers with a point)."""
    kind = type(value)
    if kind is Decimal:
        return float(value)
    if kind is list:
        return [with_floats(item) for item in value]
    if kind is dict:
        return {name: with_floats(item) for name, item in value.items()}
    return value


def check_exact(field: Field, value: Any, member: Any) -> None:
    """Raise ``RejectedError`` if a list, dict or undeclared value would read back different."""
    if same(member, value):
        return
    try:
        exact = same(field.coerce(member), value)
    except FieldError:
        exact = False
    if not exact:
        raise RejectedError(
            f"{field.record}.{field.name} holds a value that JSON cannot keep: it would read back "
            "as another value",
            hint="declare the type of its elements: list[Decimal]",
        )
