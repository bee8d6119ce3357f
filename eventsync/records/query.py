r"""Queries: the filter, the order and the limits by which records of a type are selected.

A query selects records in Python. A store that can select by itself reads the tree of the filter.

A filter is a mapping, for example from JSON. ``{"name": "Ann", "balance": {"$gt": "5"}}`` matches
records for which both conditions hold. Each operand is converted to the type of its field. A
comparison of ``None`` or of an absent field does not hold. A negation holds exactly if its
condition does not, so ``{"born": {"$ne": "2000-01-01"}}`` matches a record without ``born``.

=========== ============= ===================================================================
operator    other names   holds when the field's value
=========== ============= ===================================================================
``$eq``     ``=`` ``==``  equals the operand; with the operand ``None``: is missing. ``{"a": 1}`` is
                          short for ``{"a": {"$eq": 1}}``
``$ne``     ``$neq !=``   does not equal the operand
``$lt``     ``<``         is less; likewise ``$lte <=``, ``$gt >``, ``$gte >=``
``$in``                   is in a list; ``$nin``: is not in a list
``$like``                 matches a pattern as a whole. ``%`` stands for any text, ``_`` for one
                          character, ``\`` before one of these three for that character. Case
                          matters
``$re``                   contains a match of a Python regular expression
``$exists`` ``$ex``       is there and not ``None`` (operand ``true``), or is missing (``false``)
``$mod``    ``%``         leaves a remainder: ``[divisor, remainder]``. The remainder has the sign
                          of the value
``$len``    ``$size``     has this length; the operand is a number, or a comparison: ``{"$gt": 3}``
``$not``    ``!``         does not fulfil a condition
``$and``    ``&&``        fulfils every condition of a list; also for a list of whole filters
``$or``     ``||``        fulfils at least one; ``$nor`` or ``!||``: fulfils none
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
    """A condition on the fields of a record type. Immutable, hence thread-safe.

    ``type``: the record type. ``tree``: the condition as typed nodes, for stores that can select by
    themselves. ``fields``: the names of the fields it reads. ``matches(data)`` returns whether a
    record with these plain values matches; an absent field counts as ``None``.
    """

    __slots__ = ("fields", "matches", "tree", "type")

    def __init__(self, tree: Node, type: RecordType) -> None:
        self.tree: Final = tree
        self.type: Final = type
        self.fields: Final = frozenset(fields_of(tree))
        self.matches: Final[Test] = _compiled(tree, type)

    @classmethod
    def parse(cls, tree: Mapping[str, Any] | None, type: RecordType) -> Filter:
        """Make a filter from a mapping, checked against the fields of ``type``.

        ``None`` and an empty mapping match every record. Raises ``FilterError``.
        """
        return cls(parse(tree, type), type)

    def to_json(self) -> dict[str, Any]:
        """Return the filter as a mapping of JSON's types. ``parse`` makes an equal filter of it."""
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
    """An order of records: a tuple of field names, each with whether it is descending.

    ``None`` and absent values count as less than every other value.
    """

    fields: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str] | str | None, type: RecordType) -> Sort:
        """Make an order from field names. A ``-`` before a name means descending.

        Raises ``FilterError`` for an unknown field, and for one whose values have no order.
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
                    hint=f"its fields are {', '.join(type.fields)}",
                )
            if not field.scalar:
                raise FilterError(f"{type.name}.{name}: there is no order of {field.expected}")
            if name in fields:
                raise FilterError(f"{type.name}.{name} is given twice in the sort order")
            fields[name] = descending
        return cls(tuple(fields.items()))


def sort_records(
    records: Iterable[R], sort: Sort, *, values: Callable[[R], Data] = values_of
) -> list[R]:
    """Return the records in that order. The sort is stable."""
    ordered = list(records)
    for name, descending in reversed(sort.fields):

        def rank(record: R, name: str = name) -> tuple[bool, bool, Any]:
            return _rank(values(record).get(name))

        ordered.sort(key=rank, reverse=descending)
    return ordered


def _rank(value: Any) -> tuple[bool, bool, Any]:
    # Times with a zone cannot be compared with times without, which therefore come first.
    return value is not None, getattr(value, "tzinfo", None) is not None, value


@dataclass(frozen=True, slots=True)
class Query:
    """A selection of records of one type; the argument of ``Accessor.find``.

    ``where``: the filter; without conditions it matches every record. ``sort``: the order.
    ``skip``: the number of records to leave out at the start. ``limit``: the most records to
    return. ``unreadable``: called with the error of each record whose values do not fit its fields,
    which is then left out; without it the error is raised.
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
        """Make a query from a filter and an order in their written form. Raises ``FilterError``."""
        for what, number in (("limit", limit), ("skip", skip)):
            if number is not None and number < 0:
                raise FilterError(f"{type.name}: {what} is {number!r}; it must not be negative")
        filter = where if isinstance(where, Filter) else Filter.parse(where, type)
        return cls(type, filter, Sort.parse(sort, type), limit, skip, unreadable)

    def select(self, records: Iterable[R]) -> Iterator[R]:
        """Yield the records that the query selects, in its order.

        Without a sort order it takes records one by one, and none beyond the limit.
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
    # A value of a field of any type may have no length.
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
        except TypeError:  # one has a zone and the other has not: neither is less
            return False

    return compare_times


def _remainder(value: int, divisor: int) -> int:
    """Return the remainder with the sign of the value, as in SQL."""
    # Python's own operator gives it the sign of the divisor.
    remainder = abs(value) % abs(divisor)
    return -remainder if value < 0 else remainder
