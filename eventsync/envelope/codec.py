"""The codec: encodes changes as envelopes and decodes envelopes to changes, one for each change.

docs/envelope.md specifies the bytes. ``batch`` puts envelopes into messages, and ``signing`` signs
envelopes; this module exports their public names, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from eventsync.changes.change import Change, make_bodies
from eventsync.changes.clock import Version
from eventsync.envelope import fast_path
from eventsync.envelope.batch import MAX_COUNT, batches, framed_size, join_batch, split_batch
from eventsync.envelope.rules import (
    MAX_KEY,
    MAX_NAME,
    bytes_of,
    check_body,
    check_head,
    check_map,
    known_of,
)
from eventsync.envelope.signing import Keyring
from eventsync.errors import EnvelopeError, SignatureError, ValueRefusedError, malformed, shown
from eventsync.values import packing, unpacking
from eventsync.values.chunk import chunked

__all__ = [
    "CONTENT_TYPE",
    "MAX_BYTES",
    "MAX_COUNT",
    "MAX_KEY",
    "MAX_NAME",
    "Keyring",
    "batches",
    "decode",
    "decode_all",
    "encode",
    "encode_all",
    "framed_size",
    "join_batch",
    "split_batch",
]

CONTENT_TYPE: Final = "application/x-eventsync"
"""The content type of a message that carries envelopes."""

MAX_BYTES: Final = 256 * 1024
"""The default limit on the bytes of one envelope."""

# How many changes are encoded together: few enough for the processor's cache. If one change differs
# from the others, all changes encoded together with it take the slow path.
_TOGETHER: Final = 500


def encode(change: Change, *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the envelope of ``change``, signed if ``keys`` are given. Pure, thread-safe.

    ``max_bytes``: the limit on the size of the envelope. Raises ``ValueRefusedError`` if the change
    breaks a rule of docs/envelope.md, a value may not travel, the envelope is too large, or the key
    may not sign the change.
    ``decode`` can read every envelope that this function returns.
    """
    check_body(change)
    _check_scope(change, keys)
    raw = fast_path.write(change, signed=keys is not None)
    if keys is not None:
        raw = keys.sign(raw)
    if len(raw) > max_bytes:
        raise ValueRefusedError(
            f"the envelope of {change.type} {change.key!r} has {len(raw)} bytes; "
            f"{max_bytes} is the limit",
            hint="store large content elsewhere and put a reference to it into the record",
        )
    return raw


def encode_all(
    changes: Sequence[Change], *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES
) -> list[bytes]:
    """Return the envelope of each change, in the same order.

    Faster than ``encode`` for each change if the changes are similar, for example puts of one
    record type. Raises ``ValueRefusedError`` if ``encode`` would raise it for one of the changes.
    """
    raws: list[bytes] = []
    for chunk in chunked(changes, _TOGETHER):
        raws += _encode_some(chunk, keys, max_bytes)
    return raws


def _check_scope(change: Change, keys: Keyring | None) -> None:
    """Raise ``ValueRefusedError`` if the key that signs may not sign ``change``."""
    refusal = None if keys is None else keys.refusal(change, keys.signing)
    if refusal is not None:
        raise ValueRefusedError(refusal.message, reason=refusal.reason, hint=refusal.hint)


def _encode_some(changes: Sequence[Change], keys: Keyring | None, max_bytes: int) -> list[bytes]:
    if keys is not None and keys.scopes:
        for change in changes:
            _check_scope(change, keys)
    raws = fast_path.write_alike(changes, signed=keys is not None)
    if raws is not None and keys is not None:
        raws = list(map(keys.sign, raws))
    if raws is None or max(map(len, raws)) > max_bytes:
        make_bodies(changes)
        return [encode(change, keys=keys, max_bytes=max_bytes) for change in changes]
    return raws


def decode(raw: bytes, *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES) -> Change:
    """Return the change in an envelope. Pure, thread-safe.

    ``raw`` may come from an attacker. With ``keys``, the signature is verified before anything else
    is read; an envelope without a signature, or one whose key may not sign such a change, is
    refused. Without ``keys``, a signature is ignored.
    Entries with names that this version does not know are kept in ``Change.ext`` under the empty
    name, and ``encode`` writes these entries again.

    Raises ``EnvelopeError``, and no other error. The ``reason`` of the error is ``too-large`` (more
    than ``max_bytes`` bytes), ``signature`` (the error is a ``SignatureError``), ``envelope`` (the
    bytes are not an envelope), ``envelope-version`` (another major version), ``malformed`` (an
    entry is missing or invalid) or ``not-permitted`` (the key may not sign this change).
    """
    change = _decode_lazily(raw, keys, max_bytes)
    try:
        change.data  # noqa: B018  # unpacks the body
    except ValueRefusedError:
        # ``_read_any`` raises an ``EnvelopeError`` that says what is wrong.
        return _read_any(raw, None if keys is None else keys.verify(raw)[0])
    return change


def decode_all(
    raws: Sequence[bytes], *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES
) -> list[Change | EnvelopeError]:
    """Return for each envelope the change that ``decode`` returns, or the error that it raises.

    Unlike ``decode``, this function may leave the body of a change packed until ``Change.data`` is
    first read: in a busy queue, most changes are superseded before their values are needed. Reading
    ``data`` then raises ``ValueRefusedError`` if the body is malformed.
    """
    if keys is None and raws and max(map(len, raws)) <= max_bytes:
        changes: list[Any] = fast_path.read_all(raws)
    else:
        changes = [None] * len(raws)
    for number, change in enumerate(changes):
        if change is None:
            try:
                changes[number] = _decode_lazily(raws[number], keys, max_bytes)
            except EnvelopeError as error:
                changes[number] = error
    return changes


def _decode_lazily(raw: bytes, keys: Keyring | None, max_bytes: int) -> Change:
    if len(raw) > max_bytes:
        raise EnvelopeError(
            f"the envelope has {len(raw)} bytes; {max_bytes} is the limit", reason="too-large"
        )
    if keys is None:
        return fast_path.read(raw, len(raw)) or _read_any(raw)
    kid, end = keys.verify(raw)
    change = fast_path.read(raw, end) or _read_any(raw, kid)
    refusal = keys.refusal(change, kid)
    if refusal is not None:
        raise refusal
    return change


def _read_any(raw: bytes, kid: str | None = None) -> Change:
    """Return the change in an envelope whose entries may be in any order.

    ``kid``: the id of the key that verified the signature; ``None`` if signatures are not verified.
    Raises ``EnvelopeError`` if the envelope is malformed.
    """
    try:
        entries = unpacking.unpack_parts(raw)
    except ValueRefusedError as error:
        raise EnvelopeError(f"the bytes are not an envelope: {error.message}") from error
    if type(entries) is not dict or "v" not in entries:
        raise EnvelopeError("the bytes are not an envelope: they are not a map with an entry v")
    major = entries.pop("v")
    if type(major) is int and major >= 0 and major != fast_path.MAJOR:
        raise EnvelopeError(
            f"the envelope has version {shown(major)}; this eventsync reads only version "
            f"{fast_path.MAJOR}",
            reason="envelope-version",
            hint="upgrade the workers before the producers, then replay the dead letter",
        )
    signer, signature = entries.pop("kid", None), entries.pop("sig", None)
    if kid is not None and (signer != kid or signature != raw[-32:]):
        # The bytes that were verified are part of another entry and only look like a signature.
        raise SignatureError("the signature is not the last entry of the envelope")
    try:
        if type(major) is not int or major != fast_path.MAJOR:
            raise ValueRefusedError(f"the entry v is {shown(major)}, not an integer of at least 0")
        return _change_of(entries)
    except ValueRefusedError as error:
        raise malformed(f"malformed envelope: {error.message}", hint=error.hint) from error


def _change_of(entries: dict[Any, Any]) -> Change:
    """Return the change that the entries of an envelope describe. Removes the known ``entries``.

    Entries with unknown names are kept in ``Change.ext``. Raises ``ValueRefusedError`` if an entry
    is missing or breaks its rule.
    """
    for name in ("id", "type", "key", "op", "ver", "data"):
        if name not in entries:
            raise ValueRefusedError(f"the entry {name} is missing")
    source, type_, op = entries.pop("src", ""), entries.pop("type"), entries.pop("op")
    schema, hops = entries.pop("schema", 1), entries.pop("hops", 0)
    check_head(source, type_, op, schema, hops)
    data = entries.pop("data")
    if data is not None:
        check_map("data", data)
    ext = entries.pop("ext", {})
    check_map("ext", ext)
    if fast_path.UNKNOWN in ext:
        raise ValueRefusedError("the map ext has an entry with the empty name, which is reserved")
    version = Version(bytes_of("the entry ver", entries.pop("ver"), 16))
    change = Change(
        type=type_,
        key=entries.pop("key"),
        op=op,
        version=version,
        data=data,
        source=source,
        id=entries.pop("id"),
        schema=schema,
        hops=hops,
        ext=ext,
        known=known_of(entries.pop("known"), version) if "known" in entries else None,
    )
    check_body(change)
    if entries:
        for name, item in entries.items():
            if type(name) is not str or len(name) > packing.MAX_ENTRIES:
                raise ValueRefusedError(
                    f"the name of an envelope entry is {shown(name)}, not a string of at most "
                    f"{packing.MAX_ENTRIES} characters"
                )
            packing.check(item)
        change.ext = {**ext, fast_path.UNKNOWN: entries}
    return change
