"""Fingerprints: digests of a row by which capture recognises what eventsync itself wrote."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from eventsync.index import Entry
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values import packing, unpacking

__all__ = ["changed_fields", "fingerprint_after", "fingerprint_of", "patched_fingerprints"]


def fingerprint_of(entry: Entry, row: Mapping[str, Any], view: BoundView) -> bytes | None:
    """Return the fingerprint of ``row``, which the store holds now.

    Under the per-record rule it is one digest of the row, or ``None`` if the digest in the stamp is
    that of the row. Under the per-field rule it is a packed map with a short digest of each field.
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
    """Return the fingerprint after a write, under the per-field rule.

    It keeps the old digest of a field that a foreign write changed before and that was not written
    now. So capture still finds that foreign write.

    - ``before``: the fingerprint until now.
    - ``row``: the row after the write.
    - ``read``: the row before the write.
    - ``written``: the values that were written.
    """
    digests_before = unpacking.unpack_own(before) if before is not None else {}
    digests: dict[str, bytes | None] = {}
    for name, value in row.items():
        digest = digests_before.get(name) if name in read and name not in written else None
        if digest is not None and not same(read[name], value):
            # The write altered this field too. If its value before the write was eventsync's own,
            # the store did it, and that is no foreign write.
            digest = digest if digest != packing.short_digest(read[name]) else None
        digests[name] = digest
    missing = [name for name, digest in digests.items() if digest is None]
    digests.update(zip(missing, packing.short_digests(row[name] for name in missing), strict=True))
    return packing.pack_own(digests)


def patched_fingerprints(
    before: Iterable[bytes | None], names: tuple[str, ...], written: Sequence[Mapping[str, Any]]
) -> list[bytes | None]:
    """Return the fingerprint of each row after some fields of it were written.

    The result is that of ``fingerprint_after``, but the row is not needed. ``names``: all fields of
    a row, in its order. The result for a row is ``None`` if ``before`` is not a fingerprint of
    just these fields.
    """
    digests = iter(packing.short_digests(value for values in written for value in values.values()))
    patched: list[bytes | None] = []
    for fingerprint, values in zip(before, written, strict=True):
        fresh = {name: next(digests) for name in values}
        known = {} if fingerprint is None else unpacking.unpack_own(fingerprint)
        patched.append(packing.pack_own(known | fresh) if tuple(known) == names else None)
    return patched


def changed_fields(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """Return the fields of ``row`` that foreign writes have changed since the fingerprint."""
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
        # A field without a digest was added to the view later: that is no foreign write.
        if name in digests and digests[name] != packing.short_digest(value)
    }
