"""Objects of a service that cannot be read: each is the failure of one record, not of its list."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from itertools import islice, pairwise
from typing import Any, Final

from eventsync.engine.isolation import concerns_all, item_error, record_error
from eventsync.errors import RecordError, shown
from eventsync.values.packing import MAX_DECIMAL

__all__ = ["DECODER", "OddNumber", "Unreadable", "reading", "refuse_many"]

_MAX_VALUES: Final = 1_000_000
_SEPARATORS: Final = ("[", "{", ",", ":")
_TOKEN: Final = re.compile(r'"(?:[^"\\]|\\.)*+"?|[\[{,:]', re.DOTALL)


class Unreadable(dict[str, Any]):
    """Stands in a list of objects for one that cannot be read. Its members are unknown.

    ``error``: the reason. It is raised where the object would be read. The object must not be left
    out of the list, because a missing object counts as deleted.
    """

    def __init__(self, error: RecordError) -> None:
        super().__init__()
        self.error = error

    @classmethod
    def because(cls, error: Exception, what: str) -> Unreadable:
        """Return the stand-in for an object, or raise an error that concerns the whole store."""
        if concerns_all(error):
            raise error
        return cls(_record_error(error, what))


@dataclass(frozen=True, slots=True)
class OddNumber:
    """Stands for a JSON number that no number type can hold, such as ``1e9999999999999999999``.

    No field accepts it, so only the record that has it is unreadable.
    """

    text: str


def refuse_many(text: str) -> None:
    """Raise ``RecordError`` for a JSON text of so many values that they need too much memory.

    One byte of JSON may become 35 bytes of objects: 16 MiB took 535 MB.
    """
    if sum(map(text.count, _SEPARATORS)) <= _MAX_VALUES:
        return
    # Texts may contain separators too.
    outside = (match for match in _TOKEN.finditer(text) if match[0] in _SEPARATORS)
    if next(islice(outside, _MAX_VALUES, None), None) is not None:
        raise RecordError(
            f"the answer has more than {_MAX_VALUES:,} values", hint="request smaller pages"
        )


def _number(text: str) -> Any:
    if len(text) > MAX_DECIMAL:
        return OddNumber(f"{text[:40]}...")
    try:
        number = Decimal(text)
    except InvalidOperation:
        return OddNumber(text)
    return number if abs(number.adjusted()) <= MAX_DECIMAL else OddNumber(text)


def _integer(text: str) -> Any:
    return int(text) if len(text) <= MAX_DECIMAL else OddNumber(f"{text[:40]}...")


def _members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) == len(pairs):
        return members
    names = sorted(name for name, _ in pairs)
    twice = next(name for name, following in pairwise(names) if name == following)
    return Unreadable(RecordError(f"a JSON object has the member {shown(twice)} twice"))


DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_members, parse_float=_number, parse_int=_integer, parse_constant=OddNumber
)
"""Reads answers. What is odd in one object of a list leaves the other objects readable."""


@contextmanager
def reading(what: str, *, key: str | None = None) -> Iterator[None]:
    """Turn whatever is raised while one object is read into a ``RecordError`` that names it.

    ``key``: the key of its record, if it is known.

    Errors that concern the whole store are raised as they are.
    """
    try:
        yield
    except RecordError as error:
        raise record_error(error, what, key=key) from error.__cause__
    except Exception as error:
        if concerns_all(error):
            raise
        unreadable = _record_error(error, what)
        unreadable.key = key
        raise unreadable from error


def _record_error(error: Exception, what: str) -> RecordError:
    if isinstance(error, RecordError):
        return error
    known = item_error(error)
    made = RecordError(f"{what}: {known.message}", hint=known.hint)
    made.__cause__ = error
    return made
