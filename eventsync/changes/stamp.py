"""The stamp: the place of a put or delete in the total order of the changes of a record."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final, Literal

from eventsync.changes.clock import Version

__all__ = ["DELETE", "PATCH", "PUT", "RANK", "UNSTAMPED", "Op", "Stamp"]

Op = Literal["put", "patch", "delete"]
PUT: Final = "put"
PATCH: Final = "patch"
DELETE: Final = "delete"

RANK: Final[Mapping[str, bytes]] = {PATCH: b"\x00", PUT: b"\x01", DELETE: b"\x02"}


class Stamp(bytes):
    """The place of a put or delete in the total order: 49 bytes, compared as bytes.

    It consists of the version (16 bytes), the kind (1 byte; a delete is above a put) and the
    SHA-256 of the canonical body (32 bytes). Only a bug or a forgery gives two changes the same
    version; kind and digest make stores converge even then.
    """

    __slots__ = ()

    @property
    def version(self) -> Version:
        """The version of the put or delete."""
        return Version(self[:16])

    @property
    def deleted(self) -> bool:
        """Whether this is the stamp of a delete."""
        return self[16:17] == RANK[DELETE]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the canonical body; zeros for a delete."""
        return bytes(self[17:])


UNSTAMPED: Final = Stamp(b"")
"""The stamp of a record of which no put and no delete has been seen; below every other stamp."""
