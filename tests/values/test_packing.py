"""Packing and unpacking of values, their limits, and digests."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal
from enum import StrEnum
from uuid import UUID

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies

from eventsync.errors import ValueRefusedError
from eventsync.records.record_type import same
from eventsync.values import packing, unpacking


@given(strategies.values)
def test_round_trip(item):
    """A value comes back as it went, of the same type at every depth."""
    assert same(unpacking.unpack(packing.pack(item)), item)


@given(st.binary(max_size=200))
def test_unpack_raises_its_own_error_only(raw):
    """Any bytes are a value or a ``ValueRefusedError``."""
    try:
        item = unpacking.unpack(raw)
    except ValueRefusedError:
        return
    assert same(unpacking.unpack(packing.pack(item)), item)


@given(strategies.bodies, st.randoms(use_true_random=False))
def test_digest_does_not_see_the_order_of_keys(body, rng):
    """Bodies that differ only in the order of their keys have the same digest."""
    items = list(body.items())
    rng.shuffle(items)
    assert packing.digest(dict(items)) == packing.digest(body)


@given(strategies.bodies, st.randoms(use_true_random=False))
def test_a_body_has_one_form(body, rng):
    """A body has the same bytes in any order of its keys, and again after unpacking."""
    items = list(body.items())
    rng.shuffle(items)
    packed = packing.pack_body(dict(items))
    assert packed == packing.pack_body(body)
    assert packing.pack_body(unpacking.unpack_body(packed)) == packed


class _Name(StrEnum):
    B = "b"


def plainly(item):
    """Encode a body by docs/envelope.md, as simply as possible."""

    def ordered(item):
        if isinstance(item, dict):
            return {name: ordered(item[name]) for name in sorted(item)}
        if isinstance(item, list):
            return [ordered(inner) for inner in item]
        return 0.0 if isinstance(item, float) and item == 0 else item

    def extension(item):
        if isinstance(item, Decimal):
            text = str(item)
            text = f"{item:f}" if "E+" in text or not item else text
            return msgpack.ExtType(1, (text.lstrip("-") if not item else text).encode())
        if isinstance(item, UUID):
            return msgpack.ExtType(6, item.bytes)
        if isinstance(item, int):
            size = next(n for n in range(9, 513) if -(1 << 8 * n - 1) <= item < 1 << 8 * n - 1)
            return msgpack.ExtType(7, item.to_bytes(size, "big", signed=True))
        if isinstance(item, dt.datetime):
            code = 4 if item.tzinfo is None else 5
            item = item if item.tzinfo is None else item.astimezone(dt.UTC)
        else:
            code = 3 if isinstance(item, dt.time) else 2
        return msgpack.ExtType(code, item.isoformat().encode())

    return msgpack.packb(ordered(item), default=extension)


@given(strategies.bodies)
def test_a_body_is_packed_as_plain_msgpack_would(body):
    """``pack_body`` agrees with a simple encoder."""
    assert packing.pack_body(body) == plainly(body)


@st.composite
def tables(draw):
    """Draw bodies with the same names; some columns have values of one type."""
    names = draw(st.lists(strategies.text, unique=True, max_size=4))
    columns = {
        name: draw(st.sampled_from([*strategies.of_type, strategies.values])) for name in names
    }
    return [
        {name: draw(columns[name]) for name in draw(st.permutations(names))}
        for _ in range(draw(st.integers(1, 4)))
    ]


@given(tables())
def test_many_bodies_at_once_are_packed_as_each_alone(bodies):
    """Bodies packed together have the bytes that each has alone."""
    parts = packing.pack_bodies(bodies)
    assert [b"".join(each) for each in zip(*parts, strict=False)] == list(map(plainly, bodies))


@pytest.mark.parametrize(
    "wrong", [{"a": 1}, {"a": 1, "c": 1}, {"a": 1, "b": 1, "c": 1}, {"a": 1, _Name.B: 1}]
)
def test_bodies_of_other_names_are_not_packed_together(wrong):
    """Bodies with different names, or a name that is no plain text, are not packed together."""
    assert packing.pack_bodies([{"a": 1, "b": 2}, wrong]) is None


@pytest.mark.parametrize(
    "text",
    ["0", "-0", "0.00", "-0.00", "0E+9", "-0E-9", "1E+3", "-1.50E+3", "1E-9", "-12.340", "1E+1024"],
)
def test_decimals_of_every_form_are_packed_as_plainly(text):
    """Decimals of every form agree with the simple encoder."""
    for body in ({"a": Decimal(text)}, {"a": [Decimal(text)]}):
        assert packing.pack_body(body) == plainly(body)


def test_a_body_keeps_the_digits_of_a_decimal_but_no_sign_of_a_zero():
    """19.90 stays 19.90; 0.0 and -0.0 have the same bytes, because stores lose the sign."""
    assert str(unpacking.unpack_body(packing.pack_body({"a": Decimal("19.90")}))["a"]) == "19.90"
    for minus, plus in ((-0.0, 0.0), ([-0.0], [0.0])):
        assert packing.pack_body({"a": minus}) == packing.pack_body({"a": plus})


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x90", b"\x81\x01\x01", b"\x81\xa1a"])
def test_what_is_no_body_is_refused(body):
    """Bytes that are not one map with string keys are no body."""
    with pytest.raises(ValueRefusedError):
        unpacking.unpack_body(body)


@given(strategies.bodies, strategies.bodies)
def test_digests_of_unlike_bodies_differ(one, other):
    """Equal digests mean equal bodies."""
    if packing.digest(one) == packing.digest(other):
        assert one == other


def test_equal_decimals_have_equal_digests():
    """Equal decimals have equal digests, zeros of any sign and exponent included."""
    assert packing.digest({"a": Decimal("1.10")}) == packing.digest({"a": Decimal("1.1")})
    assert packing.digest({"a": Decimal("0.00")}) == packing.digest({"a": Decimal("-0")})
    assert packing.digest({"a": Decimal("1.1")}) != packing.digest({"a": 1.1})


def test_equal_moments_have_equal_digests():
    """A moment has the same digest in two zones, and another one without zone."""
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    elsewhere = moment.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert packing.digest({"a": moment}) == packing.digest({"a": elsewhere})
    assert packing.digest({"a": moment}) != packing.digest({"a": moment.replace(tzinfo=None)})


def nested(depth):
    item = 1
    for _ in range(depth):
        item = [item]
    return item


REFUSED = {
    "NaN": float("nan"),
    "nested NaN": {"a": [float("nan")]},
    "decimal NaN": Decimal("NaN"),
    "decimal infinity": Decimal("Infinity"),
    "lone surrogate": "\ud800",
    "lone surrogate in a key": {"\udfff": 1},
    "binary key": {b"a": 1},
    "integer key": {1: 1},
    "too deep": nested(17),
    "too many entries": [0] * 1025,
    "too many keys": {str(n): 0 for n in range(1025)},
    "a set": {1, 2},
    "a tuple": (1, 2),
    "an object": object(),
    "complex": 1j,
    "a subclass of str": _Name.B,
    "a subclass of str as a key": {_Name.B: 1},
    "a moment that UTC has no date for": dt.datetime.min.replace(tzinfo=dt.timezone.max),
}


@pytest.mark.parametrize("item", REFUSED.values(), ids=REFUSED)
def test_what_may_not_travel_is_refused(item):
    """``pack`` refuses a value that may not travel."""
    with pytest.raises(ValueRefusedError):
        packing.pack(item)


@pytest.mark.parametrize("item", REFUSED.values(), ids=REFUSED)
def test_what_may_not_travel_is_refused_in_a_body(item):
    """``pack_body`` refuses it with the same message, at any depth."""
    bodies = [{"a": item}, {"b": 1, "a": [{"c": item}]}] + [item] * isinstance(item, dict)
    for body in bodies:
        with pytest.raises(ValueRefusedError) as plainly_told:
            packing.pack(body)
        with pytest.raises(ValueRefusedError) as told:
            packing.pack_body(body)
        assert told.value.message == plainly_told.value.message
        assert packing.pack_bodies([body]) is None


def test_limits_are_what_they_say():
    """Values at the limits can travel."""
    for item in (nested(16), [0] * 1024, 2**64, -(2**63) - 1, 2**2000):
        assert unpacking.unpack(packing.pack(item)) == item


HOSTILE = {
    "duplicate keys": b"\x82\xa1a\x01\xa1a\x02",
    "binary key": b"\x81\xc4\x01a\x01",
    "integer key": b"\x81\x01\x01",
    "NaN": b"\xcb\x7f\xf8\x00\x00\x00\x00\x00\x00",
    "unknown extension": b"\xc7\x01\x63\x00",
    "timestamp": b"\xd6\xff\x00\x00\x00\x01",
    "not UTF-8": b"\xa1\xff",
    "surrogate as UTF-8": b"\xa3\xed\xa0\x80",
    "declares 4 GiB": b"\xc6\xff\xff\xff\xff",
    "declares 2^32 entries": b"\xdd\xff\xff\xff\xff",
    "declares 2^32 pairs": b"\xdf\xff\xff\xff\xff",
    "nests for ever": b"\x91" * 100_000,
    "decimal NaN": b"\xc7\x03\x01NaN",
    "no decimal": b"\xc7\x03\x01abc",
    "no date": b"\xc7\x03\x02abc",
    "short UUID": b"\xc7\x03\x06abc",
    "naive as aware": b"\xc7\x13\x05" + b"2026-01-01T10:00:00",
    "empty": b"",
    "two values": b"\x01\x02",
}


@pytest.mark.parametrize("raw", HOSTILE.values(), ids=HOSTILE)
def test_hostile_bytes_are_refused(raw):
    """Hostile bytes raise ``ValueRefusedError``."""
    with pytest.raises(ValueRefusedError):
        unpacking.unpack(raw)


def test_freeze_lets_nothing_through():
    """A frozen copy does not change with its original."""
    item = {"a": [1, {"b": 2}]}
    frozen = packing.freeze(item)
    item["a"][1]["b"] = random.random()
    item["a"].append(3)
    assert frozen == {"a": [1, {"b": 2}]}
