"""The conditions of a filter as a tree of typed nodes, and the JSON form of this tree."""

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

_LONGEST_PATTERN: Final = 4096

Op: TypeAlias = Literal["$eq", "$lt", "$lte", "$gt", "$gte", "$in", "$like", "$re", "$mod"]


@dataclass(frozen=True, slots=True)
class Compare:
    """The condition that the value of a field compares true with the operand.

    False if the field has no value. ``operand``: a plain value of the field's type. For ``$in`` it
    is a tuple of such values, for ``$like`` and ``$re`` the pattern, for ``$mod`` a tuple of
    divisor and remainder. The remainder has the sign of the field's value.
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class Exists:
    """The condition that a field has a value other than ``None``."""

    field: str


@dataclass(frozen=True, slots=True)
class Length:
    """The condition that the length of a field's value compares true with the operand.

    False if the field has no value. The length is the number of characters, bytes, items or
    entries. ``op``: ``$eq``, ``$lt``, ``$lte``, ``$gt``, ``$gte`` or ``$in``. ``operand``: an
    integer; for ``$in`` a tuple of integers.
    """

    field: str
    op: Op
    operand: Any


@dataclass(frozen=True, slots=True)
class All:
    """The condition that all of its parts hold. Without parts, it holds for every record."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Either:
    """The condition that at least one of its parts holds."""

    parts: tuple[Node, ...]


@dataclass(frozen=True, slots=True)
class Not:
    """The condition that ``part`` does not hold."""

    part: Node


Node: TypeAlias = Compare | Exists | Length | All | Either | Not

EVERYTHING: Final = All(())
"""The condition that holds for every record."""


def fields_of(node: Node) -> Iterator[str]:
    """Yield the names of the fields that a condition reads. A name may occur several times."""
    if isinstance(node, All | Either):
        for part in node.parts:
            yield from fields_of(part)
    elif isinstance(node, Not):
        yield from fields_of(node.part)
    else:
        yield node.field


def like_to_regex(pattern: str) -> str:
    """Return a ``$like`` pattern as a regular expression for ``re.fullmatch`` with ``re.DOTALL``.

    The time of a match grows with the length of the text times the length of the pattern: each part
    between two ``%`` is looked for once, from left to right, and never again. Raises
    ``FilterError`` if a backslash is not followed by ``%``, ``_`` or another backslash, or if the
    pattern has more than 4,096 characters.
    """
    if len(pattern) > _LONGEST_PATTERN:
        raise FilterError(
            f"$like: the pattern has {len(pattern)} characters; {_LONGEST_PATTERN} is the limit"
        )
    parts: list[list[str]] = [[]]  # what stands between one % and the next, by character
    characters = iter(pattern)
    for character in characters:
        if character == "\\":
            character = next(characters, "")
            if character not in ("%", "_", "\\"):
                raise FilterError(
                    "$like: a backslash must be followed by '%', '_' or another backslash",
                    hint="write two backslashes to match one backslash",
                )
            parts[-1].append(re.escape(character))
        elif character == "%":
            parts.append([])
        else:
            parts[-1].append("." if character == "_" else re.escape(character))
    first, *middle = map("".join, parts)
    if not middle:
        return first
    # The leftmost match of each part leaves the most text for the others, so no other match has to
    # be tried: the groups are atomic. The last part has a fixed length and ends the text.
    *middle, last = middle
    searches = "".join(f"(?>.*?{part})" for part in middle if part)
    return f"{first}{searches}(?>.{{{len(parts[-1])},}})(?<={last})"


# -- to JSON ---------------------------------------------------------------------------------------


def to_json(node: Node) -> dict[str, Any]:
    """Return a condition as a dict for ``json.dumps``. ``filter_parser.parse`` can read it."""
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
    """Return ``value``, an operand of a condition, as a value for ``json.dumps``."""
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
