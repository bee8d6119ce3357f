"""The reader: the bodies of many puts or patches of one type, read at once, column by column.

It owns how bytes become checked values in bulk, for speed only: it reads nothing otherwise than
``value`` and ``schema`` do for one record, and what takes a closer look it leaves to them. It knows
nothing of changes or stores.
"""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Callable, Mapping, Sequence
from decimal import Decimal
from operator import attrgetter
from typing import Any, Final
from uuid import UUID

import msgspec

from eventsync.errors import ValueRefusedError
from eventsync.records import key
from eventsync.records.coercion import is_text
from eventsync.records.field import Field
from eventsync.records.record_type import RecordType
from eventsync.values import unpacking

__all__ = ["Reader"]

Row = tuple[Any, ...]

_Ext: Final = msgspec.msgpack.Ext
_code: Final = attrgetter("code")
_payload: Final = attrgetter("data")
# As what a value of that class is decoded: nothing is converted, an integer that stands for a
# float least of all, so that what is read is what the digest of the body is of.
_AS: Final[dict[type[Any], Any]] = {
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
# Signs in a field's name that msgspec does not take; such types are read one by one.
_ODD: Final = re.compile(r'["\\\x00-\x1f]')
# True of whatever has just been decoded.
_SURE: Final = (is_text, Decimal.is_finite)


class Reader:
    """Reads the bodies of puts and patches of records of ``type``. Thread-safe.

    ``names``: its fields in the order that they have in a body, and in the rows that are read.
    """

    def __init__(self, type: RecordType) -> None:
        self.names: tuple[str, ...] = tuple(sorted(type.fields))
        self._fields = [type.fields[name] for name in self.names]
        self._keys = [
            (self.names.index(name), key.CODERS[type.fields[name].type][0]) for name in type.keys
        ]
        self._type = type
        # By field that a patch may name, what reads a value of it.
        self._decoders: dict[str, Callable[[Any], Any]] = {
            field.name: msgspec.msgpack.Decoder(_wire_type(field)).decode
            for field in self._fields
            if field.type in _AS and not field.key
        }
        self._head = _head(len(self.names))
        self._decode: Callable[[bytes], Any] | None = None
        odd = any(_ODD.search(name) for name in self.names)
        if not odd and all(field.type in _AS for field in self._fields):
            # By numbers, for names of fields need not be ones that a class may have.
            made = msgspec.defstruct(
                type.name,
                [(f"f{n}", _wire_type(field)) for n, field in enumerate(self._fields)],
                rename={f"f{n}": name for n, name in enumerate(self.names)},
                forbid_unknown_fields=True,
                gc=False,
            )
            self._decode = msgspec.msgpack.Decoder(made).decode

    def read(self, bodies: Sequence[bytes], keys: Sequence[str]) -> list[Row | None]:
        """By body its values, in the order of ``names``, if they are just what the record type
        would make of them, and those of the record of that key; ``None`` for any other.
        """
        found: list[Row | None] = [None] * len(bodies)
        numbers, rows = self._decoded(bodies)
        if not rows:
            return found
        columns: list[Sequence[Any]] = list(zip(*rows, strict=True))
        unfit: set[int] = set()
        for place, field in enumerate(self._fields):
            columns[place] = _checked(field, columns[place], unfit)
        rows = list(zip(*columns, strict=True))
        self._compare(columns, [keys[number] for number in numbers], unfit)
        if not unfit and len(rows) == len(bodies):
            return list(rows)
        for place, number in enumerate(numbers):
            if place not in unfit:
                found[number] = rows[place]
        return found

    def read_patches(
        self, bodies: Sequence[bytes], keys: Sequence[str]
    ) -> list[tuple[tuple[str, ...], Row] | None]:
        """By body the names of the fields in it and their values, if these are just what the record
        type would make of them, and the key is one of its records; ``None`` for any other.
        """
        found: list[tuple[tuple[str, ...], Row] | None] = [None] * len(bodies)
        if self._type.key_columns(keys) is None:
            return found
        # Patches of the same fields are read together.
        alike: dict[tuple[str, ...], list[tuple[int, dict[str, Any]]]] = {}
        for number, body in enumerate(bodies):
            try:
                parts = _split(body)
            except _UNREADABLE:
                continue
            names = tuple(parts)
            if names not in alike and not (names and self._decoders.keys() >= parts.keys()):
                continue
            if body.startswith(_head(len(names))):  # no name came twice
                alike.setdefault(names, []).append((number, parts))
        for names, group in alike.items():
            unfit: set[int] = set()
            columns = [
                self._read_column(name, column, unfit)
                for name, column in zip(
                    names, zip(*(parts.values() for _, parts in group), strict=True), strict=True
                )
            ]
            for place, row in enumerate(zip(*columns, strict=True)):
                if place not in unfit:
                    found[group[place][0]] = names, row
        return found

    def fits(self, values: Mapping[str, Any]) -> bool:
        """Whether values that have been read are just what the record type would make of them."""
        return self._type.fits(values)

    def _read_column(self, name: str, column: Sequence[Any], unfit: set[int]) -> Sequence[Any]:
        """The values of a field, each in its bytes; adds to ``unfit`` as ``_checked``."""
        decode = self._decoders[name]
        try:
            values = list(map(decode, column))
        except _UNREADABLE:
            values = []
            for number, part in enumerate(column):
                try:
                    values.append(decode(part))
                except _UNREADABLE:
                    values.append(None)
                    unfit.add(number)
        return _checked(self._type.fields[name], values, unfit)

    def _decoded(self, bodies: Sequence[bytes]) -> tuple[Sequence[int], list[Row]]:
        """Which of the bodies have the right fields, and their values as they travelled."""
        if self._decode is None:
            return (), []
        # With so many entries each field can be there but once.
        whole = [n for n, body in enumerate(bodies) if body.startswith(self._head)]
        astuple = msgspec.structs.astuple
        try:
            return whole, list(map(astuple, map(self._decode, [bodies[n] for n in whole])))
        except _UNREADABLE:
            pass  # some of them: which are they?
        numbers, rows = [], []
        for number in whole:
            try:
                rows.append(astuple(self._decode(bodies[number])))
            except _UNREADABLE:
                continue
            numbers.append(number)
        return numbers, rows

    def _compare(
        self, columns: Sequence[Sequence[Any]], keys: Sequence[str], unfit: set[int]
    ) -> None:
        """Add to ``unfit`` the numbers of the rows whose key is not the one given."""
        try:
            parts = [list(map(encode, columns[place])) for place, encode in self._keys]
        except (ValueError, ArithmeticError, TypeError):  # one was not read at all
            unfit.update(range(len(keys)))
            return
        texts = key.join_all(parts)
        if texts != keys or max(map(len, keys)) > key.MAX_LENGTH:
            for number, (text, given) in enumerate(zip(texts, keys, strict=True)):
                if text != given or len(given) > key.MAX_LENGTH:
                    unfit.add(number)


_UNREADABLE: Final = (msgspec.MsgspecError, ValueError)
_split: Final = msgspec.msgpack.Decoder(dict[str, msgspec.Raw]).decode


def _head(count: int) -> bytes:
    """How a body of that many entries begins; of more it takes a closer look."""
    return b"%c" % (0x80 | count) if count < 16 else b"\xde%c%c" % divmod(count, 256)


def _wire_type(field: Field) -> Any:
    kind = _AS[field.type]
    return kind | None if field.optional else kind


def _checked(field: Field, column: Sequence[Any], unfit: set[int]) -> Sequence[Any]:
    """The values of a field; the numbers of those that do not fit it are added to ``unfit``."""
    kinds = set(map(type, column))
    if kinds == {_Ext}:
        codes = set(map(_code, column))
        if len(codes) == 1:
            try:
                column = unpacking.unpack_column(codes.pop(), list(map(_payload, column)))
                kinds = set(map(type, column))
            except ValueRefusedError:
                pass  # some of them: they are found below, one by one
    if kinds != {field.type}:
        column = [_alone(field, number, held, unfit) for number, held in enumerate(column)]
    verify = field.verify
    if verify is None or verify in _SURE:
        return column
    if kinds != {field.type} or not all(map(verify, column)):
        for number, held in enumerate(column):
            if held is not None and number not in unfit and not verify(held):
                unfit.add(number)
    return column


def _alone(field: Field, number: int, held: Any, unfit: set[int]) -> Any:
    """One value of a field, be it of another class than most."""
    if type(held) is _Ext:
        try:
            held = unpacking.unpack_column(held.code, [bytes(held.data)])[0]
        except ValueRefusedError:
            unfit.add(number)
            return None
    if type(held) is not field.type and not (held is None and field.optional):
        unfit.add(number)
    return held
