"""Edits of others that have no version yet: a change that does not name their fields keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventsync.engine.fingerprint import changed_fields
from eventsync.engine.write import Write
from eventsync.index import Entry, IndexTransaction
from eventsync.records.view import BoundView

__all__ = ["kept_from"]


def kept_from(
    write: Write, row: Mapping[str, Any], view: BoundView, transaction: IndexTransaction
) -> set[str]:
    """Return the fields of a write that must stay as they are in the store.

    These are fields that somebody else has edited there, and that the change does not name: a patch
    says of other fields only what its origin held of them, at versions that are known here.

    ``row``: what the store holds. For stores with intents, during ``Accessor.write_rows``: the
    intent has the entry that the index will have, and the index has the present one.
    """
    name = view.record_type.name
    if view.record_type.rule != "field" or write.whole:
        return set()
    before = transaction.read(name, [write.key]).get(write.key)
    intent = transaction.open_intents(name).get(write.key)
    if before is None or intent is None:
        return set()
    return {
        field
        for field in changed_fields(before, row, view)
        if field in write.values and _version(intent.entry, field) <= _version(before, field)
    }


def _version(entry: Entry, field: str) -> bytes:
    return bytes(entry.versions.get(field) or entry.stamp[:16])
