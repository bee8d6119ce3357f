"""Values as text that a person reads in Redis, and back: a hash's fields and a JSON string.

It knows nothing of keys or versions. ``None`` is the absence of a hash's field, ``null`` in JSON.
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

from eventsync.errors import EventSyncError, FieldError, RecordError, RejectedError
from eventsync.records.record import Field
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.stores.json_values import from_base64, with_floats
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
    """The parts in one, each after its length: what ``parts`` of the scripts takes apart."""
    pieces: list[bytes] = []
    for part in parts:
        raw = part.encode() if isinstance(part, str) else part
        pieces += (len(raw).to_bytes(4, "big"), raw)
    return b"".join(pieces)


class ValueCodec:
    """Between what ``View.to_store`` gives and what Redis keeps. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        fields = view.record_type.fields
        self._names = tuple(view.names.values())
        self._fields = {s: fields[n] for n, s in view.names.items() if n not in view.convert}
        self._nullable = {
            s for n, s in view.names.items() if n in view.convert and fields[n].optional
        }

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept for these values. Raises ``RejectedError``."""
        return {name: self._written(name, held) for name, held in stored.items()}

    def decode(self, data: Mapping[str, Any]) -> dict[str, Any]:
        """What ``View.to_record`` takes. Raises ``RecordError``."""
        stored = {name: self.read(name, data[name]) for name in self._names if name in data}
        for name in self._nullable:
            stored.setdefault(name, None)
        return stored

    def _written(self, name: str, held: Any) -> Any:
        try:
            return self.write(name, held)
        except EventSyncError:
            raise
        except (ValueError, TypeError, KeyError) as error:
            raise RejectedError(f"{name}: it cannot be written to Redis: {error}") from error

    def write(self, name: str, held: Any) -> Any:
        """One value as it is kept."""
        raise NotImplementedError

    def read(self, name: str, kept: Any) -> Any:
        """One value of what is kept."""
        raise NotImplementedError


class HashCodec(ValueCodec):
    """The values of a hash: bytes as they are, lists and dicts as JSON, the rest as text."""

    def __init__(self, view: BoundView) -> None:
        super().__init__(view)
        self._heads = {name: framed((name,)) for name in self._names}
        # By name, the class of values that need no further look.
        self._kinds = {n: f.type for n, f in self._fields.items() if f.type in _WRITERS}
        self._writers = _WRITERS

    def write(self, name: str, held: Any) -> bytes | None:
        if held is None:
            return None
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            return dumps(_plain(field, held)).encode()
        writer = _WRITERS.get(type(held))
        return dumps(to_json(held)).encode() if writer is None else writer(held)

    def framed(self, stored: Mapping[str, Any]) -> tuple[bytes, bytes]:
        """Fields and values to set in a hash, and fields to remove from it, framed.

        Raises ``RejectedError``.
        """
        sets: list[bytes] = []
        drops = b""
        heads, writers, kinds = self._heads, self._writers, self._kinds
        for name, held in stored.items():
            head = heads.get(name) or framed((name,))
            if held is None:
                drops += head
                continue
            kind = type(held)
            kept = writers[kind](held) if kinds.get(name) is kind else self._written(name, held)
            sets += (head, len(kept).to_bytes(4, "big"), kept)
        return b"".join(sets), drops

    def read(self, name: str, kept: Any) -> Any:
        field = self._fields.get(name)
        if field is None:
            return _as_text(kept)
        if field.scalar:
            return kept.decode() if field.type is str and _is_utf8(kept) else kept
        try:
            return from_json(json.loads(kept))
        except (ValueError, RecursionError, EventSyncError):
            if field.type is object:
                return _as_text(kept)  # somebody wrote plain text where anything may stand
            raise field.error(kept, f"{field.expected} as JSON") from None


class JsonCodec(ValueCodec):
    """The members of a JSON object: what JSON has as it is, bytes in base64, the rest as text."""

    def write(self, name: str, held: Any) -> Any:
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            return _plain(field, held)
        if field is None and type(held) in (list, dict):
            return to_json(held)
        return _member(held)

    def read(self, name: str, kept: Any) -> Any:
        field = self._fields.get(name)
        if field is not None and field.type is Decimal:
            return kept
        if field is not None and field.type is bytes and isinstance(kept, str):
            return from_base64(field, kept)
        kept = with_floats(kept)
        if type(kept) in (list, dict):
            try:
                return from_json(kept)
            except EventSyncError as error:
                raise RecordError(f"{name}: {error.message}") from None
        return kept

    def text(self, members: Mapping[str, Any]) -> bytes:
        """The JSON text of an object. Raises ``RejectedError``."""
        try:
            return json.dumps(
                members, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=float
            ).encode()
        except (ValueError, TypeError, RecursionError) as error:
            raise RejectedError(f"it cannot be written as JSON: {error}") from error

    def members(self, text: bytes) -> dict[str, Any]:
        """The object in a JSON text; numbers with a point are decimals. Raises ``RecordError``."""
        try:
            members = json.loads(text, parse_float=Decimal)
        except (ValueError, RecursionError) as error:
            raise RecordError(f"not JSON: {error}") from None
        if type(members) is not dict:
            raise RecordError(f"not a JSON object, but a {type(members).__name__}")
        return members


def _plain(field: Field, held: Any) -> Any:
    """A list, dict or undeclared value as JSON: as a person would write it, if it comes back so."""
    try:
        plain = _member(held)
        if same(field.coerce(from_json(json.loads(dumps(plain)))), held):
            return plain
    except (ValueError, TypeError, KeyError, FieldError, EventSyncError):
        pass
    return to_json(held)


def _member(held: Any) -> Any:
    kind = type(held)
    if held is None or kind is str or kind is bool:
        return held
    if kind is int:
        return held if abs(held) <= _EXACT else str(held)
    if kind is float:
        return held if math.isfinite(held) else _float_text(held)
    if kind is list:
        return [_member(item) for item in held]
    if kind is dict:
        return {name: _member(item) for name, item in held.items()}
    if kind is bytes:
        return base64.b64encode(held).decode()
    return _WRITERS[kind](held).decode()


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
