"""A model of the merge rules, which computes the records that a store must hold after some changes.

The model applies the documented rules to all changes of a record at once. It shares no code with
the implementation, so that tests can compare the two.
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
    """Return the field values of one record after these changes; ``None`` if there is no record.

    The order of ``changes`` does not matter. The put or delete with the greatest stamp decides
    whether there is a record. Under the per-field rule, a field has the value from the latest patch
    of this field after the put. A field without such a patch has the value in the put, or else its
    default.
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
        # Patches alone make no record, unless their origin held one that never had a version.
        return None
    if record_type.rule == "field":
        patches = [change for change in changes if change.op == PATCH and change.version > floor]
        for change in sorted(patches, key=lambda change: change.version):
            values |= change.data or {}
    for name, field in record_type.fields.items():
        if name not in values and field.has_default:
            values[name] = field.make_default()
    return values


def expected(changes: Iterable[Change], view: BoundView) -> dict[str, dict[str, Any]]:
    """Return the records that a store with this view must hold after these changes.

    The result has the field values of each record by key. Changes of other record types are
    ignored.
    """
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
