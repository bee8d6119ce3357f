"""Values of records as text that a person can read in Redis, and back.

``None`` is a missing field in a hash, ``null`` in JSON.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import Callable, Iterable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import (
    EventSyncError,
    FieldError,
    RecordError,
    RejectedError,
    ValueRefusedError,
)
from eventsync.records.record import Field
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.stores.json_values import (
    Opaque,
    dump,
    escape_surrogates,
    from_base64,
    parse,
    parse_value,
    refuse_long,
    refuse_overflow,
    with_floats,
)
from eventsync.values.tagged_json import dumps, from_json, to_json

__all__ = ["HashCodec", "JsonCodec", "ValueCodec", "framed"]

_EXACT: Final = 2**53 - 1
_WRITERS: Final[Mapping[type[Any], Callable[[Any], bytes]]] = {
    str: str.encode,
    bytes: bytes,
    bool: lambda flag: b"true" if flag else b"false",
    int: lambda number: str(number).encode(),
    float: lambda number: _float_text(number).encode(),
    Decimal: lambda number: str(number).encode(),
    UUID: lambda token: str(token).encode(),
    dt.date: lambda day: day.isoformat().encode(),
    dt.time: lambda time: time.isoformat().encode(),
    dt.datetime: lambda moment: moment.isoformat().encode(),
}


def framed(parts: Iterable[bytes | str]) -> bytes:
    """Return the parts as one, each after its length, as ``parts`` of the scripts reads them."""
    pieces: list[bytes] = []
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        pieces += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(pieces)


class ValueCodec:
    """Converts between the values of a view and what Redis keeps. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        fields = view.record_type.fields
        self._names = tuple(view.names.values())
        self._fields = {s: fields[n] for n, s in view.names.items() if n not in view.convert}
        self._nullable = {
            s for n, s in view.names.items() if n in view.convert and fields[n].optional
        }

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return what Redis keeps of ``View.to_store``'s values. Raises ``RejectedError``."""
        return {name: self._written(name, value) for name, value in stored.items()}

    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that ``View.to_record`` takes. Raises ``RecordError``."""
        stored = {name: self.read(name, data[name]) for name in self._names if name in data}
        for name in self._nullable:
            stored.setdefault(name, None)
        return stored

    def _written(self, name: str, value: Any) -> Any:
        try:
            return self.write(name, value)
        except EventSyncError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise RejectedError(f"{name} cannot be written to Redis: {error}") from error

    def write(self, name: str, value: Any) -> Any:
        """Return one value as Redis keeps it."""
        raise NotImplementedError

    def read(self, name: str, kept: Any) -> Any:
        """Return one value of what Redis keeps."""
        raise NotImplementedError


class HashCodec(ValueCodec):
    """Writes bytes as they are, lists and dicts as JSON, other values as text."""

    def __init__(self, view: BoundView) -> None:
        super().__init__(view)
        self._heads = {name: framed((name,)) for name in self._names}
        # The class of values that need no further check, by name.
        self._kinds = {n: f.type for n, f in self._fields.items() if f.type in _WRITERS}
        self._writers = _WRITERS

    def write(self, name: str, value: Any) -> bytes | None:
        if value is None:
            return None
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            return dumps(_plain(field, value)).encode()
        writer = _WRITERS.get(type(value))
        return dumps(to_json(value)).encode() if writer is None else writer(value)

    def framed(self, stored: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Return the fields and values to set in a hash, and the fields to remove, framed.

        Raises ``RejectedError``.
        """
        sets: list[bytes] = []
        drops = b""
        heads, writers, kinds = self._heads, self._writers, self._kinds
        for name, value in stored.items():
            head = heads.get(name) or framed((name,))
            if value is None:
                drops += head
                continue
            kind = type(value)
            kept = writers[kind](value) if kinds.get(name) is kind else self._written(name, value)
            sets += (head, len(kept).to_bytes(4, "big"), kept)
        return b"".join(sets), drops

    def read(self, name: str, kept: Any) -> Any:
        field = self._fields.get(name)
        if field is None:
            return _as_text(kept)
        if field.scalar:
            if field.type is float:
                refuse_overflow(field, _as_text(kept))
            elif field.type is Decimal and _is_utf8(kept):
                refuse_long(field, kept.decode())
            return kept.decode() if field.type is str and _is_utf8(kept) else kept
        try:
            return from_json(with_floats(parse_value(kept.decode())))
        except ValueRefusedError as error:
            raise RecordError(f"{name}: {error.message}") from error
        except (ValueError, EventSyncError):
            if field.type is object:
                return _as_text(kept)  # another program wrote plain text where any value may be
            raise field.error(kept, f"{field.expected} as JSON") from None


class JsonCodec(ValueCodec):
    """Writes JSON's own types as they are, bytes as base64, other values as text."""

    def write(self, name: str, value: Any) -> Any:
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            return _plain(field, value)
        if field is None and type(value) in (list, dict):
            return to_json(value)
        return _member(value)

    def read(self, name: str, kept: Any) -> Any:
        field = self._fields.get(name)
        if field is not None and field.type is Decimal and not isinstance(kept, Opaque):
            return kept
        if field is not None and field.type is float:
            refuse_overflow(field, kept)
        if field is not None and field.type is bytes and isinstance(kept, str):
            return from_base64(field, kept)
        try:
            kept = with_floats(kept)
            return from_json(kept) if type(kept) in (list, dict) else kept
        except EventSyncError as error:
            raise RecordError(f"{name}: {error.message}") from None

    def text(self, members: Mapping[str, Any]) -> bytes:
        """Return the JSON text of an object. Raises ``RejectedError``."""
        return escape_surrogates(dump(members, compact=True)).encode()

    def members(self, text: bytes) -> dict[str, Any]:
        """Return the object in a JSON text; a number with a point is a decimal.

        A value that cannot be held is ``Opaque``. Raises ``RecordError``.
        """
        try:
            return parse(text.decode())
        except UnicodeDecodeError as error:
            raise RecordError(f"its data are not UTF-8: {error}") from None


def _plain(field: Field, value: Any) -> Any:
    """Return a list, dict or undeclared value as plain JSON if it reads back equal, else tagged."""
    try:
        plain = _member(value)
        if same(field.coerce(from_json(json.loads(dumps(plain)))), value):
            return plain
    except (ValueError, TypeError, KeyError, FieldError, EventSyncError):
        pass
    return to_json(value)


def _member(value: Any) -> Any:
    kind = type(value)
    if value is None or kind is str or kind is bool:
        return value
    if kind is int:
        return value if abs(value) <= _EXACT else str(value)
    if kind is float:
        return value if math.isfinite(value) else _float_text(value)
    if kind is list:
        return [_member(item) for item in value]
    if kind is dict:
        return {name: _member(item) for name, item in value.items()}
    if kind is bytes:
        return base64.b64encode(value).decode()
    return _WRITERS[kind](value).decode()


def _float_text(number: float) -> str:
    return repr(number) if math.isfinite(number) else f"{'-' if number < 0 else ''}Infinity"


def _as_text(kept: bytes) -> Any:
    return kept.decode() if _is_utf8(kept) else kept


def _is_utf8(kept: bytes) -> bool:
    try:
        kept.decode()
    except UnicodeDecodeError:
        return False
    return True
