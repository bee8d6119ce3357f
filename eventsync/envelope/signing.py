"""Signing: the signing keys, and the signature at the end of an envelope (docs/envelope.md)."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final

from eventsync.errors import ConfigError, SignatureError

__all__ = ["Keyring"]

_SHORTEST: Final = 16
_SIG: Final = b"\xa3sig\xc4\x20"
_MAC_SIZE: Final = 32
# The form of a key's id. Such an id is short enough for a msgpack fixstr, whose head is one byte.
_KID: Final = re.compile(r"[A-Za-z0-9._-]{1,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Keyring:
    """HMAC-SHA256 keys for envelopes, each with an id. Immutable, hence thread-safe.

    ``signing``: the id of the key that signs. ``keys``: all keys by id; each can verify a
    signature. To rotate keys, add the new key everywhere, then sign with the new key everywhere,
    then remove the old key. Raises ``ConfigError`` if an id is not 1 to 31 letters, digits or
    ``._-``, if a key has fewer than 16 bytes, or if ``signing`` is not in ``keys``.
    """

    signing: str
    keys: Mapping[str, bytes] = field(repr=False, hash=False)
    _trailers: Mapping[str, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for kid, key in self.keys.items():
            if not _KID.fullmatch(kid):
                raise ConfigError(
                    f"the id {_shown(kid)} of a signing key is invalid",
                    hint="use 1 to 31 letters, digits, dots, dashes or underscores",
                )
            if len(key) < _SHORTEST:
                raise ConfigError(
                    f"the signing key {kid!r} is shorter than {_SHORTEST} bytes",
                    hint="make one with: head -c 32 /dev/urandom | base64",
                )
        if self.signing not in self.keys:
            raise ConfigError(
                f"there is no signing key with the id {_shown(self.signing)}",
                hint="add a key with this id, or sign with a key that exists",
            )
        trailers = {
            kid: b"\xa3kid" + bytes((0xA0 | len(kid),)) + kid.encode() + _SIG for kid in self.keys
        }
        # A frozen dataclass must set its own attributes with ``object.__setattr__``.
        object.__setattr__(
            self, "keys", MappingProxyType({i: bytes(key) for i, key in self.keys.items()})
        )
        object.__setattr__(self, "_trailers", MappingProxyType(trailers))

    def __repr__(self) -> str:
        return f"Keyring(signing={self.signing!r}, ids={list(self.keys)})"

    def __reduce__(self) -> tuple[type[Keyring], tuple[str, dict[str, bytes]]]:
        return Keyring, (self.signing, dict(self.keys))

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Return the keyring that a text of the form ``id:base64,id:base64`` describes.

        The first key signs. Raises ``ConfigError`` if the text is malformed, an id occurs twice, or
        a key is invalid. The error never contains a key.
        """
        keys: dict[str, bytes] = {}
        for position, part in enumerate(text.split(","), 1):
            kid, colon, encoded = part.strip().partition(":")
            if not colon or not _KID.fullmatch(kid):
                # The error does not show the text: a text without a colon may be the key itself.
                raise ConfigError(
                    f"signing key {position} is not of the form id:base64",
                    hint="an id has 1 to 31 letters, digits, dots, dashes or underscores",
                )
            if kid in keys:
                raise ConfigError(
                    f"two signing keys have the id {kid!r}", hint="give each key an id of its own"
                )
            try:
                keys[kid] = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError(
                    f"the signing key {kid!r} is not base64",
                    hint="make one with: head -c 32 /dev/urandom | base64",
                ) from None
        return cls(next(iter(keys)), keys)

    def sign(self, unsigned: bytes) -> bytes:
        """Return ``unsigned`` followed by the entries ``kid`` (the key's id) and ``sig``.

        ``unsigned``: an envelope without a signature, whose head already counts these two entries.
        """
        covered = unsigned + self._trailers[self.signing]
        return covered + hmac.digest(self.keys[self.signing], covered, "sha256")

    def verify(self, raw: bytes) -> tuple[str, int]:
        """Return the id of the key that signed the envelope ``raw``, and the offset of ``kid``.

        Raises ``SignatureError`` if the signature is missing or wrong, or if it was made with a key
        that is not in this keyring.
        """
        end = len(raw) - _MAC_SIZE
        if end < 0 or not raw.endswith(_SIG, 0, end):
            raise SignatureError(
                "the envelope is not signed, but signing keys are configured here",
                hint="configure the same keys in the program that published the envelope",
            )
        for kid, trailer in self._trailers.items():
            if raw.endswith(trailer, 0, end):
                self._compare(kid, raw, end)
                return kid, end - len(trailer)
        raise SignatureError(
            "the envelope is signed with a key that is not known here",
            hint=f"add the key to the signing keys of this program, which are "
            f"{', '.join(self.keys)}",
        )

    def _compare(self, kid: str, raw: bytes, end: int) -> None:
        if not hmac.compare_digest(hmac.digest(self.keys[kid], raw[:end], "sha256"), raw[end:]):
            raise SignatureError(
                f"the signature of the envelope, made with key {kid!r}, is wrong",
                hint="the envelope was altered, or its publisher has a different key with this id; "
                "compare the keys",
            )


def _shown(kid: object) -> str:
    """Return an id as text for an error. Long ids are cut, because they may be keys by mistake."""
    text = str(kid)
    return repr(text if len(text) <= 8 else f"{text[:4]}...")
