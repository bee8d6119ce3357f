"""The echo: the trace by which a later capture recognises what eventsync itself wrote.

This module is pure: it makes and compares traces of rows. It knows nothing of stores or changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from eventsync import value
from eventsync.index import Entry
from eventsync.schema import same
from eventsync.view import BoundView

__all__ = ["changed_since", "echo_of", "echo_of_fields"]


def echo_of(entry: Entry, row: Mapping[str, Any], view: BoundView) -> bytes | None:
    """The echo of ``row``, which the store holds now; ``None`` if it is the stamp's very body."""
    if view.record_type.rule == "record":
        packed = value.pack_body(row)
        same_body = value.digest_of_body(packed) == entry.stamp.digest
        return None if same_body else value.digest(row)
    return value.pack({name: value.short_digest(held) for name, held in row.items()})


def echo_of_fields(
    before: bytes | None,
    row: Mapping[str, Any],
    *,
    seen: Mapping[str, Any],
    written: Mapping[str, Any],
) -> bytes:
    """The echo after a write: that of ``row``, but for what somebody else changed before it.

    ``before``: the echo until now. ``seen``: the row that was there; ``written``: what was written
    of it. An edit of somebody's, in a field that was not written now, is still to be captured.
    """
    old = value.unpack(before) if before is not None else {}
    echo = {}
    for name, held in row.items():
        known = old.get(name) if name in seen and name not in written else None
        if known is not None and not same(seen[name], held):
            # The store altered it by itself, unless it was no more what it had been.
            known = known if known != value.short_digest(seen[name]) else None
        echo[name] = known if known is not None else value.short_digest(held)
    return value.pack(echo)


def changed_since(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """The fields of ``row`` that somebody else than eventsync has changed since the echo."""
    if view.record_type.rule == "record":
        if entry.echo is None:
            alike = value.digest_of_body(value.pack_body(row)) == entry.stamp.digest
        else:
            alike = value.digest(row) == entry.echo
        return {} if alike else dict(row)
    if entry.echo is None:
        return {}
    echo = value.unpack(entry.echo)
    return {
        name: held
        for name, held in row.items()
        # A field without an echo came with a later version of the view: it is no edit.
        if name in echo and echo[name] != value.short_digest(held)
    }
