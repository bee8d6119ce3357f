"""What producers said and what workers did, written down as it happens and read in the end.

It knows nothing of faults. Each file has one writer; a writer that is killed leaves at most a torn
last entry, which is no entry.
"""

from __future__ import annotations

import os
import struct
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from eventsync.changes.change import Change
from eventsync.envelope import batch, codec

__all__ = ["Applied", "Journal", "Timeline", "percentile"]

_ENTRY = struct.Struct(">Id")
_CONFIRMED = struct.Struct(">QQ")


class Journal:
    """The batches a producer meant to publish, when, and up to which of them it was told so.

    A producer that is killed and started again on the same journal finds in ``unconfirmed`` what it
    has to publish again, as one with an outbox does.
    """

    def __init__(self, path: Path) -> None:
        self._meant = path.with_suffix(".meant")
        self._told = path.with_suffix(".told")
        entries = list(_entries(self._meant)) if self._meant.exists() else []
        self._size, self.made = _last_confirmed(self._told)
        self.unconfirmed = [body for offset, _, body in entries if offset >= self._size]
        whole = sum(_ENTRY.size + len(body) for _, _, body in entries)
        if self._meant.exists():
            os.truncate(self._meant, whole)
        self._out = self._meant.open("ab", buffering=0)
        self._told_out = self._told.open("ab", buffering=0)

    def mean(self, envelopes: Sequence[bytes]) -> None:
        """Note a batch that is about to be published."""
        for body in batch.batches(envelopes, max_count=len(envelopes), max_bytes=1 << 30):
            self._out.write(_ENTRY.pack(len(body), time.time()) + body)

    def confirm(self, made: int) -> None:
        """Note that all of it is published, and how many events were made so far."""
        self.made = made
        self._told_out.write(_CONFIRMED.pack(self._out.tell(), made))

    @staticmethod
    def made_by(told: Path) -> int:
        """How many events the producer made so far whose ``.told`` file it is."""
        return _last_confirmed(told)[1]

    @staticmethod
    def read(folder: Path) -> Iterator[tuple[float, bool, Change]]:
        """Every change that producers meant to publish: when, whether they were told that it is,
        and the change."""
        for path in sorted(folder.glob("*.meant")):
            confirmed, _ = _last_confirmed(path.with_suffix(".told"))
            for offset, moment, body in _entries(path):
                for raw in batch.split_batch(body):
                    yield moment, offset < confirmed, codec.decode(raw)


def _entries(path: Path) -> Iterator[tuple[int, float, bytes]]:
    with path.open("rb") as file:
        offset = 0
        while len(head := file.read(_ENTRY.size)) == _ENTRY.size:
            size, moment = _ENTRY.unpack(head)
            body = file.read(size)
            if len(body) < size:
                return
            yield offset, moment, body
            offset += _ENTRY.size + size


def _last_confirmed(path: Path) -> tuple[int, int]:
    if not path.exists():
        return 0, 0
    with path.open("rb") as file:
        whole = file.seek(0, os.SEEK_END) // _CONFIRMED.size
        if not whole:
            return 0, 0
        file.seek((whole - 1) * _CONFIRMED.size)
        size, made = _CONFIRMED.unpack(file.read(_CONFIRMED.size))
    return size, made


class Applied:
    """Writes down which versions a worker process has just brought into its store."""

    def __init__(self, folder: Path, store: str) -> None:
        self._path = folder / f"{store}.{os.getpid()}.{time.time_ns()}.applied"
        self._file = None

    def note(self, versions: Iterable[bytes]) -> None:
        """Each became visible now."""
        if self._file is None:
            self._file = self._path.open("ab", buffering=0)
        body = b"".join(versions)
        if body:
            self._file.write(_ENTRY.pack(len(body), time.time()) + body)

    @staticmethod
    def read(folder: Path, store: str) -> Iterator[tuple[float, bytes]]:
        """When each version became visible in ``store``."""
        for path in folder.glob(f"{store}.*.applied"):
            for _, moment, body in _entries(path):
                for start in range(0, len(body), 16):
                    yield moment, body[start : start + 16]


class Timeline:
    """When each change was published and when it was in one store."""

    def __init__(self, published: dict[bytes, float], applied: Iterable[tuple[float, bytes]]):
        first: dict[bytes, float] = {}
        for moment, version in applied:
            if version in published and moment < first.get(version, float("inf")):
                first[version] = moment
        pairs = sorted((published[version], moment) for version, moment in first.items())
        self._published = [made for made, _ in pairs]
        self._latest: list[float] = []
        for _, moment in pairs:
            self._latest.append(max(moment, self._latest[-1] if self._latest else 0.0))
        self.lags = sorted(moment - made for made, moment in pairs)

    def recovery(self, moment: float) -> float:
        """Seconds after a fault until all that was published before it was in the store."""
        before = bisect_left(self._published, moment)
        return max(0.0, self._latest[before - 1] - moment) if before else 0.0


def percentile(ordered: Sequence[float], share: float) -> float | None:
    """The value below which ``share`` of the ordered values lie; ``None`` of none."""
    if not ordered:
        return None
    return round(ordered[min(len(ordered) - 1, int(share * len(ordered)))], 4)
