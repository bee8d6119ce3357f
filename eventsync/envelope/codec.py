"""The codec: changes to envelopes and back, one envelope for each change.

docs/envelope.md is the specification of the bytes. ``batch`` puts envelopes into messages and
``signing`` signs them; this module re-exports both.
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
"""The default limit on the size of one envelope."""

# The number of envelopes made at once. They fit into the processor's cache, and one envelope that
# differs from the others slows down only this many.
_TOGETHER: Final = 500


def encode(change: Change, *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """Return the envelope of ``change``, signed if ``keys`` are given. Pure, thread-safe.

    Raises ``ValueRefusedError`` for a change that may not travel. ``decode`` reads every envelope
    that this returns.
    """
    check_body(change)
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
    """Return the envelope of each change, as ``encode`` does.

    It takes less time when the changes are similar, for example puts of one record type. Raises
    ``ValueRefusedError`` for the first change that may not travel.
    """
    raws: list[bytes] = []
    for start in range(0, len(changes), _TOGETHER):
        raws += _encode_some(changes[start : start + _TOGETHER], keys, max_bytes)
    return raws


def _encode_some(changes: Sequence[Change], keys: Keyring | None, max_bytes: int) -> list[bytes]:
    raws = fast_path.write_alike(changes, signed=keys is not None)
    if raws is not None and keys is not None:
        raws = list(map(keys.sign, raws))
    if raws is None or max(map(len, raws)) > max_bytes:
        make_bodies(changes)
        return [encode(change, keys=keys, max_bytes=max_bytes) for change in changes]
    return raws


def decode(raw: bytes, *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES) -> Change:
    """Return the change in an envelope. Pure, thread-safe; safe for bytes from anywhere.

    With ``keys`` the envelope must have a signature, which is verified before anything else is
    read. Without ``keys`` a signature is ignored. Entries that this version does not know are kept
    in ``ext`` under the empty name, so that ``encode`` writes them again.

    Raises only ``EnvelopeError``. Its ``reason`` is ``too-large``, ``signature`` (the error is a
    ``SignatureError``), ``envelope`` (the bytes are no envelope), ``envelope-version`` (a later
    major version) or ``malformed`` (an entry breaks its rule).
    """
    change = _decode_lazily(raw, keys, max_bytes)
    try:
        change.data  # noqa: B018  # unpacks the body
    except ValueRefusedError:
        # This raises the error that says what is wrong.
        return _read_any(raw, None if keys is None else keys.verify(raw)[0])
    return change


def decode_all(
    raws: Sequence[bytes], *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES
) -> list[Change | EnvelopeError]:
    """Return for each envelope its change, as ``decode`` does, or the error.

    The body of a change may stay packed until its ``data`` are first read, because most changes in
    a busy queue are superseded before anybody needs their values. Reading ``data`` raises
    ``ValueRefusedError`` if the body is malformed.
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
    kid, end = (None, len(raw)) if keys is None else keys.verify(raw)
    return fast_path.read(raw, end) or _read_any(raw, kid)


def _read_any(raw: bytes, kid: str | None = None) -> Change:
    """Return the change in an envelope of any layout.

    ``kid``: the id of the key by which the signature was verified.
    """
    try:
        entries = unpacking.unpack_parts(raw)
    except ValueRefusedError as error:
        raise EnvelopeError(f"not an envelope: {error.message}") from error
    if type(entries) is not dict or "v" not in entries:
        raise EnvelopeError("not an envelope: it is not a map with an entry v")
    major = entries.pop("v")
    if type(major) is int and major >= 0 and major != fast_path.MAJOR:
        raise EnvelopeError(
            f"the envelope is of version {shown(major)}; this eventsync reads version "
            f"{fast_path.MAJOR}",
            reason="envelope-version",
            hint="upgrade the workers before the producers, then replay the dead letter",
        )
    signer, signature = entries.pop("kid", None), entries.pop("sig", None)
    if kid is not None and (signer != kid or signature != raw[-32:]):
        # The verified bytes lie inside another entry and only look like a signature.
        raise SignatureError("the signature is not the last entry of the envelope")
    try:
        if type(major) is not int or major != fast_path.MAJOR:
            raise ValueRefusedError(f"v is {shown(major)}, not an integer of at least 0")
        return _change_of(entries)
    except ValueRefusedError as error:
        raise malformed(f"malformed envelope: {error.message}", hint=error.hint) from error


def _change_of(entries: dict[Any, Any]) -> Change:
    """Return the change that these entries describe, with the entries of unknown names."""
    for name in ("id", "type", "key", "op", "ver", "data"):
        if name not in entries:
            raise ValueRefusedError(f"{name} is missing")
    source, type_, op = entries.pop("src", ""), entries.pop("type"), entries.pop("op")
    schema, hops = entries.pop("schema", 1), entries.pop("hops", 0)
    check_head(source, type_, op, schema, hops)
    data = entries.pop("data")
    if data is not None:
        check_map("data", data)
    ext = entries.pop("ext", {})
    check_map("ext", ext)
    if fast_path.UNKNOWN in ext:
        raise ValueRefusedError("ext has an entry with the empty name, which is reserved")
    change = Change(
        type=type_,
        key=entries.pop("key"),
        op=op,
        version=Version(bytes_of("ver", entries.pop("ver"), 16)),
        data=data,
        source=source,
        id=entries.pop("id"),
        schema=schema,
        hops=hops,
        ext=ext,
        known=known_of(entries.pop("known")) if "known" in entries else None,
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
