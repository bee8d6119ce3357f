"""Batches: many envelopes in one message."""

from __future__ import annotations

import tracemalloc

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eventsync.envelope.batch import MAX_COUNT, batches, framed_size, join_batch, split_batch
from eventsync.errors import EnvelopeError, ValueRefusedError


@given(st.lists(st.binary(min_size=1, max_size=400), max_size=30), st.integers(1, 8))
def test_framing_round_trip(envelopes, count):
    """Envelopes come out of messages as they were put in, in their order, within the bounds."""
    bodies = list(batches(envelopes, max_count=count, max_bytes=600))
    split = [split_batch(body) for body in bodies]
    assert [raw for batch in split for raw in batch] == envelopes
    assert all(len(batch) <= count for batch in split)
    assert all(
        len(body) <= 600 or len(batch) == 1 for body, batch in zip(bodies, split, strict=True)
    )


@pytest.mark.parametrize("sizes", [[], [0], [1] * 15, [1] * 16, [255, 256], [65_535, 65_536]])
def test_a_message_is_an_array_of_byte_strings(sizes):
    """Its bytes are those of msgpack, and ``framed_size`` counts them."""
    envelopes = [bytes(size) for size in sizes]
    body = join_batch(envelopes)
    assert body == msgpack.packb(envelopes)
    assert split_batch(body) == envelopes
    head = len(join_batch([b""] * len(sizes))) - 2 * len(sizes)
    assert len(body) == head + sum(map(framed_size, envelopes))


@given(st.binary(max_size=120))
def test_foreign_messages(raw):
    """Any bytes are a batch or an ``EnvelopeError``."""
    try:
        envelopes = split_batch(raw)
    except EnvelopeError:
        return
    assert all(type(item) is bytes for item in envelopes)


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\x80",
        b"\xc4\x01a",
        b"\x91\xa1a",
        b"\x91\x01",
        b"\x92\xc4\x01a",
        b"\x91\xc4\x02a",
        b"\x91\xc6\xff\xff\xff\xff",
        b"\x91\xc4\x01a\x00",
        b"\x91\x91\xc4\x01a",
    ],
)
def test_other_bytes_are_refused(raw):
    """The reason is that of something that is no envelope."""
    with pytest.raises(EnvelopeError, match="not an array of envelopes") as caught:
        split_batch(raw)
    assert caught.value.reason == "envelope"


def test_a_message_carries_no_more_than_the_limit():
    """More envelopes are refused when a message is made, and when one comes."""
    most = [b""] * MAX_COUNT
    assert len(split_batch(join_batch(most))) == MAX_COUNT
    with pytest.raises(ValueRefusedError, match="limit"):
        join_batch([*most, b""])
    with pytest.raises(EnvelopeError):
        split_batch(msgpack.packb([*most, b""]))
    assert [
        len(split_batch(body)) for body in batches([*most, b""], max_count=10**6, max_bytes=10**6)
    ] == [MAX_COUNT, 1]


def test_hostile_messages_take_no_memory():
    """A message that declares billions of envelopes, or gigabytes, does not get them."""
    tracemalloc.start()
    for raw in (b"\xdd\xff\xff\xff\xff", b"\x91\xc6\xff\xff\xff\xff", b"\x91" * 200_000):
        with pytest.raises(EnvelopeError):
            split_batch(raw)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 2_000_000
