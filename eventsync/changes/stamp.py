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

    Version (16), kind (1; delete above put), SHA-256 of the canonical body (32). The last two only
    matter when two changes carry one version, which takes a bug or a forgery; they make even that
    converge.
    """

    __slots__ = ()

    @property
    def version(self) -> Version:
        """When the put or delete was made."""
        return Version(self[:16])

    @property
    def deleted(self) -> bool:
        """Whether a delete made it."""
        return self[16:17] == RANK[DELETE]

    @property
    def digest(self) -> bytes:
        """The SHA-256 of the canonical body it came with."""
        return bytes(self[17:])


UNSTAMPED: Final = Stamp(b"")
"""Below every stamp: no put and no delete of the record has been seen."""
