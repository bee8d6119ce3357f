"""What a store has to hold after some changes, told from the changes alone.

It is written as the rules are stated, for one record and all its changes at once, and shares no
code with what it is compared with. It knows nothing of stores.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from eventsync.changes.change import Change
from eventsync.changes.stamp import DELETE, PATCH, PUT
from eventsync.records.record import RecordType
from eventsync.records.view import BoundView

__all__ = ["expected", "winner"]

_RANK = {PUT: 1, DELETE: 2}


def winner(changes: Iterable[Change], record_type: RecordType) -> dict[str, Any] | None:
    """The field values of the record that these changes, in any order, are of; ``None`` for none.

    The greatest put or delete counts; of a put's record each field has the value of the greatest
    patch above it, or else the put's, or else its default.
    """
    changes = list(changes)
    stamps = [
        (bytes(change.version), _RANK[change.op], change.digest, change)
        for change in changes
        if change.op != PATCH
    ]
    values: dict[str, Any] = {}
    floor = b""
    if stamps:
        floor, _, _, last = max(stamps, key=lambda stamp: stamp[:3])
        if last.op == DELETE:
            return None
        values = dict(last.data or {})
    elif not any(change.known and not any(change.known.stamp[:16]) for change in changes):
        return None  # patches alone make no record, unless a store held it before all versions
    if record_type.rule == "field":
        patches = [change for change in changes if change.op == PATCH and change.version > floor]
        for change in sorted(patches, key=lambda change: change.version):
            values |= change.data or {}
    for name, field in record_type.fields.items():
        if name not in values and field.has_default:
            values[name] = field.make_default()
    return values


def expected(changes: Iterable[Change], view: BoundView) -> dict[str, dict[str, Any]]:
    """By key, the field values that a store with this view has to hold after these changes."""
    by_key: dict[str, list[Change]] = {}
    for change in changes:
        if change.type == view.record_type.name:
            by_key.setdefault(change.key, []).append(change)
    held: dict[str, dict[str, Any]] = {}
    for key, of_record in by_key.items():
        values: Mapping[str, Any] | None = winner(of_record, view.record_type)
        if values is not None:
            whole = {**values, **view.record_type.key_values(key)}
            if view.matches(whole):
                held[key] = {name: whole[name] for name in view.fields}
    return held
