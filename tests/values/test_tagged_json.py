"""Tagged JSON: every value survives it, and wrong texts are refused."""

from __future__ import annotations

import datetime as dt
import json
import math
from decimal import Decimal
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies

from eventsync.errors import EnvelopeError
from eventsync.records.record_type import same
from eventsync.values.tagged_json import dumps, from_json, loads, loads_each, to_json


def utc(item):
    """The value with every zone replaced by UTC, as it travels."""
    if isinstance(item, dict):
        return {name: utc(part) for name, part in item.items()}
    if isinstance(item, list):
        return [utc(part) for part in item]
    zoned = isinstance(item, dt.datetime) and item.tzinfo is not None
    return item.astimezone(dt.UTC) if zoned else item


@given(strategies.values)
def test_round_trip(item):
    """A value comes back through JSON text as it went, of the same type at every depth."""
    assert same(from_json(loads(dumps(to_json(item)))), utc(item))


@pytest.mark.parametrize(
    ("item", "text"),
    [
        (None, "null"),
        (True, "true"),
        (2**53 - 1, "9007199254740991"),
        (2**53, '{"$int":"9007199254740992"}'),
        (1.5, "1.5"),
        (math.inf, '{"$float":"Infinity"}'),
        (-math.inf, '{"$float":"-Infinity"}'),
        ("é", '"é"'),
        (Decimal("19.90"), '{"$decimal":"19.90"}'),
        (b"ab", '{"$bytes":"YWI="}'),
        (dt.date(2026, 11, 24), '{"$date":"2026-11-24"}'),
        (dt.time(10, 15), '{"$time":"10:15:00"}'),
        (dt.datetime(2026, 11, 24, 10), '{"$datetime":"2026-11-24T10:00:00"}'),
        (UUID(int=1), '{"$uuid":"00000000-0000-0000-0000-000000000001"}'),
        ({"$date": "x"}, '{"$map":{"$date":"x"}}'),
        ({"$date": "x", "a": 1}, '{"$date":"x","a":1}'),
        ({"$map": {}}, '{"$map":{"$map":{}}}'),
    ],
)
def test_the_form_of_each_type(item, text):
    """A type that JSON lacks becomes an object with one tag; a map that looks so is wrapped."""
    assert dumps(to_json(item)) == text
    assert same(from_json(loads(text)), item)


@pytest.mark.parametrize("item", [{1}, (1,), object(), 1j])
def test_types_that_may_not_travel_are_refused(item):
    """There is no JSON form for them."""
    with pytest.raises(TypeError, match="cannot be written as JSON"):
        to_json([item])


@pytest.mark.parametrize(
    "item",
    [
        {"$decimal": "NaN"}, {"$decimal": 1}, {"$decimal": "x"}, {"$int": 1}, {"$int": "1.5"},
        {"$float": "NaN"}, {"$float": 1}, {"$bytes": "?"}, {"$bytes": 1}, {"$date": "x"},
        {"$date": None}, {"$time": "25:00"}, {"$datetime": 5}, {"$uuid": "1"}, {"$uuid": []},
    ],
    ids=str,
)  # fmt: skip
def test_a_wrong_content_is_refused(item):
    """The error names the tag."""
    with pytest.raises(EnvelopeError, match=r"the JSON tag \$") as caught:
        from_json({"a": [item]})
    assert caught.value.reason == "malformed"


def test_unknown_tags_are_plain_json():
    """An object of another producer may have names that start with a dollar sign."""
    for item in ({"$ref": "x"}, {"$map": 1}, {"$date": "x", "$time": "y"}):
        assert from_json(item) == item


def test_hostile_depth_is_refused():
    """A text may nest as deep as it likes; it raises the one error."""
    deep: object = 1
    for _ in range(50):
        deep = [deep]
    with pytest.raises(EnvelopeError, match="nest deeper"):
        from_json(deep)
    with pytest.raises(EnvelopeError):
        loads("[" * 100_000)


@pytest.mark.parametrize("text", ["", "{", '{"a":1,"a":2}', "NaN", "[Infinity]", b"\xff", "1 2"])
def test_a_text_that_is_not_strict_json_is_refused(text):
    """Duplicate keys and NaN are refused, and the text is not shown."""
    with pytest.raises(EnvelopeError, match="not JSON") as caught:
        loads(text)
    assert caught.value.reason == "envelope"


@given(st.text(max_size=40) | st.binary(max_size=40))
def test_any_text(text):
    """Any text is JSON or an ``EnvelopeError``."""
    try:
        found = loads(text)
    except EnvelopeError:
        return
    assert json.loads(text) == found


def test_numbers_keep_their_digits():
    """A number is a float, or a decimal if a float would round it."""
    found = loads("[0.1, 1.10, 1e22, 5e-324, 12345678901234567.12345, 1e400]")
    assert found == [0.1, 1.1, 1e22, 5e-324, Decimal("12345678901234567.12345"), Decimal("1e400")]
    assert [type(number) for number in found] == [float] * 4 + [Decimal] * 2


def test_each_item_of_an_array_is_parsed_alone():
    """An item that is refused is an error in its place."""
    found = loads_each(b' [1, {"a": 1, "a": 2},{"a":[]} , "],[", 1e99999999999999999999 ]')
    assert [item if not isinstance(item, EnvelopeError) else "error" for item in found] == [
        *(1, "error", {"a": []}, "],[", "error"),
    ]
    for text in ("", "{}", "[1", "[1,]", "[1] 2", b"\xff", "[" * 2000):
        with pytest.raises(EnvelopeError):
            loads_each(text)
