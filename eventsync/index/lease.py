"""The lease: a right that one of the processes sharing a version index has at a time."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable

from eventsync.index.contract import Index

__all__ = ["Lease"]


class Lease:
    """A lease that one of the processes sharing a version index holds at a time.

    The lease is a mark in the index, and its holder renews the mark. If the mark has not changed
    for ``lifetime`` seconds, the holder is considered dead. Each process measures this by its own
    clock, so clocks need not agree. To take the lease, a process writes its own mark, waits
    ``settle`` seconds, and reads the mark again (Fischer's algorithm).

    The index needs to support only reading and writing a text. Therefore exclusion is not
    guaranteed: if a process is suspended for longer than ``settle`` while it takes the lease, two
    processes may hold the lease until one of them calls ``keep``. Use the lease only where two
    holders do no harm. Not thread-safe.
    """

    def __init__(
        self,
        index: Index,
        name: str,
        *,
        lifetime: float = 10.0,
        settle: float = 0.1,
        monotonic: Callable[[], float] = time.monotonic,
        wait: Callable[[float], None] = time.sleep,
    ) -> None:
        self._index = index
        self._name = name
        self._lifetime = lifetime
        self._settle = settle
        self._monotonic = monotonic
        self._wait = wait
        self._count = 0
        self._own_mark = ""
        self._written_at = 0.0
        # The mark that was read last, and when this mark was first read.
        self._seen: tuple[str, float] = ("", 0.0)

    def take(self) -> bool:
        """Try to take the lease; return whether this process holds it now.

        Blocks for ``settle`` seconds if the lease is free. Raises ``StoreUnavailableError`` if the
        index cannot be reached.
        """
        mark = self._index.load_mark(self._name)
        now = self._monotonic()
        if mark != self._seen[0]:
            self._seen = (mark, now)
        if mark and now - self._seen[1] < self._lifetime:
            return False
        self._write()
        self._wait(self._settle)
        return self._index.load_mark(self._name) == self._own_mark

    @property
    def is_due(self) -> bool:
        """Whether a quarter of the lifetime has passed, so that ``keep`` will renew the lease."""
        return self._monotonic() - self._written_at >= self._lifetime / 4

    def keep(self) -> bool:
        """Renew the lease if a quarter of its lifetime has passed.

        Returns whether this process still holds the lease. Raises ``StoreUnavailableError`` if the
        index cannot be reached.
        """
        if self._index.load_mark(self._name) != self._own_mark:
            return False
        if self.is_due:
            self._write()
        return True

    def release(self) -> None:
        """Give up the lease if this process still holds it. Idempotent.

        Raises ``StoreUnavailableError`` if the index cannot be reached.
        """
        if self._own_mark and self._index.load_mark(self._name) == self._own_mark:
            self._index.save_mark(self._name, "")
        self._own_mark = ""

    def _write(self) -> None:
        self._count += 1
        # Random, so that two processes never write the same mark, even after a fork or if a process
        # id is reused.
        self._own_mark = f"{os.getpid()} {secrets.token_hex(8)} {self._count}"
        self._index.save_mark(self._name, self._own_mark)
        self._written_at = self._monotonic()
