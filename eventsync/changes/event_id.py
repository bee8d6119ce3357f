"""Event ids: UUIDv7, drawn from a buffer of random bytes."""

from __future__ import annotations

import os
import threading
import time
from typing import Final

from eventsync.changes.fork import incarnation

__all__ = ["new_id"]


class _Randomness(threading.local):
    """Random bytes by the kilobyte, for each thread its own: a system call for each is dear."""

    def __init__(self) -> None:
        self._incarnation = -1
        self._bytes = b""
        self._at = 0

    def take(self, count: int) -> bytes:
        """That many bytes, which nobody else gets: after a fork the child has others."""
        end = self._at + count
        if end > len(self._bytes) or self._incarnation != incarnation():
            self._incarnation = incarnation()
            self._bytes, end = os.urandom(4096), count
        self._at = end
        return self._bytes[end - count : end]


_randomness: Final = _Randomness()


def new_id() -> bytes:
    """A UUIDv7 (RFC 9562) as 16 bytes: an event's name for tracing, never for order."""
    random = int.from_bytes(_randomness.take(10), "big")
    # Version 7 in its first four bits, variant 2 in two later ones.
    marked = random & 0x0FFF_3FFF_FFFF_FFFF_FFFF | 0x7000_8000_0000_0000_0000
    return (time.time_ns() // 1_000_000 << 80 | marked).to_bytes(16, "big")
