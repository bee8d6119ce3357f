"""Values of records in BSON's types, and back.

BSON's own types are used where they fit; ``None`` is ``null``. Other values become text, which the
field reads back: dates, times, moments finer than a millisecond, numbers beyond 34 digits. Where no
field says the type of a value, as inside a dict, and it would read back as another value, the whole
field value is a binary of subtype 128 that holds msgpack.
"""

from __future__ import annotations

import datetime as dt
import decimal
from collections.abc import Mapping
from decimal import Decimal
from typing import Any, Final

from bson import Binary, Decimal128, Int64, ObjectId
from bson.binary import USER_DEFINED_SUBTYPE

from eventsync.errors import EventSyncError, FieldError, RejectedError
from eventsync.records.field import Field
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values import packing, unpacking
from eventsync.values.packing import MAX_DECIMAL

__all__ = ["DocumentCodec"]

_INT64: Final = 1 << 63
_UNCHANGED: Final = frozenset({str, bool, float, bytes, type(None)})


class DocumentCodec:
    """Converts between the values of a view and those of documents. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        fields = view.record_type.fields
        self._names = tuple(view.names.values())
        self._fields = {s: fields[n] for n, s in view.names.items() if n not in view.convert}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the document of what ``View.to_store`` returned. Raises ``RejectedError``."""
        return {name: self._encode(name, value) for name, value in stored.items()}

    def decode(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """Return the view's fields of a document, as ``View.to_record`` takes them."""
        return {n: self.read(n, document[n]) for n in self._names if n in document}

    def _encode(self, name: str, value: Any) -> Any:
        kind = type(value)
        if kind in _UNCHANGED:
            return value
        field = self._fields.get(name)
        if field is None:
            return _to_bson(value, zoned=None, converted=True)
        if field.scalar:
            return _to_bson(value, zoned=field.zoned)
        return _undeclared_to_bson(field, value)

    def read(self, name: str, stored: Any) -> Any:
        """Return one field of a document. Raises ``ValueRefusedError`` for a malformed binary."""
        if type(stored) in _UNCHANGED:
            return stored
        field = self._fields.get(name)
        if field is None:
            return _from_bson(stored, converted=True)
        value = _from_bson(stored)
        kind = type(value)
        if kind is Decimal and value.is_finite() and abs(value.adjusted()) > MAX_DECIMAL:
            raise field.error(stored, f"{field.expected} of at most {MAX_DECIMAL} digits")
        if kind is dt.datetime and field.type is dt.datetime and field.zoned is False:
            return value.replace(tzinfo=None)
        if kind is Decimal and not value.is_finite():
            raise field.error(stored, field.expected)
        if kind is Decimal and field.type is int and value == value.to_integral_value():
            return int(value)
        return value


def _to_bson(value: Any, *, zoned: bool | None, converted: bool = False) -> Any:
    """Return ``value`` in BSON's types. Raises ``RejectedError``.

    ``zoned``: of the field. ``converted``: a conversion of the view made the value, so it may have
    BSON's own types.
    """
    kind = type(value)
    if kind in _UNCHANGED:
        return value
    if kind is int:
        return value if -_INT64 <= value < _INT64 else _number(Decimal(value))
    if kind is Decimal:
        return _number(value)
    if kind is dt.datetime:
        return _moment(value, zoned)
    if kind is dt.date or kind is dt.time:
        return value.isoformat()
    if kind is list:
        return [_to_bson(item, zoned=zoned, converted=converted) for item in value]
    if kind is dict:
        for name in value:
            # Some servers and drivers read such names as operators, as paths, or only in part.
            if not name or name.startswith("$") or "." in name or "\0" in name:
                raise RejectedError(
                    f"MongoDB cannot store a member named {name!r}",
                    hint="rename it: it must not be empty, begin with $, or contain a dot or NUL",
                )
        return {n: _to_bson(item, zoned=zoned, converted=converted) for n, item in value.items()}
    return value  # a UUID, or made by a conversion


def _number(number: Decimal) -> Any:
    try:
        return Decimal128(number)
    except decimal.DecimalException:
        return str(number)  # more than Decimal128's 34 digits: nothing is rounded


def _moment(moment: dt.datetime, zoned: bool | None) -> Any:
    """Return a BSON date, which is a time in UTC to the millisecond, or else text."""
    aware = moment.tzinfo is not None
    if aware:
        moment = moment.astimezone(dt.UTC)
    if moment.microsecond % 1000 or aware == (zoned is False):
        return moment.isoformat()
    return moment


def _undeclared_to_bson(field: Field, value: Any) -> Any:
    """Return a list, dict or undeclared value in plain BSON if it reads back equal, else packed."""
    try:
        stored = _to_bson(value, zoned=None)
        if same(field.coerce(_from_bson(stored)), value):
            return stored
    except (ValueError, TypeError, FieldError, EventSyncError):
        pass
    return Binary(packing.pack(value), USER_DEFINED_SUBTYPE)


def _from_bson(stored: Any, *, converted: bool = False) -> Any:
    """Return the Python value of a BSON value. ``converted``: a conversion of the view takes it."""
    kind = type(stored)
    if kind in _UNCHANGED:
        return stored
    if kind is Int64:
        return int(stored)
    if kind is Decimal128:
        return stored.to_decimal()
    if kind is dt.datetime:
        return stored.astimezone(dt.UTC)
    if kind is Binary:
        return unpacking.unpack(stored) if stored.subtype == USER_DEFINED_SUBTYPE else bytes(stored)
    if kind is ObjectId and not converted:
        return str(stored)
    if kind is list:
        return [_from_bson(item, converted=converted) for item in stored]
    if kind is dict:
        return {name: _from_bson(item, converted=converted) for name, item in stored.items()}
    return stored
