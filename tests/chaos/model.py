"""What all stores must hold in the end, computed from the history of published changes alone.

Written from the text of the consistency model, register by register, and on purpose without
``eventsync.changes.change.join`` or the gate: it is what those are checked against.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from eventsync.changes.change import Change

_KIND = {"put": 1, "delete": 2}


def winners_per_record(changes: Iterable[Change]) -> dict[str, dict[str, Any]]:
    """The live records under the per-record rule: the greatest (version, kind, digest) wins."""
    best: dict[str, tuple[tuple[bytes, int, bytes], Change]] = {}
    for change in changes:
        order = (bytes(change.version), _KIND[change.op], change.digest)
        if change.key not in best or order > best[change.key][0]:
            best[change.key] = (order, change)
    return {key: dict(c.data or {}) for key, (_, c) in best.items() if c.op == "put"}


def winners_per_field(changes: Iterable[Change]) -> dict[str, dict[str, Any]]:
    """The live records and their visible fields under the per-field rule: C, D and V_f."""
    put: dict[str, bytes] = {}
    deleted: dict[str, bytes] = {}
    fields: dict[tuple[str, str], tuple[bytes, Any]] = {}
    for change in changes:
        version, key = bytes(change.version), change.key
        if change.op == "delete":
            deleted[key] = max(deleted.get(key, b""), version)
            continue
        if change.op == "put":
            put[key] = max(put.get(key, b""), version)
        for name, held in (change.data or {}).items():
            if version > fields.get((key, name), (b"", None))[0]:
                fields[key, name] = (version, held)
    live = {key for key, version in put.items() if version > deleted.get(key, b"")}
    found: dict[str, dict[str, Any]] = {key: {} for key in live}
    for (key, name), (version, held) in fields.items():
        if key in live and version >= put[key]:
            found[key][name] = held
    return found
