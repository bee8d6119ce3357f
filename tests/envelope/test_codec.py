"""The envelope: what goes in comes out, and no bytes raise anything but its own error.

The long run tries 100,000 cases of each: ``pytest tests/envelope/test_codec.py
--hypothesis-profile=long``.
"""

from __future__ import annotations

import datetime as dt
import tracemalloc
from decimal import Decimal
from uuid import UUID
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support import strategies
from support.strategies import PLAIN, published_changes

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, Stamp
from eventsync.envelope import codec
from eventsync.envelope.signing import Keyring
from eventsync.errors import EnvelopeError, ValueRefusedError
from eventsync.records.record_type import same
from eventsync.values import packing, unpacking

KEYS = Keyring.parse("new:QUJDREVGR0hJSktMTU5PUA==,old:MDEyMzQ1Njc4OWFiY2RlZg==")


def outcome(raw, keys=None):
    """The reason for which ``raw`` is refused, ``None`` if it is read."""
    try:
        codec.decode(raw, keys=keys)
    except EnvelopeError as error:
        return error.reason
    return None


def entries(**more):
    """The entries of a plain envelope, some of them replaced; those that are ``...`` left out."""
    found = {
        "v": 1, "id": bytes(16), "src": "s", "type": "T", "key": "1", "op": "put",
        "ver": bytes(15) + b"\x01", "data": {"a": 1}, "schema": 1, "hops": 0, "ext": {},
    } | more  # fmt: skip
    return {name: held for name, held in found.items() if held is not ...}


@given(published_changes(), st.sampled_from([None, KEYS]))
def test_round_trip(change, keys):
    """A change comes back as it went, signed or not."""
    back = codec.decode(codec.encode(change, keys=keys), keys=keys)
    assert back == change
    assert same(dict(back.data or {}), dict(change.data or {}))
    assert back.digest == change.digest


@given(st.binary(max_size=300))
def test_random_bytes(raw):
    """Any bytes are an envelope or an ``EnvelopeError``."""
    assert outcome(raw) in {None, "envelope", "envelope-version", "malformed"}


# A value of each kind, and of each length that its form has a byte of its own for. Where the bytes
# are what is tried, a body of these does as well as one that is drawn, and is a few draws of a
# tenth of a millisecond where that is a hundred and more.
SAMPLES = [
    None, False, -1, 2**40, -(2**70), 1.5, Decimal("-1.50"), "é", "x" * 40, b"\x00" * 40,
    dt.date(2026, 3, 1), dt.time(1, 2, 3, 4), dt.datetime(2026, 3, 1, 1, 2, 3),
    dt.datetime(2026, 3, 1, tzinfo=ZoneInfo("Europe/Paris")), UUID(int=1),
    [], [None, [1, "a"]], list(range(20)), {"": {"b": 2}}, {str(n): n for n in range(20)},
]  # fmt: skip


ops = st.sampled_from([PUT, PATCH, DELETE])
samples = st.lists(st.integers(0, len(SAMPLES) - 1), max_size=4).map(
    lambda chosen: {str(at): SAMPLES[at] for at in chosen}
)


@st.composite
def sampled_changes(draw):
    """A change of any form, of values that are not drawn."""
    op, body, other = draw(ops), draw(samples), draw(samples)
    known = None
    if op == PATCH and other:
        stamp = Stamp(Version.of(1) + b"\x01" + bytes(range(32)))
        known = BaseState(stamp, other, dict.fromkeys(other, Version.of(9)))
    return Change(
        type="T", key="k" * 40, op=op, version=Version.of(20), data=None if op == DELETE else body,
        source="s", id=bytes(range(16)), schema=2**40, hops=7, ext=other, known=known,
    )  # fmt: skip


def mutated(raw, program):
    """``raw`` with bits flipped, bytes cut, inserted and spliced: a step for each four bytes."""
    raw = bytearray(raw)
    for kind, high, low, what in zip(*[iter(program)] * 4, strict=False):
        at = (high << 8 | low) % (len(raw) + 1)
        if kind % 4 == 0 and at < len(raw):
            raw[at] ^= 1 << what % 8
        elif kind % 4 == 1:
            del raw[at : at + 1 + what % 9]
        elif kind % 4 == 2:
            raw[at:at] = bytes([what])
        else:
            raw[at:at] = raw[what : what + 1 + kind // 4]
    return bytes(raw)


PLAIN_RUN = [
    Change(
        type="T", key=key, op=op, version=Version.of(20), source="s", id=bytes(range(16)),
        data=None if op == DELETE else {"a": 1},
    )
    for op in (PUT, DELETE, PATCH)
    for key in ("1", "é", "k" * 40)
]  # fmt: skip


@given(
    st.lists(st.integers(0, len(PLAIN_RUN) - 1), min_size=1, max_size=4),
    st.binary(min_size=4, max_size=11),
)
def test_a_run_is_read_as_each_of_it(places, program):
    """Whatever has become of the bytes of the second, and whichever came before it."""
    raws = [codec.encode(PLAIN_RUN[place]) for place in places]
    raws.insert(1, mutated(raws[0], program))
    for raw, found in zip(raws, codec.decode_all(raws), strict=True):
        if isinstance(found, EnvelopeError):
            assert found.reason == outcome(raw)
            continue
        try:
            found.data  # noqa: B018  # reads it
        except ValueRefusedError:
            assert outcome(raw) is not None
            continue
        alone = codec.decode(raw)
        assert found == alone
        assert found.stamp == alone.stamp


@given(sampled_changes(), st.binary(min_size=4, max_size=19), st.sampled_from([None, KEYS]))
def test_mutated_envelopes(change, program, keys):
    """Envelopes that are cut, flipped or spliced raise ``EnvelopeError`` or are read; no more."""
    outcome(mutated(codec.encode(change, keys=keys), program), keys)


keys = strategies.names | st.just("k" * 300)


@st.composite
def batches(draw):
    """Changes most of which are puts of one type with the same fields, as producers have them."""
    names = draw(st.lists(strategies.text, unique=True, max_size=3))
    unlike = draw(st.integers(0, 40))
    puts = [
        Change(
            type="T",
            key=draw(keys),
            op=PUT,
            version=Version.of(number),
            data={name: draw(strategies.values) for name in names},
            source="other" if number == unlike else "s",
        )
        for number in range(draw(st.sampled_from([0, 1, 11, 12])))
    ]
    return puts + draw(st.lists(published_changes(), max_size=1))


def encoded(encode):
    """What it makes, or the words in which it refuses."""
    try:
        return encode()
    except ValueRefusedError as error:
        return error.message


@given(batches(), st.sampled_from([None, KEYS]), st.sampled_from([300, 10**6]))
def test_many_are_encoded_as_each_alone(batch, keys, most):
    """The same bytes in the same order, or the refusal of the first that may not travel."""
    again = [change.replace() for change in batch]
    assert encoded(lambda: codec.encode_all(batch, keys=keys, max_bytes=most)) == encoded(
        lambda: [codec.encode(change, keys=keys, max_bytes=most) for change in again]
    )


WRONG = {
    "NaN": {"data": {"a": float("nan"), "b": "é"}},
    "an object": {"data": {"a": object(), "b": "é"}},
    "a lone surrogate": {"data": {"a": "\ud800", "b": "é"}},
    "a name that is no text": {"data": {1: 1}},
    "no data": {"data": None},
    "data that are no map": {"data": ["a"]},
    "data in a delete": {"op": DELETE},
    "no key": {"key": ""},
    "a long key": {"key": "k" * 513},
    "a key that is no text": {"key": 7},
    "a key with a lone surrogate": {"key": "\ud800"},
    "a short id": {"id": b"1"},
    "an id that is no bytes": {"id": "1" * 16},
    "a short version": {"version": b"1"},
    "no type": {"type": ""},
    "a long source": {"source": "s" * 129},
    "another op": {"op": "copy"},
    "a negative schema": {"schema": -1},
    "known in a put": {"known": BaseState(Stamp(bytes(49)), {}, {})},
    "a wrong ext": {"ext": {"a": object()}},
    "a large one": {"data": {"a": "a" * codec.MAX_BYTES, "b": "é"}},
}


@pytest.mark.parametrize("wrong", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("alone", [True, False])
def test_one_of_many_that_may_not_travel_is_refused(wrong, alone):
    """In the same words as by itself; be it that the others are like it or not."""
    spoilt = [PLAIN.replace(**wrong)] * 12
    batch = spoilt if alone else [PLAIN.replace() for _ in range(20)] + spoilt
    with pytest.raises(ValueRefusedError) as alone_told:
        codec.encode(PLAIN.replace(**wrong))
    with pytest.raises(ValueRefusedError) as told:
        codec.encode_all(batch)
    assert told.value.message == alone_told.value.message


def test_what_was_not_read_is_looked_at_before_it_is_passed_on():
    """Among many as alone: a body that came from elsewhere, and is none, goes no further."""
    broken = Change.received("", "T", PUT, 1, 0, "1", Version.of(5), bytes(16), None, b"\xc1")
    for encode in (codec.encode, lambda change: codec.encode_all([change] * 12)):
        with pytest.raises(ValueRefusedError, match="not a msgpack value"):
            encode(broken)


WRONG = {
    "later major": ({"v": 2}, "envelope-version"),
    "no major": ({"v": ...}, "envelope"),
    "major is a bool": ({"v": True}, "malformed"),
    "no type": ({"type": ...}, "malformed"),
    "empty type": ({"type": ""}, "malformed"),
    "long type": ({"type": "T" * 129}, "malformed"),
    "empty key": ({"key": ""}, "malformed"),
    "long key": ({"key": "k" * 513}, "malformed"),
    "key is a number": ({"key": 1}, "malformed"),
    "long source": ({"src": "s" * 129}, "malformed"),
    "unknown op": ({"op": "upsert"}, "malformed"),
    "short version": ({"ver": bytes(15)}, "malformed"),
    "version as text": ({"ver": "0" * 16}, "malformed"),
    "short id": ({"id": b"1"}, "malformed"),
    "put without data": ({"data": None}, "malformed"),
    "put with absent data": ({"data": ...}, "malformed"),
    "delete with data": ({"op": "delete"}, "malformed"),
    "data is a list": ({"data": []}, "malformed"),
    "schema is negative": ({"schema": -1}, "malformed"),
    "hops is a bool": ({"hops": True}, "malformed"),
    "ext is a list": ({"ext": []}, "malformed"),
    "known with a put": (
        {"known": {"stamp": bytes(49), "values": {}, "versions": {}}},
        "malformed",
    ),
    "known of a delete": (
        {
            "op": "patch",
            "known": {"stamp": bytes(16) + b"\x02" + bytes(32), "values": {}, "versions": {}},
        },
        "malformed",
    ),
    "known with a version below its stamp": (
        {
            "op": "patch",
            "known": {
                "stamp": b"\x01" * 16 + b"\x01" + bytes(32),
                "values": {},
                "versions": {"a": bytes(16)},
            },
        },
        "malformed",
    ),
}


@pytest.mark.parametrize(("more", "reason"), WRONG.values(), ids=WRONG)
def test_broken_rules_are_told(more, reason):
    """Each rule of the envelope, broken, is an error with its reason."""
    with pytest.raises(EnvelopeError) as caught:
        codec.decode(packing.pack(entries(**more)))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["schema", "hops", "ext", "src"])
def test_absent_entries_take_their_defaults(name):
    """Entries that may be left out are, and mean the default."""
    change = codec.decode(packing.pack(entries(**{name: ...})))
    assert (change.schema, change.hops, change.source in ("", "s")) == (1, 0, True)


def test_unknown_entries_are_kept_and_passed_on():
    """What a later minor version adds is ignored here, and still there when it is sent on."""
    raw = packing.pack(entries(extra={"a": [1]}, more="x"))
    again = unpacking.unpack(codec.encode(codec.decode(raw)))
    assert (again["extra"], again["more"]) == ({"a": [1]}, "x")


def test_absent_is_not_nil():
    """A field that is not named and a field that is nil stay two things."""
    for data in ({"a": None}, {}):
        change = Change(type="T", key="1", op=PATCH, version=Version.of(1), data=data)
        assert codec.decode(codec.encode(change)).data == data


def test_size_is_checked_first():
    """What is too large is refused when it is sent, and when it comes."""
    large = Change(type="T", key="1", op=PUT, version=Version.of(1), data={"a": "x" * 300_000})
    with pytest.raises(ValueRefusedError, match="limit"):
        codec.encode(large)
    with pytest.raises(EnvelopeError) as caught:
        codec.decode(codec.encode(large, max_bytes=10**6))
    assert caught.value.reason == "too-large"


def test_hostile_envelopes_take_no_memory():
    """Envelopes that declare gigabytes are refused without getting them."""
    tracemalloc.start()
    for raw in (b"\xdf\xff\xff\xff\xff", b"\x81\xa1v\xc6\xff\xff\xff\xff", b"\x91" * 200_000):
        with pytest.raises(EnvelopeError):
            codec.decode(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000


@given(strategies.bodies)
def test_what_is_read_late_is_the_same(body):
    """A change whose body is left unread has the same stamp, and then the same data."""
    raw = codec.encode(strategies.change("put", Version.of(1), body))
    [late], now = codec.decode_all([raw]), codec.decode(raw)
    assert late.stamp == now.stamp
    assert late == now
    assert codec.encode(late) == raw


@given(strategies.bodies, st.binary(min_size=1, max_size=8), st.integers(0, 400))
def test_a_body_read_late_raises_only_the_one_error(body, noise, place):
    """Whatever has become of its bytes."""
    raw = bytearray(codec.encode(strategies.change("put", Version.of(1), body)))
    raw[place % len(raw) : place % len(raw) + len(noise)] = noise
    [late] = codec.decode_all([bytes(raw)])
    try:
        assert isinstance(late, EnvelopeError) or late.data is not ...
    except ValueRefusedError:
        return
