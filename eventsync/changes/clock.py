"""Versions, and the hybrid logical clock that issues them.

This module knows nothing of records, changes or stores.

The clock follows Kulkarni et al., "Logical Physical Clocks" (2014): physical milliseconds and a
counter. Two nodes can draw the same pair, so a version ends in the node that issued it.
"""

from __future__ import annotations

import datetime as dt
import os
import secrets
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Final, Protocol

from eventsync.changes.fork import incarnation
from eventsync.errors import ClockDriftError, ConfigError, malformed, shown

__all__ = ["Clock", "HighWaterMark", "MarkFile", "Version", "version_at"]

_COUNTER_LIMIT: Final = 1 << 16
_MILLIS_LIMIT: Final = 1 << 48
_RESERVE_MILLIS: Final = 1000


class Version(bytes):
    """A point in the total order of changes: 16 bytes, ``(l, c, n)`` big-endian.

    ``l``: 48 bits of milliseconds since the epoch; ``c``: a 16-bit counter; ``n``: a 64-bit node.
    Byte order is version order, so a store compares versions as it compares bytes, or as it
    compares ``hex()`` under a binary collation.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Version:
        if len(raw) != 16:
            raise ValueError(f"a version has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, millis: int, counter: int = 0, node: int = 0) -> Version:
        """The version with these three parts. Raises ``OverflowError`` for one out of range."""
        return cls(millis.to_bytes(6, "big") + counter.to_bytes(2, "big") + node.to_bytes(8, "big"))

    @classmethod
    def parse(cls, text: str) -> Version:
        """The version that ``text`` shows as 32 hexadecimal digits. Raises ``ValueError``."""
        return cls(bytes.fromhex(text))

    @property
    def millis(self) -> int:
        """Milliseconds since the epoch."""
        return int.from_bytes(self[:6], "big")

    @property
    def counter(self) -> int:
        """The number of this version among those of its node and millisecond."""
        return int.from_bytes(self[6:8], "big")

    @property
    def node(self) -> int:
        """The process incarnation that issued this version."""
        return int.from_bytes(self[8:], "big")

    @property
    def time(self) -> dt.datetime:
        """When it was issued, by its issuer's clock, in UTC (years beyond 9999 show as 9999)."""
        seconds = min(self.millis / 1000, 253_402_300_799.0)
        return dt.datetime.fromtimestamp(seconds, dt.UTC)

    def __repr__(self) -> str:
        moment = self.time.isoformat(timespec="milliseconds")
        return f"Version({moment}+{self.counter}@{self.node:016x})"

    def __str__(self) -> str:
        return self.hex()


class HighWaterMark(Protocol):
    """Where a clock keeps, across restarts, a bound above every ``l`` that it has issued."""

    def load(self) -> int:
        """The last saved bound in milliseconds; 0 when there is none."""

    def save(self, millis: int) -> None:
        """Keep ``millis`` durably before returning."""


class MarkFile:
    """A ``HighWaterMark`` in a file of its own, replaced atomically."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._path = Path(path)

    def load(self) -> int:
        try:
            text = self._path.read_text(encoding="ascii")
        except FileNotFoundError:
            return 0
        try:
            return int(text)
        except ValueError as error:
            raise ConfigError(
                f"the clock's high-water mark {self._path} holds {text[:40]!r}, not a number",
                hint="restore it, or delete it if the system clock is right",
            ) from error

    def save(self, millis: int) -> None:
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with open(partial, "w", encoding="ascii") as file:
            file.write(str(millis))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)


class Clock:
    """A hybrid logical clock: each version is greater than all it has issued or observed.

    Thread-safe. The node is drawn at random for each process incarnation, and again in a child
    after ``fork``. A system clock that steps back does not matter while the process lives; with a
    ``mark`` it does not matter across restarts either.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        max_drift: float = 5.0,
        mark: HighWaterMark | None = None,
        node: int | None = None,
    ) -> None:
        """``now`` gives seconds since the epoch; ``max_drift`` is in seconds.

        ``node`` fixes the node id: for tests, since two clocks of one node issue equal versions.
        """
        self._now = now
        self._max_drift = max_drift
        self._mark = mark
        self._lock = threading.Lock()
        self._counter = -1
        self._reserved = mark.load() if mark else 0
        # Everything below the mark may have been issued by an earlier incarnation.
        self._millis = self._reserved
        self._incarnation = incarnation()
        self._fixed = node is not None
        self._node = (node if node is not None else secrets.randbits(64)).to_bytes(8, "big")

    @property
    def node(self) -> int:
        """The node id of this process incarnation."""
        self._after_fork()
        return int.from_bytes(self._node, "big")

    def now(self) -> float:
        """The physical time this clock runs on, in seconds since the epoch."""
        return self._now()

    def tick(self) -> Version:
        """Issue the next version. Blocks on the mark's storage about once a second."""
        self._after_fork()
        with self._lock:
            millis = int(self._now() * 1000)
            if millis > self._millis:
                self._advance(millis, 0)
            else:
                self._advance(self._millis, self._counter + 1)
            issued = (self._millis << 16 | self._counter).to_bytes(8, "big") + self._node
            # Its length is known: ``Version`` would look again.
            return bytes.__new__(Version, issued)

    def observe(self, version: Version, *, max_drift: float | None = None) -> None:
        """Move past ``version``, so that what is issued next is greater.

        Idempotent. Raises ``ClockDriftError``, and changes nothing, when it lies too far ahead.
        """
        self.check_drift(version, max_drift=max_drift)
        self._after_fork()
        with self._lock:
            if (version.millis, version.counter) > (self._millis, self._counter):
                self._advance(version.millis, version.counter)

    def check_drift(self, version: Version, *, max_drift: float | None = None) -> None:
        """Raise ``ClockDriftError`` when ``version`` lies more than ``max_drift`` seconds ahead.

        ``max_drift``: instead of the clock's own.
        """
        ahead = version.millis / 1000 - self._now()
        allowed = self._max_drift if max_drift is None else max_drift
        if ahead > allowed:
            raise ClockDriftError(
                f"version {version.hex()} lies {ahead:.1f} s in the future; "
                f"{allowed:g} s is allowed",
                hint="correct the clock of the node that issued it, or raise max_clock_drift",
            )

    def _advance(self, millis: int, counter: int) -> None:
        if counter >= _COUNTER_LIMIT:
            millis, counter = millis + 1, 0
        if millis >= _MILLIS_LIMIT:
            raise OverflowError("the clock has run out of its 48 bits of milliseconds")
        if self._mark is not None and millis >= self._reserved:
            # Reserve ahead of physical time only, so that quick restarts do not add up.
            bound = max(int(self._now() * 1000) + _RESERVE_MILLIS, millis + 1)
            self._mark.save(bound)
            self._reserved = bound
        self._millis, self._counter = millis, counter

    def _after_fork(self) -> None:
        if self._incarnation != incarnation():
            # The lock may have been held by a thread that does not exist here.
            self._lock = threading.Lock()
            self._incarnation = incarnation()
            if not self._fixed:
                self._node = secrets.token_bytes(8)


def version_at(micros: int, node: int) -> Version:
    """The version of what another system did ``micros`` microseconds after the epoch.

    Its parts are the milliseconds, the microseconds left over as the counter, and ``node``. Raises
    ``EnvelopeError`` for a time before the epoch or beyond 48 bits of milliseconds.
    """
    try:
        return Version.of(micros // 1000, micros % 1000, node)
    except OverflowError as error:
        raise malformed(f"no version can hold the time {shown(micros)}") from error
