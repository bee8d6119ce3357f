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
"""The field values of a record without the field names. ``BodyReader.names`` gives the order."""


@dataclass(slots=True, frozen=True)
class BaseState:
    """The other field values of the record that a patch changes, as the patch's origin holds them.

    A store that lacks the record can create the whole record from a patch with its base state. A
    store that missed a change gets the missed values with the next patch.

    ``stamp``: the stamp of the last put of the record. ``values``: the values of the fields that
    the origin holds and the patch does not change. ``versions``: the versions of the fields that
    were patched after this put. Every other field has the version of the stamp.
    """

    stamp: Stamp
    values: Mapping[str, Any]
    versions: Mapping[str, Version]


class BodyReader(Protocol):
    """A reader that decodes the packed bodies of many changes of one record type together."""

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the fields, in the order of the values in the rows that ``read`` returns."""

    def read(self, bodies: Sequence[bytes], keys: Sequence[str], /) -> list[Row | None]:
        """Return one row for each body of a put, or ``None`` if this reader cannot read the body.

        ``keys``: the key of the record of each body.
        """

    def read_patches(
        self, bodies: Sequence[bytes], keys: Sequence[str], /
    ) -> list[tuple[tuple[str, ...], Row] | None]:
        """Return field names and values for each body of a patch.

        The result is ``None`` for a body that this reader cannot read. ``keys``: the key of the
        record of each body.
        """

    def fits(self, values: Mapping[str, Any], /) -> bool:
        """Return whether the record type would load ``values`` without converting any of them."""


# For fewer changes than this, packing bodies together is not faster.
_FEW: Final = 10
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Change:
    """A put, patch or delete of one record at a version. Do not alter a change after its creation.

    ``key``: the canonical text of the record's key. ``data``: the field values of a put or patch,
    ``None`` for a delete. A put lists every field that its origin holds; a patch lists only the
    fields that changed. ``known``: the base state of a patch, or ``None``. ``exact``: whether
    ``digest`` is the digest of ``data``; false if the values were converted (see ``adapted``).
    ``row``: the field values without names, or ``None``; set by ``read_rows`` and ``read_patches``
    if the record type would load the values without converting them. ``hops``: how often the change
    was passed on from one synchronizer to another. ``ext``: additional entries of the envelope.

    A change that this process made has ``data``, and a received change has the packed ``body``. The
    other form is computed at its first use and kept.
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

    # In a put or patch, ``_data`` or ``_body`` is set, or both are. In a delete, ``_data`` is None
    # and ``_body`` is empty.
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
        """Make a change from field values.

        ``id``: 16 bytes; by default a new UUID. ``digest``: the digest of the original values, if
        ``data`` are converted values; by default the digest is computed from ``data``.
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
        """Make a change from a packed body. The body is unpacked when ``data`` is first read.

        The ``body`` of a delete is ignored.
        """
        # Setting the attributes here takes half the time of calling the constructor with keywords.
        # That saves one percent of the time that a worker needs for a change.
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
        """The field values by name; ``None`` for a delete.

        Raises ``ValueRefusedError`` if the body of a received change is malformed.
        """
        if self._data is None and self._body:
            if self.row is not None:
                self._data = dict(zip(self._row_names, self.row, strict=True))
            else:
                self._data = unpacking.unpack_body(self._body)
        return self._data

    @property
    def packed(self) -> bool:
        """Whether the packed body exists already. If it exists, the values may travel."""
        return self._body is not None

    @property
    def body(self) -> bytes:
        """The field values as ``packing.pack_body`` encodes them; empty for a delete.

        Raises ``ValueRefusedError`` if the values may not travel.
        """
        if self._body is None:
            assert self._data is not None
            self._body = packing.pack_body(self._data)
        return self._body

    @property
    def digest(self) -> bytes:
        """The SHA-256 digest of the body, 32 bytes; zeros for a delete.

        For converted values, this is the digest of the original body.

        Raises ``ValueRefusedError`` if the values may not travel.
        """
        if self._digest is None:
            body = self.body
            self._digest = packing.digest_of_body(body) if body else packing.NO_BODY
        return self._digest

    @property
    def stamp(self) -> Stamp:
        """The stamp of this change: its place in the total order of puts and deletes.

        Raises ``ValueRefusedError`` if the values may not travel.
        """
        return Stamp(self.version + RANK[self.op] + self.digest)

    def replace(self, **attributes: Any) -> Change:
        """Return a copy of this change in which ``attributes`` have the given values."""
        given = {name: getattr(self, name) for name in _ATTRIBUTES}
        if not self.exact and "data" not in attributes:
            given["digest"] = self._digest
        return Change(**given | attributes)

    def adapted(self, data: Mapping[str, Any], known: BaseState | None) -> Change:
        """Return a copy with converted values that keeps the digest and the stamp of this change.

        ``data``: the converted field values. ``known``: the converted base state.
        """
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
    """Set the ``row`` of every put among ``changes``, which must all have one record type.

    The row of a put stays ``None`` if ``reader`` cannot read the body. Alters the puts in place.
    """
    names = reader.names
    puts = [c for c in changes if c._body and c.op == PUT and c.exact]
    rows = reader.read([c._body for c in puts if c._body], [c.key for c in puts])
    for change, row in zip(puts, rows, strict=True):
        change._row_names = names
        change.row = row


def read_patches(changes: Iterable[Change], reader: BodyReader) -> None:
    """Set the ``row`` of every patch among ``changes``, which must all have one record type.

    The row holds the values of the patched fields, in the order of the patch. It stays ``None`` if
    ``reader`` cannot read the body, or if the base state contains values that must be converted.
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
    """Return the stamp of each change, in the same order. Faster than reading ``Change.stamp``.

    Raises ``ValueRefusedError`` if the values of a change may not travel.
    """
    packed = [change for change in changes if change._body and change._digest is None]
    digests = packing.digests_of_bodies([change._body for change in packed if change._body])
    for change, digest in zip(packed, digests, strict=True):
        change._digest = digest
    return [bytes.__new__(Stamp, c.version + RANK[c.op] + (c._digest or c.digest)) for c in changes]


def make_bodies(changes: Iterable[Change]) -> None:
    """Pack the bodies of ``changes`` together and keep each body in its change.

    Saves time if the changes have the same fields; otherwise nothing is packed. Does not raise: if
    a value may not travel, a later read of ``Change.body`` raises ``ValueRefusedError``.
    """
    unpacked = [change for change in changes if change._body is None]
    parts = body_parts(unpacked)
    if parts is not None:
        for change, body in zip(unpacked, map(b"".join, zip(*parts, strict=False)), strict=True):
            change._body = body


def body_parts(changes: Sequence[Change]) -> list[Iterable[bytes]] | None:
    """Return the packed bodies of ``changes``, in the columns that ``packing.pack_bodies`` returns.

    Does not keep the bodies in the changes. Returns ``None`` if there are fewer than ten changes,
    if a change has a packed body already, if the changes do not have the same fields, or if a value
    may not travel.
    """
    if len(changes) < _FEW or any(change._body is not None for change in changes):
        return None
    return packing.pack_bodies([c._data for c in changes if c._data is not None])


_ATTRIBUTES: Final = (
    *("type", "key", "op", "version", "data", "source", "id", "schema", "hops", "ext", "known"),
)
