"""The conversion between field values and the attribute values of a directory.

Booleans, integers and times with a zone have the syntaxes of RFC 4517: ``TRUE``, decimal digits,
generalized time. Other values are written as text, as in the file stores.
"""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import EventSyncError, RecordError, RejectedError
from eventsync.records.key import CODERS
from eventsync.records.record import Field
from eventsync.records.view import BoundView
from eventsync.values.tagged_json import dumps, from_json, to_json

__all__ = ["Attributes"]

_TIME: Final = re.compile(
    rb"(\d{4})(\d\d)(\d\d)(\d\d)(?:(\d\d)(\d\d)?)?(?:[.,](\d+))?(Z|[+-]\d{4})"
)


class Attributes:
    """Converts the field values of one view to the attributes of an entry, and back.

    An attribute is a list of values. An empty list stands for an absent attribute. Immutable,
    thread-safe.
    """

    def __init__(self, view: BoundView) -> None:
        self._type = view.record_type.name
        self._fields = {s: view.record_type.fields[n] for n, s in view.names.items()}
        self._converted = {view.names[name] for name in view.convert}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, list[bytes]]:
        """Return the attributes for field values as ``View.to_store`` returns them.

        Raises ``RejectedError`` if an attribute cannot hold a value.
        """
        return {name: self._encoded(name, value) for name, value in stored.items()}

    def _encoded(self, name: str, value: Any) -> list[bytes]:
        field = self._fields.get(name)
        if name in self._converted:
            field = None
        if value is None or (value == "" and field is not None and not field.optional):
            return []
        try:
            if field is not None and field.type is list and _element_type(field):
                return self._encoded_list(field, value)
            if field is not None and not field.scalar:
                return [dumps(to_json(value)).encode()]
            if field is None and type(value) is list:
                return [written(item) for item in value]
            return [written(value)]
        except (TypeError, KeyError, ValueError) as error:
            raise RejectedError(
                f"{self._type}.{name}: the value cannot be written to an attribute: {error}"
            ) from error

    def _encoded_list(self, field: Field, value: list[Any]) -> list[bytes]:
        if not value and field.optional:
            raise RejectedError(
                f"{field.record}.{field.name}: an empty list would read back as None, because both "
                "are stored as the absence of the attribute",
                hint="declare the field without None",
            )
        values = [written(item) for item in value]
        if len(set(values)) < len(values):
            raise RejectedError(
                f"{field.record}.{field.name}: an attribute is a set, so it cannot hold a value "
                "twice"
            )
        return values

    def _has_value(self, name: str, data: Mapping[str, Any]) -> bool:
        """Return whether the attributes of an entry determine the value of a field.

        ``name``: the attribute of the field. If the attribute is absent, a list or text that is not
        optional is empty, and an optional field with a conversion is ``None``.
        """
        field = self._fields[name]
        if data.get(name):
            return True
        if name in self._converted:
            return field.optional
        return not field.optional and field.type in (str, list)

    def _decoded(self, name: str, values: list[bytes]) -> Any:
        field = self._fields[name]
        if name not in self._converted and field.type is list and _element_type(field):
            return [read(_element_type(field), value) for value in values]
        if not values:
            return None if name in self._converted else ""
        if len(values) > 1 and name not in self._converted:
            raise RecordError(
                f"{self._type}.{field.name}: the attribute {name!r} has {len(values)} values",
                hint="remove all but one value, or declare the field as a list",
            )
        if name in self._converted:
            texts = [_as_text(value) for value in values]
            return texts[0] if len(texts) == 1 else texts
        if field.scalar:
            return read(field.type, values[0])
        try:
            return from_json(json.loads(values[0]))
        except (ValueError, RecursionError, EventSyncError):
            if field.type is object:
                return _as_text(values[0])
            raise field.error(values[0], f"{field.expected} as JSON") from None

    def decode(self, data: Mapping[str, list[bytes]]) -> dict[str, Any]:
        """Return the field values of an entry, in the form that ``View.to_record`` takes.

        Raises ``RecordError`` if the attributes cannot be converted to the fields.
        """
        return {
            name: self._decoded(name, data.get(name) or [])
            for name in self._fields
            if self._has_value(name, data)
        }


def _element_type(field: Field) -> Any:
    """Return the type of the elements of a list field, if an attribute value can hold an element.

    Returns ``None`` if it cannot.
    """
    arguments = getattr(field.annotation, "__args__", ())
    return arguments[0] if arguments and arguments[0] in _SCALARS else None


_SCALARS: Final = frozenset({*CODERS, float})


def written(value: Any) -> bytes:
    """Return a scalar as an attribute value. Raises ``TypeError`` if it is not a scalar."""
    kind = type(value)
    if kind is bytes:
        return bytes(value)
    if kind is bool:
        return b"TRUE" if value else b"FALSE"
    if kind is dt.datetime and value.tzinfo is not None:
        moment = value.astimezone(dt.UTC)
        fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
        return (
            f"{moment.year:04}{moment.month:02}{moment.day:02}{moment.hour:02}{moment.minute:02}"
            f"{moment.second:02}{fraction}Z"
        ).encode()
    if kind in (dt.datetime, dt.date, dt.time):
        return str(value.isoformat()).encode()
    if kind is float and not math.isfinite(value):
        return b"Infinity" if value > 0 else b"-Infinity"
    if kind in (str, int, float, Decimal, UUID):
        return str(value).encode()
    raise TypeError(f"its type is {kind.__qualname__}")


def read(kind: Any, value: bytes) -> Any:
    """Return an attribute value in a form that can be coerced to a field of type ``kind``."""
    if kind is dt.datetime:
        match = _TIME.fullmatch(value)
        if match is not None:
            return _moment(match)
    return _as_text(value) if kind is not bytes else value


def _moment(match: re.Match[bytes]) -> str:
    """Return a generalized time (RFC 4517) in ISO 8601. ``match``: a match of ``_TIME``."""
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    zone = match[8].decode().replace("Z", "+0000")
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    fraction = f".{match[7].decode():0<6.6}" if match[7] else ""
    return f"{text}{fraction}{zone[:3]}:{zone[3:]}"


def _as_text(value: bytes) -> Any:
    """Return the text of a value, or the bytes themselves if they are not UTF-8."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
