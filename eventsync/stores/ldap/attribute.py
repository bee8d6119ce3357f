"""The values of a directory's attributes, and the fields' values that they stand for.

It knows nothing of entries' names or of servers. Syntaxes are those of RFC 4517: ``TRUE``, decimal
integers, generalized time; what has none there is text as in a file.
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
    """The attributes of one view of a record type. Immutable, hence thread-safe.

    All values are in lists; an empty one is no attribute.
    """

    def __init__(self, view: BoundView) -> None:
        self._type = view.record_type.name
        self._fields = {s: view.record_type.fields[n] for n, s in view.names.items()}
        self._converted = {view.names[name] for name in view.convert}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, list[bytes]]:
        return {name: self._encoded(name, held) for name, held in stored.items()}

    def _encoded(self, name: str, held: Any) -> list[bytes]:
        field = self._fields.get(name)
        if name in self._converted:
            field = None
        if held is None or (held == "" and field is not None and not field.optional):
            return []
        try:
            if field is not None and field.type is list and _multiple(field):
                return self._several(field, held)
            if field is not None and not field.scalar:
                return [dumps(to_json(held)).encode()]
            if field is None and type(held) is list:
                return [written(item) for item in held]
            return [written(held)]
        except (TypeError, KeyError, ValueError) as error:
            raise RejectedError(
                f"{self._type}.{name}: no attribute can hold it: {error}"
            ) from error

    def _several(self, field: Field, held: list[Any]) -> list[bytes]:
        if not held and field.optional:
            raise RejectedError(
                f"{field.record}.{field.name}: an attribute cannot tell an empty list from None",
                hint="declare the field without None",
            )
        values = [written(item) for item in held]
        if len(set(values)) < len(values):
            raise RejectedError(
                f"{field.record}.{field.name}: an attribute cannot hold a value twice"
            )
        return values

    def _held(self, name: str, data: Mapping[str, Any]) -> bool:
        field = self._fields[name]
        if data.get(name):
            return True
        if name in self._converted:
            return field.optional
        return not field.optional and field.type in (str, list)

    def _decoded(self, name: str, values: list[bytes]) -> Any:
        field = self._fields[name]
        if name not in self._converted and field.type is list and _multiple(field):
            return [read(_item(field), value) for value in values]
        if not values:
            return None if name in self._converted else ""
        if len(values) > 1 and name not in self._converted:
            raise RecordError(
                f"{self._type}.{field.name}: the attribute {name!r} has {len(values)} values",
                hint="leave one, or declare the field as a list",
            )
        if name in self._converted:
            texts = [_as_text(value) for value in values]
            return texts[0] if len(texts) == 1 else texts
        if field.scalar:
            return read(field.type, values[0])
        try:
            return from_json(json.loads(values[0]))
        except (ValueError, EventSyncError):
            if field.type is object:
                return _as_text(values[0])
            raise field.error(values[0], f"{field.expected} as JSON") from None

    def decode(self, data: Mapping[str, list[bytes]]) -> dict[str, Any]:
        """What ``View.to_record`` takes, of an entry's attributes. Raises ``RecordError``."""
        return {n: self._decoded(n, data.get(n) or []) for n in self._fields if self._held(n, data)}


def _multiple(field: Field) -> bool:
    return _item(field) is not None


def _item(field: Field) -> Any:
    """The class of a list's elements, if an attribute can hold each as a value of its own."""
    arguments = getattr(field.annotation, "__args__", ())
    return arguments[0] if arguments and arguments[0] in _SCALARS else None


_SCALARS: Final = frozenset({*CODERS, float})


def written(held: Any) -> bytes:
    kind = type(held)
    if kind is bytes:
        return bytes(held)
    if kind is bool:
        return b"TRUE" if held else b"FALSE"
    if kind is dt.datetime and held.tzinfo is not None:
        moment = held.astimezone(dt.UTC)
        fraction = f".{moment.microsecond:06}".rstrip("0") if moment.microsecond else ""
        return (
            f"{moment.year:04}{moment.month:02}{moment.day:02}{moment.hour:02}{moment.minute:02}"
            f"{moment.second:02}{fraction}Z"
        ).encode()
    if kind in (dt.datetime, dt.date, dt.time):
        return str(held.isoformat()).encode()
    if kind is float and not math.isfinite(held):
        return b"Infinity" if held > 0 else b"-Infinity"
    if kind in (str, int, float, Decimal, UUID):
        return str(held).encode()
    raise TypeError(f"a value of type {kind.__qualname__}")


def read(kind: Any, value: bytes) -> Any:
    """What a field of that class is given of an attribute's value."""
    if kind is dt.datetime:
        match = _TIME.fullmatch(value)
        if match is not None:
            return _moment(match)
    return _as_text(value) if kind is not bytes else value


def _moment(match: re.Match[bytes]) -> Any:
    year, month, day, hour, minute, second = (int(part or 0) for part in match.groups()[:6])
    zone = match[8].decode().replace("Z", "+0000")
    text = f"{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}"
    fraction = f".{match[7].decode():0<6.6}" if match[7] else ""
    return f"{text}{fraction}{zone[:3]}:{zone[3:]}"


def _as_text(value: bytes) -> Any:
    try:
        return value.decode()
    except UnicodeDecodeError:
        return value
