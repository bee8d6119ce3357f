"""The echo: the trace by which a later capture recognises what eventsync itself wrote.

This module is pure: it makes and compares traces of rows. It knows nothing of stores or changes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import lru_cache
from struct import Struct
from typing import Any, Final, NamedTuple

from eventsync.index import Entry
from eventsync.records.record_type import same
from eventsync.records.view import BoundView
from eventsync.values import packing, unpacking

__all__ = ["changed_since", "echo_of", "echo_of_fields", "echoes_with"]

_DIGEST: Final = 8
# How the bytes of a short digest begin in an echo.
_DIGEST_HEAD: Final = packing.pack(bytes(_DIGEST))[:-_DIGEST]


def echo_of(entry: Entry, row: Mapping[str, Any], view: BoundView) -> bytes | None:
    """The echo of ``row``, which the store holds now; ``None`` if it is the stamp's very body."""
    if view.record_type.rule == "record":
        packed = packing.pack_body(row)
        same_body = packing.digest_of_body(packed) == entry.stamp.digest
        return None if same_body else packing.digest(row)
    return packing.pack_own(dict(zip(row, packing.short_digests(row.values()), strict=True)))


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
    old = unpacking.unpack_own(before) if before is not None else {}
    echo: dict[str, bytes | None] = {}
    for name, held in row.items():
        known = old.get(name) if name in seen and name not in written else None
        if known is not None and not same(seen[name], held):
            # The store altered it by itself, unless it was no more what it had been.
            known = known if known != packing.short_digest(seen[name]) else None
        echo[name] = known
    fresh = [name for name, digest in echo.items() if digest is None]
    echo.update(zip(fresh, packing.short_digests(row[name] for name in fresh), strict=True))
    return packing.pack_own(echo)


class _Layout(NamedTuple):
    """How the bytes of an echo of certain fields are laid out, the digest of each at its place.

    ``split`` takes them apart, by turns into what is ``around`` the digests, and these.
    """

    split: Struct
    around: tuple[bytes, ...]
    places: Mapping[str, int]


@lru_cache(maxsize=256)
def _layout(names: tuple[str, ...]) -> _Layout:
    """The layout of an echo of these fields, in this order. A memo of a pure function."""
    around = [name + _DIGEST_HEAD for name in packing.pack_column(names)]
    around[:1] = [packing.map_head(len(names)) + around[0]]
    split = Struct("".join(f"{len(part)}s{_DIGEST}s" for part in around))
    return _Layout(split, tuple(around), {name: 2 * n + 1 for n, name in enumerate(names)})


def echoes_with(
    echoes: Iterable[bytes | None], names: tuple[str, ...], written: Sequence[Mapping[str, Any]]
) -> list[bytes | None]:
    """Of each row its echo, once these fields of it are written: what ``echo_of_fields`` comes to.

    ``names``: all fields of a row, in its order. ``None`` for what is not an echo of just these.
    """
    split, around, places = _layout(names)
    digests = iter(packing.short_digests(held for values in written for held in values.values()))
    found: list[bytes | None] = []
    for echo, values in zip(echoes, written, strict=True):
        fresh = [(places[name], next(digests)) for name in values]
        parts = list(split.unpack(echo)) if echo and len(echo) == split.size else []
        if tuple(parts[::2]) != around:
            found.append(None)
            continue
        for place, digest in fresh:
            parts[place] = digest
        found.append(b"".join(parts))
    return found


def changed_since(entry: Entry, row: Mapping[str, Any], view: BoundView) -> dict[str, Any]:
    """The fields of ``row`` that somebody else than eventsync has changed since the echo."""
    if view.record_type.rule == "record":
        if entry.echo is None:
            alike = packing.digest_of_body(packing.pack_body(row)) == entry.stamp.digest
        else:
            alike = packing.digest(row) == entry.echo
        return {} if alike else dict(row)
    if entry.echo is None:
        return {}
    echo = unpacking.unpack_own(entry.echo)
    return {
        name: held
        for name, held in row.items()
        # A field without an echo came with a later version of the view: it is no edit.
        if name in echo and echo[name] != packing.short_digest(held)
    }
