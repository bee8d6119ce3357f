"""Dead letters: their bytes, and how they are shown."""

from __future__ import annotations

import base64
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import PLAIN, published_changes

from eventsync.envelope import codec
from eventsync.envelope.dead_letter import DeadLetter
from eventsync.envelope.signing import Keyring
from eventsync.errors import EnvelopeError, SignatureError
from eventsync.values import packing, unpacking

KEYS = Keyring.parse("new:QUJDREVGR0hJSktMTU5PUA==")


def letter(**values):
    """A dead letter, some of its entries replaced."""
    raw = codec.encode(PLAIN)
    given = {
        "reason": "rejected", "message": "too long", "store": "crm", "queue": "eventsync.crm",
        "attempts": 3, "first_time": 1_800_000_000.5, "last_time": 1_800_000_060.0, "raw": raw,
        "type": PLAIN.type, "key": PLAIN.key, "op": PLAIN.op, "version": PLAIN.version,
    }  # fmt: skip
    return DeadLetter(**given | values)


@given(published_changes(), st.text(max_size=50))
def test_round_trip(change, message):
    """A dead letter comes back as it was; only lone surrogates are escaped."""
    sent = letter(raw=codec.encode(change), message=message, version=change.version)
    back = DeadLetter.decode(sent.encode())
    assert back.raw == sent.raw
    assert back.change() == change
    assert back.version == change.version
    if message.isascii():
        assert back == sent


def test_a_letter_without_a_readable_change():
    """What could not be read has no type, key, operation and version."""
    sent = letter(raw=b"\xff", type=None, key=None, op=None, version=None)
    assert DeadLetter.decode(sent.encode()) == sent
    with pytest.raises(EnvelopeError):
        sent.change()


def test_any_text_can_be_kept():
    """A long text is cut, and a lone surrogate is escaped."""
    back = DeadLetter.decode(letter(message="x" * 5000, reason="\ud800").encode())
    assert len(back.message) == 4000
    assert back.reason == "\\ud800"


def test_unknown_entries_are_ignored():
    """A later version may add entries."""
    entries = unpacking.unpack(letter().encode())
    assert DeadLetter.decode(packing.pack(entries | {"later": 1})).message == "too long"


@given(st.binary(max_size=200))
def test_foreign_bytes(raw):
    """Any bytes are a dead letter or an ``EnvelopeError``."""
    with pytest.raises(EnvelopeError):
        DeadLetter.decode(raw)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reason", None), ("message", b"x"), ("store", 1), ("queue", ...), ("content_type", ...),
        ("attempts", -1), ("attempts", True), ("first_time", "now"), ("last_time", float("inf")),
        ("last_time", -1), ("raw", "x"), ("raw", ...), ("id", b"1"), ("version", bytes(15)),
        ("type", 1), ("key", b"1"), ("op", 1),
    ],
)  # fmt: skip
def test_a_malformed_entry_is_named(name, value):
    """The error says which entry is wrong or missing."""
    entries = unpacking.unpack(letter().encode()) | {name: value}
    raw = packing.pack({n: held for n, held in entries.items() if held is not ...})
    with pytest.raises(EnvelopeError, match=f"malformed entries: {name}$"):
        DeadLetter.decode(raw)


@pytest.mark.parametrize("entries", [{}, {"v": 2}, []])
def test_another_version_is_refused(entries):
    """Only this version of dead letters is read."""
    with pytest.raises(EnvelopeError, match="not a dead letter of version 1"):
        DeadLetter.decode(packing.pack(entries))


def test_a_signature_is_verified_for_a_replay_only():
    """Without keys the change is shown, whoever signed it."""
    other = Keyring("new", {"new": b"another key of 24 bytes."})
    forged = letter(raw=codec.encode(PLAIN, keys=other))
    assert forged.change() == PLAIN
    with pytest.raises(SignatureError):
        forged.change(keys=KEYS)


def test_the_json_of_a_letter():
    """It has the change as a CloudEvent, and the bytes in base64."""
    sent = letter()
    shown = json.loads(json.dumps(sent.to_json()))
    assert shown["event"]["subject"] == PLAIN.key
    assert shown["first_time"] == "2027-01-15T08:00:00.500+00:00"
    assert shown["version"] == PLAIN.version.hex()
    assert base64.b64decode(shown["raw"]) == sent.raw
    assert shown["size"] == len(sent.raw)


def test_the_json_of_a_letter_that_cannot_be_read():
    """There is no event, and the bytes are still there."""
    shown = letter(raw=b"\xff", version=None).to_json()
    assert shown["event"] is None
    assert shown["version"] is None
    assert shown["raw"] == "/w=="


def test_unknown_entries_of_an_envelope_survive():
    """An entry that this version does not know is in the bytes of the letter, and in its change."""
    later = unpacking.unpack(codec.encode(PLAIN)) | {"later": {"a": 1}}
    back = DeadLetter.decode(letter(raw=packing.pack(later)).encode())
    assert unpacking.unpack(back.raw) == later
    assert unpacking.unpack(codec.encode(back.change())) == later
