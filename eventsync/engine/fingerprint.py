"""Fingerprints: digests of a record that show whether its data changed since eventsync wrote them.

A *row* is the mapping of field names to values that a store holds for one record.

A field of a row is *unset* if eventsync has never written or captured it there, and its value only
fills it in: ``None`` or a default. That is so where a column, or a field of the view, is newer than
the record's entry. An unset field has no version: any value from elsewhere replaces it, and it is
never published. A value that does not only fill in is a foreign write.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from itertools import chain, combinations, islice
from typing import Any, Final

from eventsync.index import Entry
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values import packing, unpacking

__all__ = [
    "changed_fields",
    "fields_without_digest",
    "fingerprint_after",
    "fingerprint_of",
    "patched_fingerprints",
    "unset_fields",
    "without_new_fields",
]

_UNSET: Final = b"?"
"""The byte before the digest of an unset field."""

_LENGTH: Final = 8
"""The bytes in a short digest."""

_MOST_GUESSES: Final = 64


def fingerprint_of(
    entry: Entry, row: Mapping[str, Any], view: BoundView, *, unset: Collection[str] = ()
) -> bytes | None:
    """Return the fingerprint of ``row``, the field values that the store holds now.

    Under the per-record rule, the fingerprint is one digest of the row, or ``None`` if the stamp of
    ``entry`` contains the digest of the row already. Under the per-field rule, the fingerprint is a
    packed map of field names to short digests. ``unset``: the names of the fields that are unset.
    """
    if view.record_type.rule == "record":
        digest = packing.digest_of_body(packing.pack_body(row))
        return None if digest == entry.stamp.digest else packing.digest(row)
    digests = dict(zip(row, packing.short_digests(row.values()), strict=True))
    for name in unset:
        digests[name] = _UNSET + digests[name]
    return packing.pack_own(digests)


def fingerprint_after(
    before: bytes | None,
    row: Mapping[str, Any],
    *,
    read: Mapping[str, Any],
    written: Mapping[str, Any],
) -> bytes:
    """Return the fingerprint of a record after eventsync wrote some of its fields.

    For records under the per-field rule. The fields that were not written keep their old digests,
    or have none if they had none. Therefore capture still finds an earlier foreign write to one of
    these fields.

    - ``before``: the fingerprint before the write; ``None`` if there was none.
    - ``row``: the row after the write.
    - ``read``: the row before the write.
    - ``written``: the field values that were written.
    """
    digests_before = unpacking.unpack_own(before) if before is not None else {}
    digests: dict[str, bytes | None] = {}
    for name, value in row.items():
        kept = name in read and name not in written
        digest = digests_before.get(name) if kept else None
        if digest is None and kept and before is not None:
            continue
        if digest is not None and not same(read[name], value):
            # The store altered this field as a consequence of the write, for example by a trigger.
            # If the old value was eventsync's own, this is not a foreign write: take a new digest.
            digest = digest if digest[-_LENGTH:] != packing.short_digest(read[name]) else None
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
    fingerprint does not cover exactly the fields in ``names``, or if one of them is unset.
    """
    digests = iter(packing.short_digests(value for values in written for value in values.values()))
    patched: list[bytes | None] = []
    for fingerprint, values in zip(before, written, strict=True):
        fresh = {name: next(digests) for name in values}
        known = {} if fingerprint is None else unpacking.unpack_own(fingerprint)
        covers = tuple(known) == names and max(map(len, known.values())) == _LENGTH
        patched.append(packing.pack_own(known | fresh) if covers else None)
    return patched


def changed_fields(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """Return the fields of ``row``, with values, that foreign writes have changed.

    Compares ``row`` with the fingerprint in ``entry``. A field that is newer than the fingerprint
    counts, unless its value only fills it in. Under the per-record rule the result is the whole
    row, or ``{}`` if nothing changed.
    """
    if view.record_type.rule == "record":
        if without_new_fields(entry, row, view) is not None:
            return {}
        return dict(row)
    if entry.echo is None:
        return {}
    digests = unpacking.unpack_own(entry.echo)
    return {name: value for name, value in row.items() if _is_changed(name, value, digests, view)}


def unset_fields(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """Return the fields of ``row`` that are unset, with the values that fill them in.

    Only under the per-field rule: under the per-record rule every field has the record's version.
    """
    if view.record_type.rule == "record" or entry.echo is None:
        return {}
    digests = unpacking.unpack_own(entry.echo)
    return {
        name: value
        for name, value in row.items()
        if len(digests.get(name, b"")) != _LENGTH and not _is_changed(name, value, digests, view)
    }


def fields_without_digest(entry: Entry, row: Mapping[str, Any], view: BoundView) -> set[str]:
    """Return the names of the fields of ``row`` that are newer than the fingerprint in ``entry``.

    Only under the per-field rule: under the per-record rule the result is empty.
    """
    if view.record_type.rule == "record" or entry.echo is None:
        return set()
    return set(row.keys() - unpacking.unpack_own(entry.echo).keys())


def _is_changed(name: str, value: Any, digests: Mapping[str, bytes], view: BoundView) -> bool:
    """Return whether a foreign write gave the field ``name`` its value."""
    digest = digests.get(name)
    if digest is None:
        return name not in view.record_type.keys and not view.fills_in(name, value)
    return digest[-_LENGTH:] != packing.short_digest(value)


def without_new_fields(
    entry: Entry, row: Mapping[str, Any], view: BoundView
) -> Mapping[str, Any] | None:
    """Return the part of ``row`` that eventsync wrote; ``None`` if a foreign write changed it.

    For records under the per-record rule. The result is ``row`` itself, or leaves out fields that
    are newer than the entry and only filled in. As the fingerprint does not name its fields, this
    function tries which of them are new.
    """
    if _is_digest_of(entry, row):
        return row
    keys = view.record_type.keys
    filled = [n for n, value in row.items() if n not in keys and view.fills_in(n, value)]
    some = chain.from_iterable(combinations(filled, size) for size in range(1, len(filled) + 1))
    for new in islice(some, _MOST_GUESSES):
        older = {name: value for name, value in row.items() if name not in new}
        if _is_digest_of(entry, older):
            return older
    return None


def _is_digest_of(entry: Entry, row: Mapping[str, Any]) -> bool:
    """Return whether the digest in ``entry``, under the per-record rule, is that of ``row``."""
    if entry.echo is None:
        return packing.digest_of_body(packing.pack_body(row)) == entry.stamp.digest
    return packing.digest(row) == entry.echo
