"""The rules for the entries of an envelope. Writers and readers apply the same rules.

Every function raises ``ValueRefusedError`` if a rule is broken.
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
"""The limit on the characters of the entry ``src`` and of the entry ``type``."""

_OPS: Final = (PUT, PATCH, DELETE)
_UINT_LIMIT: Final = 1 << 63


def check_head(source: Any, type_: Any, op: Any, schema: Any, hops: Any) -> None:
    """Raise ``ValueRefusedError`` if ``src``, ``type``, ``op``, ``schema`` or ``hops`` is invalid.

    Many changes have these entries in common, so callers may check them once.
    """
    check_text("the entry src", source, MAX_NAME)
    check_text("the entry type", type_, MAX_NAME)
    if not type_:
        raise ValueRefusedError("the entry type is empty; it must name a record type")
    if op not in _OPS:
        raise ValueRefusedError(f"the entry op is {shown(op)}; it must be put, patch or delete")
    for name, number in (("schema", schema), ("hops", hops)):
        if type(number) is not int or not 0 <= number < _UINT_LIMIT:
            raise ValueRefusedError(
                f"the entry {name} is {shown(number)}, not an integer from 0 to 2^63 - 1"
            )


def check_body(change: Change) -> None:
    """Raise ``ValueRefusedError`` if id, version, key, data or ``known`` of ``change`` is invalid.

    Does not check the field values inside ``data`` and ``known``.
    """
    if type(change.id) is not bytes or len(change.id) != 16:
        raise ValueRefusedError(f"the entry id is {shown(change.id)}, not 16 bytes")
    if len(change.version) != 16:
        raise ValueRefusedError(f"the entry ver is {shown(change.version)}, not 16 bytes")
    key = change.key
    if type(key) is not str or not 0 < len(key) <= MAX_KEY:
        check_text("the entry key", key, MAX_KEY)
        raise ValueRefusedError("the entry key is empty; it must be the key of a record")
    if (change.data is None) != (change.op == DELETE):
        kind = "nil" if change.data is None else "a map"
        raise ValueRefusedError(
            f"the entry data of a {change.op} is {kind}; it must be nil in a delete, else a map"
        )
    if change.known is not None:
        if change.op != PATCH:
            raise ValueRefusedError(
                f"a {change.op} has the entry known, but only a patch may have this entry"
            )
        _check_known(change.known, change.version)


def known_of(entries: Any, version: bytes) -> BaseState:
    """Return the base state that ``entries``, the entry ``known`` of a patch, describe.

    ``version``: the version of the patch. Raises ``ValueRefusedError`` if ``entries`` break a rule.
    """
    # The maps inside ``known`` may nest as deep as ``data``. A depth of -1 makes up for ``known``.
    check_map("known", entries, depth=-1)
    for name in ("stamp", "values", "versions"):
        if name not in entries:
            raise ValueRefusedError(f"the entry known.{name} is missing")
    values, versions = entries["values"], entries["versions"]
    if type(values) is not dict or type(versions) is not dict:
        raise ValueRefusedError("the entries known.values and known.versions must both be maps")
    known = BaseState(
        Stamp(bytes_of("the entry known.stamp", entries["stamp"], 49)),
        values,
        {
            name: Version(bytes_of("a version in known.versions", version, 16))
            for name, version in versions.items()
        },
    )
    _check_known(known, version)
    return known


def _check_known(known: BaseState, patched: bytes) -> None:
    """Raise ``ValueRefusedError`` if ``known``, the base state of a patch, breaks a rule.

    ``patched``: the version of the patch. Its origin issued this version after all versions that it
    held, so none of them is later. A reader that accepted a later version would store a time that
    never passed the check of the clock drift, and every later change of the record would be stale.
    """
    stamp = known.stamp
    if len(stamp) != 49 or stamp[16] != 1:
        raise ValueRefusedError(
            f"the entry known.stamp is {shown(bytes(stamp))}, not the stamp of a put"
        )
    floor = stamp[:16]
    if floor > patched:
        raise ValueRefusedError(
            f"the version in known.stamp is {floor.hex()}, later than {patched.hex()}, the version "
            "of the patch itself"
        )
    for name, version in known.versions.items():
        if len(version) != 16:
            raise ValueRefusedError(
                f"in the entry known.versions, the version of {shown(name)} is not 16 bytes"
            )
        if version <= floor:
            raise ValueRefusedError(
                f"in the entry known.versions, the version of {shown(name)} is not greater than "
                "the version in known.stamp"
            )
        if version > patched:
            raise ValueRefusedError(
                f"in the entry known.versions, the version of {shown(name)} is {version.hex()}, "
                f"later than {patched.hex()}, the version of the patch itself"
            )


def check_map(name: str, entries: Any, *, depth: int = 0) -> None:
    """Raise ``ValueRefusedError`` unless ``entries`` is a map and its values may travel.

    ``name``: the name of the map for the error. ``depth``: as in ``packing.check``.
    """
    if type(entries) is not dict:
        raise ValueRefusedError(f"the entry {name} is {shown(entries)}, not a map")
    packing.check(entries, depth=depth)


def check_text(name: str, text: Any, limit: int) -> None:
    """Raise ``ValueRefusedError`` unless ``text`` is a string of at most ``limit`` characters.

    ``name``: what the error calls ``text``.
    """
    if type(text) is not str or len(text) > limit:
        raise ValueRefusedError(
            f"{name} is {shown(text)}, not a string of at most {limit} characters"
        )


def bytes_of(name: str, raw: Any, size: int) -> bytes:
    """Return ``raw``. Raise ``ValueRefusedError`` unless ``raw`` is ``bytes`` of length ``size``.

    ``name``: what the error calls ``raw``.
    """
    if type(raw) is not bytes or len(raw) != size:
        raise ValueRefusedError(f"{name} is {shown(raw)}, not {size} bytes")
    return raw
