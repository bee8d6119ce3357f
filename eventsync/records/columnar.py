"""The column reader: decodes the packed bodies of many puts or patches of one record type.

The reader decodes column by column, which is faster than record by record. For each body it returns
the same values as ``unpack_body`` and ``RecordType.load``, or no result. A body has no result if it
is malformed, or if its values must be converted.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Container, Iterable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final, TypeVar
from uuid import UUID

import msgspec

from eventsync.errors import ValueRefusedError
from eventsync.records import key
from eventsync.records.field import Field
from eventsync.records.record_type import RecordType
from eventsync.records.scalar import is_comparable, is_text
from eventsync.values import packing, unpacking

__all__ = ["ColumnReader"]

Row = tuple[Any, ...]
_T = TypeVar("_T")

_Ext: Final = msgspec.msgpack.Ext
_code: Final = attrgetter("code")
_payload: Final = attrgetter("data")
# The class of a field -> the type that msgspec decodes its values to. These types allow no
# conversion, not even of an integer to a float, because the digest of the change covers the values
# as they were sent.
_WIRE_TYPES: Final[dict[type[Any], Any]] = {
    str: str,
    int: int,
    float: float | int,
    bool: bool,
    bytes: bytes,
    Decimal: _Ext,
    dt.date: _Ext,
    dt.time: _Ext,
    dt.datetime: _Ext,
    UUID: _Ext,
}
# These checks can be skipped, because every decoded value passes them.
_CERTAIN: Final = (is_comparable, is_text, Decimal.is_finite)
# The errors that msgspec raises for hostile bytes. RecursionError: arrays nest too deep.
_UNREADABLE: Final = (msgspec.MsgspecError, ValueError, RecursionError)
_split: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode
# A marker in place of a value that is malformed or does not fit its field.
_UNFIT: Final[Any] = object()
# Signs in a field's name that msgspec refuses. Types with such names are not decoded at once.
_ODD_NAME: Final = re.compile(r'["\\\x00-\x1f]')


class ColumnReader:
    """Decodes the bodies of puts and patches of records of one type. Thread-safe.

    ``type``: the record type. ``names``: the names of its fields, in the order of the values in a
    body and in the returned rows.
    """

    def __init__(self, type: RecordType) -> None:
        self.names: tuple[str, ...] = tuple(sorted(type.fields))
        self._fields = [type.fields[name] for name in self.names]
        self._keys = [
            (self.names.index(name), key.CODERS[type.fields[name].type][0]) for name in type.keys
        ]
        self._type = type
        # For each field that a patch may contain: the decoder of one value.
        self._decoders: dict[str, Callable[[Any], Any]] = {
            field.name: msgspec.msgpack.Decoder(_wire_type(field)).decode
            for field in self._fields
            if field.type in _WIRE_TYPES and not field.key
        }
        self._head = packing.map_head(len(self.names))
        # The decoder of a whole body. ``None`` if a field can hold lists or dicts.
        self._decode: Callable[[bytes], Any] | None = None
        odd = any(_ODD_NAME.search(name) for name in self.names)
        if not odd and all(field.type in _WIRE_TYPES for field in self._fields):
            # The attributes are numbered, because a field name may be an invalid attribute name.
            made = msgspec.defstruct(
                type.name,
                [(f"f{n}", _wire_type(field)) for n, field in enumerate(self._fields)],
                rename={f"f{n}": name for n, name in enumerate(self.names)},
                forbid_unknown_fields=True,
                gc=False,
            )
            self._decode = msgspec.msgpack.Decoder(made).decode

    def read(self, bodies: Sequence[bytes], keys: Sequence[str]) -> list[Row | None]:
        """Return one row of field values for each body of a put, in the order of ``names``.

        ``keys``: the key of the record of each body. The row is ``None`` if the record type would
        convert a value of the body, if the body is malformed, or if its key fields do not match its
        key.
        """
        found: list[Row | None] = [None] * len(bodies)
        numbers, rows = self._decoded(bodies)
        if not rows:
            return found
        columns, unfit = [], set[int]()
        for field, column in zip(self._fields, zip(*rows, strict=True), strict=True):
            values, misfits = _checked(field, column)
            columns.append(values)
            unfit |= misfits
        if unfit:
            numbers = _without(unfit, numbers)
            columns = [_without(unfit, column) for column in columns]
        wrong = self._wrong_keys(columns, [keys[number] for number in numbers])
        if not wrong and len(numbers) == len(bodies):
            return list(zip(*columns, strict=True))
        for place, row in enumerate(zip(*columns, strict=True)):
            if place not in wrong:
                found[numbers[place]] = row
        return found

    def read_patches(
        self, bodies: Sequence[bytes], keys: Sequence[str]
    ) -> list[tuple[tuple[str, ...], Row] | None]:
        """Return the field names and the row of values for each body of a patch.

        ``keys``: the key of the record of each body. The result is ``None`` for a body that is
        malformed or has a value that the record type would convert. All results are ``None`` if one
        of ``keys`` is not a valid key of the record type.
        """
        found: list[tuple[tuple[str, ...], Row] | None] = [None] * len(bodies)
        if self._type.key_columns(keys) is None:
            return found
        # Patches of the same fields are decoded together. For each group: the places of its bodies,
        # and their packed values.
        groups: dict[tuple[str, ...], tuple[list[int], list[Iterable[msgspec.Raw]]]] = {}
        for number, body in enumerate(bodies):
            try:
                parts = _split(body)
            except _UNREADABLE:
                continue
            names = tuple(parts)
            if names not in groups and not (names and self._decoders.keys() >= parts.keys()):
                continue
            if body.startswith(packing.map_head(len(names))):  # no name occurs twice
                numbers, packed = groups.setdefault(names, ([], []))
                numbers.append(number)
                packed.append(parts.values())
        for names, (numbers, packed) in groups.items():
            columns, unfit = [], set[int]()
            for name, column in zip(names, zip(*packed, strict=True), strict=True):
                decoded = _decode_each(self._decoders[name], column)
                values, misfits = _checked(self._type.fields[name], decoded)
                columns.append(values)
                unfit |= misfits
            for place, row in enumerate(zip(*columns, strict=True)):
                if place not in unfit:
                    found[numbers[place]] = names, row
        return found

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Return whether the record type would load ``values`` without converting any of them."""
        return self._type.fits(values)

    def _decoded(self, bodies: Sequence[bytes]) -> tuple[Sequence[int], list[Row]]:
        """Return the places of the bodies that contain every field, and their decoded rows."""
        if self._decode is None:
            return (), []
        # These bodies have as many entries as there are fields, so no name occurs twice.
        numbers = [n for n, body in enumerate(bodies) if body.startswith(self._head)]
        packed = [bodies[n] for n in numbers]
        astuple = msgspec.structs.astuple
        try:
            return numbers, list(map(astuple, map(self._decode, packed)))
        except _UNREADABLE:
            decoded = _decode_each(self._decode, packed)
            unfit = {place for place, one in enumerate(decoded) if one is _UNFIT}
            return _without(unfit, numbers), list(map(astuple, _without(unfit, decoded)))

    def _wrong_keys(self, columns: Sequence[Sequence[Any]], keys: Sequence[str]) -> set[int]:
        """Return the places of the rows whose key fields do not match their key.

        ``columns``: the values of all rows, by field. ``keys``: the key of each row.
        """
        try:
            parts = [list(map(encode, columns[place])) for place, encode in self._keys]
        except (ValueError, ArithmeticError):
            return set(range(len(keys)))
        texts = key.join_all(parts)
        if texts == keys and max(map(len, keys), default=0) <= key.MAX_LENGTH:
            return set()
        return {
            place
            for place, (text, given) in enumerate(zip(texts, keys, strict=True))
            if text != given or len(given) > key.MAX_LENGTH
        }


def _wire_type(field: Field) -> Any:
    kind = _WIRE_TYPES[field.type]
    return kind | None if field.optional else kind


def _without(places: Container[int], column: Sequence[_T]) -> list[_T]:
    return [item for place, item in enumerate(column) if place not in places]


def _decode_each(decode: Callable[[Any], Any], packed: Sequence[Any]) -> list[Any]:
    """Return the decoded values of ``packed``. A malformed value becomes ``_UNFIT``."""
    try:
        return list(map(decode, packed))
    except _UNREADABLE:
        return [_decode_one(decode, each) for each in packed]


def _decode_one(decode: Callable[[Any], Any], packed: Any) -> Any:
    try:
        return decode(packed)
    except _UNREADABLE:
        return _UNFIT


def _checked(field: Field, column: Sequence[Any]) -> tuple[Sequence[Any], set[int]]:
    """Return the values of ``column``, and the places of the values that do not fit ``field``."""
    verify = None if field.verify in _CERTAIN else field.verify
    values = _unpacked(column)
    if set(map(type, values)) == {field.type} and (verify is None or all(map(verify, values))):
        return values, set()
    values = [_checked_one(field, verify, value) for value in values]
    return values, {place for place, value in enumerate(values) if value is _UNFIT}


def _unpacked(column: Sequence[Any]) -> Sequence[Any]:
    """Return ``column`` with its msgpack extension types decoded.

    Returns ``column`` unchanged if it has other values, several codes, or a malformed payload.
    """
    if set(map(type, column)) == {_Ext} and len(codes := set(map(_code, column))) == 1:
        try:
            return unpacking.unpack_column(codes.pop(), list(map(_payload, column)))
        except ValueRefusedError:
            pass  # ``_checked_one`` finds the malformed payloads
    return column


def _checked_one(field: Field, verify: Callable[[Any], bool] | None, value: Any) -> Any:
    """Return the decoded value, or ``_UNFIT`` if it is malformed or does not fit ``field``."""
    if value is None and field.optional:
        return None
    if type(value) is _Ext:
        try:
            value = unpacking.unpack_column(value.code, [bytes(value.data)])[0]
        except ValueRefusedError:
            return _UNFIT
    if type(value) is not field.type or (verify is not None and not verify(value)):
        return _UNFIT
    return value
