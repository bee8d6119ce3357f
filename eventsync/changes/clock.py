"""Versions, and the hybrid logical clock that issues them.

The clock follows Kulkarni et al., "Logical Physical Clocks" (2014): physical milliseconds and a
counter. Two nodes can issue the same pair, so a version ends with the id of its node.
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
    Byte order is version order. A store may compare versions as bytes, or as ``hex()`` text under a
    binary collation.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Version:
        if len(raw) != 16:
            raise ValueError(f"a version has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, millis: int, counter: int = 0, node: int = 0) -> Version:
        """Make a version of its parts. Raises ``OverflowError`` if one is out of range."""
        return cls(millis.to_bytes(6, "big") + counter.to_bytes(2, "big") + node.to_bytes(8, "big"))

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read a version from 32 hexadecimal digits. Raises ``ValueError``."""
        return cls(bytes.fromhex(text))

    @property
    def millis(self) -> int:
        """Milliseconds since the epoch."""
        return int.from_bytes(self[:6], "big")

    @property
    def counter(self) -> int:
        """The number of this version among the versions of its node and millisecond."""
        return int.from_bytes(self[6:8], "big")

    @property
    def node(self) -> int:
        """The id of the process incarnation that issued this version."""
        return int.from_bytes(self[8:], "big")

    @property
    def time(self) -> dt.datetime:
        """The time of issue by the issuer's clock, in UTC; at most the end of the year 9999."""
        seconds = min(self.millis / 1000, 253_402_300_799.0)
        return dt.datetime.fromtimestamp(seconds, dt.UTC)

    def __repr__(self) -> str:
        moment = self.time.isoformat(timespec="milliseconds")
        return f"Version({moment}+{self.counter}@{self.node:016x})"

    def __str__(self) -> str:
        return self.hex()


class HighWaterMark(Protocol):
    """The durable upper bound of every ``l`` that a clock has issued; it survives restarts."""

    def load(self) -> int:
        """Return the last saved bound in milliseconds, or 0 if there is none."""

    def save(self, millis: int) -> None:
        """Store ``millis`` durably before returning."""


class MarkFile:
    """A ``HighWaterMark`` in a file, which is replaced atomically."""

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
                f"the file of the clock's high-water mark, {self._path}, holds {text[:40]!r}, not "
                "a number of milliseconds",
                hint="restore the file; if the system clock is right, you can delete it instead",
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
    after ``fork``. Versions grow even if the system clock steps back; with a ``mark`` they do so
    across restarts, too.
    """

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.time,
        max_drift: float = 5.0,
        mark: HighWaterMark | None = None,
        node: int | None = None,
    ) -> None:
        """Start a clock.

        ``now``: a function that returns seconds since the epoch. ``max_drift``: in seconds.
        ``node``: a fixed node id, only for tests: two clocks of one node issue equal versions.
        """
        self._now = now
        self._max_drift = max_drift
        self._mark = mark
        self._lock = threading.Lock()
        self._counter = -1
        self._reserved = mark.load() if mark else 0
        # An earlier incarnation may have issued any version below the mark.
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
        """Return the physical time of this clock, in seconds since the epoch."""
        return self._now()

    def tick(self) -> Version:
        """Issue the next version. With a mark it blocks on its storage about once a second."""
        self._after_fork()
        with self._lock:
            millis = int(self._now() * 1000)
            if millis > self._millis:
                self._advance(millis, 0)
            else:
                self._advance(self._millis, self._counter + 1)
            issued = (self._millis << 16 | self._counter).to_bytes(8, "big") + self._node
            # Like ``Version(issued)``, without the check of its length.
            return bytes.__new__(Version, issued)

    def observe(self, version: Version, *, max_drift: float | None = None) -> None:
        """Move the clock past ``version``, so that the next version it issues is greater.

        Idempotent. Raises ``ClockDriftError`` and changes nothing if ``version`` lies too far in
        the future.
        """
        self.check_drift(version, max_drift=max_drift)
        self._after_fork()
        with self._lock:
            if (version.millis, version.counter) > (self._millis, self._counter):
                self._advance(version.millis, version.counter)

    def check_drift(self, version: Version, *, max_drift: float | None = None) -> None:
        """Raise ``ClockDriftError`` if ``version`` lies more than ``max_drift`` seconds ahead.

        ``max_drift``: by default that of the clock.
        """
        ahead = version.millis / 1000 - self._now()
        allowed = self._max_drift if max_drift is None else max_drift
        if ahead > allowed:
            raise ClockDriftError(
                f"version {version.hex()} lies {ahead:.1f} s in the future; "
                f"{allowed:g} s is allowed",
                hint="correct the clock of the machine that issued it, or raise max_clock_drift",
            )

    def _advance(self, millis: int, counter: int) -> None:
        if counter >= _COUNTER_LIMIT:
            millis, counter = millis + 1, 0
        if millis >= _MILLIS_LIMIT:
            raise OverflowError("the time of the clock no longer fits into 48 bits of milliseconds")
        if self._mark is not None and millis >= self._reserved:
            # The reserve is counted from physical time, so that quick restarts do not add up.
            bound = max(int(self._now() * 1000) + _RESERVE_MILLIS, millis + 1)
            self._mark.save(bound)
            self._reserved = bound
        self._millis, self._counter = millis, counter

    def _after_fork(self) -> None:
        if self._incarnation != incarnation():
            # Another thread of the parent may have held the lock; it does not exist here.
            self._lock = threading.Lock()
            self._incarnation = incarnation()
            if not self._fixed:
                self._node = secrets.token_bytes(8)


def version_at(micros: int, node: int) -> Version:
    """Return the version of a change that another system made at a time.

    ``micros``: microseconds since the epoch. The parts of the version are the milliseconds, the
    remaining microseconds as the counter, and ``node``. Raises ``EnvelopeError`` for a time before
    the epoch or beyond 48 bits of milliseconds.
    """
    try:
        return Version.of(micros // 1000, micros % 1000, node)
    except OverflowError as error:
        raise malformed(
            f"the time {shown(micros)} (microseconds since the epoch) does not fit into a version"
        ) from error
