"""The column reader, compared with reading one body after another."""

from __future__ import annotations

import datetime as dt
from decimal import Decimal
from typing import Any, Literal
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from support import strategies

from eventsync.errors import RecordError, ValueRefusedError
from eventsync.records.columnar import ColumnReader
from eventsync.records.record import Field, Record
from eventsync.records.record_type import same
from eventsync.values import packing, unpacking


class Sample(Record):
    """A record with a field of each class, some of them with limits."""

    id: int = Field(key=True)
    name: str = Field(length=8)
    note: str | None = None
    state: Literal["open", "shut"] = "open"
    balance: Decimal
    limited: Decimal | None = Field(default=None, minimum=0)
    score: float
    active: bool
    blob: bytes
    born: dt.date
    at: dt.time
    moment: dt.datetime
    zoned: dt.datetime | None = Field(default=None, zoned=True)
    token: UUID
    # Not a name that a class could have.
    other: int | None = Field(default=None)


class Pair(Record):
    """A key of two fields, one of which needs escapes."""

    shop: str = Field(key=True)
    number: int = Field(key=True)


class Holder(Record):
    """A field whose values hold others."""

    id: int = Field(key=True)
    tags: list[str]


SAMPLE = Sample.__record__
fitting = {
    "id": st.integers(0, 99),
    "name": st.text("ab\u00e9", max_size=9),
    "note": st.none() | strategies.text,
    "state": st.sampled_from(["open", "shut", "ajar"]),
    "balance": st.decimals(allow_nan=False, allow_infinity=False),
    "limited": st.none() | st.decimals(-2, 9, places=2),
    "score": st.floats(allow_nan=False),
    "active": st.booleans(),
    "blob": st.binary(max_size=4),
    "born": st.dates(),
    "at": st.times(),
    "moment": st.datetimes(),
    "zoned": st.none() | st.datetimes(timezones=st.just(dt.UTC)) | st.datetimes(),
    "token": st.uuids(),
    "other": st.none() | st.integers(-(2**70), 2**70),
}
whole = st.fixed_dictionaries(fitting)
# Now and then a field is missing, of another class, or one too many.
spoilt = st.builds(
    lambda body, name, scalar, drop: {
        n: held for n, held in {**body, name: scalar}.items() if n != drop
    },
    whole,
    st.sampled_from([*fitting, "unknown"]),
    strategies.scalars,
    st.sampled_from([*fitting, None, None, None]),
)
noise = st.tuples(st.integers(0, 300), st.binary(min_size=1, max_size=4))


def closer_look(body: bytes, key: str) -> Any:
    """What is made of the body of one put, one field after another; ``None`` for what is refused
    or altered."""
    try:
        data = unpacking.unpack_body(body)
        loaded = SAMPLE.load(data, partial=True)
        if len(loaded) < len(SAMPLE.fields) or SAMPLE.key_text(loaded) != key:
            return None
    except (RecordError, ValueRefusedError):
        return None
    return loaded if same(loaded, data) else None


def check(bodies: list[bytes], keys: list[str]) -> int:
    """Compare both ways of reading, and return how many bodies were read in bulk."""
    reader = ColumnReader(SAMPLE)
    rows = reader.read(bodies, keys)
    for body, key, row in zip(bodies, keys, rows, strict=True):
        if row is not None:
            expected = closer_look(body, key)
            assert expected is not None, "what does not fit was read"
            assert same(dict(zip(reader.names, row, strict=True)), expected)
    return sum(row is not None for row in rows)


@given(st.lists(whole | spoilt, max_size=5))
def test_it_reads_nothing_otherwise(data):
    """Each row has the values that the record type loads from the same bytes."""
    keys = [str(body.get("id")) for body in data]
    check([packing.pack_body(body) for body in data], keys)


@given(st.lists(whole, min_size=1, max_size=3), noise)
def test_hostile_bytes_are_read_as_a_closer_look_reads_them(data, noise):
    """Altered bytes in one of the bodies are read as the slow path reads them."""
    bodies = [bytearray(packing.pack_body(body)) for body in data]
    place, junk = noise[0] % len(bodies[0]), noise[1]
    bodies[0][place : place + len(junk)] = junk
    check([bytes(body) for body in bodies], [str(body["id"]) for body in data])


def sample(**values: Any) -> dict[str, Any]:
    """Return a valid record, except for these values."""
    return {
        "id": 1,
        "name": "a",
        "note": "b",
        "state": "open",
        "balance": Decimal("1.50"),
        "limited": None,
        "score": 0.5,
        "active": True,
        "blob": b"",
        "born": dt.date(2026, 1, 2),
        "at": dt.time(1, 2),
        "moment": dt.datetime(2026, 1, 2),
        "zoned": None,
        "token": UUID(int=5),
        "other": None,
    } | values


def test_records_that_fit_are_read_in_bulk():
    """Valid records are read in bulk, with and without optional values."""
    data = [sample(), sample(note=None, zoned=dt.datetime(2026, 1, 2, tzinfo=dt.UTC), other=3)]
    assert check([packing.pack_body(body) for body in data * 50], ["1"] * 100) == 100


@pytest.mark.parametrize(
    "values",
    [
        {"id": 2},
        {"id": True},
        {"name": "too long by far"},
        {"state": "ajar"},
        {"balance": 3},
        {"balance": "3.5"},
        {"limited": Decimal(-1)},
        {"score": 1},
        {"active": 1},
        {"blob": "text"},
        {"born": "2026-01-02"},
        {"born": dt.datetime(2026, 1, 2)},
        {"moment": dt.date(2026, 1, 2)},
        {"zoned": dt.datetime(2026, 1, 2)},
        {"token": str(UUID(int=5))},
        {"note": 5},
        {"name": None},
        {"unknown": 1},
    ],
    ids=str,
)
def test_one_that_does_not_fit_is_left_alone(values):
    """A record that does not fit is left out, and the others are read."""
    data = [sample(), sample(**values), sample()]
    reader = ColumnReader(SAMPLE)
    rows = reader.read([packing.pack_body(body) for body in data], ["1"] * 3)
    assert [row is not None for row in rows] == [True, False, True]


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"1.50", b"NaN."),
        (b"1.50", b"1_50"),
        (b"1.50", b"1\n50"),
        (b"1.50", b" 1.5"),
        (b"1.50", b"1e99"),
        (b"1.50", "1.\u0661".encode()),
        (b"2026-01-02T", b"2026-13-02T"),
        (b"\xc7\x0a\x02", b"\xc7\x0a\x09"),
        (b"\xcb\x3f\xe0", b"\xcb\x7f\xf8"),
        (b"\xa4name\xa1a", b"\xa4name\xa1\xff"),
        (b"\xa5other\xc0", b"\xa2id\xa2id\xc0"),
        (b"\xa2id\x01", b"\xa2id\x01\xc0"),
    ],
)
def test_a_malformed_value_spoils_one_record(old, new):
    """A malformed value leaves its record to the slow path."""
    good = packing.pack_body(sample())
    bad = good.replace(old, new)
    assert bad != good
    rows = ColumnReader(SAMPLE).read([good, bad, good], ["1"] * 3)
    assert [row is not None for row in rows] == [True, closer_look(bad, "1") is not None, True]
    check([good, bad, good], ["1"] * 3)


@given(st.lists(st.tuples(st.text("a%/", max_size=3), st.integers(0, 9)), min_size=1, max_size=4))
@example([("", 1)])
def test_keys_of_several_fields_are_compared(parts):
    """A record is read under its own key, with escapes, and under no other."""
    reader = ColumnReader(Pair.__record__)
    data = [{"shop": shop, "number": number} for shop, number in parts]
    keys = [Pair.__record__.key_text(body) for body in data]
    bodies = [packing.pack_body(body) for body in data]
    assert all(row is not None for row in reader.read(bodies, keys))
    assert not any(reader.read(bodies, [f"{key}0" for key in keys]))


def test_bodies_do_not_run_into_each_other():
    """Bytes missing in one body are not taken from the next."""
    good = packing.pack_body(sample())
    first, second = good[:-3], good[-3:] + good
    assert ColumnReader(SAMPLE).read([first, second], ["1", "1"]) == [None, None]


def test_records_that_hold_others_are_left_to_the_closer_look():
    """Records with lists or dicts are left to the slow path."""
    body = packing.pack_body({"id": 1, "tags": ["a"]})
    assert ColumnReader(Holder.__record__).read([body], ["1"]) == [None]


patches = st.builds(
    lambda body, names: {n: held for n, held in body.items() if n in names},
    spoilt,
    st.sets(st.sampled_from([*fitting, "unknown"]), max_size=4),
)


def look_closer_at_a_patch(body: bytes) -> Any:
    """Read the body of one patch slowly; ``None`` if it is refused or altered."""
    try:
        data = unpacking.unpack_body(body)
        loaded = SAMPLE.load(data, partial=True)
    except (RecordError, ValueRefusedError):
        return None
    return loaded if "id" not in data and same(loaded, data) else None


def check_patches(bodies: list[bytes]) -> int:
    """Compare both ways of reading, and return how many bodies were read in bulk."""
    found = ColumnReader(SAMPLE).read_patches(bodies, ["1"] * len(bodies))
    for body, read in zip(bodies, found, strict=True):
        if read is not None:
            expected = look_closer_at_a_patch(body)
            assert expected is not None, "what does not fit was read"
            assert same(dict(zip(*read, strict=True)), expected)
    return sum(read is not None for read in found)


@given(st.lists(patches, max_size=5))
def test_patches_are_read_no_otherwise(data):
    """Each patch has the values that the record type loads from the same bytes."""
    check_patches([packing.pack_body(body) for body in data])


@given(st.lists(patches.filter(bool), min_size=1, max_size=3), noise)
def test_hostile_patches_are_read_as_a_closer_look_reads_them(data, noise):
    """Altered bytes in one of the bodies are read as the slow path reads them."""
    bodies = [bytearray(packing.pack_body(body)) for body in data]
    place, junk = noise[0] % len(bodies[0]), noise[1]
    bodies[0][place : place + len(junk)] = junk
    check_patches([bytes(body) for body in bodies])


def test_patches_that_fit_are_read_in_bulk():
    """Patches of any fields are read in bulk, but not an empty one or one with a wrong key."""
    whole = sample()
    names = [*whole.keys() - {"id"}]
    data = [{n: whole[n] for n in names[:count]} for count in range(len(names) + 1)]
    bodies = [packing.pack_body(body) for body in data]
    assert check_patches(bodies) == len(names)
    assert not any(ColumnReader(SAMPLE).read_patches(bodies, ["01"] * len(bodies)))


@pytest.mark.parametrize(
    "body",
    [
        packing.pack_body({"id": 1}),
        packing.pack_body({"score": 1}),
        packing.pack_body({"score": 0.5}) + b"\x00",
        b"\x82\xa5other\x01\xa5other\x02",
        b"\x81\xc4\x05other\x01",
        b"\x81\xa5other",
        b"\x81\xa6moment\xd6\xff\x00\x00\x00\x01",
        b"\xde\x00\x01\xa5other\x01",
        b"\x91\x01",
        b"",
    ],
)
def test_a_patch_that_takes_a_closer_look_is_left_to_it(body):
    """And those beside it are read."""
    good = packing.pack_body({"score": 0.5})
    found = ColumnReader(SAMPLE).read_patches([good, body, good], ["1"] * 3)
    assert [read is not None for read in found] == [True, False, True]


class Dated(Record):
    """A key whose text is made with methods that only its own class has."""

    price: Decimal = Field(key=True)
    moment: dt.datetime = Field(key=True)


def test_a_malformed_key_field_spoils_one_record():
    """A key field that cannot be unpacked leaves its record to the closer look, and no other."""
    good = packing.pack_body({"price": Decimal("1.5"), "moment": dt.datetime(2026, 1, 2)})
    key = Dated.__record__.key_text(unpacking.unpack_body(good))
    rows = ColumnReader(Dated.__record__).read(
        [good, good.replace(b"1.5", b"abc"), good.replace(b"2026-01", b"2026-99"), good], [key] * 4
    )
    assert [row is not None for row in rows] == [True, False, False, True]


@pytest.mark.parametrize("depth", [17, 200_000])
def test_a_deeply_nested_value_spoils_one_record(depth):
    """A hostile body that nests too deep is left out; those beside it are read."""
    deep = b"\x91" * depth + b"\x01"
    put, patch = packing.pack_body(sample()), packing.pack_body({"other": 1})
    reader = ColumnReader(SAMPLE)
    rows = reader.read([put, put.replace(b"\xa5other\xc0", b"\xa5other" + deep), put], ["1"] * 3)
    assert [row is not None for row in rows] == [True, False, True]
    found = reader.read_patches([patch, b"\x81\xa5other" + deep, patch], ["1"] * 3)
    assert [read is not None for read in found] == [True, False, True]
