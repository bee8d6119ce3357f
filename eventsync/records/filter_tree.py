"""The conditions of a filter: its typed tree, and how that is written as JSON.

It knows nothing of how conditions are read from a mapping, nor of how they are evaluated, in Python
or by a store.
"""

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
    """The field has a value, and it stands in that relation to the operand.

    ``operand``: a plain value of the field's type; for ``$in`` a tuple of them, for ``$like`` and
    ``$re`` the pattern, for ``$mod`` the divisor and the remainder (which has the value's sign).
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class Exists:
    """The field is there and not ``None``."""

    field: str


@dataclass(frozen=True, slots=True)
class Length:
    """The field has a value, and its length stands in that relation to a number.

    The length of a string is in characters, of bytes in bytes. ``op``: ``$eq``, an order, or
    ``$in`` with a tuple.
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class All:
    """All of the parts hold; so it does without parts."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """Some of the parts holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The part does not hold."""

    part: Node


Node: TypeAlias = Compare | Exists | Length | All | Either | Not

EVERYTHING: Final = All(())
"""What every record fulfils."""


def fields_of(node: Node) -> Iterator[str]:
    """The names of the fields that a condition reads, with repetitions."""
    if isinstance(node, All | Either):
        for part in node.parts:
            yield from fields_of(part)
    elif isinstance(node, Not):
        yield from fields_of(node.part)
    else:
        yield node.field


def like_to_regex(pattern: str) -> str:
    """The regular expression, to be matched whole and with ``re.DOTALL``, of a ``$like`` pattern.

    Raises ``FilterError`` for a backslash before anything but ``%``, ``_`` and itself.
    """
    parts = []
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            character = next(characters, "")
            if character not in ("%", "_", "\\"):
                raise FilterError(
                    "$like: a backslash stands before '%', '_' or another backslash",
                    hint="write two backslashes for one",
                )
            parts.append(re.escape(character))
        else:
            parts.append({"%": ".*", "_": "."}.get(character) or re.escape(character))
    return "".join(parts)


# -- to JSON ---------------------------------------------------------------------------------------


def to_json(node: Node) -> dict[str, Any]:
    """The mapping, of JSON's types only, from which ``filter.parse`` makes an equal condition."""
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
    """An operand in JSON's types only."""
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
