"""The stamp: the place of a put or delete in the total order of a record's puts and deletes."""

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
    """The place of a put or delete in the total order: 49 bytes that are compared as bytes.

    A stamp consists of the version (16 bytes), the kind (1 byte, greater for a delete than for a
    put) and the SHA-256 digest of the body (32 bytes). Only a bug or a forgery gives two changes
    the same version. Kind and digest make stores converge even in this case.
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
        """The SHA-256 digest of the body of the put; zeros for a delete."""
        return bytes(self[17:])


UNSTAMPED: Final = Stamp(b"")
"""The stamp of a record of which no put and no delete was seen. Smaller than every other stamp."""
