"""The ids of changes: UUIDs of version 7."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from eventsync.changes.fork import incarnation

__all__ = ["new_id"]


class _Randomness(threading.local):
    """A buffer of random bytes for each thread. One system call serves many ids."""

    def __init__(self) -> None:
        self._incarnation = -1
        self._bytes = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """Return ``count`` random bytes. No two calls return the same bytes of the buffer.

        A forked child does not reuse the buffer of its parent.
        """
        end = self._at + count
        if end > len(self._bytes) or self._incarnation != incarnation():
            self._incarnation = incarnation()
            self._bytes, end = os.urandom(4096), count
        self._at = end
        return self._bytes[end - count : end]


_randomness: Final = _Randomness()


def new_id() -> bytes:
    """Return a new UUIDv7 (RFC 9562) as 16 bytes.

    The id identifies a change in logs and traces. Versions, not ids, order changes.
    """
    random = int.from_bytes(_randomness.take(10), "big")
    # The four bits of version 7, and the two bits of the variant.
    marked = random & 0x0FFF_3FFF_FFFF_FFFF_FFFF | 0x7000_8000_0000_0000_0000
    return (time.time_ns() // 1_000_000 << 80 | marked).to_bytes(16, "big")
