"""The rules that the entries of an envelope obey, one set for writing and for reading them.

It knows nothing of bytes. What breaks a rule raises ``ValueRefusedError``.
"""

from __future__ import annotations

from typing import Any, Final

from eventsync.changes.change import BaseState, Change
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.errors import ValueRefusedError, shown

__all__ = ["MAX_KEY", "MAX_NAME", "check_body", "check_head", "check_known", "check_text"]

MAX_NAME: Final = 128
"""How many characters ``src`` and ``type`` may have."""

MAX_KEY: Final = 512
"""How many characters ``key`` may have."""

_OPS: Final = (PUT, PATCH, DELETE)
_UINT_LIMIT: Final = 1 << 63


def check_head(source: Any, type_: Any, op: Any, schema: Any, hops: Any) -> None:
    """Check what many changes have in common."""
    check_text("src", source, MAX_NAME)
    check_text("type", type_, MAX_NAME)
    if not type_:
        raise ValueRefusedError("type is empty")
    if op not in _OPS:
        raise ValueRefusedError(f"op is {shown(op)}; it is put, patch or delete")
    for name, number in (("schema", schema), ("hops", hops)):
        if type(number) is not int or not 0 <= number < _UINT_LIMIT:
            raise ValueRefusedError(f"{name} is {shown(number)}, not an integer from 0 to 2^63 - 1")


def check_body(change: Change) -> None:
    """Check what each change has of its own, but for the values inside its maps."""
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
        raise ValueRefusedError(f"data is {kind} in a {change.op}; it is nil in a delete only")
    if change.known is not None:
        if change.op != PATCH:
            raise ValueRefusedError(f"known goes with a patch, not with a {change.op}")
        check_known(change.known)


def check_known(known: BaseState) -> None:
    """Check stamp and versions of what the origin of a patch held."""
    stamp = known.stamp
    if len(stamp) != 49 or stamp[16] != 1:
        raise ValueRefusedError(f"known.stamp is {shown(bytes(stamp))}, not the stamp of a put")
    floor = stamp[:16]
    for name, version in known.versions.items():
        if len(version) != 16:
            raise ValueRefusedError(f"known.versions: that of {shown(name)} has not 16 bytes")
        if version <= floor:
            raise ValueRefusedError(f"known.versions: that of {shown(name)} is not above the stamp")


def check_text(name: str, text: Any, limit: int) -> None:
    """Check that ``text`` is text, and not longer than ``limit`` characters."""
    if type(text) is not str or len(text) > limit:
        raise ValueRefusedError(f"{name} is {shown(text)}, not text of at most {limit} characters")
