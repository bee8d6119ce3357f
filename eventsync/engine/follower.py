"""The follower: captures the foreign writes of one store as its change source tells them."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from typing import Final, Protocol

from eventsync.changes.change import Change
from eventsync.engine.capture import ALLOWED_DELETES, SLICE, Capture
from eventsync.engine.change_source import Changes, ChangeSource, MarkLostError
from eventsync.engine.publisher import Publisher
from eventsync.engine.rate_limit import RateLimit
from eventsync.engine.replica import Replica
from eventsync.engine.unreadable import Notice, Reading
from eventsync.errors import (
    DependencyError,
    RecordError,
    SuspiciousReadError,
    is_retryable,
)
from eventsync.index import Index
from eventsync.values.chunk import chunked

__all__ = [
    "Copy",
    "Follower",
    "FollowerObserver",
    "mark_name",
    "saved_copies",
    "since_with_old",
]

_MARK: Final = "follow/mark/"
_WHOLE: Final = "follow/whole/"
# So many seconds after a failure, all records of a type are read again.
_REPEAT_FAILED: Final = 30.0
# What is noted of unreadable records is read from the index again after so many seconds.
_READ_NOTES_EVERY: Final = 10.0
_OLDEST: Final = "follow/oldest"
# A captured write counts as old if it was committed so many seconds before.
_OLD: Final = 5.0
# So many seconds after the last old one was captured, old writes are forgotten.
_FORGET_OLD: Final = 3600.0


class FollowerObserver(Protocol):
    """Is told what a follower does."""

    def captured(self, type: str, count: int, moment: float | None, /) -> None:
        """Handle that ``count`` foreign writes were captured.

        ``moment``: when the last of them was committed, if that is known.
        """

    def whole(self, type: str, reason: str, /) -> None:
        """Handle that all records of a type must be read."""

    def blocked(self, type: str, error: Exception, /) -> None:
        """Handle that records of a type cannot be captured."""

    def cleared(self, type: str, /) -> None:
        """Handle that records of a type were captured."""

    def alive(self) -> None:
        """Handle a sign of life during a long step."""


@dataclass(slots=True)
class Copy:
    """How far a read of all records of one type has come. Kept in the index.

    - ``reason``: why all records are read.
    - ``after``: the key of the last record that was read; empty at the start.
    - ``done``: how many records were read; ``total``: how many there are, about.
    - ``seconds``: how long that took.
    """

    reason: str
    after: str = ""
    done: int = 0
    total: int = 0
    seconds: float = 0.0

    @property
    def remaining(self) -> float | None:
        """How many seconds the read will still take, about; ``None`` if that is unknown."""
        if not self.done or not self.seconds:
            return None
        return max(0.0, (self.total - self.done) * self.seconds / self.done)


@dataclass(slots=True, frozen=True)
class _OldWrites:
    """When writes were last captured long after their commit, and when the first was committed."""

    at: float = 0.0
    moment: float = math.inf


@dataclass(slots=True)
class _Pending:
    """Changes that are captured, but whose mark is not saved yet."""

    changes: list[Changes] = field(default_factory=list)
    since: float = 0.0


class Follower:
    """Captures the foreign writes of one store as its change source tells them. Not thread-safe.

    The records that the source tells are read in short transactions, each with the versions of its
    records and the outbox. Then the mark of the source is saved. So a follower that dies continues
    where it was; what it captured already it does not find again, since the fingerprints agree.

    At the first start, and where the source has lost its mark, all records are read once, in slices
    between the changes that the source tells. That read continues after a restart. If the source
    gives hints, they are read at each start, unless ``polled`` says that somebody else looks for
    what was written meanwhile.

    A record that cannot be read is passed over and noted. If the records of a type cannot be
    captured for another reason, all of them are read again later: the mark moves on, and the type
    does not hold up the others.

    ``publisher``: publishes the changes. ``rate``: how many records a second a read of all records
    may read; ``None`` for no limit. ``notice``: as in ``Store.capture``. ``polled``: whether a
    worker captures the store from time to time, too.
    """

    def __init__(
        self,
        source: ChangeSource,
        replicas: Mapping[str, Replica],
        index: Index,
        capture: Capture,
        *,
        publisher: Publisher,
        flush: Callable[[], object],
        observer: FollowerObserver,
        notice: Notice | None = None,
        rate: float | None = None,
        deletes: float = ALLOWED_DELETES,
        polled: bool = False,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self.source = source
        self.own = 0
        """How many writes of eventsync itself the source has left out."""
        self.behind = False
        """Whether more changes waited when the source was last asked."""
        self.copies: dict[str, Copy] = {}
        """The reads of all records that are not done yet, by record type."""
        self._replicas = replicas
        self._index = index
        self._capture = capture
        self._publisher = publisher
        self._flush = flush
        self._observer = observer
        self._notice = notice
        self._rate = RateLimit(rate) if rate else None
        self._deletes = deletes
        self._polled = polled
        self._monotonic = monotonic
        self._mark_name = mark_name(source)
        self._mark = ""
        self._saved_mark = ""
        self._pending = _Pending()
        self._readings: dict[str, tuple[float, Reading]] = {}
        self._oldest = _OldWrites()
        self._slices: Iterator[list[Change]] | None = None
        self._copying = ""
        self._copy_due = 0.0

    # -- lifecycle ---------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the source after its saved mark. Without a mark, note that all must be read.

        Raises what ``ChangeSource.open`` raises, but for ``MarkLostError``.
        """
        self._mark = self._saved_mark = self._index.load_mark(self._mark_name)
        self._pending = _Pending()
        self._slices = None
        self.copies = saved_copies(self._index)
        self._oldest = saved_oldest(self._index)
        reason = "first start" if not self._mark else ""
        if not self.source.complete:
            reason = "" if self._polled else "what was written before is not told"
        try:
            self._mark = self.source.open(self._mark)
        except MarkLostError as error:
            reason = error.message
            self._mark = self.source.open("")
        if reason or not self._saved_mark:
            # The mark of a source that needs none is empty: note that it was opened.
            if reason:
                self._note_whole(dict.fromkeys(self._replicas, reason))
            self._save_mark()
        self._pending.since = self._monotonic()

    def close(self) -> None:
        """Close the source. Idempotent."""
        self.source.close()

    # -- the work ----------------------------------------------------------------------------------

    def step(self, wait: float) -> int:
        """Capture what the source tells next. Return the number of changes that were published.

        ``wait``: for how many seconds to wait for a change, if none is there. While all records of
        a type are read, does not wait, and reads one slice of them.

        Raises ``StoreUnavailableError`` or an ``OSError`` if the store is away, and
        ``ConfigError`` if it refuses the source. Open the follower again before the next call.
        """
        copying = self._is_copying
        changes = self.source.changes(self._mark, wait=0.0 if copying else wait)
        self.own += changes.own
        self.behind = changes.behind
        captured = self._take(changes)
        if copying:
            captured += self._copy_slice()
        self._mark = changes.mark
        # Only what ``settle`` needs, because many keys may wait for it.
        self._pending.changes.append(Changes(changes.mark, receipt=changes.receipt))
        now = self._monotonic()
        idle = not (changes.keys or changes.whole or changes.recent or changes.behind)
        if now - self._pending.since >= (1.0 if idle else self.source.settle_every):
            self._settle()
        return captured

    def finish(self) -> None:
        """Save the mark of all that was captured. Call this before ``close`` at an orderly end."""
        self._settle()

    def _settle(self) -> None:
        pending, self._pending = self._pending, _Pending(since=self._monotonic())
        self._save_mark()
        for changes in pending.changes:
            self.source.settle(changes)

    def _save_mark(self) -> None:
        text = self._mark or "-"
        if text != self._saved_mark:
            self._index.save_mark(self._mark_name, text)
            self._saved_mark = text

    def _take(self, changes: Changes) -> int:
        captured = 0
        whole = {type: text for type, text in changes.whole.items() if type in self._replicas}
        if whole:
            self._note_whole(whole)
        for type, error in changes.unreadable:
            if type in self._replicas:
                reading = self._reading(type)
                reading(error)
                reading.save()
        for type, moments in changes.keys.items():
            if type not in self._replicas or not moments:
                continue
            try:
                captured += self._take_keys(type, moments)
            except Exception as error:
                if _concerns_store(error):
                    raise
                self._fail(type, error)
        for type in changes.recent:
            if type in self._replicas and type not in self.copies:
                try:
                    captured += self._take_recent(type)
                except Exception as error:
                    if _concerns_store(error):
                        raise
                    self._fail(type, error)
        return captured

    def _take_recent(self, type: str) -> int:
        captured = 0
        found = self._capture.recent(
            self._replicas[type],
            self._publisher.encode,
            deletes=self._deletes,
            notice=self._notice,
        )
        if found is None:
            self._note_whole({type: "the store does not tell which records changed"})
            return 0
        for changes in found:
            if changes:
                self._flush()
                self._observer.captured(type, len(changes), None)
                captured += len(changes)
            self._observer.alive()
            self.source.keep_alive()
        return captured

    def _take_keys(self, type: str, moments: Mapping[str, float | None]) -> int:
        replica, captured = self._replicas[type], 0
        for keys in chunked(moments, SLICE):
            part = {key: moments[key] for key in keys}
            self._note_old(part)
            found = self._capture.dirty(
                replica, part, self._publisher.encode, self._reading(type), deletes=self._deletes
            )
            if found:
                self._flush()
                known = [moment for moment in part.values() if moment is not None]
                self._observer.captured(type, len(found), max(known, default=None))
                captured += len(found)
            self._observer.alive()
            self.source.keep_alive()
        if replica.lacking:
            self._observer.blocked(type, self._capture.lacks(replica, replica.lacking))
        return captured

    def _note_old(self, moments: Mapping[str, float | None]) -> None:
        """Note in the index that writes with old versions are about to be published.

        If the broker then loses them, they are published again, although their versions are older
        than the loss.
        """
        now = time.time()
        oldest = min((m for m in moments.values() if m is not None), default=now)
        if oldest > now - _OLD:
            return
        before = self._oldest
        if before.at < now - _FORGET_OLD:
            before = _OldWrites()
        if oldest < before.moment or now - before.at > _OLD:
            self._oldest = _OldWrites(now, min(oldest, before.moment))
            self._index.save_mark(_OLDEST, json.dumps(asdict(self._oldest)))

    def _reading(self, type: str) -> Reading:
        now = self._monotonic()
        read_at, reading = self._readings.get(type, (0.0, None))
        if reading is None or now - read_at > _READ_NOTES_EVERY:
            reading = self._capture.reading(type, notice=self._notice)
            self._readings[type] = (now, reading)
        return reading

    # -- all records -------------------------------------------------------------------------------

    @property
    def _is_copying(self) -> bool:
        return bool(self.copies) and self._monotonic() >= self._copy_due

    def _note_whole(self, reasons: Mapping[str, str]) -> None:
        """Note in the index that all records of these types must be read, from the start."""
        for type, reason in reasons.items():
            self.copies[type] = Copy(reason)
            self._observer.whole(type, reason)
            if type == self._copying:
                self._slices = None
        self._save_copies(reasons)

    def _save_copies(self, types: Iterable[str]) -> None:
        copies = {type: self.copies.get(type) for type in types}
        self._index.save_marks(
            {
                f"{_WHOLE}{type}": "" if copy is None else json.dumps(asdict(copy))
                for type, copy in copies.items()
            }
        )

    def _copy_slice(self) -> int:
        """Read one slice of a type all of whose records must be read. Return as ``step``."""
        if self._slices is None:
            self._copying = next(iter(self.copies))
            self._slices = self._copy(self._copying)
        type, began = self._copying, self._monotonic()
        copy = self.copies[type]
        done = copy.done
        try:
            found = next(self._slices, None)
        except Exception as error:
            self._slices = None
            if _concerns_store(error):
                raise
            if isinstance(error, SuspiciousReadError):
                # All records that are there were read.
                self._end_copy(type)
            self._fail(type, error)
            return 0
        if found is None:
            self._end_copy(type)
            self._observer.cleared(type)
            return 0
        copy.seconds += self._monotonic() - began
        if found:
            self._flush()
            self._observer.captured(type, len(found), None)
        if copy.done > done:
            self._save_copies([type])
            if self._rate is not None:
                self._copy_due = self._monotonic() + self._rate.take(copy.done - done)
        return len(found)

    def _copy(self, type: str) -> Iterator[list[Change]]:
        copy, replica = self.copies[type], self._replicas[type]
        copy.total = replica.count()

        def reached(key: str, count: int) -> None:
            copy.done += count
            if replica.accessor.resumable:
                copy.after = key

        if not copy.after:
            copy.done, copy.seconds = 0, 0.0
        return self._capture.search(
            replica,
            self._publisher.encode,
            whole_every=0.0,
            deletes=self._deletes,
            # Each unreadable record is told once, by the notice.
            unreadable=_ignore,
            notice=self._notice,
            after=copy.after,
            reached=reached,
        )

    def _end_copy(self, type: str) -> None:
        self._slices = None
        del self.copies[type]
        self._save_copies([type])

    def _fail(self, type: str, error: Exception) -> None:
        """Note that records of a type could not be captured, so that all are read later."""
        self._observer.blocked(type, error)
        if not isinstance(error, SuspiciousReadError):
            self.copies[type] = Copy(f"a capture failed: {error}")
            self._save_copies([type])
            self._copy_due = self._monotonic() + _REPEAT_FAILED
            if type == self._copying:
                self._slices = None


def mark_name(source: ChangeSource) -> str:
    """Return the name of the mark in the index that says how far a source was read."""
    return f"{_MARK}{source.kind}"


def saved_copies(index: Index) -> dict[str, Copy]:
    """Return the reads of all records that are not done, by record type, as the index has them."""
    saved = index.marks(_WHOLE)
    return {name.removeprefix(_WHOLE): Copy(**json.loads(text)) for name, text in saved.items()}


def saved_oldest(index: Index) -> _OldWrites:
    """Return what the index knows of writes that were captured long after their commit."""
    text = index.load_mark(_OLDEST)
    return _OldWrites(**json.loads(text)) if text else _OldWrites()


def since_with_old(index: Index, since: float) -> float:
    """Return the time of the oldest version that a store may have published since a time.

    A write that is captured long after its commit has the version of its commit.
    """
    oldest = saved_oldest(index)
    return min(since, oldest.moment) if oldest.at >= since - _OLD else since


def _ignore(error: RecordError) -> None:
    """Do nothing: the follower's notice has told the error."""


def _concerns_store(error: Exception) -> bool:
    """Return whether ``error`` concerns the whole store or the broker, not one record type."""
    return is_retryable(error) and not isinstance(error, DependencyError)
