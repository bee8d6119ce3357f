"""What other systems exchange, as ours: JSON for values, without loss, and times for versions.

It knows nothing of changes or envelopes. What JSON has no form for becomes an object with one entry
whose name starts with ``$`` (table in docs/envelope.md); a map of that shape is wrapped in
``{"$map": ...}``, so that it comes back as it was. Everything else is plain JSON.
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

from eventsync.errors import malformed, shown
from eventsync.values.packing import MAX_DEPTH

__all__ = ["dumps", "from_json", "loads", "to_json"]

_MAP: Final = "$map"
# Integers that every JSON reader keeps exact (RFC 7493).
_EXACT_INT: Final = (1 << 53) - 1
# Each map or array of a value may be wrapped once.
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
    """``item``, a value that may travel, as a copy of nothing but what ``json`` writes.

    Raises ``TypeError`` for a value of a type that may not travel.
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
    raise TypeError(f"a value of type {kind.__qualname__} has no JSON form")


def from_json(item: Any, *, depth: int = 0) -> Any:
    """The value that ``to_json`` gave as ``item``; plain JSON of others is taken as it is.

    Raises ``EnvelopeError`` for a tagged value that is not what its tag says.
    """
    if depth > _MAX_DEPTH:
        raise malformed(f"values nest deeper than {MAX_DEPTH}")
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
                raise malformed(f"{tag} holds no such value: {shown(content)}") from error
    return {name: from_json(part, depth=depth + 1) for name, part in item.items()}


def dumps(item: Any) -> str:
    """The compact JSON text of ``item``, which is plain JSON already."""
    return json.dumps(item, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def loads(text: str | bytes) -> Any:
    """What a JSON text says, strictly: no key twice, no NaN. For text from anywhere.

    Raises ``EnvelopeError``, and nothing else.
    """
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        # Not the text itself: it may hold what no log should.
        raise malformed(f"not JSON: {error}", reason="envelope") from error


def _looks_tagged(item: Mapping[str, Any]) -> bool:
    return len(item) == 1 and next(iter(item)).startswith("$")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is not JSON")
