"""Signatures: keyrings, and envelopes that are signed and verified."""

from __future__ import annotations

import copy
import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.strategies import PLAIN, published_changes

from eventsync.changes.change import BaseState
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, Stamp
from eventsync.envelope import codec
from eventsync.envelope.key_file import KeyFile
from eventsync.envelope.signing import Keyring
from eventsync.errors import ConfigError, EnvelopeError, SignatureError, ValueRefusedError

NEW = "new:QUJDREVGR0hJSktMTU5PUA=="
OLD = "old:MDEyMzQ1Njc4OWFiY2RlZg=="
KEYS = Keyring.parse(f"{NEW},{OLD}")


@given(published_changes(), st.integers(0))
def test_any_flipped_bit_breaks_the_signature(change, bit):
    """No bit of a signed envelope can be altered unnoticed."""
    raw = bytearray(codec.encode(change, keys=KEYS))
    bit %= 8 * len(raw)
    raw[bit // 8] ^= 1 << bit % 8
    with pytest.raises(SignatureError):
        codec.decode(bytes(raw), keys=KEYS)


def test_keys_rotate():
    """An envelope signed with the older key is read as long as that key is configured."""
    raw = codec.encode(PLAIN, keys=Keyring.parse(OLD))
    assert codec.decode(raw, keys=KEYS) == PLAIN
    with pytest.raises(SignatureError, match="not known here"):
        codec.decode(raw, keys=Keyring.parse(NEW))


def test_the_first_key_signs():
    """``verify`` returns the id of the key that signed, and where the signature begins."""
    unsigned = b"any bytes"
    assert KEYS.verify(KEYS.sign(unsigned)) == ("new", len(unsigned))
    assert KEYS.signing == "new"


def test_signature_is_demanded_when_keys_are_configured():
    """An unsigned envelope is refused where signatures are required."""
    with pytest.raises(SignatureError):
        codec.decode(codec.encode(PLAIN), keys=KEYS)


def test_another_key_of_the_same_id_is_refused():
    """A signature made with a different key under a known id is wrong."""
    other = Keyring("new", {"new": b"another key of 24 bytes."})
    with pytest.raises(SignatureError, match="is wrong"):
        codec.decode(codec.encode(PLAIN, keys=other), keys=KEYS)


def test_a_signature_inside_another_entry_is_refused():
    """Signed bytes in which the signature is no entry of the map are no signed envelope."""
    size = len(KEYS.sign(b""))
    with pytest.raises(SignatureError, match="last entry"):
        # A map whose only entry is a byte string that holds what ``sign`` adds.
        codec.decode(KEYS.sign(b"\x81\xa1v\xc4" + bytes([size])), keys=KEYS)


def test_secrets_are_never_shown():
    """No key appears in a keyring's text, nor in the error about a wrong one."""
    assert "QUJD" not in repr(KEYS)
    assert "ABCDEFGH" not in repr(KEYS)
    with pytest.raises(Exception, match="kid") as caught:
        Keyring.parse("kid:not base64 QUJDREVG")
    assert "QUJDREVG" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "there is no signing key"),
        ("# only a comment\n\n", "there is no signing key"),
        (f"{OLD}\nid\n", "signing key 2 is not of the form id:base64"),
        (f"{NEW} types", "limit 1 of the signing key 'new'"),
        (f"{NEW} ops=put types=", "limit 2 of the signing key 'new'"),
        (f"{NEW} ops=put ops=put", "limit 2 of the signing key 'new'"),
        (f"{NEW} tables=Order", "limit 1 of the signing key 'new'"),
        (f"{NEW} ops=put,copy", "operation 'copy', which does not exist"),
        (f"{NEW} fields=name", "the field 'name' of no record type"),
        (f"{NEW},QUJDREVGR0hJSktMTU5PUA==", "signing key 2 is not of the form"),
        ("an id:QUJDREVGR0hJSktMTU5PUA==", "signing key 1 is not of the form"),
        (f"{NEW},{NEW}", "two signing keys have the id 'new'"),
        ("new:QUJD", "shorter than 16 bytes"),
        ("new:?", "is not base64"),
    ],
)
def test_a_wrong_text_is_refused(text, said):
    """The error names the key by its place or id."""
    with pytest.raises(ConfigError, match=said):
        Keyring.parse(text)


@pytest.mark.parametrize(
    ("signing", "keys", "said"),
    [
        ("a", {}, "no signing key with the id 'a'"),
        ("a", {"a": bytes(15)}, "shorter"),
        ("é", {"é": bytes(16)}, "invalid"),
        ("a" * 32, {"a" * 32: bytes(16)}, "invalid"),
    ],
)
def test_a_wrong_keyring_is_refused(signing, keys, said):
    """An id must be short ASCII text, a key long enough, and the signing key there."""
    with pytest.raises(ConfigError, match=said):
        Keyring(signing, keys)


def test_a_keyring_can_be_copied_and_pickled():
    """Workers get their keyring from another process."""
    for again in (copy.deepcopy(KEYS), pickle.loads(pickle.dumps(KEYS))):
        assert again == KEYS
        assert codec.decode(codec.encode(PLAIN, keys=KEYS), keys=again) == PLAIN


SCOPES = Keyring.parse(
    f"{NEW}\n# of the shop\n{OLD} types=T,Order ops=put,patch sources=shop fields=T.a,T.b\n"
)
BASE = BaseState(Stamp(Version.of(1) + b"\x01" + bytes(32)), {"c": 1}, {})


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({"type": "User"}, "may not sign changes with the record type 'User'"),
        ({"op": DELETE, "data": None}, "may not sign changes with the operation 'delete'"),
        ({"source": "crm"}, "may not sign changes with the source 'crm'"),
        ({"data": {"a": 1, "c": 1}}, "may not sign changes with the field 'c' of T"),
        ({"op": PATCH, "data": {"c": 1}}, "the field 'c' of T"),
        ({"op": PATCH, "data": {"a": 1}, "known": BASE}, "the field 'c' of T"),
    ],
)
def test_a_key_signs_only_what_it_may(more, said):
    """Neither its owner's program signs such a change, nor does a worker take it."""
    change = PLAIN.replace(**{"source": "shop"} | more)
    limited = Keyring(signing="old", keys=SCOPES.keys, scopes=SCOPES.scopes)
    for encode in (
        lambda: codec.encode(change, keys=limited),
        lambda: codec.encode_all([PLAIN.replace(source="shop")] * 12 + [change], keys=limited),
    ):
        with pytest.raises(ValueRefusedError, match=said) as refused:
            encode()
        assert refused.value.reason == "not-permitted"
    raw = codec.encode(change, keys=Keyring.parse(OLD))  # a program that ignores the limits
    with pytest.raises(EnvelopeError, match=said) as caught:
        codec.decode(raw, keys=SCOPES)
    assert caught.value.reason == "not-permitted"
    (found,) = codec.decode_all([raw], keys=SCOPES)
    assert isinstance(found, EnvelopeError)
    assert codec.decode(codec.encode(change, keys=SCOPES), keys=SCOPES) == change


@pytest.mark.parametrize("more", [{}, {"op": PATCH, "data": {"b": 2}}, {"type": "Order"}])
def test_a_limited_key_signs_the_rest(more):
    """What is in the scope passes; fields are limited only for the types that name some."""
    change = PLAIN.replace(source="shop", **more)
    limited = Keyring(signing="old", keys=SCOPES.keys, scopes=SCOPES.scopes)
    assert codec.decode(codec.encode(change, keys=limited), keys=SCOPES) == change


def test_a_keyring_describes_itself():
    """The text of a keyring makes the same keyring."""
    assert Keyring.parse(SCOPES.describe()) == SCOPES
    assert pickle.loads(pickle.dumps(SCOPES)).scopes == SCOPES.scopes


def test_a_key_file_is_read_again(tmp_path):
    """New keys are used within a second; a wrong content leaves the former keys in use."""
    path, now = tmp_path / "keys", [0.0]
    path.write_text(OLD)
    file = KeyFile(path, monotonic=lambda: now[0])
    assert [*file.keyring.keys] == ["old"]
    for text, expected in (
        (f"{NEW}\n{OLD}\n", ["new", "old"]),
        ("new:wrong", ["new", "old"]),
        (NEW, ["new"]),
    ):
        path.with_name("partial").write_text(text)
        path.with_name("partial").replace(path)
        now[0] += 1.0
        assert [*file.keyring.keys] == expected
    path.unlink()
    now[0] += 1.0
    assert [*file.keyring.keys] == ["new"]
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        KeyFile(path)
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        KeyFile(tmp_path / "none")
