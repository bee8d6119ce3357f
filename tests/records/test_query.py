"""Tests of filters, orders and queries."""

from __future__ import annotations

import datetime as dt
import json
import math
import re
from collections.abc import Iterator
from decimal import Decimal
from enum import Enum
from typing import Any
from uuid import UUID

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from eventsync.errors import FilterError
from eventsync.records.query import (
    All,
    Compare,
    Either,
    Exists,
    Filter,
    Length,
    Not,
    Query,
    Sort,
    like_to_regex,
    sort_records,
)
from eventsync.records.record import Field, Record

UTC = dt.UTC


class Colour(Enum):
    """An enumeration to filter by."""

    RED = "red"
    BLUE = "blue"


class Thing(Record):
    """A record with a field of most kinds."""

    id: int = Field(key=True)
    name: str | None = Field(default=None, length=9)
    number: int | None = None
    price: Decimal | None = None
    size: float | None = None
    made: dt.date | None = None
    seen: dt.datetime | None = None
    flag: bool | None = None
    data: bytes | None = None
    uuid: UUID | None = None
    colour: Colour | None = None
    tags: list[str] | None = None
    extra: dict[str, Any] | None = None
    free: Any = None
    pin: str | None = Field(default=None, secret=True)


TYPE = Thing.__record__


def matches(tree: Any, **values: Any) -> bool:
    """Return whether a thing with these values matches."""
    return Filter.parse(tree, TYPE).matches(TYPE.load({"id": 1, **values}))


# The filter, values that match, values that do not.
CASES: list[tuple[Any, dict[str, Any], dict[str, Any]]] = [
    ({"name": "Ann"}, {"name": "Ann"}, {"name": "ann"}),
    ({"name": {"=": "Ann"}}, {"name": "Ann"}, {}),
    ({"name": {"$ne": "Ann"}}, {"name": None}, {"name": "Ann"}),
    ({"name": {"!=": "Ann"}}, {"name": "Bob"}, {"name": "Ann"}),
    ({"name": {"$neq": "Ann"}}, {"name": "Bob"}, {"name": "Ann"}),
    ({"name": None}, {"name": None}, {"name": ""}),
    ({"name": {"$ne": None}}, {"name": ""}, {"name": None}),
    ({"number": {"$lt": "5"}}, {"number": 4}, {"number": 5}),
    ({"number": {"<": 5}}, {"number": -9}, {"number": None}),
    ({"number": {"<=": 5}}, {"number": 5}, {"number": 6}),
    ({"number": {"$gt": 5, "$lt": 8}}, {"number": 6}, {"number": 8}),
    ({"number": {">=": 5}}, {"number": 5}, {}),
    ({"price": {">": "5"}}, {"price": "5.01"}, {"price": "5.00"}),
    ({"price": "1.1"}, {"price": "1.10"}, {"price": "1.11"}),
    ({"size": {"$gte": 1}}, {"size": 1.0}, {"size": 0.9}),
    ({"made": {"$gte": "2020-01-01"}}, {"made": "2020-01-01"}, {"made": "2019-12-31"}),
    ({"seen": "2020-01-01T00:00Z"}, {"seen": "2020-01-01T01:00+01:00"}, {"seen": "2020-01-01"}),
    ({"seen": {"$gt": "2020-01-01T00:00Z"}}, {"seen": "2021-01-01T00:00Z"}, {"seen": "2021-01-01"}),
    ({"flag": True}, {"flag": 1}, {"flag": False}),
    ({"data": "ff00"}, {"data": b"\xff\x00"}, {"data": b"\xff"}),
    ({"uuid": str(UUID(int=1))}, {"uuid": UUID(int=1)}, {"uuid": UUID(int=2)}),
    ({"colour": "red"}, {"colour": Colour.RED}, {"colour": "blue"}),
    ({"tags": ["a", "b"]}, {"tags": ["a", "b"]}, {"tags": ["b", "a"]}),
    ({"tags": {"$in": [["a"], []]}}, {"tags": []}, {"tags": ["b"]}),
    ({"extra": {"a": 1}}, {"extra": {"a": 1}}, {"extra": {"a": True}}),
    ({"extra": {}}, {"extra": {}}, {"extra": {"a": 1}}),
    ({"extra": {"$eq": {"$x": 1}}}, {"extra": {"$x": 1}}, {"extra": {}}),
    ({"free": 1}, {"free": 1}, {"free": True}),
    ({"free": {"$len": 1}}, {"free": [1]}, {"free": 1}),
    ({"free": {"$like": "a%"}}, {"free": "ab"}, {"free": ["ab"]}),
    ({"number": {"$in": [1, "2"]}}, {"number": 2}, {"number": 3}),
    ({"number": {"$in": []}}, {}, {"number": 3}),
    ({"number": {"$in": [None, 1]}}, {"number": None}, {"number": 3}),
    ({"number": {"$nin": [1]}}, {"number": None}, {"number": 1}),
    ({"number": {"$nin": [None, 1]}}, {"number": 2}, {"number": None}),
    ({"name": {"$like": "A%"}}, {"name": "A\nb"}, {"name": "ab"}),
    ({"name": {"$like": "_b"}}, {"name": "ab"}, {"name": "aab"}),
    ({"name": {"$like": "100\\%"}}, {"name": "100%"}, {"name": "1000"}),
    ({"name": {"$like": "a.c"}}, {"name": "a.c"}, {"name": "abc"}),
    ({"name": {"$re": "^a+$"}}, {"name": "aa"}, {"name": "ab"}),
    ({"name": {"$re": "b"}}, {"name": "abc"}, {}),
    ({"name": {"$exists": True}}, {"name": ""}, {"name": None}),
    ({"name": {"$ex": False}}, {"name": None}, {"name": ""}),
    ({"number": {"$mod": [3, 1]}}, {"number": 7}, {"number": 8}),
    ({"number": {"%": [3, -1]}}, {"number": -7}, {"number": 7}),
    ({"number": {"$mod": [-3, 1]}}, {"number": 7}, {"number": None}),
    ({"name": {"$len": 2}}, {"name": "éé"}, {"name": "é"}),
    ({"data": {"$size": {"$gt": 1}}}, {"data": b"ab"}, {"data": b"a"}),
    ({"tags": {"$len": {"$gte": 1, "$lt": 3}}}, {"tags": ["a"]}, {"tags": []}),
    ({"tags": {"$len": {"$ne": 1}}}, {"tags": None}, {"tags": ["a"]}),
    ({"tags": {"$len": {"$in": [1, 2]}}}, {"tags": ["a"]}, {"tags": None}),
    ({"tags": {"$len": {"$nin": [1, 2]}}}, {"tags": None}, {"tags": ["a"]}),
    ({"number": {"$not": {"$gt": 5}}}, {"number": None}, {"number": 6}),
    ({"number": {"$not": 5}}, {"number": None}, {"number": 5}),
    ({"number": {"!": {"!": 5}}}, {"number": 5}, {"number": None}),
    ({"number": {"$or": [1, {"$gt": 5}]}}, {"number": 1}, {"number": 5}),
    ({"number": {"&&": [{"$gt": 1}, {"$lt": 3}]}}, {"number": 2}, {"number": 3}),
    ({"number": {"!||": [1, 2]}}, {"number": 3}, {"number": 2}),
    ({"$and": [{"name": "a"}, {"number": 1}]}, {"name": "a", "number": 1}, {"name": "a"}),
    ({"||": [{"name": "a"}, {"number": 1}]}, {"number": 1}, {"number": 2}),
    ({"$nor": [{"name": "a"}, {"number": 1}]}, {}, {"number": 1}),
    ({"$not": {"name": "a"}}, {}, {"name": "a"}),
    ({"name": "a", "number": 1}, {"name": "a", "number": 1}, {"number": 1}),
    ({"name": {"$gt": "far longer than the field"}}, {"name": "g"}, {"name": "a"}),
]


class TestFilter:
    """Filters."""

    @pytest.mark.parametrize(("tree", "yes", "no"), CASES)
    def test_each_operator_tells_records_apart(
        self, tree: Any, yes: dict[str, Any], no: dict[str, Any]
    ) -> None:
        """One record matches and the other does not; the negation is the opposite."""
        if tree != {"number": {"$in": []}}:
            assert matches(tree, **yes)
        assert not matches(tree, **no)
        assert matches({"$not": tree}, **no)

    @pytest.mark.parametrize("tree", [case[0] for case in CASES])
    def test_the_json_form_makes_an_equal_filter(self, tree: Any) -> None:
        """``parse`` makes an equal filter of ``to_json``, which has JSON's types only."""
        parsed = Filter.parse(tree, TYPE)
        again = Filter.parse(json.loads(json.dumps(parsed.to_json())), TYPE)
        assert again == parsed
        assert again.tree == parsed.tree
        assert hash(again) == hash(parsed)

    @pytest.mark.parametrize("tree", [None, {}, {"$and": [{}]}])
    def test_an_empty_filter_matches_all(self, tree: Any) -> None:
        """An empty filter matches every record and reads no field."""
        parsed = Filter.parse(tree, TYPE)
        assert parsed.matches({})
        assert parsed.fields == frozenset()
        assert parsed.tree == All(())
        assert parsed.to_json() == {}

    def test_an_absent_field_counts_as_none(self) -> None:
        """An absent field counts as ``None``."""
        assert Filter.parse({"name": None}, TYPE).matches({"id": 1})
        assert not Filter.parse({"name": {"$like": "%"}}, TYPE).matches({"id": 1})

    def test_the_tree_is_typed_and_simple(self) -> None:
        """Aliases, nesting, double negation and ``None`` are resolved, operands coerced."""
        tree = {
            "$and": [{"made": {">=": "2020-01-01"}}, {"$and": [{"name": {"!": {"!": "a"}}}]}],
            "number": {"$in": [None, "1"]},
            "tags": {"$size": {"<": 3}},
            "flag": {"!=": 1},
        }
        assert Filter.parse(tree, TYPE).tree == All(
            (
                Compare("made", "$gte", dt.date(2020, 1, 1)),
                Compare("name", "$eq", "a"),
                Either((Not(Exists("number")), Compare("number", "$in", (1,)))),
                Length("tags", "$lt", 3),
                Not(Compare("flag", "$eq", True)),
            )
        )

    def test_the_fields_are_those_it_reads(self) -> None:
        """``fields`` names every field in the tree."""
        tree = {
            "name": "a",
            "$or": [{"$not": {"number": 1}}, {"tags": {"$len": 1}}, {"flag": None}],
        }
        assert Filter.parse(tree, TYPE).fields == {"name", "number", "tags", "flag"}

    @pytest.mark.parametrize(
        ("tree", "said"),
        [
            ({"nmae": 1}, r"no field 'nmae' \(the fields are id, name"),
            ({"$nand": []}, "no field '\\$nand'.*filters are combined with"),
            ({3: 1}, "no field 3"),
            ([], "not a mapping"),
            ({"$and": [5]}, "not a mapping"),
            ({"$and": {}}, "at least one"),
            ({"$or": []}, "at least one"),
            ({"number": {"$or": []}}, "at least one"),
            ({"number": {"$foo": 1}}, r"'\$foo' is not an operator \(use \$eq"),
            ({"number": {"a": 1}}, "'a' is not an operator"),
            ({"number": {}}, "empty"),
            ({"number": {"$like": "a"}}, "does not apply"),
            ({"number": {"$len": 1}}, "does not apply"),
            ({"name": {"$mod": [1, 2]}}, "does not apply"),
            ({"tags": {"$gt": ["a"]}}, "does not apply"),
            ({"free": {"$gt": 1}}, "does not apply"),
            ({"number": "x"}, "'x' .*is not an integer"),
            ({"number": {"$in": [1, "x"]}}, "'x'"),
            ({"number": {"$in": 5}}, "a list"),
            ({"number": {"$in": "12"}}, "a list"),
            ({"number": {"$gt": None}}, "an integer"),
            ({"made": "yesterday"}, "a date"),
            ({"colour": "green"}, "one of 'red', 'blue'"),
            ({"tags": "a"}, "a list"),
            ({"data": "xyz"}, "hexadecimal"),
            ({"name": {"$like": 5}}, "a string"),
            ({"name": {"$like": "a\\"}}, "backslash"),
            ({"name": {"$like": "a\\b"}}, "backslash"),
            ({"name": {"$re": "("}}, "not a valid regular expression"),
            ({"name": {"$re": None}}, "a string"),
            ({"name": {"$exists": 1}}, "true or false"),
            ({"number": {"$mod": [0, 1]}}, "divisor"),
            ({"number": {"$mod": [1]}}, "divisor"),
            ({"number": {"$mod": [True, 1]}}, "divisor"),
            ({"name": {"$len": "1"}}, "an integer"),
            ({"name": {"$len": {}}}, "a comparison"),
            ({"name": {"$len": {"$like": 1}}}, "cannot be used inside"),
            ({"name": {"$len": {"$in": 1}}}, "a list of numbers"),
            ({"free": dt.date(2020, 1, 1)}, "JSON"),
            ({"extra": {"a": Decimal(1)}}, "JSON"),
        ],
    )
    def test_a_wrong_filter_is_refused(self, tree: Any, said: str) -> None:
        """The error names what is wrong and what is allowed."""
        with pytest.raises(FilterError, match=said):
            Filter.parse(tree, TYPE)

    @pytest.mark.parametrize(
        "tree",
        [{"pin": 12345}, {"pin": {"$re": "12345("}}, {"pin": {"$in": "12345"}}],
    )
    def test_a_secret_operand_is_in_no_error(self, tree: Any) -> None:
        """No error and no ``repr`` shows an operand of a secret field."""
        with pytest.raises(FilterError) as caught:
            Filter.parse(tree, TYPE)
        assert "12345" not in str(caught.value)
        assert "12345" not in repr(Filter.parse({"pin": "12345"}, TYPE))

    def test_a_filter_that_nests_too_deeply_is_refused(self) -> None:
        """A filter that nests too deep is refused before it exhausts the stack."""
        tree: Any = {"name": "a"}
        field: Any = "a"
        for _ in range(10_000):
            tree, field = {"$not": tree}, {"$not": field}
        for deep in (tree, {"name": field}):
            with pytest.raises(FilterError, match="deeper"):
                Filter.parse(deep, TYPE)


NAMES = st.text("aAb%_\\.\né", max_size=3)
NUMBERS = st.integers(-4, 4)
PRICES = st.decimals(-2, 2, places=1)
DATES = st.dates(dt.date(2020, 1, 1), dt.date(2020, 1, 4))
TAGS = st.lists(st.sampled_from("ab"), max_size=2)
VALUES = {"name": NAMES, "number": NUMBERS, "price": PRICES, "made": DATES, "tags": TAGS}
RECORDS = st.fixed_dictionaries(
    {"id": NUMBERS},
    optional={name: st.none() | values for name, values in VALUES.items()},
)


@st.composite
def conditions(draw: st.DrawFn, name: str) -> Any:
    """A condition on one field."""
    values = VALUES[name]
    operators = ["$eq", "$ne", "$in", "$nin", "$exists", "bare", "$not", "$or", "$and", "$nor"]
    if name != "tags":
        operators += ["$lt", "$lte", "$gt", "$gte"]
    if name == "name":
        operators += ["$like", "$re"]
    if name in ("name", "tags"):
        operators += ["$len"]
    if name == "number":
        operators += ["$mod"]
    operator = draw(st.sampled_from(operators))
    if operator == "bare":
        return draw(st.none() | values)
    if operator in ("$eq", "$ne"):
        return {operator: draw(st.none() | values)}
    if operator in ("$in", "$nin"):
        return {operator: draw(st.lists(st.none() | values, max_size=3))}
    if operator == "$exists":
        return {operator: draw(st.booleans())}
    if operator == "$not":
        return {operator: draw(conditions(name))}
    if operator in ("$or", "$and", "$nor"):
        return {operator: draw(st.lists(conditions(name), min_size=1, max_size=2))}
    if operator == "$like":
        pattern = draw(st.lists(st.sampled_from(["a", "A", "%", "_", "\\%", "\\\\", ".", "\n"])))
        return {operator: "".join(pattern)}
    if operator == "$re":
        return {operator: draw(st.sampled_from(["a", "^a", "[aA]$", ".", "b|é"]))}
    if operator == "$len":
        number = st.integers(0, 3)
        nested = st.fixed_dictionaries({}, optional={"$lt": number, "$ne": number, "$gte": number})
        return {operator: draw(number | nested.filter(bool))}
    if operator == "$mod":
        return {operator: [draw(st.sampled_from([-3, 2, 3])), draw(st.integers(-2, 2))]}
    return {operator: draw(values)}


@st.composite
def trees(draw: st.DrawFn, depth: int = 2) -> dict[str, Any]:
    """A filter."""
    tree = {}
    for name in draw(st.lists(st.sampled_from(sorted(VALUES)), max_size=2, unique=True)):
        tree[name] = draw(conditions(name))
    if depth:
        operator = draw(st.sampled_from(["", "$and", "$or", "$nor", "$not"]))
        inner = trees(depth - 1)
        if operator == "$not":
            tree[operator] = draw(inner)
        elif operator:
            tree[operator] = draw(st.lists(inner, min_size=1, max_size=2))
    return tree


def wanted(tree: dict[str, Any], record: dict[str, Any]) -> bool:
    """Evaluate a filter directly on its mapping, as simply as possible."""
    for name, condition in tree.items():
        if name == "$and":
            holds = all(wanted(part, record) for part in condition)
        elif name == "$or":
            holds = any(wanted(part, record) for part in condition)
        elif name == "$nor":
            holds = not any(wanted(part, record) for part in condition)
        elif name == "$not":
            holds = not wanted(condition, record)
        else:
            holds = wanted_of(condition, record.get(name))
        if not holds:
            return False
    return True


def wanted_of(condition: Any, value: Any) -> bool:
    """Evaluate a condition on one field's value."""
    if not isinstance(condition, dict):
        condition = {"$eq": condition}
    return all(wanted_by(operator, operand, value) for operator, operand in condition.items())


def wanted_by(operator: str, operand: Any, value: Any) -> bool:
    """Evaluate one operator."""
    match operator:
        case "$eq":
            return bool(value == operand)
        case "$ne":
            return bool(value != operand)
        case "$in":
            return value in operand
        case "$nin":
            return value not in operand
        case "$exists":
            return (value is not None) == operand
        case "$not":
            return not wanted_of(operand, value)
        case "$and":
            return all(wanted_of(part, value) for part in operand)
        case "$or":
            return any(wanted_of(part, value) for part in operand)
        case "$nor":
            return not any(wanted_of(part, value) for part in operand)
        case "$len":
            return wanted_of(operand, None if value is None else len(value))
    if value is None:
        return False
    match operator:
        case "$lt":
            return bool(value < operand)
        case "$lte":
            return bool(value <= operand)
        case "$gt":
            return bool(value > operand)
        case "$gte":
            return bool(value >= operand)
        case "$re":
            return re.search(operand, value) is not None
        case "$mod":
            return math.fmod(value, operand[0]) == operand[1]
        case "$like":
            return like(list(like_symbols(operand)), value)
    raise AssertionError(operator)


def like_symbols(pattern: str) -> Iterator[tuple[bool, str]]:
    """Return the characters of a pattern, each with whether it is a wildcard."""
    escaped = False
    for character in pattern:
        if not escaped and character == "\\":
            escaped = True
            continue
        yield not escaped and character in "%_", character
        escaped = False


def like(symbols: list[tuple[bool, str]], text: str) -> bool:
    """Return whether the pattern matches the whole text."""
    if not symbols:
        return not text
    (wild, character), rest = symbols[0], symbols[1:]
    if wild and character == "%":
        return any(like(rest, text[start:]) for start in range(len(text) + 1))
    return bool(text) and (wild or text[0] == character) and like(rest, text[1:])


class TestAgainstAnOracle:
    """The compiled filter, compared with a direct evaluation of its mapping."""

    @given(trees(), RECORDS)
    def test_a_filter_means_what_it_says(self, tree: Any, record: dict[str, Any]) -> None:
        """Both evaluations agree for every filter and record."""
        assert Filter.parse(tree, TYPE).matches(record) == wanted(tree, record)

    @given(trees(), RECORDS)
    def test_a_negation_is_the_exact_opposite(self, tree: Any, record: dict[str, Any]) -> None:
        """A negation is the exact opposite, and De Morgan's laws hold."""
        positive = Filter.parse(tree, TYPE).matches(record)
        assert Filter.parse({"$not": tree}, TYPE).matches(record) is not positive
        assert Filter.parse({"$nor": [tree]}, TYPE).matches(record) is not positive
        double = Filter.parse({"$not": {"$not": tree}}, TYPE)
        assert double == Filter.parse(tree, TYPE)

    @given(st.sampled_from(sorted(VALUES)), st.data(), RECORDS)
    def test_ne_and_nin_are_exact_negations(
        self, name: str, data: st.DataObject, record: dict[str, Any]
    ) -> None:
        """A double negation is the condition itself."""
        operand = data.draw(st.none() | VALUES[name])
        for positive, negative, given_operand in (
            ("$eq", "$ne", operand),
            ("$in", "$nin", [operand, data.draw(VALUES[name])]),
        ):
            yes = Filter.parse({name: {positive: given_operand}}, TYPE).matches(record)
            no = Filter.parse({name: {negative: given_operand}}, TYPE).matches(record)
            assert yes is not no

    @given(trees())
    def test_the_json_form_is_faithful(self, tree: Any) -> None:
        """A filter sent as JSON is the same filter."""
        parsed = Filter.parse(tree, TYPE)
        again = Filter.parse(json.loads(json.dumps(parsed.to_json())), TYPE)
        assert again.tree == parsed.tree

    @given(st.text("a%_\\.", max_size=6), st.text("a%_\\.b", max_size=6))
    def test_like_is_translated_exactly(self, pattern: str, text: str) -> None:
        """``$like`` agrees with a matcher that uses no regular expressions."""
        try:
            regex = like_to_regex(pattern)
        except FilterError:
            assume(False)
        found = re.compile(regex, re.DOTALL).fullmatch(text) is not None
        assert found == like(list(like_symbols(pattern)), text)


class TestSort:
    """Orders of records."""

    def test_names_are_checked(self) -> None:
        """A minus before a name means descending, and one name needs no list."""
        assert Sort.parse(["name", "-price"], TYPE).fields == (("name", False), ("price", True))
        assert Sort.parse("-name", TYPE) == Sort((("name", True),))
        assert Sort.parse(None, TYPE).fields == ()

    @pytest.mark.parametrize(
        ("names", "said"),
        [
            (["nmae"], "no field 'nmae' to sort by.*id, name"),
            (["-nmae"], "no field 'nmae'"),
            (["tags"], "a list and have no order"),
            (["free"], "no order"),
            (["name", "-name"], "twice"),
        ],
    )
    def test_a_wrong_order_is_refused(self, names: list[str], said: str) -> None:
        """The error names the field."""
        with pytest.raises(FilterError, match=said):
            Sort.parse(names, TYPE)

    def test_none_is_less_than_every_value(self) -> None:
        """``None`` and absent values come first, or last in a descending order."""
        records = [
            Thing(id=1, number=2),
            Thing(id=2, number=None),
            Thing(id=3, number=-1),
            Thing.load({"id": 4}, partial=True),
        ]

        def ids(*names: str) -> list[int]:
            return [record.id for record in sort_records(records, Sort.parse(names, TYPE))]

        assert ids("number") == [2, 4, 3, 1]
        assert ids("-number") == [1, 3, 2, 4]
        assert ids("number", "-id") == [4, 2, 3, 1]

    def test_times_with_and_without_a_zone_can_be_sorted(self) -> None:
        """Times without a zone come before those with one."""
        seen = ["2020-01-01T00:00Z", "2021-01-01", None, "2019-01-01T00:00Z", "2020-01-01"]
        records = [Thing.load({"id": n, "seen": moment}) for n, moment in enumerate(seen)]
        ordered = sort_records(records, Sort.parse("seen", TYPE))
        assert [record.id for record in ordered] == [2, 4, 1, 3, 0]

    @given(st.lists(st.tuples(st.none() | NUMBERS, st.none() | NAMES), max_size=8))
    def test_an_order_of_two_fields_is_that_of_pairs(self, rows: list[tuple[Any, Any]]) -> None:
        """The second field orders equal values of the first; the sort is stable."""
        records = [Thing(id=n, number=a, name=b) for n, (a, b) in enumerate(rows)]

        def less(value: Any) -> tuple[Any, ...]:
            return () if value is None else (value,)

        ordered = sort_records(records, Sort.parse(["number", "name"], TYPE))
        expected = sorted(range(len(rows)), key=lambda n: (less(rows[n][0]), less(rows[n][1])))
        assert [record.id for record in ordered] == expected


class TestQuery:
    """Queries."""

    RECORDS = tuple(Thing(id=n, number=n % 3) for n in range(10))

    def ids(self, *args: Any, **options: Any) -> list[int]:
        """Return the numbers of the records that the query selects."""
        return [record.id for record in Query.parse(TYPE, *args, **options).select(self.RECORDS)]

    def test_select_filters_sorts_and_slices(self) -> None:
        """A query filters, sorts, skips and limits, in this order."""
        assert self.ids() == list(range(10))
        assert self.ids({"number": 1}) == [1, 4, 7]
        assert self.ids({"number": 1}, skip=1, limit=1) == [4]
        assert self.ids({"number": {"$gt": 0}}, sort=["-number", "id"], limit=4) == [2, 5, 8, 1]
        assert self.ids(limit=0) == []
        assert self.ids(skip=8) == [8, 9]
        assert self.ids(Filter.parse({"id": 3}, TYPE)) == [3]

    def test_select_takes_no_more_than_it_needs(self) -> None:
        """Records beyond the limit are not read."""
        taken = []

        def source() -> Iterator[Record]:
            for record in self.RECORDS:
                taken.append(record["id"])
                yield record

        assert len(list(Query.parse(TYPE, {"number": 0}, limit=2).select(source()))) == 2
        assert taken == [0, 1, 2, 3]

    @pytest.mark.parametrize("options", [{"limit": -1}, {"skip": -1}, {"sort": ["x"]}])
    def test_a_wrong_query_is_refused(self, options: dict[str, Any]) -> None:
        """A negative limit or skip is refused when the query is made."""
        with pytest.raises(FilterError):
            Query.parse(TYPE, **options)
