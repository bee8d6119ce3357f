"""Fingerprints: digests of a record that show whether its data changed since eventsync wrote them.

A *row* is the mapping of field names to values that a store holds for one record.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eventsync.index import Entry
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values import packing, unpacking

__all__ = ["changed_fields", "fingerprint_after", "fingerprint_of", "patched_fingerprints"]


def fingerprint_of(entry: Entry, row: Mapping[str, Any], view: BoundView) -> bytes | None:
    """Return the fingerprint of ``row``, the field values that the store holds now.

    Under the per-record rule, the fingerprint is one digest of the row, or ``None`` if the stamp of
    ``entry`` contains the digest of the row already. Under the per-field rule, the fingerprint is a
    packed map of field names to short digests.
    """
    if view.record_type.rule == "record":
        digest = packing.digest_of_body(packing.pack_body(row))
        return None if digest == entry.stamp.digest else packing.digest(row)
    return packing.pack_own(dict(zip(row, packing.short_digests(row.values()), strict=True)))


def fingerprint_after(
    before: bytes | None,
    row: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
    written: Mapping[str, Any],
) -> bytes:
    """Return the fingerprint of a record after eventsync wrote some of its fields.

    For records under the per-field rule. The fields that were not written keep their old digests.
    Therefore capture still finds an earlier foreign write to one of these fields.

    - ``before``: the fingerprint before the write; ``None`` if there was none.
    - ``row``: the row after the write.
    - ``read``: the row before the write.
    - ``written``: the field values that were written.
    """
    digests_before = unpacking.unpack_own(before) if before is not None else {}
    digests: dict[str, bytes | None] = {}
    for name, value in row.items():
        digest = digests_before.get(name) if name in read and name not in written else None
        if digest is not None and not same(read[name], value):
            # The store altered this field as a consequence of the write, for example by a trigger.
            # If the old value was eventsync's own, this is not a foreign write: take a new digest.
            digest = digest if digest != packing.short_digest(read[name]) else None
        digests[name] = digest
    missing = [name for name, digest in digests.items() if digest is None]
    digests.update(zip(missing, packing.short_digests(row[name] for name in missing), strict=True))
    return packing.pack_own(digests)


def patched_fingerprints(
    before: Iterable[bytes | None], names: tuple[str, ...], written: Sequence[Mapping[str, Any]]
) -> list[bytes | None]:
    """Return the new fingerprint of each of many records, of which some fields were written.

    Each result equals that of ``fingerprint_after``, but the rows are not needed. ``before``: the
    old fingerprint of each record. ``names``: all fields of a row, in the order of the row.
    ``written``: the field values that were written to each record. A result is ``None`` if the old
    fingerprint does not cover exactly the fields in ``names``.
    """
    digests = iter(packing.short_digests(value for values in written for value in values.values()))
    patched: list[bytes | None] = []
    for fingerprint, values in zip(before, written, strict=True):
        fresh = {name: next(digests) for name in values}
        known = {} if fingerprint is None else unpacking.unpack_own(fingerprint)
        patched.append(packing.pack_own(known | fresh) if tuple(known) == names else None)
    return patched


def changed_fields(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """Return the fields of ``row``, with values, that foreign writes have changed.

    Compares ``row`` with the fingerprint in ``entry``. Under the per-record rule the result is the
    whole row, or ``{}`` if nothing changed.
    """
    if view.record_type.rule == "record":
        if entry.echo is None:
            unchanged = packing.digest_of_body(packing.pack_body(row)) == entry.stamp.digest
        else:
            unchanged = packing.digest(row) == entry.echo
        return {} if unchanged else dict(row)
    if entry.echo is None:
        return {}
    digests = unpacking.unpack_own(entry.echo)
    return {
        name: value
        for name, value in row.items()
        # A field without a digest was added to the view later. That is not a foreign write.
        if name in digests and digests[name] != packing.short_digest(value)
    }
