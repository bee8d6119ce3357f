"""Queries: which records of a type, in which order; filters, checked against the type's fields.

It knows nothing of stores: it selects records in Python, and gives a typed tree to stores that
select by themselves.

A filter is a mapping, as it comes from JSON. ``{"name": "Ann", "balance": {"$gt": "5"}}`` matches
records for which both conditions hold. Operands are coerced by their field. Logic is two-valued: a
comparison with ``None`` or an absent field does not hold, and a negation is the exact opposite of
what it negates, so ``{"born": {"$ne": "2000-01-01"}}`` matches a record without ``born``.

=========== ============= ===================================================================
operator    other names   holds when the field's value
=========== ============= ===================================================================
``$eq``     ``=`` ``==``  equals the operand (``None``: when there is none); also a bare value
``$ne``     ``$neq !=``   does not
``$lt``     ``<``         is less; so ``$lte <=``, ``$gt >``, ``$gte >=``
``$in``                   is one of a list; ``$nin``: is none of them
``$like``                 is matched whole by a pattern: ``%`` any text, ``_`` one character, ``\\``
                          before one of these three means itself; case matters
``$re``                   holds a match of a Python regular expression
``$exists`` ``$ex``       is there and not ``None`` (operand ``true``), or is not (``false``)
``$mod``    ``%``         leaves a remainder: ``[divisor, remainder]``; it has the sign of the value
``$len``    ``$size``     has that length; the operand is a number or a comparison of numbers
``$not``    ``!``         does not fulfil the condition within
``$and``    ``&&``        fulfils all of a list of conditions; also around whole filters
``$or``     ``||``        fulfils any of them; ``$nor``, ``!||``: none of them
=========== ============= ===================================================================
"""

from __future__ import annotations

import datetime as dt
import operator
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import dataclass
from itertools import islice
from typing import Any, Final, TypeAlias, TypeVar

from eventsync.errors import FilterError, RecordError
from eventsync.records.filter_parser import parse
from eventsync.records.filter_tree import (
    All,
    Compare,
    Either,
    Exists,
    Length,
    Node,
    Not,
    Op,
    fields_of,
    like_to_regex,
    to_json,
)
from eventsync.records.record import Record, RecordType, values_of
from eventsync.records.record_type import same

__all__ = [
    "All",
    "Compare",
    "Either",
    "Exists",
    "Filter",
    "Length",
    "Node",
    "Not",
    "Op",
    "Query",
    "Sort",
    "like_to_regex",
    "sort_records",
]

R = TypeVar("R", bound=Record)
Data: TypeAlias = Mapping[str, Any]
Test: TypeAlias = Callable[[Data], bool]


class Filter:
    """Which records match: a condition on their fields. Immutable, hence thread-safe.

    ``type``: of which records. ``tree``: the condition as typed nodes, for stores that select by
    themselves. ``fields``: the names of the fields it reads. ``matches(data)``: whether a record of
    these plain values matches; an absent field counts as ``None``.
    """

    __slots__ = ("fields", "matches", "tree", "type")

    def __init__(self, tree: Node, type: RecordType) -> None:
        self.tree: Final = tree
        self.type: Final = type
        self.fields: Final = frozenset(fields_of(tree))
        self.matches: Final[Test] = _compiled(tree, type)

    @classmethod
    def parse(cls, tree: Mapping[str, Any] | None, type: RecordType) -> Filter:
        """The filter that ``tree`` says, checked against the fields of ``type``.

        ``None`` and an empty mapping match every record. Raises ``FilterError``, which names what
        is wrong and what would be right.
        """
        return cls(parse(tree, type), type)

    def to_json(self) -> dict[str, Any]:
        """The filter as a mapping of JSON's types, from which ``parse`` makes an equal one."""
        return to_json(self.tree)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Filter):
            return NotImplemented
        return self.type is other.type and self.tree == other.tree

    def __hash__(self) -> int:
        return hash((self.type.name, self.fields))

    def __repr__(self) -> str:
        if any(self.type.fields[name].secret for name in self.fields):
            return f"Filter({self.type.name}, on {', '.join(sorted(self.fields))})"
        return f"Filter({self.type.name}, {self.to_json()})"


@dataclass(frozen=True, slots=True)
class Sort:
    """An order of records: by these fields, each with whether it descends.

    ``None`` and absent count as less than every value: first, or last where the order descends.
    """

    fields: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str] | str | None, type: RecordType) -> Sort:
        """The order that ``names`` say: field names, ``-`` before one for descending.

        Raises ``FilterError`` for an unknown field or one whose values have no order.
        """
        if isinstance(names, str):
            names = [names]
        fields: dict[str, bool] = {}
        for name in names or ():
            descending = name not in type.fields and name.startswith("-")
            name = name[1:] if descending else name
            field = type.fields.get(name)
            if field is None:
                raise FilterError(
                    f"{type.name} has no field {name!r} to sort by",
                    hint=f"it has {', '.join(type.fields)}",
                )
            if not field.scalar:
                raise FilterError(f"{type.name}.{name}: there is no order of {field.expected}")
            if name in fields:
                raise FilterError(f"{type.name}.{name} is sorted by twice")
            fields[name] = descending
        return cls(tuple(fields.items()))


def sort_records(
    records: Iterable[R], sort: Sort, *, values: Callable[[R], Data] = values_of
) -> list[R]:
    """The records in that order; those that are equal in it stay as they come."""
    ordered = list(records)
    for name, descending in reversed(sort.fields):

        def rank(record: R, name: str = name) -> tuple[bool, bool, Any]:
            return _rank(values(record).get(name))

        ordered.sort(key=rank, reverse=descending)
    return ordered


def _rank(value: Any) -> tuple[bool, bool, Any]:
    # Times with and without a zone cannot be compared, so those without go first.
    return value is not None, getattr(value, "tzinfo", None) is not None, value


@dataclass(frozen=True, slots=True)
class Query:
    """What ``Accessor.find`` gets: which records, in which order, and which part of them.

    ``where``: the filter, always there. ``limit``: how many at most; ``skip``: how many to pass
    over first. ``unreadable``: is told of each record whose values do not fit its fields, which is
    then passed over; without it the error is raised.
    """

    type: RecordType
    where: Filter
    sort: Sort
    limit: int | None = None
    skip: int = 0
    unreadable: Callable[[RecordError], None] | None = None

    @classmethod
    def parse(
        cls,
        type: RecordType,
        where: Mapping[str, Any] | Filter | None = None,
        *,
        sort: Sequence[str] | str | None = None,
        limit: int | None = None,
        skip: int = 0,
        unreadable: Callable[[RecordError], None] | None = None,
    ) -> Query:
        """The query that these say. Raises ``FilterError``."""
        for what, number in (("limit", limit), ("skip", skip)):
            if number is not None and number < 0:
                raise FilterError(f"{type.name}: {what} is {number!r}, not a number from 0 on")
        filter = where if isinstance(where, Filter) else Filter.parse(where, type)
        return cls(type, filter, Sort.parse(sort, type), limit, skip, unreadable)

    def select(self, records: Iterable[R]) -> Iterator[R]:
        """Those of ``records`` that the query asks for, in its order.

        Lazy unless it sorts: records are taken one by one, and none beyond the limit.
        """
        matches = self.where.matches
        found: Iterable[R] = (record for record in records if matches(values_of(record)))
        if self.sort.fields:
            found = sort_records(found, self.sort)
        end = None if self.limit is None else self.skip + self.limit
        return islice(found, self.skip, end)


# -- evaluation ------------------------------------------------------------------------------------

_ORDERS: Final[Mapping[str, Callable[[Any, Any], bool]]] = {
    "$lt": operator.lt,
    "$lte": operator.le,
    "$gt": operator.gt,
    "$gte": operator.ge,
}


def _compiled(node: Node, type: RecordType) -> Test:
    match node:
        case All(parts):
            return _compiled_all([_compiled(part, type) for part in parts])
        case Either(parts):
            tests = [_compiled(part, type) for part in parts]
            return lambda data: any(test(data) for test in tests)
        case Not(part):
            negated = _compiled(part, type)
            return lambda data: not negated(data)
        case Exists(name):
            return lambda data: data.get(name) is not None
        case Length(name, op, operand):
            return _on(name, _length_test(op, operand))
        case Compare(name, op, operand):
            return _on(name, _value_test(op, operand, type.fields[name].type))


def _compiled_all(tests: list[Test]) -> Test:
    if len(tests) == 1:
        return tests[0]
    if not tests:
        return lambda data: True
    return lambda data: all(test(data) for test in tests)


def _on(name: str, test: Callable[[Any], bool]) -> Test:
    def on_value(data: Data) -> bool:
        value = data.get(name)
        return value is not None and test(value)

    return on_value


def _length_test(op: Op, operand: Any) -> Callable[[Any], bool]:
    compare = _value_test(op, operand, int)
    # Values of an undeclared type may have no length.
    return lambda value: isinstance(value, Sized) and compare(len(value))


def _value_test(op: Op, operand: Any, kind: type[Any]) -> Callable[[Any], bool]:
    if op == "$eq":
        if kind in (list, dict, object):
            return lambda value: same(value, operand)
        return lambda value: bool(value == operand)
    if op == "$in":
        if kind in (list, dict, object):
            return lambda value: any(same(value, item) for item in operand)
        return frozenset(operand).__contains__
    if op == "$like" or op == "$re":
        found = (
            re.compile(like_to_regex(operand), re.DOTALL).fullmatch
            if op == "$like"
            else re.compile(operand).search
        )
        return lambda value: isinstance(value, str) and found(value) is not None
    if op == "$mod":
        divisor, remainder = operand
        return lambda value: _remainder(value, divisor) == remainder
    return _order_test(_ORDERS[op], operand, kind)


def _order_test(
    compare: Callable[[Any, Any], bool], operand: Any, kind: type[Any]
) -> Callable[[Any], bool]:
    if kind not in (dt.datetime, dt.time):
        return lambda value: compare(value, operand)

    def compare_times(value: Any) -> bool:
        try:
            return compare(value, operand)
        except TypeError:  # one with a zone, one without: neither comes first
            return False

    return compare_times


def _remainder(value: int, divisor: int) -> int:
    """The remainder with the sign of the value, as SQL has it; Python's has that of the divisor."""
    remainder = abs(value) % abs(divisor)
    return -remainder if value < 0 else remainder
