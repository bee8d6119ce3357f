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

    It lets a store that lacks the record take it whole, and heals what a lost event left behind.
    ``stamp`` is that of the put which the record stands on, ``values`` are the fields the origin
    holds, ``versions`` those of the fields patched since (the others are as old as the stamp).
    """

    stamp: Stamp
    values: Mapping[str, Any]
    versions: Mapping[str, Version]


class Reader(Protocol):
    """What reads the bodies of many changes of one record type at once."""

    @property
    def names(self) -> tuple[str, ...]:
        """The fields, in the order of the rows."""

    def read(self, bodies: Sequence[bytes], keys: Sequence[str], /) -> list[Row | None]:
        """The values in each body, ``None`` where a closer look is needed."""

    def read_patches(
        self, bodies: Sequence[bytes], keys: Sequence[str], /
    ) -> list[tuple[tuple[str, ...], Row] | None]:
        """As ``read``, of patches: names and values."""

    def fits(self, values: Mapping[str, Any], /) -> bool:
        """Whether no closer look is needed at values that have been read."""


_UNREAD: Final[Any] = object()
# So many bodies are made as quickly one by one.
_FEW: Final = 10
_NOTHING: Final[Mapping[str, Any]] = MappingProxyType({})


class Change:
    """A put, patch or delete of one record at a version. Not to be altered once made.

    ``data`` holds field values for a put or patch and is ``None`` for a delete. A put lists every
    field its origin holds; a patch lists only fields that really changed. ``key`` is the canonical
    text of the record's key. ``known`` goes with patches only. ``exact``: ``data`` are the body
    that ``digest`` is of; not so in the copy of a state that a store keeps in a form of its own.
    """

    __slots__ = (
        "_body",
        "_data",
        "_digest",
        "_names",
        "_row",
        "exact",
        "ext",
        "hops",
        "id",
        "key",
        "known",
        "op",
        "schema",
        "source",
        "type",
        "version",
    )

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
        """``id``: by default a new one. ``digest``: that of the body which the change was made
        with, where ``data`` are not that body.
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
        self._data = data
        self._digest = digest
        self._body: bytes | None = None
        self._row: Row | None = None
        self._names: tuple[str, ...] = ()

    @classmethod
    def sealed(
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
        """A change of which only the ``body`` is at hand: its data are read when asked for.

        Most of what a busy queue holds of a record is superseded before anybody needs its values.
        Of a delete the ``body`` does not matter.
        """
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
        if op == DELETE:
            change._data = None
            change._digest = packing.NO_BODY
            change._body = b""
        else:
            change._data = _UNREAD
            change._digest = None
            change._body = body
        change._row = None
        change._names = ()
        return change

    @property
    def data(self) -> Mapping[str, Any] | None:
        """The field values. Raises ``ValueRefusedError`` if a sealed body is not one."""
        if self._data is _UNREAD:
            if self._row is not None:
                self._data = dict(zip(self._names, self._row, strict=True))
            else:
                assert self._body is not None
                self._data = unpacking.unpack_body(self._body)
        return self._data

    @property
    def row(self) -> Row | None:
        """The values as ``read_rows`` or ``read_patches`` read them, which are just what the record
        type would make of them; ``None`` if they have not, or could not.
        """
        return self._row

    @property
    def packed(self) -> bool:
        """Whether the bytes of its body are at hand, so that it can travel for certain."""
        return self._body is not None or self._data is None

    @property
    def body(self) -> bytes:
        """The bytes of ``data`` on the wire; empty for a delete.

        Raises ``ValueRefusedError`` if they may not travel.
        """
        if self._body is None:
            self._body = b"" if self._data is None else packing.pack_body(self._data)
        return self._body

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the body. Raises ``ValueRefusedError`` if it cannot travel."""
        if self._digest is None:
            body = self.body
            self._digest = packing.digest_of_body(body) if body else packing.NO_BODY
        return self._digest

    @property
    def stamp(self) -> Stamp:
        """The place of this change in the total order of puts and deletes."""
        return Stamp(self.version + RANK[self.op] + self.digest)

    def replace(self, **attributes: Any) -> Change:
        """A new change: this one with other attributes."""
        given = {name: getattr(self, name) for name in _ATTRIBUTES}
        if not self.exact and "data" not in attributes:
            given["digest"] = self._digest
        return Change(**given | attributes)

    def adapted(self, data: Mapping[str, Any], known: BaseState | None) -> Change:
        """The same change with its values in another form: it keeps its place in the order."""
        return self.replace(data=data, known=known, digest=self.digest)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Change):
            return NotImplemented
        return all(getattr(self, name) == getattr(other, name) for name in _ATTRIBUTES)

    __hash__ = None  # type: ignore[assignment]  # its data can hold lists and dicts

    def __repr__(self) -> str:
        shown = ", ".join(f"{name}={getattr(self, name)!r}" for name in _ATTRIBUTES)
        return f"Change({shown})"


def read_rows(changes: Iterable[Change], reader: Reader) -> None:
    """Read the bodies of puts, all of one record type, as their ``row``.

    Those that take a closer look stay as they are.
    """
    names = reader.names
    puts = [c for c in changes if c._body and c.op == PUT and c.exact]
    rows = reader.read([c._body for c in puts if c._body], [c.key for c in puts])
    for change, row in zip(puts, rows, strict=True):
        change._names = names
        change._row = row


def read_patches(changes: Iterable[Change], reader: Reader) -> None:
    """As ``read_rows``, of patches: their ``row`` are the values of the fields that they name."""
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
            change._names, change._row = found


def stamps(changes: Sequence[Change]) -> list[Stamp]:
    """The stamp of each: for many at once that takes a fraction of the time.

    Raises ``ValueRefusedError`` if one cannot travel.
    """
    packed = [change for change in changes if change._body and change._digest is None]
    digests = packing.digests_of_bodies([change._body for change in packed if change._body])
    for change, digest in zip(packed, digests, strict=True):
        change._digest = digest
    return [bytes.__new__(Stamp, c.version + RANK[c.op] + (c._digest or c.digest)) for c in changes]


def make_bodies(changes: Iterable[Change]) -> None:
    """Make the bodies of many changes at once: quicker than one by one where they are alike.

    Nothing else is to be seen of it: what may not travel is refused when its ``body`` is asked for.
    """
    bodiless = [change for change in changes if change._body is None and change._data is not None]
    parts = body_parts(bodiless)
    if parts is not None:
        for change, body in zip(bodiless, map(b"".join, zip(*parts, strict=False)), strict=True):
            change._body = body


def body_parts(changes: Sequence[Change]) -> list[Iterable[bytes]] | None:
    """The bodies of changes that have none yet, as ``value.pack_bodies`` makes them, and not kept.

    ``None`` where one has its body, or is to have none, and where they are few or not alike.
    """
    if len(changes) < _FEW or any(
        change._body is not None or change._data is None for change in changes
    ):
        return None
    return packing.pack_bodies([change._data for change in changes])  # type: ignore[misc]


_ATTRIBUTES: Final = (
    *("type", "key", "op", "version", "data", "source", "id", "schema", "hops", "ext", "known"),
)
