"""The order in which eventsync itself writes the entries of an envelope, and reads it back fast.

It knows nothing of signatures or of envelopes that others have laid out; ``envelope`` reads all.

What repeats from envelope to envelope (``v, src, type, op, schema, hops``) comes first, so that it
is made, or read and checked, but once. What differs follows: ``id, ver, key``, entries that few
envelopes have, and ``data``, which ends the envelope or is followed by its signature only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from itertools import repeat
from struct import Struct
from typing import Any, Final

from eventsync.changes.change import BaseState, Change, body_parts
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, Op, Stamp
from eventsync.envelope.rules import MAX_KEY, check_head, check_known, check_text
from eventsync.errors import ValueRefusedError
from eventsync.values import packing, unpacking

__all__ = ["MAJOR", "NAMES", "UNKNOWN", "read", "read_all", "write", "write_alike"]

MAJOR: Final = 1
"""The version of the envelope that this package reads and writes."""

NAMES: Final = frozenset(
    {"v", "src", "type", "op", "schema", "hops", "id", "ver", "key", "ext", "known", "data"}
    | {"kid", "sig"}
)
"""The entries that this version knows."""

UNKNOWN: Final = ""
"""Where a change carries, within ``ext``, the entries of its envelope that are not in ``NAMES``."""

_ENTRIES: Final = 10
_SIGNATURE_ENTRIES: Final = 2
# How an envelope begins that has these and no others.
_PLAIN: Final = bytes((0x80 | _ENTRIES,))
_ID: Final = b"\xa2id\xc4\x10"
_VER: Final = b"\xa3ver\xc4\x10"
_KEY: Final = b"\xa3key"
# From ``id`` on to the first byte of the key: what has the same length in every envelope.
_FIXED: Final = Struct("5x16s6s16s4sB")
_EXT: Final = b"\xa3ext"
_KNOWN: Final = b"\xa5known\x83\xa5stamp\xc4\x31"
_VALUES: Final = b"\xa6values"
_VERSIONS: Final = b"\xa8versions"
_DATA: Final = b"\xa4data"
_NIL: Final = b"\xc0"
# Keeps the memo of heads small, whatever is received; longer ones are read without it.
_LONGEST_HEAD: Final = 512

_Head = tuple[str, str, Op, int, int]


def write(change: Change, *, signed: bool) -> bytes:
    """The envelope of ``change``, or what comes before the signature when it is to be ``signed``.

    The change's own entries have been checked. Raises ``ValueRefusedError`` for the rest.
    """
    count, extra = _ENTRIES + _SIGNATURE_ENTRIES * signed, b""
    if change.ext or change.known is not None:
        more, extra = _write_extra(change)
        count += more
    return b"".join(
        (
            _write_head(count, change.source, change.type, change.op, change.schema, change.hops),
            change.id,
            _VER,
            change.version,
            _KEY,
            _write_text(change.key),
            extra,
            _DATA,
            change.body or _NIL,
        )
    )


def write_alike(changes: Sequence[Change], *, signed: bool) -> list[bytes] | None:
    """What ``write`` makes of each of many puts or patches that are alike, made part by part.

    Their bodies are not kept. ``None`` where they are not alike, or too few for that to be quicker,
    or where one breaks a rule, whichever that is.
    """
    heads = {(c.source, c.type, c.op, c.schema, c.hops) for c in changes}
    if len(heads) != 1 or any(c.ext or c.known is not None or c.op == DELETE for c in changes):
        return None
    bodies = body_parts(changes)
    if bodies is None:
        return None
    ids = [change.id for change in changes]
    versions = [change.version for change in changes]
    keys = [change.key for change in changes]
    if set(map(type, ids)) != {bytes} or {*map(len, ids), *map(len, versions)} != {16}:
        return None
    if set(map(type, keys)) != {str} or "" in keys or max(map(len, keys)) > MAX_KEY:
        return None
    try:
        head = _write_head(_ENTRIES + _SIGNATURE_ENTRIES * signed, *heads.pop())
        texts = packing.pack_column(keys)
    except ValueRefusedError:
        return None
    parts = (repeat(head), ids, repeat(_VER), versions, repeat(_KEY), texts, repeat(_DATA), *bodies)
    return list(map(b"".join, zip(*parts, strict=False)))


# This and ``_read_head`` are memos of pure functions.
@lru_cache(maxsize=1024)
def _write_head(count: int, source: str, type: str, op: str, schema: int, hops: int) -> bytes:
    """How a map of ``count`` entries begins: up to where its ``id`` goes."""
    check_head(source, type, op, schema, hops)
    head = {"v": MAJOR, "src": source, "type": type, "op": op, "schema": schema, "hops": hops}
    return packing.map_head(count) + packing.pack(head)[1:] + _ID


def _write_text(text: str) -> bytes:
    try:
        encoded = text.encode()
    except UnicodeEncodeError:
        raise ValueRefusedError("the key holds a lone surrogate, which has no UTF-8 form") from None
    size = len(encoded)
    if size < 32:
        return b"%c%b" % (0xA0 | size, encoded)
    return b"\xd9%c%b" % (size, encoded) if size < 256 else packing.pack(text)


def _write_extra(change: Change) -> tuple[int, bytes]:
    """What not every envelope has: how many entries, and their bytes."""
    count, parts = 0, []
    ext = dict(change.ext)
    unknown = ext.pop(UNKNOWN, {})
    if ext:
        count += 1
        parts += [_EXT, packing.pack(ext)]
    if type(unknown) is not dict or not NAMES.isdisjoint(unknown):
        raise ValueRefusedError(
            "ext[''] is not a map of envelope entries that this version does not know",
            hint="the empty name is reserved within ext",
        )
    if len(unknown) > packing.MAX_ENTRIES - len(NAMES):
        raise ValueRefusedError(f"{len(unknown)} envelope entries of unknown names are too many")
    for name, item in unknown.items():
        check_text("an entry's name", name, packing.MAX_ENTRIES)
        count += 1
        parts += [packing.pack(name), packing.pack(item)]
    known = change.known
    if known is not None:
        count += 1
        versions = {name: bytes(version) for name, version in known.versions.items()}
        parts += [_KNOWN, known.stamp, _VALUES, packing.pack(_as_dict(known.values))]
        parts += [_VERSIONS, packing.pack(versions)]
    return count, b"".join(parts)


def _as_dict(body: Mapping[str, Any]) -> dict[str, Any]:
    return body if type(body) is dict else dict(body)


def read_all(raws: Iterable[bytes]) -> list[Change | None]:
    """As ``read``, for many envelopes without signatures."""
    # What most are, changes of the same source, type and kind with nothing added, takes no call of
    # Python's but the one that makes the change; the others are read one by one.
    found: list[Change | None] = []
    fields, fixed = _FIXED.unpack_from, _FIXED.size
    sealed, new = Change.sealed, bytes.__new__
    first, at, head = b"", 0, None
    for raw in raws:
        if head is None or not raw.startswith(first):
            at = raw.find(_ID, 0, _LONGEST_HEAD)
            first = raw[: at + len(_ID)]
            head = _read_head(raw[1:at]) if raw[:1] == _PLAIN and at > 0 else None
        if head is not None and len(raw) > at + fixed:
            id_, ver, version, key_name, size = fields(raw, at)
            start = at + fixed
            after = start + (size & 0x1F)
            if (
                (ver == _VER and key_name == _KEY and 0xA0 < size <= 0xBF)
                and raw.startswith(_DATA, after)
                # Whatever is not ASCII may not be UTF-8 either.
                and (key := raw[start:after]).isascii()
                and ((body := raw[after + len(_DATA) :]) == _NIL or head[2] != DELETE)
            ):
                source, type_, op, schema, hops = head
                found.append(
                    sealed(
                        source,
                        type_,
                        op,
                        schema,
                        hops,
                        key.decode(),
                        new(Version, version),
                        id_,
                        None,
                        body,
                    )
                )
                continue
        found.append(read(raw, len(raw)))
    return found


def read(raw: bytes, end: int) -> Change | None:
    """The change in an envelope that ``write`` made, its body unread; ``None`` for others.

    ``end``: where its own entries end, and those of a signature begin. It takes nothing that breaks
    a rule, and reads nothing otherwise than by the letter of msgpack; it is there for speed only.
    """
    at = raw.find(_ID, 0, _LONGEST_HEAD)
    if at < 0 or len(raw) <= at + _FIXED.size:
        return None
    head = _read_head(raw[1:at])
    id_, ver, version, key_name, size = _FIXED.unpack_from(raw, at)
    if head is None or ver != _VER or key_name != _KEY:
        return None
    start = at + _FIXED.size
    if 0xA0 < size <= 0xBF:
        size &= 0x1F
    elif size == 0xD9 and raw[start]:
        start, size = start + 1, raw[start]
    else:
        return None
    after = start + size
    count = (raw[0] ^ 0x80) - _ENTRIES - (0 if end == len(raw) else _SIGNATURE_ENTRIES)
    source, type_, op, schema, hops = head
    known = None
    try:
        key = raw[start:after].decode()
        if count == 1:
            known, after = _read_known(raw, after, end)
        elif count:
            return None
    except (UnicodeDecodeError, ValueRefusedError):
        return None
    if not raw.startswith(_DATA, after) or (known is not None and op != PATCH):
        return None
    body = raw[after + len(_DATA) : end]
    # Its length is known: ``Version`` would look again.
    version = bytes.__new__(Version, version)
    if op == DELETE and body != _NIL:
        return None
    return Change.sealed(source, type_, op, schema, hops, key, version, id_, known, body)


@lru_cache(maxsize=1024)
def _read_head(head: bytes) -> _Head | None:
    """The first six entries of an envelope, if these bytes are they."""
    try:
        found = unpacking.unpack(b"\x86" + head)
        source, type_, op = found["src"], found["type"], found["op"]
        schema, hops, major = found["schema"], found["hops"], found["v"]
        check_head(source, type_, op, schema, hops)
    except (ValueRefusedError, KeyError):
        return None
    return (source, type_, op, schema, hops) if type(major) is int and major == MAJOR else None


def _read_known(raw: bytes, at: int, end: int) -> tuple[BaseState, int]:
    """What follows ``key`` if it is ``known``, and where that ends.

    Raises ``ValueRefusedError`` where it is not, or not flat. The names that are sought could also
    be found inside a value; but then what lies between them is not one map, and is refused.
    """
    stamp = at + len(_KNOWN)
    values = stamp + 49 + len(_VALUES)
    values_end = raw.find(_VERSIONS, values, end)
    versions = values_end + len(_VERSIONS)
    versions_end = raw.find(_DATA, versions, end)
    if values_end < 0 or versions_end < 0 or raw[at:stamp] != _KNOWN:
        raise ValueRefusedError("known is not laid out as usual")
    held = unpacking.unpack_flat(raw[values:values_end])
    of_fields = unpacking.unpack_flat(raw[versions:versions_end])
    if held is None or of_fields is None or raw[stamp + 49 : values] != _VALUES:
        raise ValueRefusedError("known is not flat")
    if not all(type(version) is bytes and len(version) == 16 for version in of_fields.values()):
        raise ValueRefusedError("known.versions holds what is no version")
    known = BaseState(
        Stamp(raw[stamp : stamp + 49]),
        held,
        {name: Version(version) for name, version in of_fields.items()},
    )
    check_known(known)
    return known, versions_end
