"""The rules for the entries of an envelope, the same for writing and for reading.

Every check raises ``ValueRefusedError``.
"""

from __future__ import annotations

from typing import Any, Final

from eventsync.changes.change import BaseState, Change
from eventsync.changes.clock import Version
from eventsync.changes.stamp import DELETE, PATCH, PUT, Stamp
from eventsync.errors import ValueRefusedError, shown
from eventsync.records.key import MAX_LENGTH as MAX_KEY
from eventsync.values import packing

__all__ = [
    "MAX_KEY",
    "MAX_NAME",
    "bytes_of",
    "check_body",
    "check_head",
    "check_map",
    "check_text",
    "known_of",
]

MAX_NAME: Final = 128
"""The most characters that ``src`` and ``type`` may have."""

_OPS: Final = (PUT, PATCH, DELETE)
_UINT_LIMIT: Final = 1 << 63


def check_head(source: Any, type_: Any, op: Any, schema: Any, hops: Any) -> None:
    """Check the entries that many changes have in common."""
    check_text("src", source, MAX_NAME)
    check_text("type", type_, MAX_NAME)
    if not type_:
        raise ValueRefusedError("type is empty")
    if op not in _OPS:
        raise ValueRefusedError(f"op is {shown(op)}; it must be put, patch or delete")
    for name, number in (("schema", schema), ("hops", hops)):
        if type(number) is not int or not 0 <= number < _UINT_LIMIT:
            raise ValueRefusedError(f"{name} is {shown(number)}, not an integer from 0 to 2^63 - 1")


def check_body(change: Change) -> None:
    """Check the entries that differ from change to change, except the values in their maps."""
    if type(change.id) is not bytes or len(change.id) != 16:
        raise ValueRefusedError(f"id is {shown(change.id)}, not 16 bytes")
    if len(change.version) != 16:
        raise ValueRefusedError(f"ver is {shown(change.version)}, not 16 bytes")
    key = change.key
    if type(key) is not str or not 0 < len(key) <= MAX_KEY:
        check_text("key", key, MAX_KEY)
        raise ValueRefusedError("key is empty")
    if (change.data is None) != (change.op == DELETE):
        kind = "nil" if change.data is None else "a map"
        raise ValueRefusedError(f"data is {kind} in a {change.op}; only a delete has nil")
    if change.known is not None:
        if change.op != PATCH:
            raise ValueRefusedError(f"a {change.op} has an entry known; only a patch may have one")
        _check_known(change.known)


def known_of(entries: Any) -> BaseState:
    """Return the base state that the entry ``known`` of a patch describes, checked."""
    # The maps in ``known`` may nest as deep as ``data`` may.
    check_map("known", entries, depth=-1)
    for name in ("stamp", "values", "versions"):
        if name not in entries:
            raise ValueRefusedError(f"known.{name} is missing")
    values, versions = entries["values"], entries["versions"]
    if type(values) is not dict or type(versions) is not dict:
        raise ValueRefusedError("known.values and known.versions must both be maps")
    known = BaseState(
        Stamp(bytes_of("known.stamp", entries["stamp"], 49)),
        values,
        {
            name: Version(bytes_of("a version in known.versions", version, 16))
            for name, version in versions.items()
        },
    )
    _check_known(known)
    return known


def _check_known(known: BaseState) -> None:
    stamp = known.stamp
    if len(stamp) != 49 or stamp[16] != 1:
        raise ValueRefusedError(f"known.stamp is {shown(bytes(stamp))}, not the stamp of a put")
    floor = stamp[:16]
    for name, version in known.versions.items():
        if len(version) != 16:
            raise ValueRefusedError(f"known.versions: the version of {shown(name)} is not 16 bytes")
        if version <= floor:
            raise ValueRefusedError(
                f"known.versions: the version of {shown(name)} is not above that of known.stamp"
            )


def check_map(name: str, entries: Any, *, depth: int = 0) -> None:
    """Check that ``entries`` is a map of values that may travel, inside ``depth`` other maps."""
    if type(entries) is not dict:
        raise ValueRefusedError(f"{name} is {shown(entries)}, not a map")
    packing.check(entries, depth=depth)


def check_text(name: str, text: Any, limit: int) -> None:
    """Check that ``text`` is a string of at most ``limit`` characters."""
    if type(text) is not str or len(text) > limit:
        raise ValueRefusedError(
            f"{name} is {shown(text)}, not a string of at most {limit} characters"
        )


def bytes_of(name: str, raw: Any, size: int) -> bytes:
    """Return ``raw`` if it is a byte string of that size."""
    if type(raw) is not bytes or len(raw) != size:
        raise ValueRefusedError(f"{name} is {shown(raw)}, not {size} bytes")
    return raw
