"""The codec: changes survive, and foreign bytes raise only ``EnvelopeError``.

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
from eventsync.envelope import codec, fast_path
from eventsync.envelope.signing import Keyring
from eventsync.errors import EnvelopeError, ValueRefusedError
from eventsync.records.record_type import same
from eventsync.values import packing, unpacking

KEYS = Keyring.parse("new:QUJDREVGR0hJSktMTU5PUA==,old:MDEyMzQ1Njc4OWFiY2RlZg==")


def outcome(raw, keys=None):
    """Return the reason for which ``raw`` is refused, or ``None`` if it is read."""
    try:
        codec.decode(raw, keys=keys)
    except EnvelopeError as error:
        return error.reason
    return None


def entries(**more):
    """Return the entries of a plain envelope, with replacements; ``...`` removes one."""
    found = {
        "v": 1, "id": bytes(16), "src": "s", "type": "T", "key": "1", "op": "put",
        "ver": bytes(15) + b"\x01", "data": {"a": 1}, "schema": 1, "hops": 0, "ext": {},
    } | more  # fmt: skip
    return {name: held for name, held in found.items() if held is not ...}


@given(published_changes(), st.sampled_from([None, KEYS]))
def test_round_trip(change, keys):
    """A change survives encoding and decoding, signed or not."""
    back = codec.decode(codec.encode(change, keys=keys), keys=keys)
    assert back == change
    assert same(dict(back.data or {}), dict(change.data or {}))
    assert back.digest == change.digest


@given(st.binary(max_size=300))
def test_random_bytes(raw):
    """Any bytes are an envelope or an ``EnvelopeError``."""
    assert outcome(raw) in {None, "envelope", "envelope-version", "malformed"}


# Values of each kind, and of each length that has its own first byte. Where a test is about bytes,
# these serve as well as drawn values and cost a hundredth of the time.
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
    """Draw a change of any form, with sample values."""
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
    """Flip, cut, insert and splice bytes: one step for each four bytes of ``program``."""
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
    """``decode_all`` agrees with ``decode``, also for altered bytes among others."""
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
    """Altered envelopes raise ``EnvelopeError`` or are read."""
    outcome(mutated(codec.encode(change, keys=keys), program), keys)


keys = strategies.names | st.just("k" * 300)


@st.composite
def batches(draw):
    """Draw changes most of which are puts of one type with the same fields."""
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
    """Return what ``encode`` returns, or the message of its error."""
    try:
        return encode()
    except ValueRefusedError as error:
        return error.message


@given(batches(), st.sampled_from([None, KEYS]), st.sampled_from([300, 10**6]))
def test_many_are_encoded_as_each_alone(batch, keys, most):
    """``encode_all`` agrees with ``encode``: the same bytes, or the error of the first change."""
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
    """One of many changes is refused with the same message as by itself."""
    spoilt = [PLAIN.replace(**wrong)] * 12
    batch = spoilt if alone else [PLAIN.replace() for _ in range(20)] + spoilt
    with pytest.raises(ValueRefusedError) as alone_told:
        codec.encode(PLAIN.replace(**wrong))
    with pytest.raises(ValueRefusedError) as told:
        codec.encode_all(batch)
    assert told.value.message == alone_told.value.message


def test_what_was_not_read_is_looked_at_before_it_is_passed_on():
    """A malformed received body is refused when it is encoded again."""
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
    "known with a stamp later than the patch": (
        {
            "op": "patch",
            "known": {
                "stamp": b"\xff" * 16 + b"\x01" + b"\xff" * 32,
                "values": {},
                "versions": {},
            },
        },
        "malformed",
    ),
    "known with a field version later than the patch": (
        {
            "op": "patch",
            "known": {
                "stamp": bytes(16) + b"\x01" + bytes(32),
                "values": {"b": 1},
                "versions": {"b": bytes(Version.of(32_472_144_000_000))},
            },
        },
        "malformed",
    ),
}


@pytest.mark.parametrize(("more", "reason"), WRONG.values(), ids=WRONG)
def test_broken_rules_are_told(more, reason):
    """Each broken rule of the envelope raises an error with its reason."""
    with pytest.raises(EnvelopeError) as caught:
        codec.decode(packing.pack(entries(**more)))
    assert caught.value.reason == reason


@pytest.mark.parametrize("name", ["schema", "hops", "ext", "src"])
def test_absent_entries_take_their_defaults(name):
    """An absent optional entry has its default."""
    change = codec.decode(packing.pack(entries(**{name: ...})))
    assert (change.schema, change.hops, change.source in ("", "s")) == (1, 0, True)


def test_unknown_entries_are_kept_and_passed_on():
    """Unknown entries are ignored, and encoded again."""
    raw = packing.pack(entries(extra={"a": [1]}, more="x"))
    again = unpacking.unpack(codec.encode(codec.decode(raw)))
    assert (again["extra"], again["more"]) == ({"a": [1]}, "x")


def test_absent_is_not_nil():
    """An absent field and a field with nil stay different."""
    for data in ({"a": None}, {}):
        change = Change(type="T", key="1", op=PATCH, version=Version.of(1), data=data)
        assert codec.decode(codec.encode(change)).data == data


def test_size_is_checked_first():
    """A too large envelope is refused when it is encoded and when it is decoded."""
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
    """A change with a packed body has the same stamp and data as an unpacked one."""
    raw = codec.encode(strategies.change("put", Version.of(1), body))
    [late], now = codec.decode_all([raw]), codec.decode(raw)
    assert late.stamp == now.stamp
    assert late == now
    assert codec.encode(late) == raw


@given(strategies.bodies, st.binary(min_size=1, max_size=8), st.integers(0, 400))
def test_a_body_read_late_raises_only_the_one_error(body, noise, place):
    """An altered body raises only ``ValueRefusedError`` or ``EnvelopeError``."""
    raw = bytearray(codec.encode(strategies.change("put", Version.of(1), body)))
    raw[place % len(raw) : place % len(raw) + len(noise)] = noise
    [late] = codec.decode_all([bytes(raw)])
    try:
        assert isinstance(late, EnvelopeError) or late.data is not ...
    except ValueRefusedError:
        return


OTHER_LAYOUTS = {
    "entries in another order": lambda found: dict(reversed(found.items())),
    "data before the key": lambda found: {"data": found["data"]} | found,
    "without an entry that may be absent": lambda found: found | {"hops": ...},
    "with an empty ext": lambda found: found | {"ext": {}},
}


@pytest.mark.parametrize("layout", OTHER_LAYOUTS.values(), ids=OTHER_LAYOUTS)
@pytest.mark.parametrize("op", [PUT, PATCH, DELETE])
def test_other_layouts_are_read_as_the_usual_one(layout, op):
    """The fast path leaves other layouts to the slow one, which reads the same change."""
    usual = PLAIN.replace(op=op, data=None if op == DELETE else {"b": 1, "a": 2})
    found = layout(unpacking.unpack(codec.encode(usual)))
    raw = packing.pack({name: held for name, held in found.items() if held is not ...})
    assert fast_path.read(raw, len(raw)) is None
    back = codec.decode(raw)
    assert back == usual
    assert back.digest == usual.digest


@given(published_changes().filter(lambda change: not change.ext), st.sampled_from([None, KEYS]))
def test_the_fast_path_reads_every_usual_envelope(change, keys):
    """Both paths read the same change from an envelope without ext, signed or not."""
    raw = codec.encode(change, keys=keys)
    end = len(raw) if keys is None else keys.verify(raw)[1]
    fast = fast_path.read(raw, end)
    assert fast is not None
    assert fast == codec._read_any(raw)
    assert fast.digest == change.digest


@pytest.mark.parametrize("name", ["v", "key", "data", "ver"])
def test_an_entry_that_comes_twice_is_refused(name):
    """Whatever its value, and whether the number of entries counts it."""
    plain = packing.pack(entries())
    twice = packing.pack({name: entries()[name]})[1:]
    for head in (plain[:1], bytes([plain[0] + 1])):
        assert outcome(head + plain[1:] + twice) == "envelope"
        assert outcome(head + twice + plain[1:]) == "envelope"
