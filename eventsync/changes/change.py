"""The change: a put, patch or delete of one record at a version."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final, Protocol, TypeAlias

from eventsync.changes.clock import Version
from eventsync.changes.event_id import new_id
from eventsync.changes.stamp import DELETE, PATCH, PUT, RANK, Op, Stamp
from eventsync.values import packing, unpacking

__all__ = [
    "BaseState",
    "Change",
    "Row",
    "body_parts",
    "make_bodies",
    "read_patches",
    "read_rows",
    "stamps",
]

Row: TypeAlias = tuple[Any, ...]
"""The values of a record, in the order of the names of its fields."""


@dataclass(slots=True, frozen=True)
class BaseState:
    """What the origin of a patch held of the record beside the patched fields.

    With it a store that lacks the record can take all of it, and a lost change is made up for by
    the next one. ``stamp``: that of the last put of the record. ``values``: the fields that the
    origin holds. ``versions``: the versions of the fields patched since that put; the other fields
    have the version of the stamp.
    """

    stamp: Stamp
    values: Mapping[str, Any]
    versions: Mapping[str, Version]


class BodyReader(Protocol):
    """A reader of the packed bodies of many changes of one record type at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of the rows."""

    def read(self, bodies: Sequence[bytes], keys: Sequence[str], /) -> list[Row | None]:
        """Return the values in each body of a put, or ``None`` if it must be read by itself."""

    def read_patches(
        self, bodies: Sequence[bytes], keys: Sequence[str], /
    ) -> list[tuple[tuple[str, ...], Row] | None]:
        """Return the names and values in each body of a patch, or ``None`` as ``read`` does."""

    def fits(self, values: Mapping[str, Any], /) -> bool:
        """Return whether ``values`` are exactly what the record type would load from them."""


# Below this size, batching is not faster.
_FEW: Final = 10
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Change:
    """A put, patch or delete of one record at a version. Do not alter it once it is made.

    ``key``: the canonical text of the record's key. ``data``: the field values of a put or patch,
    ``None`` for a delete. A put lists every field that its origin holds; a patch lists only the
    fields that changed. ``known``: only for a patch. ``exact``: whether ``digest`` is the digest of
    ``data``; false once the values were converted (see ``adapted``). ``row``: the values without
    their names, if ``read_rows`` or ``read_patches`` could read them; they are then exactly what
    the record type would load.

    A change made by this process has its ``data``; a received one has its packed ``body``. The
    other form is made when it is first asked for, and kept.
    """

    __slots__ = (
        "_body",
        "_data",
        "_digest",
        "_row_names",
        "exact",
        "ext",
        "hops",
        "id",
        "key",
        "known",
        "op",
        "row",
        "schema",
        "source",
        "type",
        "version",
    )

    # Of a put or patch at least one of these two is set. A delete has no data and an empty body.
    _data: Mapping[str, Any] | None
    _body: bytes | None
    _digest: bytes | None
    row: Row | None
    _row_names: tuple[str, ...]

    def __init__(
        self,
        *,
        type: str,
        key: str,
        op: Op,
        version: Version,
        data: Mapping[str, Any] | None,
        source: str = "",
        id: bytes | None = None,
        schema: int = 1,
        hops: int = 0,
        ext: Mapping[str, Any] = _NOTHING,
        known: BaseState | None = None,
        digest: bytes | None = None,
    ) -> None:
        """Make a change from its values.

        ``id``: a new one by default. ``digest``: the digest of the original values, if ``data`` are
        a converted form of them.
        """
        self.type = type
        self.key = key
        self.op = op
        self.version = version
        self.source = source
        self.id = new_id() if id is None else id
        self.schema = schema
        self.hops = hops
        self.ext = ext
        self.known = known
        self.exact = digest is None
        self.row = None
        self._data = data
        self._body = b"" if data is None else None
        self._digest = digest
        self._row_names = ()

    @classmethod
    def received(
        cls,
        source: str,
        type: str,
        op: Op,
        schema: int,
        hops: int,
        key: str,
        version: Version,
        id: bytes,
        known: BaseState | None,
        body: bytes,
    ) -> Change:
        """Make a change from its packed body, which is unpacked when ``data`` is first read.

        For a delete the ``body`` is ignored.
        """
        # It sets the attributes itself: through the keywords of the constructor it would take
        # twice as long, a hundredth of the time that a worker takes for a change.
        change = cls.__new__(cls)
        change.type = type
        change.key = key
        change.op = op
        change.version = version
        change.source = source
        change.id = id
        change.schema = schema
        change.hops = hops
        change.ext = _NOTHING
        change.known = known
        change.exact = True
        change.row = None
        change._data = None
        change._body = b"" if op == DELETE else body
        change._digest = None
        change._row_names = ()
        return change

    @property
    def data(self) -> Mapping[str, Any] | None:
        """The field values. Raises ``ValueRefusedError`` if a received body is malformed."""
        if self._data is None and self._body:
            if self.row is not None:
                self._data = dict(zip(self._row_names, self.row, strict=True))
            else:
                self._data = unpacking.unpack_body(self._body)
        return self._data

    @property
    def packed(self) -> bool:
        """Whether the packed body is there, which proves that the change can travel."""
        return self._body is not None

    @property
    def body(self) -> bytes:
        """The bytes of ``data`` on the wire; empty for a delete.

        Raises ``ValueRefusedError`` if the values may not travel.
        """
        if self._body is None:
            assert self._data is not None
            self._body = packing.pack_body(self._data)
        return self._body

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the body; 32 zero bytes for a delete.

        Raises ``ValueRefusedError`` if the values may not travel.
        """
        if self._digest is None:
            body = self.body
            self._digest = packing.digest_of_body(body) if body else packing.NO_BODY
        return self._digest

    @property
    def stamp(self) -> Stamp:
        """The place of this change in the total order of puts and deletes."""
        return Stamp(self.version + RANK[self.op] + self.digest)

    def replace(self, **attributes: Any) -> Change:
        """Return a copy of this change with other attributes."""
        given = {name: getattr(self, name) for name in _ATTRIBUTES}
        if not self.exact and "data" not in attributes:
            given["digest"] = self._digest
        return Change(**given | attributes)

    def adapted(self, data: Mapping[str, Any], known: BaseState | None) -> Change:
        """Return this change with converted values. It keeps its digest, and so its stamp."""
        return self.replace(data=data, known=known, digest=self.digest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Change):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _ATTRIBUTES)

    __hash__ = None  # type: ignore[assignment]  # its data can hold lists and dicts

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _ATTRIBUTES)
        return f"Change({shown})"


def read_rows(changes: Iterable[Change], reader: BodyReader) -> None:
    """Set the ``row`` of every put among ``changes``, all of one record type.

    A put whose body the reader leaves out gets no row.
    """
    names = reader.names
    puts = [c for c in changes if c._body and c.op == PUT and c.exact]
    rows = reader.read([c._body for c in puts if c._body], [c.key for c in puts])
    for change, row in zip(puts, rows, strict=True):
        change._row_names = names
        change.row = row


def read_patches(changes: Iterable[Change], reader: BodyReader) -> None:
    """Set the ``row`` of every patch, as ``read_rows`` does for puts.

    It holds the values of the fields that the patch names, in the order of the patch.
    """
    patches = [
        change
        for change in changes
        if change._body
        and change.op == PATCH
        and change.exact
        and (change.known is None or reader.fits(change.known.values))
    ]
    bodies = [change._body for change in patches if change._body]
    read = reader.read_patches(bodies, [change.key for change in patches])
    for change, found in zip(patches, read, strict=True):
        if found is not None:
            change._row_names, change.row = found


def stamps(changes: Sequence[Change]) -> list[Stamp]:
    """Return the stamp of each change, in less time than one by one.

    Raises ``ValueRefusedError`` if the values of one may not travel.
    """
    packed = [change for change in changes if change._body and change._digest is None]
    digests = packing.digests_of_bodies([change._body for change in packed if change._body])
    for change, digest in zip(packed, digests, strict=True):
        change._digest = digest
    return [bytes.__new__(Stamp, c.version + RANK[c.op] + (c._digest or c.digest)) for c in changes]


def make_bodies(changes: Iterable[Change]) -> None:
    """Pack the bodies of many changes at once, which is faster if they have the same fields.

    It raises nothing: a value that may not travel is refused when its ``body`` is read.
    """
    unpacked = [change for change in changes if change._body is None]
    parts = body_parts(unpacked)
    if parts is not None:
        for change, body in zip(unpacked, map(b"".join, zip(*parts, strict=False)), strict=True):
            change._body = body


def body_parts(changes: Sequence[Change]) -> list[Iterable[bytes]] | None:
    """Return the packed bodies in parts, as ``packing.pack_bodies`` does. They are not kept.

    Returns ``None`` if one is packed already, if they are too few to save time, or if they do not
    have the same fields.
    """
    if len(changes) < _FEW or any(change._body is not None for change in changes):
        return None
    return packing.pack_bodies([c._data for c in changes if c._data is not None])


_ATTRIBUTES: Final = (
    *("type", "key", "op", "version", "data", "source", "id", "schema", "hops", "ext", "known"),
)
