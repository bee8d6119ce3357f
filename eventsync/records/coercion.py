"""Coercions: the check and the conversion of foreign values to the declared type of a field."""

from __future__ import annotations

import datetime as dt
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin
from uuid import UUID

from eventsync.errors import ValueRefusedError
from eventsync.records.scalar import (
    is_comparable,
    is_text,
    to_bool,
    to_bytes,
    to_date,
    to_datetime,
    to_decimal,
    to_float,
    to_int,
    to_str,
    to_time,
    to_uuid,
)
from eventsync.values.packing import MAX_DEPTH, check

__all__ = [
    "Coercion",
    "MisfitError",
    "Resolve",
    "UnsupportedTypeError",
    "coercion_of",
    "guard",
]

Convert: TypeAlias = Callable[[Any], Any]
Resolve: TypeAlias = Callable[[type], "Coercion | None"]


class MisfitError(Exception):
    """A value cannot be converted. ``Field`` turns this error into a ``FieldError``.

    ``value``: the innermost wrong value. ``expected``: a noun phrase for what was expected instead.
    ``path``: the place of the value inside lists and dicts, such as ``[0]['name']``; empty if the
    whole value is wrong.
    """

    def __init__(self, value: Any, expected: str) -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.path = ""


class UnsupportedTypeError(Exception):
    """A declared type is not possible for a field. The text of the error says why."""


@dataclass(frozen=True, slots=True)
class Coercion:
    """The check and the conversion of values of one declared type. Immutable, hence thread-safe.

    A *plain* value is a value as records store it. ``kind``: the class of the plain values, such as
    ``str`` for an enumeration of strings, or ``object`` for a field of any type. ``convert``: a
    function that returns the plain value for a foreign value, without sharing lists or dicts with
    it, or raises ``MisfitError``. ``expected``: a noun phrase for errors, such as "an integer".
    ``verify``: a function that returns whether a value of class ``kind`` is valid without
    conversion; ``None`` if all are. ``member``: a function that returns the enumeration member for
    a plain value; ``None`` for other types. ``optional``: whether ``None`` is a valid value.
    ``scalar``: false for lists, dicts and fields of any type.
    """

    kind: type[Any]
    convert: Convert
    expected: str
    verify: Callable[[Any], bool] | None = None
    member: Convert | None = None
    optional: bool = False
    scalar: bool = True


def guard(function: Convert, expected: str) -> Convert:
    """Return a function that calls ``function`` and raises ``MisfitError`` if the value is wrong.

    ``expected``: a noun phrase for what the value should be.
    """

    def convert(value: Any) -> Any:
        try:
            return function(value)
        except (ValueError, TypeError, ArithmeticError, LookupError, ValueRefusedError):
            pass
        # Raised outside the ``except`` block: a chained exception could show a secret value.
        raise MisfitError(value, expected)

    return convert


def coercion_of(declared: Any, resolve: Resolve) -> Coercion:
    """Return the coercion for a declared type, such as ``int``, ``str | None`` or ``list[UUID]``.

    ``resolve``: a function that is called with a class unknown to this module, such as a record
    class. It returns the coercion of the class, or ``None``. Raises ``UnsupportedTypeError`` if a
    field cannot have the type.
    """
    origin, args = get_origin(declared), get_args(declared)
    if declared is Any or declared is object:
        convert = guard(_plain, "a value that may travel")
        return Coercion(object, convert, "a value", optional=True, scalar=False)
    if origin is Annotated:
        return coercion_of(args[0], resolve)
    if origin is Union or origin is UnionType:
        return _union(declared, args, resolve)
    if origin is Literal:
        return _choices(args)
    if declared is list or origin is list:
        return _list(coercion_of(args[0] if args else Any, resolve))
    if declared is dict or origin is dict:
        if args and args[0] is not str:
            raise UnsupportedTypeError(
                f"the type {declared} has keys that are not str; the keys of a dict must be str"
            )
        return _dict(coercion_of(args[1] if args else Any, resolve))
    if isinstance(declared, type) and origin is None:
        if declared in _SCALARS:
            return _SCALARS[declared]
        if issubclass(declared, Enum):
            return _enum(declared)
        coercion = resolve(declared)
        if coercion is not None:
            return coercion
    if hasattr(declared, "__supertype__"):
        return coercion_of(declared.__supertype__, resolve)
    shown = getattr(declared, "__qualname__", declared)
    raise UnsupportedTypeError(f"a field cannot have the type {shown}")


def _union(declared: Any, args: tuple[Any, ...], resolve: Resolve) -> Coercion:
    others = [arg for arg in args if arg is not NoneType]
    if len(others) != 1:
        raise UnsupportedTypeError(
            f"the type {declared} is a union; a field must have one type, or one type and None"
        )
    return replace(coercion_of(others[0], resolve), optional=True)


def _scalar(
    kind: type[Any],
    function: Convert,
    expected: str,
    verify: Callable[[Any], bool] | None = None,
) -> Coercion:
    return Coercion(kind, guard(function, expected), expected, verify)


_SCALARS: Final[Mapping[type[Any], Coercion]] = {
    bool: _scalar(bool, to_bool, "a boolean"),
    int: _scalar(int, to_int, "an integer"),
    float: _scalar(float, to_float, "a number", math.isfinite),
    Decimal: _scalar(Decimal, to_decimal, "a decimal number", Decimal.is_finite),
    str: _scalar(str, to_str, "a string", is_text),
    bytes: _scalar(bytes, to_bytes, "bytes"),
    dt.date: _scalar(dt.date, to_date, "a date (ISO 8601)"),
    dt.time: _scalar(dt.time, to_time, "a time (ISO 8601)"),
    dt.datetime: _scalar(dt.datetime, to_datetime, "a datetime (ISO 8601)", is_comparable),
    UUID: _scalar(UUID, to_uuid, "a UUID"),
}


# -- choices ---------------------------------------------------------------------------------------


def _choices(values: tuple[Any, ...], enum: type[Enum] | None = None) -> Coercion:
    """Return the coercion for a ``Literal`` or an enumeration with these values.

    ``enum``: the enumeration; ``None`` for a ``Literal``. Raises ``UnsupportedTypeError`` unless
    all values are strings, or all are integers.
    """
    optional = None in values and enum is None
    plain = tuple(value for value in values if value is not None or enum is not None)
    kinds = {type(value) for value in plain}
    if kinds not in ({str}, {int}):
        what = "a Literal" if enum is None else f"the enumeration {enum.__name__}"
        raise UnsupportedTypeError(f"the values of {what} must be all strings or all integers")
    kind = kinds.pop()
    known = frozenset(plain)
    make = to_str if kind is str else to_int

    def convert(value: Any) -> Any:
        if isinstance(value, Enum):
            if enum is None or not isinstance(value, enum):
                raise TypeError
            value = value.value
        choice = make(value)
        if choice not in known:
            raise ValueError
        return choice

    shown = ", ".join(map(repr, plain[:12])) + (", ..." if len(plain) > 12 else "")
    expected = f"one of {shown}"
    return Coercion(kind, guard(convert, expected), expected, known.__contains__, enum, optional)


def _enum(declared: type[Enum]) -> Coercion:
    return _choices(tuple(member.value for member in declared), declared)


# -- lists, dicts and undeclared values ------------------------------------------------------------


def _within(coercion: Coercion) -> Convert:
    """Return a function that converts one element of a list or dict with ``coercion``.

    It accepts ``None`` if the coercion is optional.
    """
    convert = coercion.convert
    if not coercion.optional:
        return convert
    return lambda value: None if value is None else convert(value)


def _list(item: Coercion) -> Coercion:
    convert_item = _within(item)
    expected = "a list"

    def convert(value: Any) -> list[Any]:
        if not isinstance(value, list | tuple):
            raise MisfitError(value, expected)
        items = []
        for place, each in enumerate(value):
            try:
                items.append(convert_item(each))
            except MisfitError as misfit:
                misfit.path = f"[{place}]{misfit.path}"
                raise
        return items

    return Coercion(list, _travelling(convert), expected, _never, scalar=False)


def _dict(item: Coercion) -> Coercion:
    convert_item = _within(item)
    expected = "a dict with string keys"

    def convert(value: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise MisfitError(value, expected)
        items = {}
        for key, each in value.items():
            if not isinstance(key, str) or not is_text(key):
                raise MisfitError(value, expected)
            try:
                items[to_str(key)] = convert_item(each)
            except MisfitError as misfit:
                misfit.path = f"[{key!r}]{misfit.path}"
                raise
        return items

    return Coercion(dict, _travelling(convert), expected, _never, scalar=False)


def _never(value: Any) -> bool:
    """Return false, so that lists and dicts are always copied. Records must not share them."""
    return False


def _travelling(convert: Convert) -> Convert:
    """Return a function that calls ``convert`` and checks that the result may travel.

    It raises ``MisfitError`` if the result is too large or nests too deep.
    """

    def checked(value: Any) -> Any:
        made = convert(value)
        try:
            check(made, depth=1)  # 1, because the map of field values contains the value
        except ValueRefusedError as error:
            problem = error.message
        else:
            return made
        raise MisfitError(value, f"a value that may travel: {problem}")

    return checked


def _plain(value: Any, depth: int = 1) -> Any:
    """Return a copy of ``value`` in which every part has a class that may travel.

    For fields of any type. Raises an error that ``guard`` catches if this is not possible.
    """
    if value is None:
        return None
    kind = type(value)
    coercion = _SCALARS.get(kind)
    if coercion is not None:
        sound = coercion.verify is None or coercion.verify(value)
        return value if sound else coercion.convert(value)
    if depth > MAX_DEPTH:
        raise ValueError
    made: Any
    if isinstance(value, Enum):
        made = _plain(value.value, depth + 1)
    elif isinstance(value, Mapping):
        made = {}
        for key, each in value.items():
            if not isinstance(key, str):
                raise TypeError
            made[to_str(key)] = _plain(each, depth + 1)
    elif isinstance(value, list | tuple):
        made = [_plain(each, depth + 1) for each in value]
    elif isinstance(value, bytearray | memoryview):
        made = bytes(value)
    else:
        # An instance of a subclass becomes an instance of the class itself. ``datetime`` is a
        # subclass of ``date``, so it must come first.
        for base in (int, float, Decimal, str, bytes, dt.datetime, dt.date, dt.time, UUID):
            if isinstance(value, base):
                return _SCALARS[base].convert(value)
        raise TypeError
    if depth == 1:
        check(made, depth=1)
    return made
