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
    """A point in the total order of changes: 16 bytes that consist of three big-endian numbers.

    The numbers are milliseconds since the epoch (48 bits), a counter (16 bits) and the id of a node
    (64 bits). Byte order is version order: a store may compare versions as bytes, or as ``hex()``
    text with a binary collation. Raises ``ValueError`` if the argument does not have 16 bytes.
    """

    __slots__ = ()

    def __new__(cls, raw: bytes) -> Version:
        if len(raw) != 16:
            raise ValueError(f"a version has 16 bytes, not {len(raw)}")
        return super().__new__(cls, raw)

    @classmethod
    def of(cls, millis: int, counter: int = 0, node: int = 0) -> Version:
        """Return the version with these three numbers.

        Raises ``OverflowError`` if a number is negative or has too many bits.
        """
        return cls(millis.to_bytes(6, "big") + counter.to_bytes(2, "big") + node.to_bytes(8, "big"))

    @classmethod
    def parse(cls, text: str) -> Version:
        """Return the version that 32 hexadecimal digits describe.

        Raises ``ValueError`` if ``text`` is not 32 hexadecimal digits.
        """
        return cls(bytes.fromhex(text))

    @property
    def millis(self) -> int:
        """The time in this version, in milliseconds since the epoch.

        It is the physical time of the issuer, or later if the issuer had observed a later version.
        """
        return int.from_bytes(self[:6], "big")

    @property
    def counter(self) -> int:
        """The counter that orders the versions that a node issues in one millisecond."""
        return int.from_bytes(self[6:8], "big")

    @property
    def node(self) -> int:
        """The id of the node that issued this version. A forked child is a node of its own."""
        return int.from_bytes(self[8:], "big")

    @property
    def time(self) -> dt.datetime:
        """The value of ``millis`` as a datetime in UTC.

        A time after the year 9999 is given as the last second of that year.
        """
        seconds = min(self.millis / 1000, 253_402_300_799.0)
        return dt.datetime.fromtimestamp(seconds, dt.UTC)

    def __repr__(self) -> str:
        moment = self.time.isoformat(timespec="milliseconds")
        return f"Version({moment}+{self.counter}@{self.node:016x})"

    def __str__(self) -> str:
        return self.hex()


class HighWaterMark(Protocol):
    """The storage of a clock's mark: a time that none of its versions reaches.

    A clock that loads the mark after a restart issues only versions at or after this time.
    """

    def load(self) -> int:
        """Return the mark that was saved last, in milliseconds since the epoch; 0 without one."""

    def save(self, millis: int) -> None:
        """Save the mark, in milliseconds since the epoch. Return when the mark is durable."""


class MarkFile:
    """A ``HighWaterMark`` in a file. ``save`` replaces the file atomically."""

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
                f"the file {self._path} of the clock's high-water mark contains {text[:40]!r}, not "
                "a number of milliseconds",
                hint="restore the file from a backup, or delete the file if the system clock is "
                "right",
            ) from error

    def save(self, millis: int) -> None:
        partial = self._path.with_name(f"{self._path.name}.{os.getpid()}.tmp")
        with open(partial, "w", encoding="ascii") as file:
            file.write(str(millis))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, self._path)


class Clock:
    """A hybrid logical clock: issues versions that are greater than all it has issued or observed.

    Thread-safe. The node id is random; a forked child draws a new one. Versions grow even if the
    system clock is set back. With a ``mark``, versions also grow across restarts of the process.
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

        ``now``: a function that returns seconds since the epoch. ``max_drift``: how many seconds an
        observed version may lie in the future. ``mark``: the storage of the high-water mark.
        ``node``: a fixed node id, only for tests: two clocks with the same node id can issue equal
        versions.
        """
        self._now = now
        self.max_drift = max_drift
        self._mark = mark
        self._lock = threading.Lock()
        self._counter = -1
        self._reserved = mark.load() if mark else 0
        # An earlier process with this mark may have issued any version below the mark.
        self._millis = self._reserved
        self._incarnation = incarnation()
        self._fixed = node is not None
        self._node = (node if node is not None else secrets.randbits(64)).to_bytes(8, "big")

    @property
    def node(self) -> int:
        """The node id in the versions that this clock issues. A forked child gets another id."""
        self._after_fork()
        return int.from_bytes(self._node, "big")

    def now(self) -> float:
        """Return the physical time, which ignores observed versions, in seconds since the epoch."""
        return self._now()

    def tick(self) -> Version:
        """Issue the next version. With a ``mark``, about one call a second blocks to save the mark.

        Raises ``OverflowError`` if the time no longer fits into 48 bits of milliseconds.
        """
        self._after_fork()
        with self._lock:
            millis = int(self._now() * 1000)
            if millis > self._millis:
                self._advance(millis, 0)
            else:
                self._advance(self._millis, self._counter + 1)
            issued = (self._millis << 16 | self._counter).to_bytes(8, "big") + self._node
            # Like ``Version(issued)``, but without the check of the length.
            return bytes.__new__(Version, issued)

    def at(self, moment: float, *, after: bytes = b"") -> Version:
        """Return a version for a change that was made at ``moment``, in seconds since the epoch.

        A moment in the future counts as now. ``after``: a version of the same record, if it has
        one; the result is greater. The result is not greater than every version that was issued
        before, so that it loses to a change of another store that was made later. It is unique for
        the record only: ``after`` must be its greatest version.
        """
        self._after_fork()
        millis, counter = max(0, int(min(moment, self._now()) * 1000)), 0
        if after:
            last = Version(after)
            if (last.millis, last.counter) >= (millis, counter):
                millis, counter = last.millis, last.counter + 1
        if counter >= _COUNTER_LIMIT:
            millis, counter = millis + 1, 0
        return Version((millis << 16 | counter).to_bytes(8, "big") + self._node)

    def observe(self, version: Version, *, max_drift: float | None = None) -> None:
        """Advance the clock: every version that it issues later is greater than ``version``.

        Idempotent. Raises ``ClockDriftError``, without advancing the clock, if ``version`` lies
        more than ``max_drift`` seconds in the future. ``max_drift``: as in ``check_drift``.
        """
        self.check_drift(version, max_drift=max_drift)
        self._after_fork()
        with self._lock:
            if (version.millis, version.counter) > (self._millis, self._counter):
                self._advance(version.millis, version.counter)

    def check_drift(self, version: Version, *, max_drift: float | None = None) -> None:
        """Raise ``ClockDriftError`` if ``version`` lies too far in the future.

        ``max_drift``: the allowed seconds; by default the ``max_drift`` of the clock.
        """
        ahead = version.millis / 1000 - self._now()
        allowed = self.max_drift if max_drift is None else max_drift
        if ahead > allowed:
            raise ClockDriftError(
                f"version {version.hex()} lies {ahead:.1f} s in the future; "
                f"{allowed:g} s is allowed",
                hint="correct the system clock of the machine that issued the version, or raise "
                "max_clock_drift",
            )

    def _advance(self, millis: int, counter: int) -> None:
        if counter >= _COUNTER_LIMIT:
            millis, counter = millis + 1, 0
        if millis >= _MILLIS_LIMIT:
            raise OverflowError(
                "the time of the version clock does not fit into 48 bits of milliseconds; correct "
                "the system clock"
            )
        if self._mark is not None and millis >= self._reserved:
            # The reserve starts at physical time. If it started at the last mark, every restart
            # would move the clock further into the future.
            bound = max(int(self._now() * 1000) + _RESERVE_MILLIS, millis + 1)
            self._mark.save(bound)
            self._reserved = bound
        self._millis, self._counter = millis, counter

    def _after_fork(self) -> None:
        if self._incarnation != incarnation():
            # If another thread of the parent held the lock during the fork, nobody in the child
            # would release the lock. So the child makes a new one.
            self._lock = threading.Lock()
            self._incarnation = incarnation()
            if not self._fixed:
                self._node = secrets.token_bytes(8)


def version_at(micros: int, node: int) -> Version:
    """Return a version for a change that a system other than eventsync made.

    ``micros``: the time of the change, in microseconds since the epoch. The whole milliseconds
    become the time of the version and the remaining microseconds its counter. ``node``: the node id
    of the version. Raises ``EnvelopeError`` if the time lies before the epoch or does not fit into
    48 bits of milliseconds.
    """
    try:
        return Version.of(micros // 1000, micros % 1000, node)
    except OverflowError as error:
        raise malformed(
            f"the time {shown(micros)} (microseconds since the epoch) does not fit into a version"
        ) from error
