"""The keys that sign envelopes, and how a signature ends one.

This module knows nothing of what the bytes it signs mean.
"""

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
# So that an id is a msgpack fixstr of ASCII, and can be recognised from behind.
_KID: Final = re.compile(r"[A-Za-z0-9._-]{1,31}", re.ASCII)


@dataclass(frozen=True, slots=True)
class Keyring:
    """HMAC-SHA256 keys by id: one signs, all of them verify. Immutable, hence thread-safe.

    To rotate: add the new key everywhere, then let it sign everywhere, then drop the old one.
    ``signing``: the id of the key that signs. Raises ``ConfigError`` for an id that is not 1 to 31
    letters, digits or ``._-``, for a key under 16 bytes, and when ``signing`` has no key.
    """

    signing: str
    keys: Mapping[str, bytes] = field(repr=False, hash=False)
    _trailers: Mapping[str, bytes] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        for kid, key in self.keys.items():
            if not _KID.fullmatch(kid):
                raise ConfigError(
                    f"a signing key's id is {_shown(kid)}",
                    hint="take 1 to 31 letters, digits, dots, dashes or underscores",
                )
            if len(key) < _SHORTEST:
                raise ConfigError(
                    f"the signing key {kid!r} is shorter than {_SHORTEST} bytes",
                    hint="make one with: head -c 32 /dev/urandom | base64",
                )
        if self.signing not in self.keys:
            raise ConfigError(f"there is no key of the id {_shown(self.signing)}, which is to sign")
        trailers = {
            kid: b"\xa3kid" + bytes((0xA0 | len(kid),)) + kid.encode() + _SIG for kid in self.keys
        }
        # A frozen dataclass has no other way to set up itself.
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
        """The keyring that ``id:base64,id:base64`` describes; the first key signs.

        Raises ``ConfigError``, which never shows a key.
        """
        keys: dict[str, bytes] = {}
        for position, part in enumerate(text.split(","), 1):
            kid, colon, encoded = part.strip().partition(":")
            if not colon or not _KID.fullmatch(kid):
                # Without the colon the part may be a key, so it is not shown.
                raise ConfigError(
                    f"signing key {position} is not of the form id:base64",
                    hint="an id has 1 to 31 letters, digits, dots, dashes or underscores",
                )
            if kid in keys:
                raise ConfigError(f"two signing keys have the id {kid!r}")
            try:
                keys[kid] = base64.b64decode(encoded, validate=True)
            except (binascii.Error, ValueError):
                raise ConfigError(f"the signing key {kid!r} is not base64") from None
        return cls(next(iter(keys)), keys)

    def sign(self, unsigned: bytes) -> bytes:
        """``unsigned``, then the entries ``kid`` and ``sig`` that make it a signed envelope."""
        covered = unsigned + self._trailers[self.signing]
        return covered + hmac.digest(self.keys[self.signing], covered, "sha256")

    def verify(self, raw: bytes) -> tuple[str, int]:
        """The id of the key that signed ``raw``, and where the entries that ``sign`` added begin.

        Raises ``SignatureError`` when the signature is missing, of an unknown key, or wrong.
        """
        end = len(raw) - _MAC_SIZE
        if end < 0 or not raw.endswith(_SIG, 0, end):
            raise SignatureError(
                "the envelope is not signed, and keys are configured here",
                hint="configure the same keys where it was published",
            )
        for kid, trailer in self._trailers.items():
            if raw.endswith(trailer, 0, end):
                self._compare(kid, raw, end)
                return kid, end - len(trailer)
        raise SignatureError(
            "the envelope is signed with a key that is not known here",
            hint=f"known here: {', '.join(self.keys)}",
        )

    def _compare(self, kid: str, raw: bytes, end: int) -> None:
        if not hmac.compare_digest(hmac.digest(self.keys[kid], raw[:end], "sha256"), raw[end:]):
            raise SignatureError(
                f"the signature by key {kid!r} is wrong",
                hint="the envelope was altered, or another key goes by that id where it was made",
            )


def _shown(kid: object) -> str:
    """An id for an error: shortened, as somebody may have put a key in its place."""
    text = str(kid)
    return repr(text if len(text) <= 8 else f"{text[:4]}...")
