"""Values as BSON keeps them, and back.

It knows nothing of keys or versions. BSON's own types hold what they can; ``None`` is ``null``.
What BSON has no type for is text (dates, times, moments finer than a millisecond, numbers beyond 34
digits), which its field brings back. Where no field says what a value is, as inside a dict, and it
would come back as another, the whole value is a binary of subtype 128 that holds msgpack.
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

__all__ = ["DocumentCodec"]

_INT64: Final = 1 << 63
_AS_IT_IS: Final = frozenset({str, bool, float, bytes, type(None)})


class DocumentCodec:
    """Between what ``View.to_store`` gives and what MongoDB keeps. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        fields = view.record_type.fields
        self._names = tuple(view.names.values())
        self._fields = {s: fields[n] for n, s in view.names.items() if n not in view.convert}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """What is kept for these values. Raises ``RejectedError``."""
        return {name: self._written(name, held) for name, held in stored.items()}

    def decode(self, document: Mapping[str, Any]) -> dict[str, Any]:
        """What ``View.to_record`` takes; names that are not the view's are left out."""
        return {n: self.read(n, document[n]) for n in self._names if n in document}

    def _written(self, name: str, held: Any) -> Any:
        kind = type(held)
        if kind in _AS_IT_IS:
            return held
        field = self._fields.get(name)
        if field is None:
            return _kept(held, zoned=None, foreign=True)
        if field.scalar:
            return _kept(held, zoned=field.zoned)
        return _kept_whole(field, held)

    def read(self, name: str, kept: Any) -> Any:
        """One value of what is kept. Raises ``ValueRefusedError`` for a malformed binary."""
        if type(kept) in _AS_IT_IS:
            return kept
        field = self._fields.get(name)
        if field is None:
            return _read(kept, foreign=True)
        held = _read(kept)
        kind = type(held)
        if kind is dt.datetime and field.type is dt.datetime and field.zoned is False:
            return held.replace(tzinfo=None)
        if kind is Decimal and field.type is int and held == held.to_integral_value():
            return int(held)
        return held


def _kept(held: Any, *, zoned: bool | None, foreign: bool = False) -> Any:
    """``held`` in BSON's types. Raises ``RejectedError``.

    ``zoned``: as of the field. ``foreign``: a conversion has made it, and may use types of BSON's.
    """
    kind = type(held)
    if kind in _AS_IT_IS:
        return held
    if kind is int:
        return held if -_INT64 <= held < _INT64 else _number(Decimal(held))
    if kind is Decimal:
        return _number(held)
    if kind is dt.datetime:
        return _moment(held, zoned)
    if kind is dt.date or kind is dt.time:
        return held.isoformat()
    if kind is list:
        return [_kept(item, zoned=zoned, foreign=foreign) for item in held]
    if kind is dict:
        for name in held:
            # Some servers and drivers take these for operators, paths or ends of names.
            if not name or name.startswith("$") or "." in name or "\0" in name:
                raise RejectedError(f"MongoDB has no member of the name {name!r}")
        return {n: _kept(item, zoned=zoned, foreign=foreign) for n, item in held.items()}
    return held  # a UUID, or what a conversion has made


def _number(number: Decimal) -> Any:
    try:
        return Decimal128(number)
    except decimal.DecimalException:
        return str(number)  # more than its 34 digits: nothing is rounded


def _moment(moment: dt.datetime, zoned: bool | None) -> Any:
    """A date of BSON's, which is a time in UTC to the millisecond, or text if it is no such."""
    aware = moment.tzinfo is not None
    if aware:
        moment = moment.astimezone(dt.UTC)
    if moment.microsecond % 1000 or aware == (zoned is False):
        return moment.isoformat()
    return moment


def _kept_whole(field: Field, held: Any) -> Any:
    """A list, dict or undeclared value: as others would write it, if it comes back so."""
    try:
        kept = _kept(held, zoned=None)
        if same(field.coerce(_read(kept)), held):
            return kept
    except (ValueError, TypeError, FieldError, EventSyncError):
        pass
    return Binary(packing.pack(held), USER_DEFINED_SUBTYPE)


def _read(kept: Any, *, foreign: bool = False) -> Any:
    """What BSON's types hold. ``foreign``: a conversion takes it, which knows what is left."""
    kind = type(kept)
    if kind in _AS_IT_IS:
        return kept
    if kind is Int64:
        return int(kept)
    if kind is Decimal128:
        return kept.to_decimal()
    if kind is dt.datetime:
        return kept.astimezone(dt.UTC)
    if kind is Binary:
        return unpacking.unpack(kept) if kept.subtype == USER_DEFINED_SUBTYPE else bytes(kept)
    if kind is ObjectId and not foreign:
        return str(kept)
    if kind is list:
        return [_read(item, foreign=foreign) for item in kept]
    if kind is dict:
        return {name: _read(item, foreign=foreign) for name, item in kept.items()}
    return kept
