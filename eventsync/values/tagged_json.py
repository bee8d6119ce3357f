"""Tagged JSON: a form of JSON in which every value that may travel is written without loss.

A value that JSON cannot express becomes an object with one entry, a tag: a name that starts with
``$``, such as ``$date`` (see docs/envelope.md). A map that looks like such an object is wrapped in
``{"$map": ...}``. Every other value is plain JSON.
"""

from __future__ import annotations

import base64
import datetime as dt
import json
import math
from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any, Final
from uuid import UUID

from eventsync.errors import EnvelopeError, malformed, shown
from eventsync.values.packing import MAX_DEPTH

__all__ = ["dumps", "exact_number", "from_json", "loads", "loads_each", "to_json"]

_MAP: Final = "$map"
# The largest integer that every JSON reader keeps exact (RFC 7493).
_EXACT_INT: Final = (1 << 53) - 1
_FLOAT_DIGITS: Final = 16  # with the point
# Each level of a value may take two levels of JSON, because ``$map`` can wrap a map.
_MAX_DEPTH: Final = 2 * MAX_DEPTH + 2


def _datetime(text: Any) -> dt.datetime:
    moment = dt.datetime.fromisoformat(text)
    return moment if moment.tzinfo is None else moment.astimezone(dt.UTC)


def _decimal(text: Any) -> Decimal:
    number = Decimal(text if isinstance(text, str) else "")
    if not number.is_finite():
        raise ValueError(text)
    return number


def _float(text: Any) -> float:
    return {"Infinity": math.inf, "-Infinity": -math.inf}[text]


def _int(text: Any) -> int:
    return int(text if isinstance(text, str) else "")


_READERS: Final[Mapping[str, Callable[[Any], Any]]] = {
    "$bytes": lambda text: base64.b64decode(text, validate=True),
    "$date": dt.date.fromisoformat,
    "$datetime": _datetime,
    "$decimal": _decimal,
    "$float": _float,
    "$int": _int,
    "$time": dt.time.fromisoformat,
    "$uuid": UUID,
}


def to_json(item: Any) -> Any:
    """Return ``item`` as tagged JSON: new objects of JSON types, ready for ``json.dumps``.

    Raises ``TypeError`` if ``item`` contains a value of a type that may not travel.
    """
    kind = type(item)
    if item is None or kind is str or kind is bool:
        return item
    if kind is int:
        return item if -_EXACT_INT <= item <= _EXACT_INT else {"$int": str(item)}
    if kind is float:
        if math.isfinite(item):
            return item
        return {"$float": "Infinity" if item > 0 else "-Infinity"}
    if kind is list:
        return [to_json(part) for part in item]
    if kind is dict:
        plain = {name: to_json(part) for name, part in item.items()}
        return {_MAP: plain} if _looks_tagged(plain) else plain
    if kind is Decimal:
        return {"$decimal": str(item)}
    if kind is bytes:
        return {"$bytes": base64.b64encode(item).decode()}
    if kind is dt.datetime:
        return {"$datetime": (item.astimezone(dt.UTC) if item.tzinfo else item).isoformat()}
    if kind is dt.date:
        return {"$date": item.isoformat()}
    if kind is dt.time:
        return {"$time": item.isoformat()}
    if kind is UUID:
        return {"$uuid": str(item)}
    raise TypeError(f"a value of type {kind.__qualname__} cannot be written as JSON")


def from_json(item: Any, *, depth: int = 0) -> Any:
    """Return the value that the tagged JSON ``item`` stands for. The inverse of ``to_json``.

    ``item``: parsed JSON, not text. ``depth``: the number of objects and arrays that contain
    ``item``. Raises ``EnvelopeError`` if the content of a tag is invalid, or if ``item`` nests too
    deep.
    """
    if depth > _MAX_DEPTH:
        raise malformed(f"objects and arrays nest deeper than {MAX_DEPTH} levels")
    if type(item) is list:
        return [from_json(part, depth=depth + 1) for part in item]
    if type(item) is not dict:
        return item
    if _looks_tagged(item):
        tag, content = next(iter(item.items()))
        if tag == _MAP and type(content) is dict:
            return {name: from_json(part, depth=depth + 1) for name, part in content.items()}
        if tag in _READERS:
            try:
                return _READERS[tag](content)
            except (ValueError, TypeError, KeyError, ArithmeticError, AttributeError) as error:
                raise malformed(
                    f"the content of the JSON tag {tag} is {shown(content)}, which is not valid "
                    "for this tag"
                ) from error
    return {name: from_json(part, depth=depth + 1) for name, part in item.items()}


def dumps(item: Any) -> str:
    """Return ``item`` as compact JSON text. ``item``: an object of JSON types only."""
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """Parse an untrusted JSON text and return its value.

    A number with a fraction or an exponent is a float, or a decimal if a float would round it.
    Raises ``EnvelopeError``, and no other error, if the text is not JSON, or if it contains a
    duplicate key, NaN or Infinity.
    """
    try:
        return _STRICT.decode(_decoded(text))
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error


def loads_each(text: str | bytes) -> list[Any]:
    """Parse an untrusted JSON array and return its items, each as ``loads`` returns it.

    In place of an item that ``loads`` refuses, the list has its ``EnvelopeError``. Raises
    ``EnvelopeError``, and no other error, if the text is not a JSON array.
    """
    try:
        whole = _decoded(text)
        if not isinstance(_LENIENT.decode(whole), list):
            raise ValueError("it is not an array")
        items: list[Any] = []
        place = _skip(whole, whole.index("[") + 1)
        while whole[place] != "]":
            try:
                items.append(_STRICT.raw_decode(whole, place)[0])
            except ValueError as error:
                items.append(_not_json(error))
            place = _skip(whole, _LENIENT.raw_decode(whole, place)[1])
    except (ValueError, RecursionError) as error:
        raise _not_json(error) from error
    return items


def exact_number(text: str) -> float | Decimal:
    """Return a JSON number as a float, or as a decimal if a float would round it.

    Raises ``ValueError`` if the exponent is too large for a decimal.
    """
    if len(text) <= _FLOAT_DIGITS and "e" not in text and "E" not in text:
        return float(text)  # a float keeps so few digits
    try:
        number, exact = float(text), Decimal(text)
    except ArithmeticError:
        raise ValueError("the exponent of a number is too large") from None
    return number if Decimal(repr(number)) == exact else exact


def _decoded(text: str | bytes) -> str:
    if isinstance(text, str):
        return text
    return text.decode(json.detect_encoding(text))


def _skip(text: str, place: int) -> int:
    """Return the place of the next value, or of the end of the array, in the text of an array."""
    while text[place] in " \t\n\r,":
        place += 1
    return place


def _not_json(error: Exception) -> EnvelopeError:
    # The message does not quote the text, because it may hold values that must not be logged.
    return malformed(f"the text is not JSON: {error}", reason="envelope")


def _looks_tagged(item: Mapping[str, Any]) -> bool:
    return len(item) == 1 and next(iter(item)).startswith("$")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")


_STRICT: Final = json.JSONDecoder(
    object_pairs_hook=_unique, parse_float=exact_number, parse_constant=_no_constant
)
# Finds the end of a value that ``_STRICT`` refuses.
_LENIENT: Final = json.JSONDecoder(parse_float=str, parse_int=str, parse_constant=str)
