"""Values: what may travel survives, what may not is refused, equal bodies have equal digests."""

from __future__ import annotations

import datetime as dt
import random
from decimal import Decimal

import pytest
import strategies
from hypothesis import given
from hypothesis import strategies as st

from eventsync import value
from eventsync.errors import ValueRefusedError
from eventsync.schema import same


@given(strategies.values)
def test_round_trip(item):
    """A value comes back as it went, of the same type at every depth."""
    assert same(value.unpack(value.pack(item)), item)


@given(st.binary(max_size=200))
def test_unpack_raises_its_own_error_only(raw):
    """Any bytes are a value or a ``ValueRefusedError``."""
    try:
        item = value.unpack(raw)
    except ValueRefusedError:
        return
    assert same(value.unpack(value.pack(item)), item)


@given(strategies.bodies, st.randoms(use_true_random=False))
def test_digest_does_not_see_the_order_of_keys(body, rng):
    """Bodies that differ in the order of their keys only have one digest."""
    items = list(body.items())
    rng.shuffle(items)
    assert value.digest(dict(items)) == value.digest(body)


@given(strategies.bodies, st.randoms(use_true_random=False))
def test_a_body_has_one_form(body, rng):
    """Whatever the order of its keys, its bytes are the same, also once it has been read."""
    items = list(body.items())
    rng.shuffle(items)
    packed = value.pack_body(dict(items))
    assert packed == value.pack_body(body)
    assert value.pack_body(value.unpack_body(packed)) == packed


def test_a_body_keeps_the_digits_of_a_decimal_but_no_sign_of_a_zero():
    """19.90 stays 19.90; 0.0 and -0.0 are one body, since stores lose the sign."""
    assert str(value.unpack_body(value.pack_body({"a": Decimal("19.90")}))["a"]) == "19.90"
    for minus, plus in ((-0.0, 0.0), ([-0.0], [0.0])):
        assert value.pack_body({"a": minus}) == value.pack_body({"a": plus})


@pytest.mark.parametrize("body", [b"", b"\xc0", b"\x90", b"\x81\x01\x01", b"\x81\xa1a"])
def test_what_is_no_body_is_refused(body):
    """Nothing, nil, an array, a map of numbers, a map cut short."""
    with pytest.raises(ValueRefusedError):
        value.unpack_body(body)


@given(strategies.bodies, strategies.bodies)
def test_digests_of_unlike_bodies_differ(one, other):
    """Equal digests mean equal bodies."""
    if value.digest(one) == value.digest(other):
        assert one == other


def test_equal_decimals_have_equal_digests():
    """1.10 and 1.1 are one number, as are zeros of any sign and exponent."""
    assert value.digest({"a": Decimal("1.10")}) == value.digest({"a": Decimal("1.1")})
    assert value.digest({"a": Decimal("0.00")}) == value.digest({"a": Decimal("-0")})
    assert value.digest({"a": Decimal("1.1")}) != value.digest({"a": 1.1})


def test_equal_moments_have_equal_digests():
    """One moment told in two zones is one moment; without a zone it is none of them."""
    moment = dt.datetime(2026, 1, 1, 12, tzinfo=dt.UTC)
    elsewhere = moment.astimezone(dt.timezone(dt.timedelta(hours=5)))
    assert value.digest({"a": moment}) == value.digest({"a": elsewhere})
    assert value.digest({"a": moment}) != value.digest({"a": moment.replace(tzinfo=None)})


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
}


@pytest.mark.parametrize("item", REFUSED.values(), ids=REFUSED)
def test_what_may_not_travel_is_refused(item):
    """It is refused where it would be sent."""
    with pytest.raises(ValueRefusedError):
        value.pack(item)


def test_limits_are_what_they_say():
    """Just within the limits everything travels."""
    for item in (nested(16), [0] * 1024, 2**64, -(2**63) - 1, 2**2000):
        assert value.unpack(value.pack(item)) == item


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
    """Bytes made to do harm are refused, at once and with the one error."""
    with pytest.raises(ValueRefusedError):
        value.unpack(raw)


def test_freeze_lets_nothing_through():
    """A frozen copy does not change with what it was made of."""
    item = {"a": [1, {"b": 2}]}
    frozen = value.freeze(item)
    item["a"][1]["b"] = random.random()
    item["a"].append(3)
    assert frozen == {"a": [1, {"b": 2}]}
