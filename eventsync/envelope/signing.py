"""Signing: the signing keys, and the signature at the end of an envelope (docs/envelope.md)."""

from __future__ import annotations

import base64
import binascii
import hmac
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

from eventsync.changes.change import Change
from eventsync.envelope.key_scope import KeyScope
from eventsync.errors import ConfigError, EnvelopeError, SignatureError

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
    signature. ``scopes``: the limits of keys, by id; other keys may sign any change. To rotate
    keys, add the new key everywhere, then sign with the new key everywhere, then remove the old
    key. Raises ``ConfigError`` if an id is not 1 to 31 letters, digits or ``._-``, if a key has
    fewer than 16 bytes, or if ``signing`` is not in ``keys``.
    """

    signing: str
    keys: Mapping[str, bytes] = field(repr=False, hash=False)
    scopes: Mapping[str, KeyScope] = field(default_factory=dict, hash=False)
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
        object.__setattr__(self, "scopes", MappingProxyType(dict(self.scopes)))
        object.__setattr__(self, "_trailers", MappingProxyType(trailers))

    def __repr__(self) -> str:
        return f"Keyring(signing={self.signing!r}, ids={list(self.keys)})"

    def __reduce__(self) -> tuple[Any, ...]:
        return Keyring.parse, (self.describe(),)

    def describe(self) -> str:
        """Return the text from which ``parse`` makes this keyring. It contains the keys."""
        first = [self.signing, *(kid for kid in self.keys if kid != self.signing)]
        return "".join(
            f"{kid}:{base64.b64encode(self.keys[kid]).decode()}"
            f"{' ' if kid in self.scopes else ''}{self.scopes.get(kid, '')}\n"
            for kid in first
        )

    @classmethod
    def parse(cls, text: str) -> Keyring:
        """Return the keyring that a text describes. The first key of the text signs.

        The text has one key a line, ``id:base64``, optionally followed by the limits of the key as
        ``KeyScope.parse`` reads them. Empty lines and lines that start with ``#`` are ignored. A
        text of one line may instead have several keys without limits, separated by commas.

        Raises ``ConfigError`` if the text is malformed, an id occurs twice, or a key is invalid.
        The error never contains a key.
        """
        keys: dict[str, bytes] = {}
        scopes: dict[str, KeyScope] = {}
        for position, (part, *limits) in enumerate(_parts(text), 1):
            kid, colon, encoded = part.partition(":")
            if not colon or not _KID.fullmatch(kid):
                # The error does not show the text: a text without a colon may be the key itself.
                raise ConfigError(
                    f"signing key {position} is not of the form id:base64",
                    hint="an id has 1 to 31 letters, digits, dots, dashes or underscores; make a "
                    "key with eventsync keys new",
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
            if scope := KeyScope.parse(limits, kid):
                scopes[kid] = scope
        if not keys:
            raise ConfigError(
                "there is no signing key in the setting keys",
                hint="make one with eventsync keys new, or remove the setting",
            )
        return cls(next(iter(keys)), keys, scopes)

    def refusal(self, change: Change, kid: str) -> EnvelopeError | None:
        """Return why ``change`` may not be signed with the key ``kid``; ``None`` if it may be."""
        scope = self.scopes.get(kid)
        return None if scope is None else scope.refusal(change, kid)

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


def _parts(text: str) -> list[list[str]]:
    """Return for each key in the text of a keyring its id with the key, and its limits."""
    lines = [line for line in map(str.strip, text.splitlines()) if line and line[0] != "#"]
    if len(lines) == 1:
        several = [part.split() for part in lines[0].split(",")]
        if all(len(words) == 1 for words in several):
            return several
    return [line.split() for line in lines]


def _shown(kid: object) -> str:
    """Return an id as text for an error. Long ids are cut, because they may be keys by mistake."""
    text = str(kid)
    return repr(text if len(text) <= 8 else f"{text[:4]}...")
