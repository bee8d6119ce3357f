"""Changes as bytes: one envelope a change.

It knows nothing of brokers or stores. docs/envelope.md is the specification of what it writes and
reads. How many envelopes go into one message (``framing``) and how they are signed (``keyring``)
is part of that, and to be had from here.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

from eventsync.changes.change import BaseState, Change, make_bodies
from eventsync.changes.clock import Version
from eventsync.changes.stamp import Stamp
from eventsync.envelope import fast_path
from eventsync.envelope.batch import MAX_COUNT, batches, framed_size, join_batch, split_batch
from eventsync.envelope.rules import MAX_KEY, MAX_NAME, check_body, check_head
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
"""How large one envelope may be, unless another limit is given."""

# So many envelopes are made at once: more stay in no processor's cache, and one that is unlike the
# others, or may not travel, keeps no more than these from being made together.
_TOGETHER: Final = 500


def encode(change: Change, *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES) -> bytes:
    """The envelope of ``change``, signed if there are ``keys``. Pure, thread-safe.

    Raises ``ValueRefusedError`` for a change that may not travel. What it takes ``decode`` takes.
    """
    check_body(change)
    raw = fast_path.write(change, signed=keys is not None)
    if keys is not None:
        raw = keys.sign(raw)
    if len(raw) > max_bytes:
        raise ValueRefusedError(
            f"the envelope of {change.type} {change.key!r} has {len(raw)} bytes; "
            f"{max_bytes} is the limit",
            hint="keep large content elsewhere, and a reference to it in the record",
        )
    return raw


def encode_all(
    changes: Sequence[Change], *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES
) -> list[bytes]:
    """As ``encode`` of each, in less time where they are alike: puts of one type, say.

    Raises ``ValueRefusedError`` for the first that may not travel.
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
    """The change in an envelope. Pure, thread-safe; for bytes from anywhere.

    With ``keys`` a signature is demanded, and verified before anything else is looked at; without,
    it is ignored. Entries that this version does not know are kept in ``ext`` under the empty name
    and encoded again with the rest.

    Raises ``EnvelopeError``, and nothing else; its ``reason`` is ``too-large``, ``signature`` (then
    it is a ``SignatureError``), ``envelope`` (not one at all), ``envelope-version`` (of a later
    major version) or ``malformed`` (an entry breaks its rule).
    """
    change = _decode_lazily(raw, keys, max_bytes)
    try:
        change.data  # noqa: B018  # reads it
    except ValueRefusedError:
        return _read_any(raw, None if keys is None else keys.verify(raw)[0])  # says what is wrong
    return change


def decode_all(
    raws: Sequence[bytes], *, keys: Keyring | None = None, max_bytes: int = MAX_BYTES
) -> list[Change | EnvelopeError]:
    """The change in each envelope, as ``decode``, or the error that it would raise.

    The body of a change may be left unread until its ``data`` are asked for, which then raises
    ``ValueRefusedError`` if they are none.
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
        raise EnvelopeError(f"{len(raw)} bytes; {max_bytes} is the limit", reason="too-large")
    kid, end = (None, len(raw)) if keys is None else keys.verify(raw)
    return fast_path.read(raw, end) or _read_any(raw, kid)


def _read_any(raw: bytes, kid: str | None = None) -> Change:
    """The change in an envelope laid out in any order; ``kid``: whose signature was verified."""
    try:
        entries = unpacking.unpack_parts(raw)
    except ValueRefusedError as error:
        raise EnvelopeError(f"not an envelope: {error.message}") from error
    if type(entries) is not dict or "v" not in entries:
        raise EnvelopeError("not an envelope: no map with an entry v")
    major = entries.pop("v")
    if type(major) is int and major >= 0 and major != fast_path.MAJOR:
        raise EnvelopeError(
            f"an envelope of version {shown(major)}; this eventsync reads {fast_path.MAJOR}",
            reason="envelope-version",
            hint="upgrade the consumers before the producers, then replay it",
        )
    signer, signature = entries.pop("kid", None), entries.pop("sig", None)
    if kid is not None and (signer != kid or signature != raw[-32:]):
        # What was verified are bytes that look like a signature, somewhere deeper.
        raise SignatureError("the signature is not the last entry of the envelope")
    try:
        if type(major) is not int or major != fast_path.MAJOR:
            raise ValueRefusedError(f"v is {shown(major)}, not an integer from 0")
        return _change_of(entries)
    except ValueRefusedError as error:
        raise malformed(f"malformed envelope: {error.message}", hint=error.hint) from error


def _change_of(entries: dict[Any, Any]) -> Change:
    """The change that these entries describe; those of unknown names go with it."""
    for name in ("id", "type", "key", "op", "ver", "data"):
        if name not in entries:
            raise ValueRefusedError(f"{name} is missing")
    source, type_, op = entries.pop("src", ""), entries.pop("type"), entries.pop("op")
    schema, hops = entries.pop("schema", 1), entries.pop("hops", 0)
    check_head(source, type_, op, schema, hops)
    data = entries.pop("data")
    if data is not None:
        _check_map("data", data)
    ext = entries.pop("ext", {})
    _check_map("ext", ext)
    if fast_path.UNKNOWN in ext:
        raise ValueRefusedError("ext holds the empty name, which is reserved")
    change = Change(
        type=type_,
        key=entries.pop("key"),
        op=op,
        version=Version(_bytes_of("ver", entries.pop("ver"), 16)),
        data=data,
        source=source,
        id=entries.pop("id"),
        schema=schema,
        hops=hops,
        ext=ext,
        known=_known_of(entries.pop("known")) if "known" in entries else None,
    )
    check_body(change)
    if entries:
        for name, item in entries.items():
            if type(name) is not str or len(name) > packing.MAX_ENTRIES:
                raise ValueRefusedError(f"an entry's name is {shown(name)}, not a short text")
            packing.check(item)
        change.ext = {**ext, fast_path.UNKNOWN: entries}
    return change


def _known_of(entries: Any) -> BaseState:
    # Its maps have, like ``data``, the whole depth to themselves.
    _check_map("known", entries, depth=-1)
    for name in ("stamp", "values", "versions"):
        if name not in entries:
            raise ValueRefusedError(f"known.{name} is missing")
    values, versions = entries["values"], entries["versions"]
    if type(values) is not dict or type(versions) is not dict:
        raise ValueRefusedError("known.values and known.versions are not both maps")
    return BaseState(
        Stamp(_bytes_of("known.stamp", entries["stamp"], 49)),
        values,
        {
            name: Version(_bytes_of("a version of known.versions", version, 16))
            for name, version in versions.items()
        },
    )


def _check_map(name: str, entries: Any, *, depth: int = 0) -> None:
    if type(entries) is not dict:
        raise ValueRefusedError(f"{name} is {shown(entries)}, not a map")
    packing.check(entries, depth=depth)


def _bytes_of(name: str, raw: Any, size: int) -> bytes:
    if type(raw) is not bytes or len(raw) != size:
        raise ValueRefusedError(f"{name} is {shown(raw)}, not {size} bytes")
    return raw
