"""The conditions of a filter as a typed tree, and their JSON form."""

from __future__ import annotations

import datetime as dt
import re
from collections.abc import Iterator
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Final, Literal, TypeAlias
from uuid import UUID

from eventsync.errors import FilterError

__all__ = [
    "EVERYTHING",
    "All",
    "Compare",
    "Either",
    "Exists",
    "Length",
    "Node",
    "Not",
    "Op",
    "fields_of",
    "json_of",
    "like_to_regex",
    "to_json",
]

Op: TypeAlias = Literal["$eq", "$lt", "$lte", "$gt", "$gte", "$in", "$like", "$re", "$mod"]


@dataclass(frozen=True, slots=True)
class Compare:
    """The condition that a field has a value, and that comparing it with the operand holds.

    ``operand``: a plain value of the field's type; for ``$in`` a tuple of such values, for
    ``$like`` and ``$re`` the pattern, for ``$mod`` the divisor and the remainder. The remainder has
    the sign of the field's value.
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class Exists:
    """The condition that a field is there and not ``None``."""

    field: str


@dataclass(frozen=True, slots=True)
class Length:
    """The condition that a field has a value, and that comparing its length with a number holds.

    The length of a string is in characters, that of a byte string in bytes. ``op``: ``$eq``,
    ``$lt``, ``$lte``, ``$gt``, ``$gte``, or ``$in`` with a tuple of numbers.
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class All:
    """The condition that every part holds. Without parts it always holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """The condition that at least one part holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition that its part does not hold."""

    part: Node


Node: TypeAlias = Compare | Exists | Length | All | Either | Not

EVERYTHING: Final = All(())
"""The condition that every record fulfils."""


def fields_of(node: Node) -> Iterator[str]:
    """Yield the names of the fields that a condition reads, with repetitions."""
    if isinstance(node, All | Either):
        for part in node.parts:
            yield from fields_of(part)
    elif isinstance(node, Not):
        yield from fields_of(node.part)
    else:
        yield node.field


def like_to_regex(pattern: str) -> str:
    """Return the regular expression for a ``$like`` pattern.

    Use it with ``re.fullmatch`` and ``re.DOTALL``. Raises ``FilterError`` for a backslash that is
    not followed by ``%``, ``_`` or another backslash.
    """
    parts = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            character = next(characters, "")
            if character not in ("%", "_", "\\"):
                raise FilterError(
                    "$like: a backslash must be followed by '%', '_' or another backslash",
                    hint="write two backslashes to match one",
                )
            parts.append(re.escape(character))
        else:
            parts.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    return "".join(parts)


# -- to JSON ---------------------------------------------------------------------------------------


def to_json(node: Node) -> dict[str, Any]:
    """Return the condition as a mapping of JSON's types, which ``filter_parser.parse`` reads."""
    match node:
        case Compare(field, op, operand):
            return {field: {op: json_of(operand)}}
        case Exists(field):
            return {field: {"$exists": True}}
        case Length(field, op, operand):
            return {field: {"$len": {op: json_of(operand)}}}
        case All(parts):
            return {"$and": [to_json(part) for part in parts]} if parts else {}
        case Either(parts):
            return {"$or": [to_json(part) for part in parts]}
        case Not(part):
            return {"$not": to_json(part)}


def json_of(value: Any) -> Any:
    """Return an operand in JSON's types."""
    if isinstance(value, list | tuple):
        return [json_of(item) for item in value]
    if isinstance(value, dict):
        return {name: json_of(item) for name, item in value.items()}
    if isinstance(value, dt.date | dt.time):
        return value.isoformat()
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value
