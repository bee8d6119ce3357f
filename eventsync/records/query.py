r"""Queries: the filter, the order and the limits that select records of one type.

``Query.select`` selects records in Python. A store that can filter by itself, such as a database,
translates the tree of the filter instead.

A filter is a mapping, for example from JSON. ``{"name": "Ann", "balance": {"$gt": "5"}}`` matches
records for which both conditions hold. Each operand is converted to the type of its field. A
comparison with a field that is ``None`` or absent does not hold. A negation holds if its condition
does not hold, so ``{"born": {"$ne": "2000-01-01"}}`` matches a record without ``born``.

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

    ``type``: the record type. ``tree``: the condition as a tree of typed nodes, for stores that can
    filter by themselves. ``fields``: the names of the fields that the condition reads.
    ``matches(data)`` returns whether a record with the plain values ``data`` matches; an absent
    field counts as ``None``.
    """

    __slots__ = ("fields", "matches", "tree", "type")

    def __init__(self, tree: Node, type: RecordType) -> None:
        self.tree: Final = tree
        self.type: Final = type
        self.fields: Final = frozenset(fields_of(tree))
        self.matches: Final[Test] = _compiled(tree, type)

    @classmethod
    def parse(cls, tree: Mapping[str, Any] | None, type: RecordType) -> Filter:
        """Return the filter that a mapping describes.

        ``None`` and an empty mapping match every record. Raises ``FilterError`` if ``tree`` is not
        a valid filter for the fields of ``type``.
        """
        return cls(parse(tree, type), type)

    def to_json(self) -> dict[str, Any]:
        """Return the filter as a dict for ``json.dumps``. ``parse`` returns an equal filter."""
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
    """The order of records.

    ``fields``: pairs of a field name and whether the order is descending; the first pair is the
    most important. A value that is ``None`` or absent is less than every other value.
    """

    fields: tuple[tuple[str, bool], ...] = ()

    @classmethod
    def parse(cls, names: Sequence[str] | str | None, type: RecordType) -> Sort:
        """Return the order that field names describe. A ``-`` before a name means descending.

        Raises ``FilterError`` if a field is unknown, is named twice, or has values without an
        order, such as lists.
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
                    hint=f"the fields are {', '.join(type.fields)}",
                )
            if not field.scalar:
                raise FilterError(
                    f"records cannot be sorted by {type.name}.{name}, because its values are "
                    f"{field.expected} and have no order"
                )
            if name in fields:
                raise FilterError(
                    f"the sort order contains the field {type.name}.{name} twice",
                    hint="name each field only once",
                )
            fields[name] = descending
        return cls(tuple(fields.items()))


def sort_records(
    records: Iterable[R], sort: Sort, *, values: Callable[[R], Data] = values_of
) -> list[R]:
    """Return a new list of ``records`` in the order ``sort``. The sort is stable.

    ``values``: a function that returns the plain values of a record.
    """
    ordered = list(records)
    for name, descending in reversed(sort.fields):

        def rank(record: R, name: str = name) -> tuple[bool, bool, Any]:
            return _rank(values(record).get(name))

        ordered.sort(key=rank, reverse=descending)
    return ordered


def _rank(value: Any) -> tuple[bool, bool, Any]:
    # Times with a zone cannot be compared with times without a zone, so those without come first.
    return value is not None, getattr(value, "tzinfo", None) is not None, value


@dataclass(frozen=True, slots=True)
class Query:
    """A selection of records of one type; the argument of ``Accessor.find``.

    ``where``: the filter. ``sort``: the order. ``skip``: how many records to leave out at the
    start. ``limit``: how many records to return at most; ``None`` for all. ``unreadable``: called
    with the error of each record that cannot be read, for example because a value does not fit its
    field. Such a record is left out. If ``unreadable`` is ``None``, the error is raised.
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
        """Return a query. ``where`` and ``sort``: as in ``Filter.parse`` and ``Sort.parse``.

        The other arguments are attributes of the query. Raises ``FilterError`` if an argument is
        not valid for the record type.
        """
        for what, number in (("limit", limit), ("skip", skip)):
            if number is not None and number < 0:
                raise FilterError(f"{type.name}: {what} is {number!r}; it must not be negative")
        filter = where if isinstance(where, Filter) else Filter.parse(where, type)
        return cls(type, filter, Sort.parse(sort, type), limit, skip, unreadable)

    def select(self, records: Iterable[R]) -> Iterator[R]:
        """Return an iterator over those of ``records`` that the query selects, in its order.

        Without a sort order, ``records`` is read one by one and only up to the limit.
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
    # The value of a field of type Any may have no length.
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
        except TypeError:  # only one of the two has a zone, so they have no order
            return False

    return compare_times


def _remainder(value: int, divisor: int) -> int:
    """Return the remainder of a division. It has the sign of ``value``, as in SQL."""
    # The remainder of Python's operator % has the sign of the divisor.
    remainder = abs(value) % abs(divisor)
    return -remainder if value < 0 else remainder
