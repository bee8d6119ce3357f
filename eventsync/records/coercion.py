"""The shape of a value: how values of one declared type are recognised, and made of foreign ones.

It knows nothing of fields, records or stores.
"""

from __future__ import annotations

import datetime as dt
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from decimal import Decimal
from enum import Enum
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, TypeAlias, Union, get_args, get_origin
from uuid import UUID

from eventsync.errors import ValueRefusedError
from eventsync.values.packing import MAX_DEPTH, check

__all__ = [
    "Coercion",
    "MisfitError",
    "Resolve",
    "UnsupportedTypeError",
    "coercion_of",
    "guard",
    "is_text",
]

Convert: TypeAlias = Callable[[Any], Any]
Resolve: TypeAlias = Callable[[type], "Coercion | None"]

_INTEGER: Final = re.compile(r"[+-]?[0-9]+")
# More digits than this Python refuses to read from text; a decimal's exponent must not evade that.
_MAX_DIGITS: Final = 4300
_BOOLEANS: Final = {"true": True, "1": True, "false": False, "0": False}


class MisfitError(Exception):
    """A value that does not fit: the innermost one, what was expected, and the way to it.

    Never leaves the package: a ``FieldError`` is made of it.
    """

    def __init__(self, value: Any, expected: str) -> None:
        super().__init__(expected)
        self.value = value
        self.expected = expected
        self.path = ""


class UnsupportedTypeError(Exception):
    """A declared type that no field can have; ``str`` says why."""


@dataclass(frozen=True, slots=True)
class Coercion:
    """How values of one declared type look. Immutable, hence thread-safe.

    ``kind``: the class of the plain values (a string enumeration's is ``str``; ``object`` for any).
    ``convert``: makes a plain value of what comes, or raises ``MisfitError``; what it returns
    shares no list or dict with its argument. ``verify``: whether a value that is exactly of class
    ``kind`` needs no conversion; ``None`` when none ever does. ``member``: what an attribute shows
    of a plain value. ``scalar``: whether no value can hold others.
    """

    kind: type[Any]
    convert: Convert
    expected: str
    verify: Callable[[Any], bool] | None = None
    member: Convert | None = None
    optional: bool = False
    scalar: bool = True


def guard(function: Convert, expected: str) -> Convert:
    """``function``, with whatever it raises about a value turned into a ``MisfitError``."""

    def convert(value: Any) -> Any:
        try:
            return function(value)
        except (ValueError, TypeError, ArithmeticError, LookupError, ValueRefusedError):
            pass
        # Outside the handler: a chained error would show a secret value.
        raise MisfitError(value, expected)

    return convert


def coercion_of(declared: Any, resolve: Resolve) -> Coercion:
    """The shape of a declared type.

    ``resolve`` gives the shape of a class that this module does not know (a reference to a record).
    Raises ``UnsupportedTypeError``.
    """
    origin, args = get_origin(declared), get_args(declared)
    if declared is Any or declared is object:
        convert = guard(_plain, "a value that can travel")
        return Coercion(object, convert, "a value", optional=True, scalar=False)
    if origin is Annotated:
        return coercion_of(args[0], resolve)
    if origin is Union or origin is UnionType:
        return _shape_of_union(declared, args, resolve)
    if origin is Literal:
        return _choices(args)
    if declared is list or origin is list:
        return _shape_of_list(coercion_of(args[0] if args else Any, resolve))
    if declared is dict or origin is dict:
        if args and args[0] is not str:
            raise UnsupportedTypeError("the keys of a dict must be str")
        return _shape_of_dict(coercion_of(args[1] if args else Any, resolve))
    if isinstance(declared, type) and origin is None:
        if declared in _SCALARS:
            return _SCALARS[declared]
        if issubclass(declared, Enum):
            return _shape_of_enum(declared)
        shape = resolve(declared)
        if shape is not None:
            return shape
    if hasattr(declared, "__supertype__"):
        return coercion_of(declared.__supertype__, resolve)
    shown = getattr(declared, "__qualname__", declared)
    raise UnsupportedTypeError(f"{shown} is not a type that a field can have")


def _shape_of_union(declared: Any, args: tuple[Any, ...], resolve: Resolve) -> Coercion:
    others = [arg for arg in args if arg is not NoneType]
    if len(others) != 1:
        raise UnsupportedTypeError(f"{declared} is several types; a field has one, or one and None")
    return replace(coercion_of(others[0], resolve), optional=True)


# -- scalars ---------------------------------------------------------------------------------------


def _text(value: Any) -> str | None:
    """``value`` as text if it is text, or text in UTF-8 as Redis and files give it."""
    if isinstance(value, str):
        return str.__str__(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).decode()
    return None


def _some_text(value: Any) -> str:
    text = _text(value)
    if text is None or "_" in text:
        # Python's numbers in text may have underscores; those of nobody else do.
        raise ValueError
    return text.strip()


def _to_int(value: Any) -> int:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float | Decimal):
        if isinstance(value, Decimal) and value.is_finite() and value.adjusted() > _MAX_DIGITS:
            raise ValueError
        number = int(value)
        if number != value:
            raise ValueError
        return number
    text = _some_text(value)
    if not _INTEGER.fullmatch(text):
        raise ValueError
    return int(text)


def _to_float(value: Any) -> float:
    if isinstance(value, bool):
        raise TypeError
    number = float(value if isinstance(value, float | int | Decimal) else _some_text(value))
    if number != number:
        raise ValueError
    return number


def _to_decimal(value: Any) -> Decimal:
    if isinstance(value, bool):
        raise TypeError
    if isinstance(value, float):
        # By its shortest text: the digits that a float's reader saw, not those of its binary form.
        value = float.__repr__(value)
    number = Decimal(value if isinstance(value, int | Decimal) else _some_text(value))
    if not number.is_finite():
        raise ValueError
    return number


def _to_bool(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    if isinstance(value, int):
        if value not in (0, 1):
            raise ValueError
        return value == 1
    return _BOOLEANS[_some_text(value).lower()]


def _to_str(value: Any) -> str:
    text = _text(value)
    if text is None:
        raise TypeError
    if not is_text(text):
        raise ValueError
    return text


def is_text(value: str) -> bool:
    """Whether ``value`` has a UTF-8 form: a lone surrogate has none."""
    if value.isascii():
        return True
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def _to_bytes(value: Any) -> bytes:
    if not isinstance(value, bytes | bytearray | memoryview):
        raise TypeError
    return bytes(value)


def _to_date(value: Any) -> dt.date:
    if isinstance(value, dt.date) and not isinstance(value, dt.datetime):
        return dt.date(value.year, value.month, value.day)
    moment = _to_datetime(value)
    if moment.tzinfo is not None or moment.time() != dt.time():
        raise ValueError
    return moment.date()


def _to_time(value: Any) -> dt.time:
    if not isinstance(value, dt.time):
        value = dt.time.fromisoformat(_some_text(value))
    return dt.time(
        value.hour, value.minute, value.second, value.microsecond, value.tzinfo, fold=value.fold
    )


def _to_datetime(value: Any) -> dt.datetime:
    if isinstance(value, dt.datetime):
        return dt.datetime(
            value.year,
            value.month,
            value.day,
            value.hour,
            value.minute,
            value.second,
            value.microsecond,
            value.tzinfo,
            fold=value.fold,
        )
    if isinstance(value, dt.date):
        return dt.datetime(value.year, value.month, value.day)
    return dt.datetime.fromisoformat(_some_text(value))


def _to_uuid(value: Any) -> UUID:
    if isinstance(value, UUID):
        return UUID(int=value.int)
    if isinstance(value, bytes | bytearray | memoryview) and len(bytes(value)) == 16:
        return UUID(bytes=bytes(value))
    return UUID(_some_text(value))


def _scalar(
    kind: type[Any],
    function: Convert,
    expected: str,
    verify: Callable[[Any], bool] | None = None,
) -> Coercion:
    return Coercion(kind, guard(function, expected), expected, verify)


_SCALARS: Final[Mapping[type[Any], Coercion]] = {
    bool: _scalar(bool, _to_bool, "a boolean"),
    int: _scalar(int, _to_int, "an integer"),
    float: _scalar(float, _to_float, "a number", math.isfinite),
    Decimal: _scalar(Decimal, _to_decimal, "a decimal number", Decimal.is_finite),
    str: _scalar(str, _to_str, "a string", is_text),
    bytes: _scalar(bytes, _to_bytes, "bytes"),
    dt.date: _scalar(dt.date, _to_date, "a date (ISO 8601)"),
    dt.time: _scalar(dt.time, _to_time, "a time (ISO 8601)"),
    dt.datetime: _scalar(dt.datetime, _to_datetime, "a datetime (ISO 8601)"),
    UUID: _scalar(UUID, _to_uuid, "a UUID"),
}


# -- choices ---------------------------------------------------------------------------------------


def _choices(values: tuple[Any, ...], enum: type[Enum] | None = None) -> Coercion:
    """One of these strings or integers."""
    optional = None in values and enum is None
    plain = tuple(value for value in values if value is not None or enum is not None)
    kinds = {type(value) for value in plain}
    if kinds not in ({str}, {int}):
        raise UnsupportedTypeError("choices must be all strings or all integers")
    kind = kinds.pop()
    known = frozenset(plain)
    make = _to_str if kind is str else _to_int

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


def _shape_of_enum(declared: type[Enum]) -> Coercion:
    return _choices(tuple(member.value for member in declared), declared)


# -- what holds other values -----------------------------------------------------------------------


def _within(shape: Coercion) -> Convert:
    """What makes an element, which may be ``None`` if the shape is optional."""
    convert = shape.convert
    if not shape.optional:
        return convert
    return lambda value: None if value is None else convert(value)


def _shape_of_list(item: Coercion) -> Coercion:
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


def _shape_of_dict(item: Coercion) -> Coercion:
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
                items[_to_str(key)] = convert_item(each)
            except MisfitError as misfit:
                misfit.path = f"[{key!r}]{misfit.path}"
                raise
        return items

    return Coercion(dict, _travelling(convert), expected, _never, scalar=False)


def _never(value: Any) -> bool:
    """Lists and dicts are always converted, so that a record shares none with its maker."""
    return False


def _travelling(convert: Convert) -> Convert:
    """``convert``, with what is too large or too deep to travel refused."""

    def checked(value: Any) -> Any:
        made = convert(value)
        try:
            check(made, depth=1)  # the record's own map is around it
        except ValueRefusedError as error:
            problem = error.message
        else:
            return made
        raise MisfitError(value, f"fit to travel: {problem}")

    return checked


def _plain(value: Any, depth: int = 1) -> Any:
    """A copy of an undeclared value, in the classes that can travel."""
    if value is None:
        return None
    kind = type(value)
    shape = _SCALARS.get(kind)
    if shape is not None:
        return value if shape.verify is None or shape.verify(value) else shape.convert(value)
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
            made[_to_str(key)] = _plain(each, depth + 1)
    elif isinstance(value, list | tuple):
        made = [_plain(each, depth + 1) for each in value]
    elif isinstance(value, bytearray | memoryview):
        made = bytes(value)
    else:
        # A subclass of a plain class becomes that class; the order puts datetime before date.
        for base in (int, float, Decimal, str, bytes, dt.datetime, dt.date, dt.time, UUID):
            if isinstance(value, base):
                return _SCALARS[base].convert(value)
        raise TypeError
    if depth == 1:
        check(made, depth=1)
    return made
