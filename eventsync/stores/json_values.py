"""Values of records as members of JSON objects, and back.

Strings, booleans, ``null``, numbers, lists and objects are written as they are. An integer beyond
2^53, which other readers would round, is written as a string. A decimal, date, time, datetime or
UUID is written as text (ISO 8601), bytes as base64. The field reads them back into its type.
"""

from __future__ import annotations

import base64
import binascii
import datetime as dt
import json
import math
import re
import secrets
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import FieldError, RecordError, RejectedError, ValueRefusedError
from eventsync.records.field import Field
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values.packing import MAX_DECIMAL

__all__ = [
    "DECODER",
    "MAX_SIZE",
    "Members",
    "Opaque",
    "dump",
    "escape_surrogates",
    "exact_json",
    "fields_by_name",
    "from_base64",
    "has_surrogates",
    "is_float",
    "parse",
    "parse_value",
    "refuse_long",
    "refuse_overflow",
    "to_json",
    "to_text",
    "with_floats",
    "written",
]

_EXACT: Final = 2**53 - 1
_NATIVE: Final = frozenset({str, bool, type(None)})

MAX_SIZE: Final = 1 << 24
"""How many characters a JSON text may have. A longer one is refused before it is parsed."""

MAX_DEPTH: Final = 64
"""How deep lists and objects may nest. What nests deeper is not parsed."""

_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[\]{}]', re.DOTALL)
_SALT: Final = secrets.token_hex(16)  # of texts that stand for others for a moment
_MARK: Final = re.compile(rf'"{_SALT}\.([0-9]+)"')
_LARGE_EXPONENT: Final = re.compile("[0-9][eE][+-]?[0-9]{3}")
_SURROGATE: Final = re.compile("[\ud800-\udfff]")


class Opaque:
    """Text of a JSON value that eventsync cannot hold: too many digits, nested too deep, or NaN.

    In a member of the view it makes the record unreadable. Elsewhere it is written back as it was.
    """

    __slots__ = ("text",)

    def __init__(self, text: str) -> None:
        self.text = text

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Opaque) and other.text == self.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return self.text if len(self.text) <= 40 else f"{self.text[:37]}..."


def dump(value: Any, *, indent: int | None = None, compact: bool = False) -> str:
    """Return a JSON value as text, without a line end. Raises ``RejectedError``.

    A decimal is written as a number with all its digits, an ``Opaque`` as the text that it is.
    ``compact``: without spaces.
    """
    literals: list[str] = []

    def placeholder(item: Any) -> str:
        if not isinstance(item, Opaque | Decimal) or (
            isinstance(item, Decimal) and not item.is_finite()
        ):
            raise TypeError(f"a value of type {type(item).__qualname__} has no JSON form")
        literals.append(item.text if isinstance(item, Opaque) else str(item))
        return f"{_SALT}.{len(literals) - 1}"

    separators = (",", ":") if compact else None
    try:
        text = json.dumps(
            value,
            ensure_ascii=False,
            indent=indent,
            separators=separators,
            allow_nan=False,
            default=placeholder,
        )
    except (ValueError, TypeError, RecursionError) as error:
        raise RejectedError(f"the record cannot be written as JSON: {error}") from error
    if literals:
        text = _MARK.sub(lambda match: literals[int(match[1])], text)
    return text


def escape_surrogates(text: str) -> str:
    """Return a JSON text with lone surrogates, which have no UTF-8 form, as escapes."""
    if text.isascii():
        return text
    return _SURROGATE.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def has_surrogates(text: str) -> bool:
    """Return whether a text has lone surrogates, which have no UTF-8 form."""
    return not text.isascii() and _SURROGATE.search(text) is not None


def parse(text: str) -> dict[str, Any]:
    """Return the JSON object in ``text``; a number with a point is a decimal.

    A value that cannot be held is ``Opaque``. Raises ``RecordError``.
    """
    _check_size(text)
    cut: dict[str, str] = {}
    if _is_deep(text):
        text, cut = _without_deep(text)
    document = _decode(text, _LENIENT)
    if not isinstance(document, dict):
        raise RecordError(f"a JSON {type(document).__name__} is not a record; it must be an object")
    if cut:
        document = {
            name: Opaque(cut[value]) if type(value) is str and value in cut else value
            for name, value in document.items()
        }
    return document


def parse_value(text: str) -> Any:
    """Return the JSON value in ``text``; a number with a point is a decimal.

    Raises ``ValueRefusedError`` for text that is too long or nests too deep, else ``RecordError``.
    """
    _check_size(text)
    if _is_deep(text):
        raise ValueRefusedError(f"JSON that nests deeper than {MAX_DEPTH}")
    return _decode(text, DECODER)


def _decode(text: str, careful: json.JSONDecoder) -> Any:
    text = text.strip(" \t\r\n")
    # Any number in a short text without large exponents is a decimal that can be held.
    plain = len(text) <= MAX_DECIMAL and _LARGE_EXPONENT.search(text) is None
    try:
        try:
            return (_PLAIN if plain else _QUICK).decode(text)
        except json.JSONDecodeError as error:
            raise RecordError(
                f"not JSON: line {error.lineno}, column {error.colno}: {error.msg}"
            ) from error
        except ValueError:
            return careful.decode(text)  # an integer of very many digits, for example
    except (ValueError, RecursionError) as error:
        raise RecordError(f"not JSON: {error}") from error


def _check_size(text: str) -> None:
    if len(text) > MAX_SIZE:
        raise ValueRefusedError(f"JSON of {len(text)} characters; {MAX_SIZE} is the limit")


def _is_deep(text: str) -> bool:
    if text.count("[") + text.count("{") <= MAX_DEPTH:
        return False
    depth = 0
    for match in _TOKEN.finditer(text):
        sign = match[0]
        if sign == "[" or sign == "{":
            depth += 1
            if depth > MAX_DEPTH:
                return True
        elif sign == "]" or sign == "}":
            depth -= 1
    return False


def _without_deep(text: str) -> tuple[str, dict[str, str]]:
    """Return the text of an object with a mark in place of each member that nests too deep.

    The second result has the texts of these members, by mark. Raises ``RecordError``.
    """
    kept: list[str] = []
    cut: dict[str, str] = {}
    depth = deepest = begin = done = 0
    for match in _TOKEN.finditer(text):
        sign = match[0]
        if sign == "[" or sign == "{":
            depth += 1
            if depth == 2:
                begin, deepest = match.start(), 2
            deepest = max(deepest, depth)
        elif sign == "]" or sign == "}":
            if depth == 2 and deepest > MAX_DEPTH:
                mark = f"{_SALT}.{len(cut)}"
                cut[mark] = text[begin : match.end()]
                kept += (text[done:begin], f'"{mark}"')
                done = match.end()
            depth -= 1
    if depth:
        raise RecordError("not JSON: a list or an object is not closed")
    return "".join((*kept, text[done:])), cut


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        raise ValueError("an object has the same member twice")
    return members


def _refuse_constant(text: str) -> Any:
    raise ValueError(f"{text} is not a JSON number")


def _number(text: str) -> Decimal | Opaque:
    if len(text) <= MAX_DECIMAL:
        try:
            number = Decimal(text)
        except ArithmeticError:
            return Opaque(text)  # an exponent that no decimal has
        if abs(number.adjusted()) <= MAX_DECIMAL:
            return number
    return Opaque(text)


def _integer(text: str) -> int | Opaque:
    return int(text) if len(text) <= MAX_DECIMAL else Opaque(text)


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_unique,
    parse_float=_number,
    parse_int=_integer,
    parse_constant=_refuse_constant,
)
# For documents, in which others may have put NaN, as Python's json module does.
_LENIENT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_number, parse_int=_integer, parse_constant=Opaque
)
# Faster by half with integers, but it raises ValueError for one of more than 4300 digits.
_QUICK: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=_number, parse_constant=_refuse_constant
)
# Faster by a third with other numbers.
_PLAIN: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=Decimal, parse_constant=_refuse_constant
)


class Members:
    """Converts between the values of a view and members of JSON. Immutable, thread-safe."""

    def __init__(self, view: BoundView) -> None:
        self._names = tuple(view.names.values())
        self._fields = fields_by_name(view)
        self._coded = {name for name, field in self._fields.items() if field.type is bytes}

    def encode(self, stored: Mapping[str, Any]) -> dict[str, Any]:
        """Return the members for the values of ``View.to_store``. Raises ``RejectedError``."""
        return {name: self._encode(name, value) for name, value in stored.items()}

    def decode(self, members: Mapping[str, Any]) -> dict[str, Any]:
        """Return the values that ``View.to_record`` takes. Raises ``FieldError``."""
        return {name: self._decode(name, members[name]) for name in self._names if name in members}

    def _encode(self, name: str, value: Any) -> Any:
        if type(value) in _NATIVE:
            return value
        field = self._fields.get(name)
        if field is not None and not field.scalar:
            return exact_json(field, value, name)
        if type(value) is int and abs(value) > _EXACT:
            return written(str, value, name)
        return written(to_json, value, name)

    def _decode(self, name: str, value: Any) -> Any:
        if type(value) in _NATIVE and name not in self._coded:
            return value
        field = self._fields.get(name)
        if field is not None and field.type is bytes and isinstance(value, str):
            return from_base64(field, value)
        if field is not None and field.type is Decimal and not isinstance(value, Opaque):
            return value
        if field is not None and field.type is float:
            refuse_overflow(field, value)
        try:
            return with_floats(value)
        except ValueRefusedError as error:
            raise RecordError(f"{name}: {error.message}") from error


def fields_by_name(view: BoundView) -> dict[str, Field]:
    """Return the fields whose values the store holds unconverted, by the store's names."""
    fields = view.record_type.fields
    return {stored: fields[n] for n, stored in view.names.items() if n not in view.convert}


def written(write: Callable[[Any], Any], value: Any, name: str) -> Any:
    """Return ``write(value)``. Raise ``RejectedError`` that names the member if it fails."""
    try:
        return write(value)
    except (ValueError, TypeError) as error:
        raise RejectedError(f"{name}: {error}") from error


def exact_json(field: Field, value: Any, name: str) -> Any:
    """Return a list, dict or undeclared value as JSON that reads back equal.

    Decimals are text where the field says what they are, else numbers. Raises ``RejectedError``.
    """
    member = written(to_json, value, name)
    try:
        _check_exact(field, value, member)
    except RejectedError:
        numbers = written(lambda held: to_json(held, numbers=True), value, name)
        _check_exact(field, value, numbers)
        return numbers
    return member


def to_json(value: Any, *, numbers: bool = False) -> Any:
    """Return a value as JSON, with text for types that JSON lacks. Raises ``TypeError``.

    ``numbers``: a decimal that no float equals stays one, to be written as a number.
    """
    kind = type(value)
    if kind in _NATIVE or kind is int:
        return value
    if kind is float:
        return value if math.isfinite(value) else to_text(value)
    if kind is list:
        return [to_json(item, numbers=numbers) for item in value]
    if kind is dict:
        return {name: to_json(item, numbers=numbers) for name, item in value.items()}
    if numbers and kind is Decimal and not is_float(value):
        return value
    return to_text(value)


def to_text(value: Any) -> str:
    """Return a single value as text. Raises ``TypeError`` for any other type."""
    kind = type(value)
    if kind is str:
        return str(value)
    if kind is bool:
        return "true" if value else "false"
    if kind is float:
        return repr(value) if math.isfinite(value) else f"{'-' if value < 0 else ''}Infinity"
    if kind is int or kind is Decimal or kind is UUID:
        return str(value)
    if kind is dt.date or kind is dt.time or kind is dt.datetime:
        return str(value.isoformat())
    if kind is bytes:
        return base64.b64encode(value).decode("ascii")
    raise TypeError(f"a value of type {kind.__qualname__} cannot be written as text")


def from_base64(field: Field, text: str) -> bytes:
    """Return the bytes of a base64 text. Raises ``FieldError``."""
    try:
        return base64.b64decode(text, validate=True)
    except (ValueError, binascii.Error):
        raise field.error(text, "bytes in base64") from None


def is_float(number: Decimal) -> bool:
    """Return whether a float has exactly the digits of ``number`` when it is written."""
    near = float(number)
    return math.isfinite(near) and Decimal(repr(near)) == number


def with_floats(value: Any) -> Any:
    """Return a JSON value with floats in place of its decimals (numbers with a point).

    A number that a float would round stays a decimal. Raises ``ValueRefusedError``.
    """
    kind = type(value)
    if kind is Decimal:
        return float(value) if is_float(value) else value
    if kind is list:
        return [with_floats(item) for item in value]
    if kind is dict:
        return {name: with_floats(item) for name, item in value.items()}
    if kind is Opaque:
        raise ValueRefusedError(
            f"{value!r} cannot be stored as JSON: it has too many digits, is nested too deeply, or "
            "is NaN or infinite"
        )
    return value


def _in_utc(value: Any) -> Any:
    """Return a value with datetimes in UTC: in a repeated hour, others never compare equal."""
    kind = type(value)
    if kind is dt.datetime and value.tzinfo is not None:
        return value.astimezone(dt.UTC)
    if kind is list:
        return [_in_utc(item) for item in value]
    if kind is dict:
        return {name: _in_utc(item) for name, item in value.items()}
    return value


def refuse_long(field: Field, text: str) -> None:
    """Raise ``FieldError`` for the text of a decimal that has too many digits to travel."""
    if (len(text) > MAX_DECIMAL or "e" in text.lower()) and type(_number(text)) is Opaque:
        raise field.error(text, f"{field.expected} of at most {MAX_DECIMAL} digits")


def refuse_overflow(field: Field, value: Any) -> None:
    """Raise ``FieldError`` for a number, or the text of one, that a float would make infinite."""
    if isinstance(value, Decimal | int | str) and not isinstance(value, bool):
        try:
            overflows = math.isinf(float(value)) and "inf" not in str(value).lower()
        except OverflowError:
            overflows = True
        except ValueError:
            overflows = False  # not a number at all: the field refuses it
        if overflows:
            raise field.error(value, f"{field.expected} that a float can hold")


def _check_exact(field: Field, value: Any, member: Any) -> None:
    """Raise ``RejectedError`` if a list, dict or undeclared value would read back different."""
    if same(member, value):
        return
    try:
        exact = same(_in_utc(field.coerce(with_floats(member))), _in_utc(value))
    except (FieldError, ValueRefusedError):
        exact = False
    if not exact:
        raise RejectedError(
            f"{field.record}.{field.name} holds a value that JSON cannot keep: it would read back "
            "as another value",
            hint="declare the type of its elements: list[Decimal]",
        )
